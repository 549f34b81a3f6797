package server

import (
	"context"
	"errors"
	"io"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/keelson-io/keelson/pkg/lease"
)

// leaseServer is the gRPC Lease service.
type leaseServer struct {
	*Server
	pb.UnsafeLeaseServer // a method that is new in etcd fails to compile
}

func (s *leaseServer) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	if r.TTL > lease.MaxTTL {
		return nil, rpctypes.ErrGRPCLeaseTTLTooLarge
	}
	bounded, cancel := s.bound(ctx)
	defer cancel()
	granted, err := s.store.LeaseGrant(bounded, r.ID, max(r.TTL, s.cfg.MinLeaseTTL))
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	return &pb.LeaseGrantResponse{Header: s.currentHeader(), ID: granted.ID, TTL: granted.TTL}, nil
}

func (s *leaseServer) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	bounded, cancel := s.bound(ctx)
	defer cancel()
	if err := s.store.LeaseRevoke(bounded, r.ID); err != nil {
		return nil, toStatus(ctx, err)
	}
	return &pb.LeaseRevokeResponse{Header: s.currentHeader()}, nil
}

// LeaseKeepAlive answers each request with one response, in order.
func (s *leaseServer) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	// Not waited for: Recv returns only after gRPC has seen this handler
	// return, which then ends the context of Renew as well.
	done := make(chan error, 1)
	go func() { done <- s.keepAlive(stream) }()
	select {
	case err := <-done:
		return err
	case <-stream.Context().Done():
		return toStatus(stream.Context(), stream.Context().Err())
	case <-s.stopping:
		return rpctypes.ErrGRPCStopped
	}
}

func (s *leaseServer) keepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	ctx := stream.Context()
	renewals := &renewals{server: s.Server}
	defer renewals.end()
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		// The revision is taken before the renewal: a client must not see a
		// success at a revision at which the lease is already revoked.
		resp := &pb.LeaseKeepAliveResponse{Header: s.currentHeader(), ID: r.ID}
		resp.TTL, err = renewals.renew(ctx, r.ID)
		if errors.Is(err, lease.ErrNotFound) {
			resp.TTL = 0
		} else if err != nil {
			return toStatus(ctx, err)
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

// LeaseTimeToLive shows what the lessor has that counts: in a cluster this node
// must have led before and after.
func (s *leaseServer) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	term := s.cfg.Term()
	if err := s.fence(ctx); err != nil {
		return nil, err
	}
	resp := &pb.LeaseTimeToLiveResponse{Header: s.currentHeader(), ID: r.ID}
	bounded, cancel := s.bound(ctx)
	defer cancel()
	l, ok, err := s.cfg.Lessor.TimeToLive(bounded, r.ID)
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	if s.cfg.Cluster != nil {
		if err := s.fence(ctx); err != nil {
			return nil, err
		}
	}
	if !s.ledSince(term) {
		return nil, rpctypes.ErrGRPCNoLeader
	}
	if !ok {
		resp.TTL = -1
		return resp, nil
	}
	// Never negative: −1 would say that the lease is unknown.
	resp.TTL = int64(max(0, l.Remaining) / time.Second)
	resp.GrantedTTL = l.TTL
	if r.Keys {
		resp.Keys = s.store.LeaseKeys(r.ID)
	}
	return resp, nil
}

func (s *leaseServer) LeaseLeases(context.Context, *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	resp := &pb.LeaseLeasesResponse{Header: s.currentHeader()}
	for _, l := range s.cfg.Lessor.List() {
		resp.Leases = append(resp.Leases, &pb.LeaseStatus{ID: l.ID})
	}
	return resp, nil
}
