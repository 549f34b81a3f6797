package server

import (
	"bytes"
	"context"
	"io"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
)

var watchKinds = []proto.Message{
	&pb.WatchRequest{}, &pb.PutRequest{}, &pb.DeleteRangeRequest{}, &pb.CompactionRequest{},
}

// fuzzClient is the client's end of a watch stream.
type fuzzClient struct {
	grpc.ServerStream
	ctx      context.Context
	requests chan *pb.WatchRequest

	mu        sync.Mutex
	responses []*pb.WatchResponse // mu
	more      chan struct{}       // mu; closed and replaced with each response
}

func (w *fuzzClient) Context() context.Context { return w.ctx }

func (w *fuzzClient) Recv() (*pb.WatchRequest, error) {
	select {
	case r := <-w.requests:
		return r, nil
	case <-w.ctx.Done():
		return nil, io.EOF
	}
}

func (w *fuzzClient) Send(r *pb.WatchResponse) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.responses = append(w.responses, r)
	close(w.more)
	w.more = make(chan struct{})
	return nil
}

// await waits until done says so of all responses.
func (w *fuzzClient) await(t *testing.T, done func([]*pb.WatchResponse) bool) {
	t.Helper()
	for {
		w.mu.Lock()
		ready, more := done(w.responses), w.more
		w.mu.Unlock()
		if ready {
			return
		}
		select {
		case <-more:
		case <-w.ctx.Done():
			t.Fatalf("the stream ended with %v", w.responses)
		}
	}
}

// createsIn counts the answers to create requests.
func createsIn(responses []*pb.WatchResponse) (n int) {
	for _, r := range responses {
		if r.Created {
			n++
		}
	}
	return n
}

// FuzzWatch sends what a client's bytes make of a watch stream, between
// writes. Each create is answered once, before the watcher's events; these
// come in order, none twice, none that was not asked for.
func FuzzWatch(f *testing.F) {
	create := func(r *pb.WatchCreateRequest) *pb.WatchRequest {
		return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}
	}
	progress := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
	cancel := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 5}}}
	put, del := &pb.PutRequest{Key: []byte("a"), Value: []byte("v")}, &pb.DeleteRangeRequest{Key: []byte("a"), RangeEnd: []byte{0}}
	everything := &pb.WatchCreateRequest{RangeEnd: []byte{0}, StartRevision: 2, PrevKv: true, Fragment: true, ProgressNotify: true, WatchId: 5}
	seed := func(requests ...proto.Message) { f.Add(fuzzInput(f, watchKinds, requests...)) }
	seed(create(everything), put, progress, del, cancel, put)
	seed(put, put, &pb.CompactionRequest{Revision: 4}, create(everything), create(&pb.WatchCreateRequest{StartRevision: 4, Key: []byte("a")}), cancel)
	seed(create(everything), create(everything), &pb.WatchRequest{}, create(&pb.WatchCreateRequest{StartRevision: -1}))
	seed(create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 9, Filters: []pb.WatchCreateRequest_FilterType{0, 1, 7}}), put, progress)
	seed(create(&pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("a")}), create(&pb.WatchCreateRequest{WatchId: -1}), put, cancel, del)
	f.Add([]byte{0x0a, 0x02, 0x0a, 0x00, 0x0a, 0x02, 0x12, 0x00, 0x0a, 0x02, 0x1a, 0x00, 0x12, 0x03, 0x0a, 0x01, 0x61})

	f.Fuzz(func(t *testing.T, input []byte) {
		requests := fuzzDecode(watchKinds, input)
		if len(requests) == 0 {
			return
		}
		m, stop := startFuzzMember(t, new(memlog.Disk))
		defer stop()
		ctx, end := context.WithCancel(t.Context())
		w := &fuzzClient{ctx: ctx, requests: make(chan *pb.WatchRequest), more: make(chan struct{})}
		ended := make(chan error, 1)
		go func() { ended <- m.watch.Watch(w) }()
		defer func() {
			end()
			if err := <-ended; status.Code(err) != codes.Canceled {
				t.Errorf("the stream ended with %v", err)
			}
		}()
		var asked []*pb.WatchCreateRequest
		for _, r := range append(requests, create(&pb.WatchCreateRequest{StartRevision: -1})) {
			wr, ok := r.(*pb.WatchRequest)
			if !ok {
				_, _ = m.send(ctx, r) // FuzzRequest checks these
				continue
			}
			w.requests <- wr
			if c := wr.GetCreateRequest(); c != nil {
				asked = append(asked, proto.Clone(c).(*pb.WatchCreateRequest))
				w.await(t, func(responses []*pb.WatchResponse) bool { return createsIn(responses) == len(asked) })
			}
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		checkWatch(t, asked, w.responses)
	})
}

// checkWatch checks what came on a stream for the creates in their order.
func checkWatch(t *testing.T, asked []*pb.WatchCreateRequest, responses []*pb.WatchResponse) {
	t.Helper()
	live := map[int64]*pb.WatchCreateRequest{}
	last := map[int64]int64{}
	for _, r := range responses {
		switch {
		case r.Created:
			if len(asked) == 0 {
				t.Fatalf("more are created than asked for: %v", r)
			}
			if !r.Canceled {
				live[r.WatchId], last[r.WatchId] = asked[0], asked[0].StartRevision-1
			} else if r.WatchId != -1 || r.CancelReason == "" {
				t.Fatalf("refused: %v", r)
			}
			asked = asked[1:]
		case r.Canceled:
			if live[r.WatchId] == nil && last[r.WatchId] != canceledByCompaction {
				t.Fatalf("canceled and not created: %v", r)
			}
			delete(live, r.WatchId)
			last[r.WatchId] = 0
			if r.CompactRevision != 0 {
				last[r.WatchId] = canceledByCompaction // the client may cancel it, too
			}
		}
		for _, ev := range r.Events {
			c := live[r.WatchId]
			if c == nil || !inRange(c.Key, c.RangeEnd, ev.Kv.Key) {
				t.Fatalf("an event nobody asked for: %v", r)
			}
			if ev.Kv.ModRevision <= last[r.WatchId] || ev.Kv.ModRevision > r.Header.Revision {
				t.Fatalf("an event after %d of: %v", last[r.WatchId], r)
			}
		}
		if n := len(r.Events); n > 0 {
			last[r.WatchId] = r.Events[n-1].Kv.ModRevision
			if r.Fragment {
				last[r.WatchId]--
			}
		}
	}
	if len(asked) > 0 {
		t.Fatalf("%d were not created", len(asked))
	}
}

const canceledByCompaction = -2

// inRange is etcd's convention for ranges, in its plainest form.
func inRange(key, end, k []byte) bool {
	if len(key) == 0 {
		key = []byte{0}
	}
	switch {
	case len(end) == 0:
		return bytes.Equal(k, key)
	case bytes.Equal(end, []byte{0}):
		return bytes.Compare(k, key) >= 0
	}
	return bytes.Compare(k, key) >= 0 && bytes.Compare(k, end) < 0
}

// FuzzRangeEnd checks that everything that takes a range takes the same keys:
// reads, streams, compares, deletes, the check for duplicates, watches.
func FuzzRangeEnd(f *testing.F) {
	for _, end := range []string{"", "\x00", "b", "a\x00", "\x00\x00", "\xff", "\xff\xff", "a"} {
		f.Add([]byte("a"), []byte(end), []byte("a\xff"))
		f.Add([]byte("\x00"), []byte(end), []byte("\xff\xff"))
		f.Add([]byte("\xff"), []byte(end), []byte("\xff"))
	}
	f.Fuzz(func(t *testing.T, key, end, k []byte) {
		if len(key) == 0 || len(k) == 0 {
			return
		}
		m, stop := startFuzzMember(t, new(memlog.Disk))
		defer stop()
		ctx := t.Context()
		if _, err := m.kv.Put(ctx, &pb.PutRequest{Key: k}); err != nil {
			t.Fatal(err)
		}
		want := int64(0)
		if inRange(key, end, k) {
			want = 1
		}
		check := func(what string, got int64, err error) {
			t.Helper()
			if err != nil || got != want {
				t.Errorf("%q in [%q, %q): %s: %d, %v, want %d", k, key, end, what, got, err, want)
			}
		}
		del := &pb.DeleteRangeRequest{Key: key, RangeEnd: end}
		read, err := m.kv.Range(ctx, &pb.RangeRequest{Key: key, RangeEnd: end})
		check("count", read.GetCount(), err)
		check("keys", int64(len(read.GetKvs())), err)
		compared, err := m.kv.Txn(ctx, &pb.TxnRequest{Compare: []*pb.Compare{{ // holds for no key, too
			Key: key, RangeEnd: end, Target: pb.Compare_VERSION, Result: pb.Compare_GREATER, TargetUnion: &pb.Compare_Version{Version: 0},
		}}})
		check("compare", map[bool]int64{true: 1}[compared.GetSucceeded()], err)
		if !bytes.Equal(end, []byte{0}) { // etcd's check takes that for an empty range
			_, err = m.kv.Txn(ctx, &pb.TxnRequest{Failure: []*pb.RequestOp{
				{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: del}},
				{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: k}}},
			}})
			check("duplicates", map[bool]int64{true: 1}[err != nil], nil)
		}
		header, err := m.create(ctx, &pb.WatchCreateRequest{Key: key, RangeEnd: end})
		if err != nil || header == nil {
			t.Errorf("watch of [%q, %q): %v, %v", key, end, header, err)
		}
		events, _, err := m.store.History(ctx, key, end, 2, 10, false)
		check("history", int64(len(events)), err)
		deleted, err := m.kv.DeleteRange(ctx, del)
		check("delete", deleted.GetDeleted(), err)
	})
}
