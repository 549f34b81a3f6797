package server

import (
	"context"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/types"
)

// clusterServer is the gRPC Cluster service. Its headers have no revision, as
// in etcd.
type clusterServer struct {
	*Server
	pb.UnsafeClusterServer // a method that is new in etcd fails to compile
}

// MemberList names the members.
func (s *clusterServer) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	if r.Linearizable {
		if err := s.fence(ctx); err != nil {
			return nil, err
		}
	}
	return &pb.MemberListResponse{Header: s.header(0), Members: s.members()}, nil
}

func (s *clusterServer) members() []*pb.Member {
	if c := s.cfg.Cluster; c != nil {
		return c.Members()
	}
	return []*pb.Member{{ID: s.cfg.MemberID, Name: s.cfg.Name, PeerURLs: s.cfg.PeerURLs, ClientURLs: s.cfg.ClientURLs}}
}

// change makes a change of the members, as long as a request may take.
func (s *clusterServer) change(ctx context.Context, fn func(context.Context) error) (*pb.ResponseHeader, []*pb.Member, error) {
	bounded, cancel := s.bound(ctx)
	defer cancel()
	if err := fn(bounded); err != nil {
		return nil, nil, toStatus(ctx, err)
	}
	return s.header(0), s.members(), nil
}

const singleMember = "this server runs without peers: its only member cannot be "

func (s *clusterServer) MemberAdd(ctx context.Context, r *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	if _, err := types.NewURLs(r.PeerURLs); err != nil {
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
	if c := s.cfg.Cluster; c != nil {
		resp := &pb.MemberAddResponse{}
		var err error
		resp.Header, resp.Members, err = s.change(ctx, func(ctx context.Context) (err error) {
			resp.Member, err = c.AddMember(ctx, r.PeerURLs, r.IsLearner)
			return err
		})
		return resp, err
	}
	return nil, unimplemented("this server runs without peers: members cannot be added")
}

func (s *clusterServer) MemberRemove(ctx context.Context, r *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	if c := s.cfg.Cluster; c != nil {
		resp := &pb.MemberRemoveResponse{}
		var err error
		resp.Header, resp.Members, err = s.change(ctx, func(ctx context.Context) error { return c.RemoveMember(ctx, r.ID) })
		return resp, err
	}
	if r.ID != s.cfg.MemberID {
		return nil, rpctypes.ErrGRPCMemberNotFound
	}
	return nil, unimplemented(singleMember + "removed")
}

func (s *clusterServer) MemberUpdate(ctx context.Context, r *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	if c := s.cfg.Cluster; c != nil {
		if _, err := types.NewURLs(r.PeerURLs); err != nil {
			if slices.ContainsFunc(c.Members(), func(m *pb.Member) bool { return m.ID == r.ID }) {
				return nil, rpctypes.ErrGRPCMemberBadURLs
			}
			return nil, rpctypes.ErrGRPCMemberNotFound
		}
		resp := &pb.MemberUpdateResponse{}
		var err error
		resp.Header, resp.Members, err = s.change(ctx, func(ctx context.Context) error { return c.UpdateMember(ctx, r.ID, r.PeerURLs) })
		return resp, err
	}
	if r.ID != s.cfg.MemberID {
		return nil, rpctypes.ErrGRPCMemberNotFound
	}
	return nil, unimplemented(singleMember + "given other peer URLs")
}

func (s *clusterServer) MemberPromote(ctx context.Context, r *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	if c := s.cfg.Cluster; c != nil {
		resp := &pb.MemberPromoteResponse{}
		var err error
		resp.Header, resp.Members, err = s.change(ctx, func(ctx context.Context) error { return c.PromoteMember(ctx, r.ID) })
		return resp, err
	}
	if r.ID != s.cfg.MemberID {
		return nil, rpctypes.ErrGRPCMemberNotFound
	}
	return nil, rpctypes.ErrGRPCMemberNotLearner
}
