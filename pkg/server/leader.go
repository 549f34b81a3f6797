package server

import (
	"context"
	"errors"
	"strings"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// turnAway refuses what this node does not answer as it is now: as a learner,
// or to a client that requires a leader where there is none.
func (s *Server) turnAway(ctx context.Context, method string, req any) error {
	if err := s.forLearner(method, req); err != nil {
		return err
	}
	if !requiresLeader(ctx) {
		return nil
	}
	if _, ok := s.cfg.Leader(); !ok {
		return rpctypes.ErrGRPCNoLeader
	}
	return nil
}

// requiresLeader says whether the client wants an answer only with a leader.
func requiresLeader(ctx context.Context) bool {
	v := metadata.ValueFromIncomingContext(ctx, rpctypes.MetadataRequireLeaderKey)
	return len(v) > 0 && v[0] == rpctypes.MetadataHasLeader
}

// whileLed serves a stream and, if its client requires a leader, ends it when
// the leader is lost.
func (s *Server) whileLed(stream grpc.ServerStream, serve func(grpc.ServerStream) error) error {
	if !requiresLeader(stream.Context()) {
		return serve(stream)
	}
	lost, ok := s.cfg.Leader()
	if !ok {
		return rpctypes.ErrGRPCNoLeader
	}
	if lost == nil {
		return serve(stream)
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel(nil)
	watching.Go(func() {
		select {
		case <-lost:
			cancel(rpctypes.ErrGRPCNoLeader)
		case <-ctx.Done():
		}
	})
	err := serve(ledStream{stream, ctx})
	if err != nil && errors.Is(context.Cause(ctx), rpctypes.ErrGRPCNoLeader) {
		return rpctypes.ErrGRPCNoLeader
	}
	return err
}

// ledStream is a stream with a context that ends with the leader.
type ledStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (l ledStream) Context() context.Context { return l.ctx }

// ledSince reports whether this node has led since term, as far as it knows;
// one that is on its own has.
func (s *Server) ledSince(term uint64) bool {
	if s.cfg.Cluster == nil {
		return true
	}
	leader, _ := s.cfg.Cluster.Leader()
	return leader.Here && s.cfg.Term() == term
}

// forLearner refuses what a learner does not answer, as etcd does: it may be
// far behind. Clients of a node that may be none any more try again.
func (s *Server) forLearner(method string, req any) error {
	if s.cfg.Cluster == nil {
		return nil
	}
	learner, sure := s.cfg.Cluster.Learner()
	if !learner || !strings.HasPrefix(method, "/etcdserverpb.") && !strings.HasPrefix(method, "/v3") {
		return nil
	}
	switch r := req.(type) {
	case *pb.StatusRequest:
		return nil
	case *pb.RangeRequest:
		if r.Serializable {
			return nil
		}
	}
	if method == pb.Maintenance_Snapshot_FullMethodName {
		return nil
	}
	if !sure {
		return rpctypes.ErrGRPCNoLeader
	}
	return rpctypes.ErrGRPCNotSupportedForLearner
}
