package server

import (
	"context"
	"io"
	"reflect"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
	"github.com/keelson-io/keelson/pkg/lease"
	"github.com/keelson-io/keelson/pkg/store"
	"github.com/keelson-io/keelson/pkg/watch"
)

// fuzzKinds are the requests that FuzzRequest sends; field i+1 of its input,
// which is itself in protobuf's encoding, is one of kind i. FuzzWatch has kinds
// of its own.
var fuzzKinds = []proto.Message{
	&pb.RangeRequest{}, &pb.PutRequest{}, &pb.DeleteRangeRequest{}, &pb.TxnRequest{},
	&pb.CompactionRequest{}, &pb.LeaseGrantRequest{}, &pb.WatchCreateRequest{},
}

// fuzzRequests bounds the requests of one input.
const fuzzRequests = 16

func fuzzInput(tb testing.TB, kinds []proto.Message, requests ...proto.Message) []byte {
	tb.Helper()
	var input []byte
	for _, r := range requests {
		raw, err := proto.Marshal(r)
		if err != nil {
			tb.Fatal(err)
		}
		for i, kind := range kinds {
			if reflect.TypeOf(kind) == reflect.TypeOf(r) {
				input = protowire.AppendTag(input, protowire.Number(i+1), protowire.BytesType)
				input = protowire.AppendBytes(input, raw)
			}
		}
	}
	return input
}

// fuzzDecode returns the requests of an input up to what is not one.
func fuzzDecode(kinds []proto.Message, input []byte) []proto.Message {
	var requests []proto.Message
	for len(requests) < fuzzRequests {
		number, kind, n := protowire.ConsumeTag(input)
		if n < 0 || kind != protowire.BytesType || int(number) > len(kinds) {
			break
		}
		raw, m := protowire.ConsumeBytes(input[n:])
		r := kinds[number-1].ProtoReflect().New().Interface()
		if m < 0 || proto.Unmarshal(raw, r) != nil {
			break // gRPC's own error: no service sees it
		}
		requests = append(requests, r)
		input = input[n+m:]
	}
	return requests
}

// fuzzMember is the services over a log in memory, without gRPC.
type fuzzMember struct {
	store *store.Store
	kv    *kvServer
	lease *leaseServer
	watch pb.WatchServer
}

// startFuzzMember runs a member until stop is called.
func startFuzzMember(t *testing.T, disk *memlog.Disk) (m *fuzzMember, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	m = &fuzzMember{}
	lessor := lease.New(func(context.Context, int64) error { return nil }, lease.Options{Logger: quietLogger()})
	var hub *watch.Hub
	var err error
	m.store, err = store.Open(ctx, disk.Open(nil), store.Options{
		Logger: quietLogger(), MemberID: testMemberID,
		OnApply: func(a store.Applied) {
			if hub != nil {
				hub.Publish(a.Revision, a.Events, a.NoPrev)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	hub = watch.New(m.store, watch.Options{Logger: quietLogger()})
	s, err := New(Config{
		Store: m.store, Hub: hub, Lessor: lessor, ClusterID: testClusterID, MemberID: testMemberID,
		Registry: prometheus.NewRegistry(), Logger: quietLogger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	m.kv, m.lease = &kvServer{Server: s}, &leaseServer{Server: s}
	m.watch = newWatchServer(hub, s.header, watchOptions{})
	running := make(chan error, 2)
	go func() { running <- m.store.Run(ctx) }()
	go func() { running <- hub.Run(ctx) }()
	return m, func() {
		cancel()
		for range cap(running) {
			if err := <-running; err != nil {
				t.Errorf("stopping: %v", err)
			}
		}
	}
}

// send hands a request to its service and returns the header of the answer.
func (m *fuzzMember) send(ctx context.Context, request proto.Message) (*pb.ResponseHeader, error) {
	var resp interface{ GetHeader() *pb.ResponseHeader }
	var err error
	switch r := request.(type) {
	case *pb.RangeRequest:
		resp, err = m.kv.Range(ctx, r)
	case *pb.PutRequest:
		resp, err = m.kv.Put(ctx, r)
	case *pb.DeleteRangeRequest:
		resp, err = m.kv.DeleteRange(ctx, r)
	case *pb.TxnRequest:
		resp, err = m.kv.Txn(ctx, r)
	case *pb.CompactionRequest:
		resp, err = m.kv.Compact(ctx, r)
	case *pb.LeaseGrantRequest:
		resp, err = m.lease.LeaseGrant(ctx, r)
	case *pb.WatchCreateRequest:
		return m.create(ctx, r)
	}
	if err != nil {
		return nil, err
	}
	return resp.GetHeader(), nil
}

// create asks for a watcher, and returns the header of the first answer.
func (m *fuzzMember) create(ctx context.Context, r *pb.WatchCreateRequest) (*pb.ResponseHeader, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &fuzzWatch{ctx: ctx, cancel: cancel, request: r}
	if err := m.watch.Watch(w); w.first == nil || !w.first.Created {
		return nil, err
	}
	return w.first.Header, nil
}

// fuzzWatch is a client that creates one watcher and leaves when that is
// answered.
type fuzzWatch struct {
	grpc.ServerStream
	ctx     context.Context
	cancel  context.CancelFunc
	request *pb.WatchCreateRequest // of the receiving goroutine
	first   *pb.WatchResponse      // of the sending one
}

func (w *fuzzWatch) Context() context.Context { return w.ctx }

func (w *fuzzWatch) Recv() (*pb.WatchRequest, error) {
	if w.request == nil {
		return nil, io.EOF
	}
	r := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: w.request}}
	w.request = nil
	return r, nil
}

func (w *fuzzWatch) Send(r *pb.WatchResponse) error {
	if w.first == nil {
		w.first = r
	}
	w.cancel()
	return nil
}

// FuzzRequest sends requests as a client's bytes make them. Each is answered
// or refused with an error that etcd's clients know; a refused one changes
// nothing, others move the revision by one at most; the log gives the same
// state again.
func FuzzRequest(f *testing.F) {
	key, end := []byte("a"), []byte("c")
	put := &pb.PutRequest{Key: key, Value: []byte("v"), Lease: 7, PrevKv: true}
	opPut := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}}
	opDelete := &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: end}}}
	opRange := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key, RangeEnd: end, Revision: 3}}}
	txn := &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: key, RangeEnd: end, Target: pb.Compare_VERSION, Result: pb.Compare_GREATER, TargetUnion: &pb.Compare_Version{Version: 1}}},
		Success: []*pb.RequestOp{opPut, opRange}, Failure: []*pb.RequestOp{opDelete, opRange},
	}
	nested := &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: txn}}, opDelete}}
	grant, compact := &pb.LeaseGrantRequest{ID: 7, TTL: 60}, &pb.CompactionRequest{Revision: 3, Physical: true}
	get := &pb.RangeRequest{Key: key, RangeEnd: []byte{0}, Limit: 2, SortOrder: pb.RangeRequest_DESCEND, SortTarget: pb.RangeRequest_MOD, MinModRevision: 2}
	watch := &pb.WatchCreateRequest{Key: key, RangeEnd: end, StartRevision: 2, PrevKv: true, WatchId: 5}
	f.Add(fuzzInput(f, fuzzKinds, grant, put, put, get, compact, watch, txn))
	f.Add(fuzzInput(f, fuzzKinds, nested, &pb.DeleteRangeRequest{Key: key, RangeEnd: end, PrevKv: true}, compact, nested, get))
	f.Add(fuzzInput(f, fuzzKinds, &pb.PutRequest{Key: key, IgnoreValue: true, IgnoreLease: true}, &pb.PutRequest{}, &pb.TxnRequest{Success: []*pb.RequestOp{{}}}))
	f.Add(fuzzInput(f, fuzzKinds, &pb.CompactionRequest{Revision: 99}, &pb.WatchCreateRequest{StartRevision: -1}, &pb.RangeRequest{Key: key, SortOrder: 9}))
	f.Add([]byte{0x0a, 0xff})

	f.Fuzz(func(t *testing.T, input []byte) {
		requests := fuzzDecode(fuzzKinds, input)
		if len(requests) == 0 {
			return
		}
		disk := new(memlog.Disk)
		m, stop := startFuzzMember(t, disk)
		setUp := []proto.Message{
			&pb.PutRequest{Key: key, Value: []byte("1")},
			&pb.PutRequest{Key: []byte("b"), Value: []byte("2")},
			&pb.DeleteRangeRequest{Key: key},
			&pb.CompactionRequest{Revision: 2},
		}
		for i, r := range append(setUp, requests...) {
			m.step(t, r, i < len(setUp))
		}
		hash, err := m.store.HashKV(t.Context(), 0)
		if err != nil {
			t.Fatalf("HashKV: %v", err)
		}
		leases := m.store.Leases()
		stop()

		again, stop := startFuzzMember(t, disk)
		defer stop()
		if got, err := again.store.HashKV(t.Context(), 0); err != nil || got != hash {
			t.Errorf("HashKV of the log opened again: %+v, %v, want %+v", got, err, hash)
		}
		if got := again.store.Leases(); !reflect.DeepEqual(got, leases) {
			t.Errorf("leases of the log opened again: %v, want %v", got, leases)
		}
	})
}

// step sends one request and checks what it did.
func (m *fuzzMember) step(t *testing.T, r proto.Message, must bool) {
	t.Helper()
	before, _ := m.store.Revision()
	header, err := m.send(t.Context(), r)
	after, compacted := m.store.Revision()
	if _, known := rpctypes.Error(err).(rpctypes.EtcdError); err != nil && (must || !known) { //nolint:errorlint // it is one or not
		t.Fatalf("%T %v: %v (%v), which is none of etcd's", r, r, err, status.Code(err))
	}
	switch moved := after - before; {
	case err != nil && moved != 0, moved < 0, moved > 1:
		t.Fatalf("%T %v: revision %d to %d, error %v", r, r, before, after, err)
	case compacted > after:
		t.Fatalf("%T %v: compacted %d at %d", r, r, compacted, after)
	case err == nil && header.GetRevision() != after:
		t.Fatalf("%T %v: the header %v at revision %d", r, r, header, after)
	}
	if _, err := m.store.HashKV(t.Context(), 0); err != nil {
		t.Fatalf("HashKV after %T %v: %v", r, r, err)
	}
}
