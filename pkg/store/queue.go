package store

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// request is a write that waits for the committer.
type request struct {
	// eval may run several times; the last run counts.
	eval func(*evaluation) error
	err  error
	done chan struct{} // closed when err and what eval has set are final

	read  map[int64][]byte // values read for it, by seq; in turn the caller's and the committer's
	final bool             // the committer reads what is missing, however much
	fills []fill           // values that its response and events wait for; the committer's
}

// learn adds values that needValues asked for.
func (r *request) learn(seqs []int64, values [][]byte) {
	if r.read == nil {
		r.read = map[int64][]byte{}
	}
	for i, value := range values {
		r.read[seqs[i]] = value
	}
}

// maxQueuedBytes bounds what the requests in the queue and in the batch under
// way hold; further ones wait outside.
const maxQueuedBytes = 128 << 20

// queue is where writers leave requests for the committer.
type queue struct {
	bytes   *semaphore.Weighted
	wake    chan struct{} // 1 buffered: the committer has something to look at
	stopped chan struct{} // closed when nothing is taken any more

	mu       sync.Mutex
	requests []*request
	closed   bool
	err      error // why the committer must stop, from fail
}

func newQueue() *queue {
	return &queue{
		bytes:   semaphore.NewWeighted(maxQueuedBytes),
		wake:    make(chan struct{}, 1),
		stopped: make(chan struct{}),
	}
}

func (q *queue) wakeUp() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) push(r *request) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return ErrStopped
	}
	q.requests = append(q.requests, r)
	if len(q.requests) == 1 {
		q.wakeUp()
	}
	return nil
}

// take returns all requests there are.
func (q *queue) take() ([]*request, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	requests := q.requests
	q.requests = nil
	return requests, q.err
}

// close refuses further requests.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
}

// fail makes the committer stop with err.
func (q *queue) fail(err error) {
	q.mu.Lock()
	q.err = err
	q.mu.Unlock()
	q.wakeUp()
}

// maxTurns bounds how often a request that needs many values comes back to be
// sent away for more.
const maxTurns = 128

// submit hands eval to the committer and waits until its effects are durable.
// If ctx ends or RequestTimeout passes first, the request may or may not take
// effect. cost is how much memory the request holds, in bytes. If eval needs
// many values that are not in memory, they are read here, where nobody else
// waits for it.
func (s *Store) submit(ctx context.Context, cost int, eval func(*evaluation) error) error {
	var read map[int64][]byte
	for turn := 1; ; turn++ {
		r := &request{eval: eval, done: make(chan struct{}), read: read, final: turn == maxTurns}
		err := s.submitOnce(ctx, cost, r)
		if err == nil {
			return nil
		}
		var need *needValues
		if !errors.As(err, &need) {
			return err
		}
		values, err := s.values.read(ctx, need.seqs)
		if err != nil && !errors.Is(err, ErrCompacted) { // then there are newer ones
			return err
		}
		r.learn(need.seqs, values)
		read = r.read
	}
}

func (s *Store) submitOnce(ctx context.Context, cost int, r *request) error {
	weight := min(int64(cost)+1024, maxQueuedBytes)
	if err := s.acquire(ctx, weight); err != nil {
		return err
	}
	if err := s.queue.push(r); err != nil {
		s.queue.bytes.Release(weight)
		return err
	}
	var err error
	select {
	case <-r.done:
		s.queue.bytes.Release(weight)
		return r.err
	case <-ctx.Done():
		err = ctx.Err()
	case <-s.patience.over():
		err = ErrTimeout
	}
	go func() { // the memory is held until the committer lets go of it
		<-r.done
		s.queue.bytes.Release(weight)
	}()
	return err
}

// acquire waits until weight bytes more may be queued.
func (s *Store) acquire(ctx context.Context, weight int64) error {
	if s.queue.bytes.TryAcquire(weight) {
		return nil
	}
	if s.opt.RequestTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, s.opt.RequestTimeout, ErrTimeout)
		defer cancel()
	}
	if s.queue.bytes.Acquire(ctx, weight) != nil {
		return context.Cause(ctx)
	}
	return nil
}

// submitFor is submit for an eval with a result. A request that ctx has cut
// off may still be evaluated, so the result is handed over only with done.
func submitFor[R any](ctx context.Context, s *Store, cost int, eval func(*evaluation) (R, error)) (R, error) {
	var result R
	err := s.submit(ctx, cost, func(ev *evaluation) (err error) {
		result, err = eval(ev)
		return err
	})
	if err != nil {
		var none R
		return none, err
	}
	return result, nil
}

// patience says when requests have waited for long enough. A timer for each
// would cost more than the rest of its waiting; this one is shared by all that
// begin within the same short time.
type patience struct {
	limit time.Duration // 0 is no limit
	round atomic.Pointer[round]
}

// round is the timer of the requests that begin until last.
type round struct {
	last time.Time
	over chan struct{}
}

// over returns a channel that is closed when limit has passed, or up to an
// eighth of it later.
func (p *patience) over() <-chan struct{} {
	if p.limit <= 0 {
		return nil
	}
	now := time.Now()
	if r := p.round.Load(); r != nil && !now.After(r.last) {
		return r.over
	}
	slack := p.limit / 8
	r := &round{last: now.Add(slack), over: make(chan struct{})}
	time.AfterFunc(p.limit+slack, func() { close(r.over) })
	p.round.Store(r)
	return r.over
}
