package server

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/pkg/lease"
)

// Cluster is what the services need of the nodes of a cluster. Errors are
// package raftlog's.
type Cluster interface {
	// Members are as of what this node has applied.
	Members() []*pb.Member
	AddMember(ctx context.Context, peerURLs []string, learner bool) (*pb.Member, error)
	RemoveMember(ctx context.Context, id uint64) error
	UpdateMember(ctx context.Context, id uint64, peerURLs []string) error
	PromoteMember(ctx context.Context, id uint64) error
	MoveLeader(ctx context.Context, id uint64) error

	// Leader returns who leads, and a channel that is closed when that may have
	// changed.
	Leader() (Leader, <-chan struct{})

	// Progress is the index of the newest entry of the Raft log that this node knows
	// to be committed, and of the newest one that it has applied.
	Progress() (committed, applied uint64)

	// Learner says whether this node is one, and whether that is sure: it has
	// applied what the cluster had committed when it started, such as its
	// promotion. etcd answers no client before.
	Learner() (learner, sure bool)

	// Reach returns once local reads show revision.
	Reach(ctx context.Context, revision int64) error
}

// Leader is the leader of a cluster as a node knows it.
type Leader struct {
	ID   uint64           // 0: there is none
	Here bool             // it is this node
	Conn *grpc.ClientConn // to it; nil if there is none
	Seen uint64           // how many leaders this node has seen
}

// onLeader are the methods that the leader answers, with what makes their
// responses. Others are answered by every node for itself.
var onLeader = map[string]func() any{
	pb.KV_Put_FullMethodName:                func() any { return new(pb.PutResponse) },
	pb.KV_DeleteRange_FullMethodName:        func() any { return new(pb.DeleteRangeResponse) },
	pb.KV_Txn_FullMethodName:                func() any { return new(pb.TxnResponse) },
	pb.KV_Compact_FullMethodName:            func() any { return new(pb.CompactionResponse) },
	pb.Lease_LeaseGrant_FullMethodName:      func() any { return new(pb.LeaseGrantResponse) },
	pb.Lease_LeaseRevoke_FullMethodName:     func() any { return new(pb.LeaseRevokeResponse) },
	pb.Lease_LeaseTimeToLive_FullMethodName: func() any { return new(pb.LeaseTimeToLiveResponse) },
	pb.Maintenance_Alarm_FullMethodName:     func() any { return new(pb.AlarmResponse) },
	pb.Cluster_MemberAdd_FullMethodName:     func() any { return new(pb.MemberAddResponse) },
	pb.Cluster_MemberRemove_FullMethodName:  func() any { return new(pb.MemberRemoveResponse) },
	pb.Cluster_MemberUpdate_FullMethodName:  func() any { return new(pb.MemberUpdateResponse) },
	pb.Cluster_MemberPromote_FullMethodName: func() any { return new(pb.MemberPromoteResponse) },
}

// forwardedKey marks a request that a node passes on: it is not passed on
// again, by a node that does not lead any more.
const forwardedKey = "keelson-forwarded"

// leaderPause is after how long a request that found no leader tries again,
// if it hears of no other one before.
const leaderPause = 100 * time.Millisecond

// throughLeader is handler, but on another node than the leader it passes the
// requests on that only the leader answers. While there is no leader, or it is changing,
// requests wait; what was refused for that was not done.
func (s *Server) throughLeader(method string, handler grpc.UnaryHandler) grpc.UnaryHandler {
	response := onLeader[method]
	if s.cfg.Cluster == nil {
		return handler
	}
	return func(ctx context.Context, req any) (any, error) {
		if response == nil {
			return handler(ctx, req)
		}
		if txn, ok := req.(*pb.TxnRequest); ok {
			if _, only := onlyReads(txn); only {
				return handler(ctx, req)
			}
		}
		begun := time.Now()
		for {
			leader, changed := s.cfg.Cluster.Leader()
			resp, err := any(nil), rpctypes.ErrGRPCNoLeader
			switch {
			case leader.Here:
				resp, err = handler(ctx, req)
			case isForwarded(ctx):
				return nil, err
			case leader.Conn != nil:
				resp, err = s.forward(ctx, leader, method, req, response())
			}
			if !errors.Is(err, rpctypes.ErrGRPCNoLeader) || isForwarded(ctx) {
				return resp, err
			}
			if h, ok := ctx.Value(holdKey{}).(*hold); ok {
				h.release() // others need not wait for this one's leader
			}
			left := s.cfg.RequestTimeout - time.Since(begun)
			if left <= 0 {
				return nil, err
			}
			select {
			case <-changed:
			case <-time.After(min(left, leaderPause)):
			case <-ctx.Done():
				return nil, toStatus(ctx, ctx.Err())
			case <-s.stopping:
				return nil, rpctypes.ErrGRPCStopped
			}
		}
	}
}

func isForwarded(ctx context.Context) bool {
	md, _ := metadata.FromIncomingContext(ctx)
	return len(md.Get(forwardedKey)) > 0
}

// forward lets the leader answer req, and waits until this node shows what it
// did: its clients read their own writes, as serializable as they like.
func (s *Server) forward(ctx context.Context, leader Leader, method string, req, resp any) (any, error) {
	if leader.Conn.GetState() != connectivity.Ready {
		leader.Conn.Connect()
		return nil, rpctypes.ErrGRPCNoLeader // nothing was sent
	}
	l := s.links.to(s, leader)
	if l == nil {
		return nil, rpctypes.ErrGRPCStopped
	}
	var err error
	if kind, together := forwardKind(req); together {
		err = l.call(ctx, kind, req.(proto.Message), resp.(proto.Message))
	} else {
		err = s.forwardAlone(ctx, l, method, req, resp)
	}
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, toStatus(ctx, ctx.Err())
	case isAnswer(err):
		return nil, err
	default:
		return nil, errLeaderFailed
	}
	if h := headerOf(resp); h != nil {
		s.fill(h)
	}
	if takesSpace(method) {
		s.raiseNoSpace(ctx, leader)
	}
	return resp, nil
}

// forwardAlone forwards a request by a call of its own.
func (s *Server) forwardAlone(ctx context.Context, l *link, method string, req, resp any) error {
	calling := ctx
	if !waits(req) {
		var cancel context.CancelFunc
		calling, cancel = context.WithTimeout(ctx, s.cfg.RequestTimeout)
		defer cancel()
	}
	if err := l.invoke(calling, method, req, resp); err != nil {
		return err
	}
	h := headerOf(resp)
	if h == nil {
		return nil
	}
	bounded, cancel := s.bound(ctx)
	defer cancel()
	if s.shows(bounded, method, h.Revision) != nil {
		return rpctypes.ErrGRPCTimeout // it is done: nothing else may be said, or it would be tried again
	}
	return nil
}

// takesSpace reports whether requests of a method may use the quota up.
func takesSpace(method string) bool {
	switch method {
	case pb.KV_Put_FullMethodName, pb.KV_Txn_FullMethodName, pb.Lease_LeaseGrant_FullMethodName:
		return true
	}
	return false
}

// raiseNoSpace raises the alarm if this node has used up its quota, where the
// leader has not: it may have another one.
func (s *Server) raiseNoSpace(ctx context.Context, leader Leader) {
	isNoSpace := func(a *pb.AlarmMember) bool { return a.Alarm == pb.AlarmType_NOSPACE }
	if !s.store.OverQuota() || slices.ContainsFunc(s.store.Alarms(), isNoSpace) {
		return
	}
	_, err := s.forward(context.WithoutCancel(ctx), leader, pb.Maintenance_Alarm_FullMethodName, &pb.AlarmRequest{
		Action: pb.AlarmRequest_ACTIVATE, MemberID: s.cfg.MemberID, Alarm: pb.AlarmType_NOSPACE,
	}, new(pb.AlarmResponse))
	if err != nil {
		s.log.WithError(err).Warn("the quota is used up, but the alarm could not be raised; trying again with the next write")
	}
}

// shows waits until this node shows what the leader has answered at revision.
func (s *Server) shows(ctx context.Context, method string, revision int64) error {
	switch method {
	case pb.Lease_LeaseGrant_FullMethodName, pb.Lease_LeaseRevoke_FullMethodName,
		pb.KV_Compact_FullMethodName, pb.Maintenance_Alarm_FullMethodName:
		return s.store.Fence(ctx) // they do not move the revision
	}
	return s.cfg.Cluster.Reach(ctx, revision)
}

// waits reports whether a request may take as long as its client likes.
func waits(req any) bool {
	r, ok := req.(*pb.CompactionRequest)
	return ok && r.Physical
}

// through is call for a request that a service makes itself: it goes the way of
// those of clients.
func through[Q, R any](ctx context.Context, s *Server, method string, req *Q, call func(context.Context, *Q) (*R, error)) (*R, error) {
	resp, err := s.throughLeader(method, func(ctx context.Context, req any) (any, error) {
		return call(ctx, req.(*Q))
	})(ctx, req)
	if err != nil {
		return nil, err
	}
	return resp.(*R), nil
}

// isAnswer reports whether err is what the leader said, and not what became of
// the way there or back.
func isAnswer(err error) bool {
	var known rpctypes.EtcdError
	if errors.As(rpctypes.Error(err), &known) {
		return true
	}
	switch codeOf(err) {
	case codes.Unavailable, codes.Internal, codes.Canceled, codes.Aborted, codes.DeadlineExceeded:
		return false
	case codes.ResourceExhausted:
		return strings.Contains(err.Error(), "keelson: ")
	}
	return true
}

// renewals renews leases for one client, through the leader where that is
// another node.
type renewals struct {
	server *Server
	leader uint64 // that stream leads to
	stream pb.Lease_LeaseKeepAliveClient
	cancel context.CancelFunc
}

// renew is Lessor.Renew, wherever the lessor is that counts.
func (r *renewals) renew(ctx context.Context, id int64) (int64, error) {
	s := r.server
	if s.cfg.Cluster == nil {
		return s.cfg.Lessor.Renew(ctx, id)
	}
	limit := time.NewTimer(s.cfg.RequestTimeout)
	defer limit.Stop()
	for {
		leader, changed := s.cfg.Cluster.Leader()
		ttl, err := int64(0), lease.ErrNotPrimary
		switch {
		case leader.Here:
			ttl, err = s.renewAsLeader(ctx, id)
		case isForwarded(ctx):
			return 0, err
		case leader.Conn != nil:
			ttl, err = r.forward(ctx, leader, changed, id)
		}
		if err == nil || errors.Is(err, lease.ErrNotFound) || leader.Here && !errors.Is(err, lease.ErrNotPrimary) {
			return ttl, err
		}
		select { // to renew twice does no harm
		case <-changed:
		case <-time.After(leaderPause):
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-limit.C:
			return 0, lease.ErrNotPrimary
		}
	}
}

// renewAsLeader renews a lease and makes sure that this node led when it did:
// one that was paused may have been replaced, and the lease be revoked soon.
func (s *Server) renewAsLeader(ctx context.Context, id int64) (int64, error) {
	term := s.cfg.Term()
	ttl, err := s.cfg.Lessor.Renew(ctx, id)
	if err != nil && !errors.Is(err, lease.ErrNotFound) {
		return 0, err
	}
	bounded, cancel := s.bound(ctx)
	defer cancel()
	if err := s.store.Fence(bounded); err != nil {
		return 0, err
	}
	if !s.ledSince(term) {
		return 0, lease.ErrNotPrimary
	}
	if err != nil { // a grant may have been on its way
		return s.cfg.Lessor.Renew(ctx, id)
	}
	return ttl, nil
}

// forward lets the leader renew, as long as it is the leader.
func (r *renewals) forward(ctx context.Context, leader Leader, changed <-chan struct{}, id int64) (int64, error) {
	if r.stream == nil || r.leader != leader.ID {
		r.end()
		ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, forwardedKey, ""))
		stream, err := pb.NewLeaseClient(leader.Conn).LeaseKeepAlive(ctx)
		if err != nil {
			cancel()
			return 0, err
		}
		r.leader, r.stream, r.cancel = leader.ID, stream, cancel
	}
	type answer struct {
		resp *pb.LeaseKeepAliveResponse
		err  error
	}
	answers := make(chan answer, 1)
	go func(stream pb.Lease_LeaseKeepAliveClient) {
		_ = stream.Send(&pb.LeaseKeepAliveRequest{ID: id}) // Recv says why it failed
		resp, err := stream.Recv()
		answers <- answer{resp, err}
	}(r.stream)
	limit := time.NewTimer(r.server.cfg.RequestTimeout)
	defer limit.Stop()
	err := lease.ErrNotPrimary
	select {
	case a := <-answers:
		if a.err == nil && a.resp.TTL <= 0 {
			return 0, lease.ErrNotFound
		}
		if err = a.err; err == nil {
			return a.resp.TTL, nil
		}
	case <-changed: // a leader that is paused does not answer
	case <-limit.C:
	}
	r.end()
	return 0, err
}

func (r *renewals) end() {
	if r.stream != nil {
		r.cancel()
		r.stream = nil
	}
}
