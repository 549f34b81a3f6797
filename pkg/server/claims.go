package server

import (
	"context"
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"

	"github.com/keelson-io/keelson/pkg/watch"
)

// claims is what the Lock and Election services share. A claim is a key
//
//	<name>/<lease in hexadecimal>
//
// and the oldest claim to a name holds it: clients of etcd's own concurrency
// package make and read the same keys, so that the two may be mixed.
type claims struct {
	*Server
	kv    *kvServer
	lease *leaseServer
}

func newClaims(s *Server) claims {
	return claims{s, &kvServer{Server: s}, &leaseServer{Server: s}}
}

// txn and delete change something: in a cluster the leader does it. To wait, and
// to read, is for every node.
func (s *claims) txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	return through(ctx, s.Server, pb.KV_Txn_FullMethodName, r, s.kv.Txn)
}

func (s *claims) delete(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	return through(ctx, s.Server, pb.KV_DeleteRange_FullMethodName, r, s.kv.DeleteRange)
}

// claimTTL is the time to live of the lease that is granted to a caller
// without one, in seconds.
const claimTTL = 60

// The errors of etcd's concurrency package, in its words. Clients get them
// with the code Unknown, and those of etcd itself too, but for Unavailable: etcd's services sit on
// a client, whose errors have no code for gRPC.
var (
	errSessionExpired = errors.New("mutex: session is expired")
	errNotLeader      = errors.New("election: not leader")
	errNoLeader       = errors.New("election: no leader")
	errNoLeaderField  = errors.New(`"leader" field must be provided`)
)

// errCompacted: what should be followed from there on is compacted.
var errCompacted = errors.New("the revision to follow from is compacted")

// claim is a key that was made or found.
type claim struct {
	name, key []byte
	lease     int64
	revision  int64 // at which it was created
	value     []byte
	made      bool // by this call
	first     bool // no claim is older
	header    *pb.ResponseHeader
}

// span returns the range of all claims to name.
func span(name []byte) (key, end []byte) {
	key = append(append(make([]byte, 0, len(name)+1), name...), '/')
	end = append([]byte(nil), key...)
	end[len(end)-1]++
	return key, end
}

// leaseOr returns lease, or a new one for 0.
func (s *claims) leaseOr(ctx context.Context, lease int64) (int64, error) {
	if lease != 0 {
		return lease, nil
	}
	resp, err := through(ctx, s.Server, pb.Lease_LeaseGrant_FullMethodName, &pb.LeaseGrantRequest{TTL: claimTTL}, s.lease.LeaseGrant)
	if err != nil {
		return 0, err
	}
	return resp.ID, nil
}

// claim queues up for name, if lease has not done so already.
func (s *claims) claim(ctx context.Context, name []byte, lease int64, value []byte) (*claim, error) {
	lease, err := s.leaseOr(ctx, lease)
	if err != nil {
		return nil, err
	}
	prefix, end := span(name)
	key := fmt.Appendf(prefix[:len(prefix):len(prefix)], "%x", lease)
	oldest := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{
		Key: prefix, RangeEnd: end, SortTarget: pb.RangeRequest_CREATE, SortOrder: pb.RangeRequest_ASCEND, Limit: 1,
	}}}
	// Not under ctx: a claim that was made must be known, to be withdrawn if
	// the caller is gone.
	req := &pb.TxnRequest{
		Compare: createdAt(key, 0),
		Success: []*pb.RequestOp{put(key, value, lease), oldest},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}, oldest},
	}
	resp, err := s.txn(context.WithoutCancel(ctx), req)
	for errors.Is(err, rpctypes.ErrGRPCTimeoutDueToLeaderFail) && ctx.Err() == nil {
		resp, err = s.txn(context.WithoutCancel(ctx), req) // to claim twice is to claim once
	}
	if err != nil {
		return nil, err
	}
	c := &claim{name: name, key: key, lease: lease, revision: resp.Header.Revision, value: value, made: resp.Succeeded, header: resp.Header}
	if !c.made {
		kv := resp.Responses[0].GetResponseRange().Kvs[0]
		c.revision, c.value = kv.CreateRevision, kv.Value
	}
	c.first = resp.Responses[1].GetResponseRange().Kvs[0].CreateRevision == c.revision
	if err := ctx.Err(); err != nil {
		if c.made {
			s.withdraw(ctx, c)
		}
		return nil, toStatus(ctx, err)
	}
	return c, nil
}

// withdraw deletes a claim for a caller that will not hear of it any more.
func (s *claims) withdraw(ctx context.Context, c *claim) {
	_, err := s.txn(context.WithoutCancel(ctx), &pb.TxnRequest{
		Compare: createdAt(c.key, c.revision),
		Success: []*pb.RequestOp{del(c.key)},
	})
	if err != nil {
		s.log.WithError(err).WithField("lease", c.lease).Warn("cannot withdraw the claim of a caller that has gone: it stays until its lease ends")
	}
}

// wait waits until every claim that is older than c has ended.
func (s *claims) wait(ctx context.Context, c *claim) error {
	prefix, end := span(c.name)
	for {
		resp, err := s.kv.Range(ctx, &pb.RangeRequest{
			Key: prefix, RangeEnd: end, MaxCreateRevision: c.revision - 1, KeysOnly: true,
			SortTarget: pb.RangeRequest_CREATE, SortOrder: pb.RangeRequest_DESCEND, Limit: 1,
		})
		if err != nil || len(resp.Kvs) == 0 {
			return err
		}
		// The next older one only: each end of a claim wakes one waiter.
		err = s.follow(ctx, resp.Kvs[0].Key, nil, resp.Header.Revision+1, func(r watch.Response) (bool, error) {
			for _, ev := range r.Events {
				if ev.Type == mvccpb.Event_DELETE {
					return true, nil
				}
			}
			return false, nil
		})
		if err != nil && !errors.Is(err, errCompacted) {
			return err
		}
	}
}

// follow shows the changes of [key, end) from revision from on to see, until
// that is done or fails. The error is errCompacted if there is a gap.
func (s *claims) follow(ctx context.Context, key, end []byte, from int64, see func(watch.Response) (done bool, err error)) error {
	stream := s.cfg.Hub.NewStream()
	defer stream.Close()
	stream.Create(watch.Request{Key: key, End: end, StartRevision: from})
	for {
		for resp, ok := stream.Pop(); ok; resp, ok = stream.Pop() {
			if resp.Canceled {
				return errCompacted // nothing else is wrong with the request
			}
			if done, err := see(resp); done || err != nil {
				return err
			}
		}
		select {
		case <-stream.Wake():
		case <-ctx.Done():
			return toStatus(ctx, ctx.Err())
		case <-stream.Done():
			return rpctypes.ErrGRPCStopped
		case <-s.stopping:
			return rpctypes.ErrGRPCStopped
		}
	}
}

// asClient is err as etcd's services give it: from a client that was made
// without gRPC, so that errors of etcd have lost their code.
func asClient(err error) error {
	if codeOf(err) == codes.Unavailable {
		return err // but a caller that should come again, or go elsewhere, is told so
	}
	return rpctypes.Error(err)
}

func createdAt(key []byte, revision int64) []*pb.Compare {
	return []*pb.Compare{{
		Key: key, Target: pb.Compare_CREATE, Result: pb.Compare_EQUAL,
		TargetUnion: &pb.Compare_CreateRevision{CreateRevision: revision},
	}}
}

func put(key, value []byte, lease int64) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: value, Lease: lease}}}
}

func del(key []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key}}}
}
