package server

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// leading is a Config.Leader that a test takes away.
type leading struct {
	lost chan struct{}
	gone atomic.Bool
}

func (l *leading) leader() (<-chan struct{}, bool) { return l.lost, !l.gone.Load() }

func startLed(t *testing.T) (*member, *leading) {
	t.Helper()
	l := &leading{lost: make(chan struct{})}
	return startMember(t, memberOptions{config: func(c *Config) { c.Leader = l.leader }}), l
}

func wantLeader(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
}

// TestUnaryNeedsLeader: without a leader, requests that require one are not
// kept waiting, and others are answered.
func TestUnaryNeedsLeader(t *testing.T) {
	m, l := startLed(t)
	ctx := short(t)
	calls := map[string]func(context.Context) error{
		"put": func(ctx context.Context) error {
			_, err := m.kv.Put(ctx, &pb.PutRequest{Key: []byte("a")})
			return err
		},
		"serializable range": func(ctx context.Context) error {
			_, err := m.kv.Range(ctx, &pb.RangeRequest{Key: []byte("a"), Serializable: true})
			return err
		},
		"status": func(ctx context.Context) error {
			_, err := m.maintenance.Status(ctx, &pb.StatusRequest{})
			return err
		},
	}
	for name, call := range calls {
		if err := call(wantLeader(ctx)); err != nil {
			t.Errorf("%s with a leader: %v", name, err)
		}
	}
	m.wantHTTP(t, "/health", 200, `{"health":"true","reason":""}`)
	l.gone.Store(true)
	m.wantHTTP(t, "/health", 503, `{"health":"false","reason":"RAFT NO LEADER"}`+"\n")
	m.wantHTTP(t, "/health?serializable=true", 200, `{"health":"true","reason":""}`)
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			wantError(t, call(wantLeader(ctx)), rpctypes.ErrGRPCNoLeader)
			for _, ctx := range []context.Context{ctx, metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataRequireLeaderKey, "false")} {
				if err := call(ctx); err != nil {
					t.Errorf("it was not required: %v", err)
				}
			}
		})
	}
}

// openStreams opens one stream of each kind that stays open, and returns what
// receives from it.
func (m *member) openStreams(ctx context.Context, t *testing.T) map[string]func() error {
	t.Helper()
	streams := map[string]func() error{}
	opened := func(name string, s grpc.ClientStream, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		streams[name] = func() error { return s.RecvMsg(new(pb.WatchResponse)) }
	}
	watch, err := pb.NewWatchClient(m.conn).Watch(ctx)
	opened("watch", watch, err)
	keepAlive, err := m.lease.LeaseKeepAlive(ctx)
	opened("keepalive", keepAlive, err)
	observe, err := v3electionpb.NewElectionClient(m.conn).Observe(ctx, &v3electionpb.LeaderRequest{Name: []byte("e")})
	opened("observe", observe, err)
	health, err := healthpb.NewHealthClient(m.conn).Watch(ctx, &healthpb.HealthCheckRequest{})
	if err == nil {
		_, err = health.Recv() // the state now
	}
	opened("health", health, err)
	if err := watch.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("a")}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	if err := keepAlive.Send(&pb.LeaseKeepAliveRequest{ID: 404}); err != nil {
		t.Fatal(err)
	}
	if _, err := keepAlive.Recv(); err != nil {
		t.Fatal(err)
	}
	return streams
}

// TestStreamsNeedLeader: all streams that require a leader end when it is lost,
// and only they.
func TestStreamsNeedLeader(t *testing.T) {
	m, l := startLed(t)
	ctx, cancel := context.WithCancel(short(t))
	defer cancel()
	required, others := m.openStreams(wantLeader(ctx), t), m.openStreams(ctx, t)
	l.gone.Store(true)
	close(l.lost)
	for name, recv := range required {
		t.Run(name, func(t *testing.T) { wantError(t, recv(), rpctypes.ErrGRPCNoLeader) })
	}
	again, err := m.lease.LeaseKeepAlive(wantLeader(ctx))
	if err == nil {
		_, err = again.Recv()
	}
	wantError(t, err, rpctypes.ErrGRPCNoLeader)
	ended := make(chan error, len(others))
	for _, recv := range others {
		go func() { ended <- recv() }()
	}
	// Another request has gone through the server, to them nothing has come.
	if _, err := m.kv.Range(ctx, &pb.RangeRequest{Key: []byte("a")}); err != nil {
		t.Fatal(err)
	}
	if len(ended) > 0 {
		t.Errorf("a stream that does not require a leader ended: %v", <-ended)
	}
	cancel()
	for range others {
		wantStatus(t, <-ended, codes.Canceled, "context canceled")
	}
}

// newcomer is a node of a cluster that leads and may be a learner.
type newcomer struct {
	Cluster
	learner, sure atomic.Bool
}

func (n *newcomer) Learner() (learner, sure bool) { return n.learner.Load(), n.sure.Load() }
func (n *newcomer) Leader() (Leader, <-chan struct{}) {
	return Leader{ID: testMemberID, Here: true}, nil
}
func (n *newcomer) Progress() (committed, applied uint64) { return 0, 0 }

// TestLearner: a learner refuses what it may be too far behind for, as etcd
// does; one that may have been promoted lets clients try again.
func TestLearner(t *testing.T) {
	n := new(newcomer)
	m := startMember(t, memberOptions{config: func(c *Config) { c.Cluster = n }})
	ctx := short(t)
	for _, c := range []struct {
		learner, sure bool
		want          error
	}{
		{true, true, rpctypes.ErrGRPCNotSupportedForLearner},
		{true, false, rpctypes.ErrGRPCNoLeader},
		{false, false, nil},
		{false, true, nil},
	} {
		n.learner.Store(c.learner)
		n.sure.Store(c.sure)
		_, put := m.kv.Put(ctx, &pb.PutRequest{Key: []byte("a")})
		watch, err := pb.NewWatchClient(m.conn).Watch(ctx)
		if err == nil {
			err = watch.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("a")}}})
		}
		if err == nil || errors.Is(err, io.EOF) {
			_, err = watch.Recv()
		}
		for name, err := range map[string]error{"put": put, "watch": err} {
			if status.Convert(err).Message() != status.Convert(c.want).Message() || codeOf(err) != codeOf(c.want) {
				t.Errorf("learner %t, sure %t: %s: %v, want %v", c.learner, c.sure, name, err, c.want)
			}
		}
		if _, err := m.kv.Range(ctx, &pb.RangeRequest{Key: []byte("a"), Serializable: true}); err != nil {
			t.Errorf("learner %t, sure %t: serializable range: %v", c.learner, c.sure, err)
		}
		if resp, err := m.maintenance.Status(ctx, &pb.StatusRequest{}); err != nil || resp.IsLearner != c.learner {
			t.Errorf("learner %t, sure %t: status: %v, %v", c.learner, c.sure, resp, err)
		}
	}
}
