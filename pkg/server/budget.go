package server

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/keelson-io/keelson/pkg/store"
)

// DefaultResponseBytes is the default of NewResponseBudget.
const DefaultResponseBytes = 512 << 20

const (
	// largeResponse is the size from which a response counts.
	largeResponse = 64 << 10

	// pageBytes is the size up to which a response has the half of the budget
	// that is for pages, so that these do not wait behind whole lists.
	pageBytes = 16 << 20

	// pairBytes is about what a key-value pair takes in memory beside key and
	// value until it is sent, as a message; one of a range takes a fifth of it.
	pairBytes = 256

	// holdLimit ends what a client that does not read holds: others are not
	// kept waiting for it any longer.
	holdLimit = 30 * time.Second
)

// ResponseBudget is the memory that large responses under way take together:
// from when their values are read until gRPC has sent them. Those that do not
// fit wait for it in order; one that is larger than all of it waits until it
// is alone.
//
//	store  ── Admit ──▶ hold ◀── Marshal ── message ── Free ──▶ hold released
type ResponseBudget struct {
	half         int64
	pages, lists *semaphore.Weighted
	holdLimit    time.Duration

	held, waiting atomic.Int64 // bytes and responses, for the metrics
}

// NewResponseBudget returns a budget of that many bytes: DefaultResponseBytes
// if it is 0, without a bound if it is negative.
func NewResponseBudget(bytes int64) *ResponseBudget {
	switch {
	case bytes == 0:
		bytes = DefaultResponseBytes
	case bytes < 0:
		bytes = math.MaxInt64
	}
	half := max(bytes/2, 1)
	return &ResponseBudget{half: half, pages: semaphore.NewWeighted(half), lists: semaphore.NewWeighted(half), holdLimit: holdLimit}
}

// Admit is store.Options.Admit: it waits until there is room for a response.
// Only requests that came in through gRPC are counted.
func (b *ResponseBudget) Admit(ctx context.Context, need store.Need) error {
	h, ok := ctx.Value(holdKey{}).(*hold)
	if !ok {
		return nil
	}
	h.release()
	n := need.Bytes + int64(need.Pairs)*pairBytes
	if n < largeResponse {
		return nil
	}
	if need.Bytes > math.MaxInt32 { // gRPC would say so after everything was read
		return status.Errorf(codes.ResourceExhausted, "trying to send message larger than max (%d vs. %d)", need.Bytes, math.MaxInt32)
	}
	room := b.lists
	if n <= pageBytes {
		room = b.pages
	}
	n = min(n, b.half)
	if !room.TryAcquire(n) {
		b.waiting.Add(1)
		err := room.Acquire(ctx, n)
		b.waiting.Add(-1)
		if err != nil {
			return err
		}
	}
	h.take(b, room, n)
	return nil
}

// hold is what one request holds of the budget.
type hold struct {
	pairs store.Pairs // of the response, which has none itself

	mu    sync.Mutex
	free  func() // nil: nothing is held
	timer *time.Timer
}

type holdKey struct{}

func (h *hold) take(b *ResponseBudget, room *semaphore.Weighted, n int64) {
	b.held.Add(n)
	free := sync.OnceFunc(func() {
		b.held.Add(-n)
		room.Release(n)
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	h.free = free
	h.timer = time.AfterFunc(b.holdLimit, free)
}

// release gives back what is held, if it is.
func (h *hold) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.free != nil {
		h.timer.Stop()
		h.free()
		h.free = nil
	}
}

func (h *hold) taken() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.free != nil
}

// withHold gives a request a hold on the budget if its response may be large.
// What it then takes is released when gRPC has sent the response. A range leaves
// its pairs in the hold, from where the codec takes them.
func withHold(ctx context.Context, req any, handler grpc.UnaryHandler) (any, error) {
	if !mayBeLarge(req) {
		return handler(ctx, req)
	}
	h := &hold{}
	resp, err := handler(context.WithValue(ctx, holdKey{}, h), req)
	if err != nil {
		h.release()
		return resp, err
	}
	if !h.taken() && h.pairs.Len() == 0 {
		return resp, nil
	}
	return &heldResponse{resp, h}, nil
}

// mayBeLarge reports whether the response to req may have more than one
// key-value pair, or its compares read more than one value.
func mayBeLarge(req any) bool {
	switch r := req.(type) {
	case *pb.RangeRequest:
		return len(r.GetRangeEnd()) > 0
	case *pb.DeleteRangeRequest:
		return len(r.GetRangeEnd()) > 0 && r.GetPrevKv()
	case *pb.TxnRequest:
		for _, c := range r.Compare {
			if c.GetTarget() == pb.Compare_VALUE && (len(c.GetRangeEnd()) > 0 || len(r.Compare) > 1) {
				return true
			}
		}
		for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
			if len(ops) > 1 || len(ops) == 1 && (mayBeLarge(ops[0].GetRequestRange()) ||
				mayBeLarge(ops[0].GetRequestDeleteRange()) || ops[0].GetRequestTxn() != nil) {
				return true
			}
		}
	}
	return false
}

// heldResponse is a response that goes to the codec together with its hold.
type heldResponse struct {
	resp any
	hold *hold
}

// holdBuffer is an empty part of an encoded message, through which gRPC says
// that it does not need the message any more. It says so when the message was
// sent or its stream has ended, but not always when a connection breaks: then
// holdLimit ends the hold.
type holdBuffer struct {
	mem.SliceBuffer
	refs atomic.Int32
	hold *hold
}

func newHoldBuffer(h *hold) *holdBuffer {
	b := &holdBuffer{hold: h}
	b.refs.Store(1)
	return b
}

// Ref implements mem.Buffer.
func (b *holdBuffer) Ref() { b.refs.Add(1) }

// Free implements mem.Buffer.
func (b *holdBuffer) Free() {
	if b.refs.Add(-1) == 0 {
		b.hold.release()
	}
}
