package embed

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/store"
)

// Another node, which reads all of its log for the hash, is waited for hashFactor
// times as long as this one takes, and hashPatience more, but not beyond
// hashTimeout: while one hangs the others may compact, and are not comparable then.
const (
	hashPatience = 30 * time.Second
	hashFactor   = 10
	hashTimeout  = 5 * time.Minute
)

// patience is how long another node is waited for if this one took so long.
func patience(took time.Duration) time.Duration {
	return min(hashPatience+hashFactor*took, hashTimeout)
}

// compareOften compares the data of all nodes while this one leads.
func (c *cluster) compareOften(ctx context.Context) {
	ticker := time.NewTicker(c.set.CorruptCheckTime)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if !c.newest().Status().Leads {
			continue
		}
		if err := c.compare(ctx); err != nil && ctx.Err() == nil {
			c.log.WithError(err).Warn("the data of the nodes could not be compared; it will be tried again")
		}
	}
}

// errDamaged: a node has found its data damaged, and said in its log where.
var errDamaged = errors.New("its data is damaged: its log says where")

// compare raises the CORRUPT alarm for the nodes whose data is damaged, or not
// what most of those have that answer. As in etcd nobody serves keys then until
// somebody has seen to it and disarms the alarm. If this node's data is damaged
// the others are compared by the next leader; where there are no others, what is
// not damaged is served on.
func (c *cluster) compare(ctx context.Context) error {
	g, err := c.backend.generation(ctx)
	if err != nil {
		return err
	}
	revision, _ := g.store.Revision()
	start := time.Now()
	own, err := c.ownHash(ctx, g, revision)
	limit := patience(time.Since(start))
	if errors.Is(err, errDamaged) && len(c.newest().Members().Members) > 1 {
		return errors.Join(c.alarm(ctx, g, c.id.Node, err), c.newest().HandOver(ctx))
	}
	if err != nil {
		return err
	}
	having := map[uint32][]uint64{own.Hash: {c.id.Node}} // nodes by their hash
	for _, m := range c.newest().Members().Members {
		if m.ID == c.id.Node {
			continue
		}
		hash, err := c.hashOf(ctx, m.ID, own, limit)
		if errors.Is(err, errDamaged) {
			if err := c.alarm(ctx, g, m.ID, err); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			c.uncompared.Add(1)
			c.log.WithError(err).WithField("node", fmt.Sprintf("%x", m.ID)).Warn("its data is not compared; it will be tried again")
			continue
		}
		having[hash] = append(having[hash], m.ID)
	}
	most := own.Hash
	for hash, nodes := range having {
		if len(nodes) > len(having[most]) {
			most = hash
		}
	}
	for hash, nodes := range having {
		if hash == most {
			continue
		}
		for _, id := range nodes {
			if err := c.alarm(ctx, g, id, fmt.Errorf("its data at revision %d is not that of the others", revision)); err != nil {
				return err
			}
		}
	}
	return nil
}

// alarm raises the CORRUPT alarm for node id.
func (c *cluster) alarm(ctx context.Context, g *generation, id uint64, why error) error {
	c.log.WithError(why).WithField("node", fmt.Sprintf("%x", id)).
		Error("keys are not served any more: remove this node, add it again with an empty data directory, and disarm the alarm")
	_, err := g.store.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: id, Alarm: pb.AlarmType_CORRUPT})
	return err
}

// ownHash is this node's hash at revision, or errDamaged.
func (c *cluster) ownHash(ctx context.Context, g *generation, revision int64) (store.HashKV, error) {
	hash, err := g.store.HashKV(ctx, revision)
	if errors.Is(err, eventlog.ErrCorrupt) {
		c.log.WithError(err).Error("the data of this node is damaged")
		return hash, errDamaged
	}
	return hash, err
}

// damagedRevision is the HashRevision of a node that cannot read its data.
const damagedRevision = -1

// hashMethod asks a node for a hash of its data at a revision, once it has all
// that is committed. Unlike clients, nodes ask learners, too.
const hashMethod = "/" + hashService + "/HashKV"

const hashService = "keelson.embed.v1.Data"

// serveHash answers the others.
func (c *cluster) serveHash(s grpc.ServiceRegistrar) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: hashService,
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "HashKV", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			request := new(pb.HashKVRequest)
			if err := decode(request); err != nil {
				return nil, err
			}
			return c.hash(ctx, request.Revision)
		}}},
	}, c)
}

// hash returns this node's hash at revision, one of damagedRevision, or an empty one
// if there is no such revision although the node has all that is committed.
func (c *cluster) hash(ctx context.Context, revision int64) (*pb.HashKVResponse, error) {
	g, err := c.backend.generation(ctx)
	if err != nil {
		return nil, err
	}
	if err := g.store.Fence(ctx); err != nil {
		return nil, err
	}
	hash, err := c.ownHash(ctx, g, revision)
	switch {
	case errors.Is(err, errDamaged):
		return &pb.HashKVResponse{HashRevision: damagedRevision}, nil
	case errors.Is(err, store.ErrFutureRev):
		return new(pb.HashKVResponse), nil
	}
	return &pb.HashKVResponse{Hash: hash.Hash, HashRevision: hash.HashRevision, CompactRevision: hash.CompactRevision}, err
}

// hashOf asks node id for its hash of what own is of, and waits for it until limit.
// An error but errDamaged means that the two cannot be compared.
func (c *cluster) hashOf(ctx context.Context, id uint64, own store.HashKV, limit time.Duration) (uint32, error) {
	conn := c.peers.Conn(id)
	if conn == nil {
		return 0, errors.New("there is no connection")
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	hash := new(pb.HashKVResponse)
	if err := conn.Invoke(ctx, hashMethod, &pb.HashKVRequest{Revision: own.HashRevision}, hash); err != nil {
		return 0, late(ctx, limit, err)
	}
	switch {
	case hash.HashRevision == damagedRevision:
		return 0, errDamaged
	case hash.HashRevision == 0: // it has applied the same, and has not the same
		return ^own.Hash, nil
	case hash.CompactRevision != own.CompactRevision:
		return 0, fmt.Errorf("it is compacted at %d, this node at %d", hash.CompactRevision, own.CompactRevision)
	}
	return hash.Hash, nil
}
