package server

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	// etcd's own generated code: a second copy of it, under the same protobuf
	// names, would panic in a program that links etcd as well. The module
	// costs one line of go.mod, and only these packages are linked.
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
)

// lockServer is the gRPC Lock service.
type lockServer struct {
	claims
	v3lockpb.UnsafeLockServer // a method that is new in etcd fails to compile
}

// Lock waits until the lease, or one made for the caller, holds the name.
func (s *lockServer) Lock(ctx context.Context, r *v3lockpb.LockRequest) (*v3lockpb.LockResponse, error) {
	c, err := s.claim(ctx, r.Name, r.Lease, nil)
	if err != nil {
		return nil, asClient(err)
	}
	if c.first {
		return &v3lockpb.LockResponse{Header: c.header, Key: c.key}, nil
	}
	var held *pb.RangeResponse
	if err = s.wait(ctx, c); err == nil {
		held, err = s.kv.Range(ctx, &pb.RangeRequest{Key: c.key})
	}
	if err != nil {
		s.withdraw(ctx, c)
		return nil, asClient(err)
	}
	if len(held.Kvs) == 0 { // the lease ended meanwhile
		return nil, errSessionExpired
	}
	return &v3lockpb.LockResponse{Header: held.Header, Key: c.key}, nil
}

// Unlock deletes a key that Lock returned.
func (s *lockServer) Unlock(ctx context.Context, r *v3lockpb.UnlockRequest) (*v3lockpb.UnlockResponse, error) {
	resp, err := s.delete(ctx, &pb.DeleteRangeRequest{Key: r.Key})
	if err != nil {
		return nil, asClient(err)
	}
	return &v3lockpb.UnlockResponse{Header: resp.Header}, nil
}
