package server

import (
	"context"
	"errors"
	"time"

	"github.com/coreos/go-semver/semver"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// maintenanceServer is the gRPC Maintenance service.
type maintenanceServer struct {
	*Server
	pb.UnsafeMaintenanceServer // a method that is new in etcd fails to compile
}

// Status describes the member. Without a cluster, positions of the log stand
// for raft's indices.
func (s *maintenanceServer) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	position := uint64(s.store.Position())
	size := s.store.Size()
	resp := &pb.StatusResponse{
		Header:           s.currentHeader(),
		Version:          s.cfg.Version,
		DbSize:           size.Total,
		DbSizeInUse:      size.InUse,
		DbSizeQuota:      s.cfg.QuotaBytes,
		Leader:           s.cfg.MemberID,
		RaftIndex:        position,
		RaftAppliedIndex: position,
		RaftTerm:         s.cfg.Term(),
		StorageVersion:   storageVersion,
		DowngradeInfo:    &pb.DowngradeInfo{},
	}
	if c := s.cfg.Cluster; c != nil {
		leader, _ := c.Leader()
		resp.Leader = leader.ID
		resp.RaftIndex, resp.RaftAppliedIndex = c.Progress()
		resp.IsLearner, _ = c.Learner()
	}
	if _, ok := s.cfg.Leader(); !ok {
		resp.Leader = 0
		resp.Errors = append(resp.Errors, rpctypes.ErrNoLeader.Error())
	}
	for _, alarm := range s.store.Alarms() {
		resp.Errors = append(resp.Errors, alarm.String())
	}
	return resp, nil
}

func (s *maintenanceServer) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	if _, ok := pb.AlarmRequest_AlarmAction_name[int32(r.Action)]; !ok {
		return nil, status.Errorf(codes.InvalidArgument, "keelson: there is no alarm action %d", r.Action)
	}
	bounded, cancel := s.bound(ctx)
	defer cancel()
	resp, err := s.store.Alarm(bounded, r)
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	if resp.Header == nil || resp.Header.Revision == 0 {
		resp.Header = s.currentHeader()
	}
	s.fill(resp.Header)
	return resp, nil
}

// Defragment waits as long as the client does, and answers without a header,
// as etcd does.
func (s *maintenanceServer) Defragment(ctx context.Context, _ *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	start := time.Now()
	before := s.store.Size()
	s.log.WithField("bytes", before.Total).Info("defragmentation starts")
	if err := s.store.Defragment(ctx); err != nil {
		s.log.WithError(err).Warn("defragmentation failed")
		return nil, toStatus(ctx, err)
	}
	s.log.WithField("bytes", s.store.Size().Total).WithField("took", time.Since(start).Round(time.Millisecond).String()).Info("defragmentation finished")
	return &pb.DefragmentResponse{}, nil
}

func (s *maintenanceServer) Hash(ctx context.Context, _ *pb.HashRequest) (*pb.HashResponse, error) {
	hash, err := s.store.Hash(ctx)
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	return &pb.HashResponse{Header: s.currentHeader(), Hash: hash}, nil
}

func (s *maintenanceServer) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	hash, err := s.store.HashKV(ctx, r.Revision)
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	return &pb.HashKVResponse{
		Header:          s.header(hash.Revision),
		Hash:            hash.Hash,
		HashRevision:    hash.HashRevision,
		CompactRevision: hash.CompactRevision,
	}, nil
}

// MoveLeader is for the leader alone. Without other nodes it succeeds when this
// one is to be it.
func (s *maintenanceServer) MoveLeader(ctx context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	if c := s.cfg.Cluster; c != nil {
		if leader, _ := c.Leader(); !leader.Here {
			return nil, rpctypes.ErrGRPCNotLeader
		}
		for _, m := range c.Members() {
			if m.ID != r.TargetID || m.IsLearner {
				continue
			}
			bounded, cancel := s.bound(ctx)
			defer cancel()
			err := c.MoveLeader(bounded, r.TargetID)
			if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
				return nil, errTransferTimeout
			}
			if err != nil {
				return nil, toStatus(ctx, err)
			}
			return &pb.MoveLeaderResponse{}, nil
		}
		return nil, rpctypes.ErrGRPCBadLeaderTransferee
	}
	if r.TargetID != s.cfg.MemberID {
		return nil, rpctypes.ErrGRPCBadLeaderTransferee
	}
	return &pb.MoveLeaderResponse{}, nil
}

// Downgrade refuses what etcd refuses, with its errors, and finds nothing to
// cancel, as etcd does. What etcd would do is unimplemented.
func (s *maintenanceServer) Downgrade(_ context.Context, r *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	switch r.Action {
	case pb.DowngradeRequest_CANCEL:
		return &pb.DowngradeResponse{Header: s.currentHeader(), Version: minorVersion(s.cfg.Version)}, nil
	case pb.DowngradeRequest_VALIDATE, pb.DowngradeRequest_ENABLE:
	default:
		return nil, status.Error(codes.Unknown, "etcdserver: unknown method")
	}
	target, err := semver.NewVersion(r.Version)
	if err != nil {
		target, err = semver.NewVersion(r.Version + ".0")
	}
	if err != nil {
		return nil, rpctypes.ErrGRPCWrongDowngradeVersionFormat
	}
	from, err := semver.NewVersion(s.cfg.Version)
	if err != nil || target.Major != from.Major || target.Minor != from.Minor-1 {
		return nil, rpctypes.ErrGRPCInvalidDowngradeTargetVersion
	}
	return nil, unimplemented("downgrades are not supported; install an older keelson if its release notes allow it")
}
