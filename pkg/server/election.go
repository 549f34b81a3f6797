package server

import (
	"bytes"
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"

	"github.com/keelson-io/keelson/pkg/watch"
)

// electionServer is the gRPC Election service.
type electionServer struct {
	claims
	v3electionpb.UnsafeElectionServer // a method that is new in etcd fails to compile
}

// Campaign waits until the lease, or one made for the caller, leads.
func (s *electionServer) Campaign(ctx context.Context, r *v3electionpb.CampaignRequest) (*v3electionpb.CampaignResponse, error) {
	c, err := s.claim(ctx, r.Name, r.Lease, r.Value)
	if err != nil {
		return nil, asClient(err)
	}
	leader := &v3electionpb.LeaderKey{Name: r.Name, Key: c.key, Rev: c.revision, Lease: c.lease}
	if !bytes.Equal(c.value, r.Value) { // an earlier campaign had another
		_, err = s.proclaim(ctx, leader, r.Value)
	}
	if err == nil && !c.first {
		err = s.wait(ctx, c)
	}
	if err != nil {
		s.withdraw(ctx, c)
		return nil, asClient(err)
	}
	return &v3electionpb.CampaignResponse{Header: c.header, Leader: leader}, nil
}

// Proclaim changes the leader's value.
func (s *electionServer) Proclaim(ctx context.Context, r *v3electionpb.ProclaimRequest) (*v3electionpb.ProclaimResponse, error) {
	if r.Leader == nil {
		return nil, errNoLeaderField
	}
	header, err := s.proclaim(ctx, r.Leader, r.Value)
	if err != nil {
		return nil, asClient(err)
	}
	return &v3electionpb.ProclaimResponse{Header: header}, nil
}

func (s *electionServer) proclaim(ctx context.Context, leader *v3electionpb.LeaderKey, value []byte) (*pb.ResponseHeader, error) {
	lease, err := s.leaseOr(ctx, leader.Lease)
	if err != nil {
		return nil, err
	}
	resp, err := s.txn(ctx, &pb.TxnRequest{
		Compare: createdAt(leader.Key, leader.Rev),
		Success: []*pb.RequestOp{put(leader.Key, value, lease)},
	})
	if err != nil {
		return nil, err
	}
	if !resp.Succeeded {
		return nil, errNotLeader
	}
	return resp.Header, nil
}

// Resign gives the leadership up. Who does not have it any more succeeds too.
func (s *electionServer) Resign(ctx context.Context, r *v3electionpb.ResignRequest) (*v3electionpb.ResignResponse, error) {
	if r.Leader == nil {
		return nil, errNoLeaderField
	}
	resp, err := s.txn(ctx, &pb.TxnRequest{
		Compare: createdAt(r.Leader.Key, r.Leader.Rev),
		Success: []*pb.RequestOp{del(r.Leader.Key)},
	})
	if err != nil {
		return nil, asClient(err)
	}
	return &v3electionpb.ResignResponse{Header: resp.Header}, nil
}

// Leader returns who leads now.
func (s *electionServer) Leader(ctx context.Context, r *v3electionpb.LeaderRequest) (*v3electionpb.LeaderResponse, error) {
	resp, err := s.leader(ctx, r.Name)
	if err != nil {
		return nil, asClient(err)
	}
	if len(resp.Kvs) == 0 {
		return nil, errNoLeader
	}
	return &v3electionpb.LeaderResponse{Header: resp.Header, Kv: resp.Kvs[0]}, nil
}

func (s *electionServer) leader(ctx context.Context, name []byte) (*pb.RangeResponse, error) {
	key, end := span(name)
	return s.kv.Range(ctx, &pb.RangeRequest{
		Key: key, RangeEnd: end, SortTarget: pb.RangeRequest_CREATE, SortOrder: pb.RangeRequest_ASCEND, Limit: 1,
	})
}

// Observe sends each leader and what it proclaims, until the caller goes.
func (s *electionServer) Observe(r *v3electionpb.LeaderRequest, stream v3electionpb.Election_ObserveServer) error {
	ctx := stream.Context()
	for {
		now, err := s.nextLeader(ctx, r.Name)
		if err == nil {
			err = stream.Send(now)
		}
		if err == nil {
			err = s.reign(ctx, now, stream.Send)
		}
		// After a gap, who leads now is what counts.
		if err != nil && !errors.Is(err, errCompacted) {
			return asClient(err)
		}
	}
}

// nextLeader waits until somebody leads.
func (s *electionServer) nextLeader(ctx context.Context, name []byte) (*v3electionpb.LeaderResponse, error) {
	resp, err := s.leader(ctx, name)
	if err != nil {
		return nil, err
	}
	if len(resp.Kvs) > 0 {
		return &v3electionpb.LeaderResponse{Header: resp.Header, Kv: resp.Kvs[0]}, nil
	}
	var next *v3electionpb.LeaderResponse
	key, end := span(name)
	err = s.follow(ctx, key, end, resp.Header.Revision+1, func(w watch.Response) (bool, error) {
		for _, ev := range w.Events {
			if ev.Type == mvccpb.Event_PUT {
				next = &v3electionpb.LeaderResponse{Header: s.header(ev.Kv.ModRevision), Kv: ev.Kv}
				return true, nil
			}
		}
		return false, nil
	})
	return next, err
}

// reign sends what the leader proclaims until its claim ends.
func (s *electionServer) reign(ctx context.Context, now *v3electionpb.LeaderResponse, send func(*v3electionpb.LeaderResponse) error) error {
	return s.follow(ctx, now.Kv.Key, nil, now.Header.Revision+1, func(w watch.Response) (bool, error) {
		for _, ev := range w.Events {
			if ev.Type == mvccpb.Event_DELETE {
				return true, nil
			}
			if err := send(&v3electionpb.LeaderResponse{Header: s.header(w.Revision), Kv: ev.Kv}); err != nil {
				return false, err
			}
		}
		return false, nil
	})
}
