package server

import (
	"context"
	"fmt"
	"math"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-io/keelson/pkg/store"
)

// listBytes is more than pageBytes: 20 values of 1 MiB.
const listBytes = 20 << 20

// startLarge starts a member that has room for lists of that many bytes, and
// a little more, and fills it.
func startLarge(t *testing.T, lists int64) (*member, *ResponseBudget) {
	budget := NewResponseBudget(2 * (lists + 1<<20))
	m := startMember(t, memberOptions{responses: budget})
	for i := range listBytes >> 20 {
		if _, err := m.kv.Put(t.Context(), &pb.PutRequest{Key: fmt.Appendf(nil, "k%02d", i), Value: make([]byte, 1<<20)}); err != nil {
			t.Fatal(err)
		}
	}
	return m, budget
}

var everything = &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}

// stall asks for r and reads nothing of the response but its header.
func stall(ctx context.Context, t *testing.T, m *member, method string, r any) {
	t.Helper()
	stream, err := m.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.SendMsg(r); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
}

// wantSoon waits until get returns want.
func wantSoon(t *testing.T, what string, get func() int64, want int64) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); get() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s is %d, not %d", what, get(), want)
		}
	}
}

func listAll(ctx context.Context, m *member) error {
	resp, err := m.kv.Range(ctx, everything)
	if err == nil && len(resp.Kvs) != listBytes>>20 {
		err = fmt.Errorf("%d keys", len(resp.Kvs))
	}
	return err
}

// TestResponsesWait has a client that does not read its list: another list
// waits for it, and pages do not.
func TestResponsesWait(t *testing.T) {
	m, budget := startLarge(t, listBytes)
	for name, r := range map[string]struct {
		method string
		r      any
	}{
		"Range": {pb.KV_Range_FullMethodName, everything},
		"Txn": {pb.KV_Txn_FullMethodName, &pb.TxnRequest{Success: []*pb.RequestOp{
			{Request: &pb.RequestOp_RequestRange{RequestRange: everything}},
			{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("x")}}},
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := short(t)
			stalled, end := context.WithCancel(ctx)
			stall(stalled, t, m, r.method, r.r)
			if held := budget.held.Load(); held < listBytes {
				t.Fatalf("%d bytes are held", held)
			}
			second := make(chan error, 1)
			go func() { second <- listAll(ctx, m) }()
			wantSoon(t, "waiting", budget.waiting.Load, 1)
			impatient, cancel := context.WithCancel(ctx)
			third := make(chan error, 1)
			go func() { third <- listAll(impatient, m) }()
			wantSoon(t, "waiting", budget.waiting.Load, 2)
			cancel()
			if err := <-third; status.Code(err) != codes.Canceled {
				t.Errorf("the one that was canceled: %v", err)
			}
			if _, err := m.kv.Range(ctx, &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), Limit: 10}); err != nil {
				t.Errorf("a page: %v", err)
			}
			wantSoon(t, "waiting", budget.waiting.Load, 1)
			end()
			if err := <-second; err != nil {
				t.Errorf("the second list: %v", err)
			}
			wantSoon(t, "held", budget.held.Load, 0)
		})
	}
}

// TestResponsesInTurn has more lists than there is room for, of which each is
// larger than all of it.
func TestResponsesInTurn(t *testing.T) {
	m, budget := startLarge(t, listBytes/2)
	errs := make(chan error)
	for range 4 {
		go func() { errs <- listAll(short(t), m) }()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	wantSoon(t, "held", budget.held.Load, 0)
}

// TestHoldLimit shows that one who does not read keeps nobody waiting for
// long, and neither does one who goes away without a word.
func TestHoldLimit(t *testing.T) {
	m, budget := startLarge(t, listBytes)
	budget.holdLimit = 50 * time.Millisecond
	stall(short(t), t, m, pb.KV_Range_FullMethodName, everything)
	if err := listAll(short(t), m); err != nil {
		t.Error(err)
	}
	stall(short(t), t, m, pb.KV_Range_FullMethodName, everything)
	_ = m.conn.Close()
	wantSoon(t, "held", budget.held.Load, 0)
}

// TestStreamHoldsChunks shows that a stream needs room for a chunk only.
func TestStreamHoldsChunks(t *testing.T) {
	m, budget := startLarge(t, listBytes)
	ctx, cancel := context.WithCancel(short(t))
	stall(ctx, t, m, pb.KV_RangeStream_FullMethodName, everything)
	wantSoon(t, "held", func() int64 { return min(budget.held.Load(), 1) }, 1)
	if held := budget.held.Load(); held > pageBytes {
		t.Errorf("%d bytes are held", held)
	}
	cancel()
	wantSoon(t, "held", budget.held.Load, 0)
}

// TestResponseTooLarge refuses what gRPC could not send before it is read.
func TestResponseTooLarge(t *testing.T) {
	budget := NewResponseBudget(-1)
	ctx := context.WithValue(t.Context(), holdKey{}, &hold{})
	if err := budget.Admit(ctx, store.Need{Pairs: 1, Bytes: math.MaxInt32}); err != nil {
		t.Error(err)
	}
	wantStatus(t, budget.Admit(ctx, store.Need{Pairs: 1, Bytes: math.MaxInt32 + 1}),
		codes.ResourceExhausted, "trying to send message larger than max (2147483648 vs. 2147483647)")
}

// TestAdmitReplaces shows that what a request needs at last takes the place of
// what it needed before, however little it is.
func TestAdmitReplaces(t *testing.T) {
	budget := NewResponseBudget(0)
	ctx := context.WithValue(t.Context(), holdKey{}, &hold{})
	for _, c := range []struct{ needs, held int64 }{{100 << 20, 100<<20 + pairBytes}, {1 << 20, 1<<20 + pairBytes}, {10, 0}} {
		if err := budget.Admit(ctx, store.Need{Pairs: 1, Bytes: c.needs}); err != nil {
			t.Fatal(err)
		}
		if held := budget.held.Load(); held != c.held {
			t.Errorf("%d bytes are held for %d", held, c.needs)
		}
	}
}
