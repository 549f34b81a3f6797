package server

import (
	"context"
	"sync/atomic"
	"time"
)

// boundContext is a context with a timeout that begins when somebody first
// waits for its end. Most reads never wait, and a timer costs more than they
// do.
type boundContext struct {
	context.Context
	timeout time.Duration
	timed   atomic.Pointer[timedContext] // nil: nobody has waited yet
}

type timedContext struct {
	context.Context
	cancel context.CancelFunc
}

// bound returns ctx with RequestTimeout, unless it ends earlier anyway.
func (s *Server) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= s.cfg.RequestTimeout {
		return ctx, func() {}
	}
	b := &boundContext{Context: ctx, timeout: s.cfg.RequestTimeout}
	return b, b.end
}

// Done starts the timeout.
func (b *boundContext) Done() <-chan struct{} {
	if t := b.timed.Load(); t != nil {
		return t.Done()
	}
	ctx, cancel := context.WithTimeout(b.Context, b.timeout)
	if !b.timed.CompareAndSwap(nil, &timedContext{ctx, cancel}) {
		cancel()
	}
	return b.timed.Load().Done()
}

func (b *boundContext) Err() error {
	if t := b.timed.Load(); t != nil {
		return t.Err()
	}
	return b.Context.Err()
}

func (b *boundContext) Deadline() (time.Time, bool) {
	if t := b.timed.Load(); t != nil {
		return t.Deadline()
	}
	return b.Context.Deadline()
}

// Value finds the context that Done belongs to, so that contexts made from b
// hang on to that and need no goroutine.
func (b *boundContext) Value(key any) any {
	if t := b.timed.Load(); t != nil {
		return t.Value(key)
	}
	return b.Context.Value(key)
}

func (b *boundContext) end() {
	if t := b.timed.Load(); t != nil {
		t.cancel()
	}
}
