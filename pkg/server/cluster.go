package server

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/types"
)

// clusterServer is the gRPC Cluster service of a single member.
type clusterServer struct {
	*Server
	pb.UnsafeClusterServer // a method that is new in etcd fails to compile
}

// MemberList names this member. The header has no revision, as in etcd.
func (s *clusterServer) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	if r.Linearizable {
		if err := s.fence(ctx); err != nil {
			return nil, err
		}
	}
	return &pb.MemberListResponse{
		Header: s.header(0),
		Members: []*pb.Member{{
			ID:         s.cfg.MemberID,
			Name:       s.cfg.Name,
			PeerURLs:   s.cfg.PeerURLs,
			ClientURLs: s.cfg.ClientURLs,
		}},
	}, nil
}

const singleMember = "this server runs without peers: its only member cannot be "

func (s *clusterServer) MemberAdd(_ context.Context, r *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	if _, err := types.NewURLs(r.PeerURLs); err != nil {
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
	return nil, unimplemented("this server runs without peers: members cannot be added")
}

func (s *clusterServer) MemberRemove(_ context.Context, r *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	if r.ID != s.cfg.MemberID {
		return nil, rpctypes.ErrGRPCMemberNotFound
	}
	return nil, unimplemented(singleMember + "removed")
}

func (s *clusterServer) MemberUpdate(_ context.Context, r *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	if r.ID != s.cfg.MemberID {
		return nil, rpctypes.ErrGRPCMemberNotFound
	}
	return nil, unimplemented(singleMember + "given other peer URLs")
}

func (s *clusterServer) MemberPromote(_ context.Context, r *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	if r.ID != s.cfg.MemberID {
		return nil, rpctypes.ErrGRPCMemberNotFound
	}
	return nil, rpctypes.ErrGRPCMemberNotLearner
}
