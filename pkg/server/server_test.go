package server

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
	"github.com/keelson-io/keelson/pkg/lease"
	"github.com/keelson-io/keelson/pkg/store"
	"github.com/keelson-io/keelson/pkg/watch"
)

const (
	testClusterID = 0xc1
	testMemberID  = 0x8e9e05c52164694d
)

// member is a whole server over a log in memory, with clients.
type member struct {
	server *Server
	store  *store.Store
	lessor *lease.Lessor
	log    *memlog.Log
	grpc   *grpc.Server

	conn        *grpc.ClientConn
	client      *clientv3.Client
	kv          pb.KVClient
	lease       pb.LeaseClient
	maintenance pb.MaintenanceClient
	cluster     pb.ClusterClient
	auth        pb.AuthClient
}

// memberOptions adjust startMember; the zero value is good.
type memberOptions struct {
	config     func(*Config)
	disk       *memlog.Disk // shared with other members; nil: one of its own
	lessor     func(Lessor) Lessor
	quotaBytes int64
	clock      lease.Clock
	wrap       func(Store) Store // puts something between server and store
	responses  *ResponseBudget
}

func quietLogger() *logrus.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return logrus.NewEntry(l)
}

// startMember runs a member until the test ends.
func startMember(t testing.TB, opt memberOptions) *member {
	t.Helper()
	// The member outlives t.Context: clean-ups run after that has ended.
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	if opt.disk == nil {
		opt.disk = new(memlog.Disk)
	}
	m := &member{log: opt.disk.Open(nil)}
	m.lessor = lease.New(func(ctx context.Context, id int64) error {
		if err := m.store.LeaseRevoke(ctx, id); !errors.Is(err, store.ErrLeaseNotFound) {
			return err
		}
		return nil
	}, lease.Options{Clock: opt.clock, Logger: quietLogger()})

	if opt.responses == nil {
		opt.responses = NewResponseBudget(0)
	}
	var hub *watch.Hub
	var err error
	m.store, err = store.Open(ctx, m.log, store.Options{
		Logger:     quietLogger(),
		QuotaBytes: opt.quotaBytes,
		MemberID:   testMemberID,
		Admit:      opt.responses.Admit,
		OnApply: func(a store.Applied) {
			for _, l := range a.Granted {
				m.lessor.Granted(l.ID, l.TTL)
			}
			for _, id := range a.Revoked {
				m.lessor.Revoked(id)
			}
			if hub != nil {
				hub.Publish(a.Revision, a.Events, a.NoPrev)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	hub = watch.New(m.store, watch.Options{Logger: quietLogger()})

	cfg := Config{
		Store: m.store, Hub: hub, Lessor: m.lessor,
		ClusterID: testClusterID, MemberID: testMemberID, Name: "test",
		PeerURLs: []string{"http://localhost:2380"}, ClientURLs: []string{"http://localhost:2379"},
		Responses: opt.responses,
		Registry:  prometheus.NewRegistry(),
		Logger:    quietLogger(),
		// More than a busy machine takes, unless a test waits for it.
		RequestTimeout: time.Minute,
	}
	if opt.wrap != nil {
		cfg.Store = opt.wrap(m.store)
	}
	if opt.lessor != nil {
		cfg.Lessor = opt.lessor(m.lessor)
	}
	if opt.config != nil {
		opt.config(&cfg)
	}
	if m.server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	m.grpc = grpc.NewServer(m.server.GRPCOptions()...)
	m.server.Register(m.grpc)
	m.server.RegisterForwarded(m.grpc)
	m.server.SetReady(true)

	listener := bufconn.Listen(1 << 20)
	running := make(chan error, 4)
	go func() { running <- m.store.Run(ctx) }()
	go func() { running <- hub.Run(ctx) }()
	go func() { running <- m.lessor.Run(ctx) }()
	go func() { running <- m.grpc.Serve(listener) }()
	m.dial(t, listener)
	t.Cleanup(func() {
		m.server.Stop()
		m.grpc.Stop()
		m.server.Close()
		cancel()
		for range cap(running) {
			// gRPC says so when it is stopped before Serve has begun.
			if err := <-running; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				t.Errorf("stopping: %v", err)
			}
		}
	})
	waitFor(t, func() bool { // until the lessor runs
		_, err := m.lessor.Renew(ctx, -1)
		return errors.Is(err, lease.ErrNotFound)
	})
	return m
}

func (m *member) dial(t testing.TB, listener *bufconn.Listener) {
	t.Helper()
	dialer := func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }
	var err error
	m.conn, err = grpc.NewClient("passthrough:///member", grpc.WithContextDialer(dialer),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(64<<20), grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	m.client, err = clientv3.New(clientv3.Config{
		Endpoints:   []string{"member"},
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(dialer)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = m.client.Close()
		_ = m.conn.Close()
	})
	m.kv = pb.NewKVClient(m.conn)
	m.lease = pb.NewLeaseClient(m.conn)
	m.maintenance = pb.NewMaintenanceClient(m.conn)
	m.cluster = pb.NewClusterClient(m.conn)
	m.auth = pb.NewAuthClient(m.conn)
}

// short bounds a test's waiting.
func short(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// wantStatus checks code and exact text.
func wantStatus(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	if got := status.Convert(err); got.Code() != code || got.Message() != text {
		t.Errorf("got %v %q, want %v %q", got.Code(), got.Message(), code, text)
	}
}

// wantError checks that err is, on the wire, exactly want.
func wantError(t *testing.T, err, want error) {
	t.Helper()
	st := status.Convert(want)
	wantStatus(t, err, st.Code(), st.Message())
}

func TestHeaders(t *testing.T) {
	m := startMember(t, memberOptions{})
	ctx := short(t)
	check := func(what string, h *pb.ResponseHeader, revision int64) {
		t.Helper()
		if h.GetClusterId() != testClusterID || h.GetMemberId() != testMemberID || h.GetRaftTerm() != 1 || h.GetRevision() != revision {
			t.Errorf("%s: header %v, want revision %d", what, h, revision)
		}
	}
	put, err := m.kv.Put(ctx, &pb.PutRequest{Key: []byte("a"), Value: []byte("1")})
	if err != nil {
		t.Fatal(err)
	}
	check("put", put.Header, 2)
	txn, err := m.kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{
		{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("b")}}},
		{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("b")}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	check("txn", txn.Header, 3)
	for _, h := range []*pb.ResponseHeader{txn.Responses[0].GetResponsePut().Header, txn.Responses[1].GetResponseRange().Header} {
		if h.ClusterId != 0 || h.MemberId != 0 || h.RaftTerm != 0 || h.Revision != 3 {
			t.Errorf("header inside a txn: %v, want the revision only", h)
		}
	}
	get, err := m.kv.Range(ctx, &pb.RangeRequest{Key: []byte("a"), Revision: 2})
	if err != nil {
		t.Fatal(err)
	}
	check("range", get.Header, 3)
	del, err := m.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("a")})
	if err != nil {
		t.Fatal(err)
	}
	check("delete", del.Header, 4)
	compact, err := m.kv.Compact(ctx, &pb.CompactionRequest{Revision: 3, Physical: true})
	if err != nil {
		t.Fatal(err)
	}
	check("compact", compact.Header, 4)
	stream, err := m.kv.RangeStream(ctx, &pb.RangeRequest{Key: []byte("b")})
	if err != nil {
		t.Fatal(err)
	}
	var last *pb.RangeResponse
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		last = resp.RangeResponse
	}
	check("range stream", last.GetHeader(), 4)
	members, err := m.cluster.MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
	if err != nil {
		t.Fatal(err)
	}
	check("member list", members.Header, 0)
}

// Fields that this version of the API does not know are passed over, as etcd
// passes them over.
func TestUnknownFieldsAreIgnored(t *testing.T) {
	m := startMember(t, memberOptions{})
	r := &pb.RangeRequest{Key: []byte("a")}
	r.ProtoReflect().SetUnknown([]byte{0xf8, 0x3f, 0x01}) // field 1023, varint 1
	if _, err := m.kv.Range(short(t), r); err != nil {
		t.Error(err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("New without a store must fail")
	}
	m := startMember(t, memberOptions{})
	if _, err := New(m.server.cfg); err == nil {
		t.Error("a second server on one registry must fail")
	}
}

// A graceful stop ends although clients hold streams open.
func TestStopEndsStreams(t *testing.T) {
	m := startMember(t, memberOptions{})
	ctx := short(t)
	stream, err := m.lease.LeaseKeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: 5}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	m.server.Stop()
	m.server.Stop() // once more is fine
	_, err = stream.Recv()
	wantStatus(t, err, codes.Unavailable, "etcdserver: server stopped")
	stopped := make(chan struct{})
	go func() {
		m.grpc.GracefulStop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-ctx.Done():
		t.Error("the graceful stop hangs")
	}
}
