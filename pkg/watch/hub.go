// Package watch fans the log's events out to watchers.
//
// A [Hub] gets every change once, in order, from the store's committer
// ([Hub.Publish]) and passes it to the watchers whose keys it touches. A
// watcher belongs to a [Stream], the bounded queue of responses that one
// client reads. It is in one of two states:
//
//	                 Publish                       Pop
//	committer ──┬───────────────▶ stream's queue ───────▶ client
//	            │   (in sync)            ▲
//	            ▼                        │ one page at a time,
//	          ring ──────▶ workers ──────┘ while the queue has room
//	                         ▲
//	          Source.History ┘   (behind)
//
// In sync: it is in the index, and Publish appends to its stream's queue.
// Behind: it starts in the past or its stream's queue was full; it holds only
// the revision to go on from. A worker reads a page of the past for it, from
// the ring of recent batches or else from the log, and promotes it under the
// hub's lock at exactly the revision where Publish goes on: no gap, no
// duplicate. Nobody is dropped, and a client that does not read holds up
// neither Publish nor the watchers of other streams.
//
// Lock order: Hub.mu before Stream.mu. The source is called with neither.
package watch

import (
	"context"
	"io"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"golang.org/x/sync/errgroup"
)

// Source is what the hub needs of the store. Its methods may be called at the
// same time from many goroutines and must not call the hub.
type Source interface {
	// Revision returns the current and the compacted revision, -1 if nothing
	// was ever compacted. It is cheap. Once a revision is published, Revision
	// and History show it.
	Revision() (current, compacted int64)

	// History returns the events of the keys in [key, end), by etcd's range
	// conventions, from revision from on: whole revisions, in order, at most
	// limit of them, and fewer where they are large. Everything below next was covered; next is greater than
	// from, and current+1 when there is nothing more. The events are shared
	// and must not change. If from is below the compacted revision it fails,
	// with any error: Revision then says so. Else eventlog.ErrCorrupt ends the
	// watcher, and other errors are taken as temporary.
	History(ctx context.Context, key, end []byte, from int64, limit int, prevKV bool) (events []*mvccpb.Event, next int64, err error)
}

// Options are the hub's bounds. Zero values take the defaults.
type Options struct {
	Logger *logrus.Entry

	// The ring of recent events: 32768 events, 16 MiB.
	RingEvents, RingBytes int

	// A stream's queue: 8192 events, 4 MiB. It may be exceeded by one batch's
	// or one page's worth. Events are shared between streams.
	QueueEvents, QueueBytes int

	// TotalBytes is what the streams that are not read hold together: 128 MiB.
	// Each may have its share, from one revision up to QueueBytes; what it
	// leaves out it reads from the past later.
	TotalBytes int

	// Workers read the past for watchers that are behind: 4, or the number of
	// processors if that is more.
	Workers int

	// RetryDelay is the pause after a failed read of the past: 100 ms.
	RetryDelay time.Duration
}

func (o Options) withDefaults() Options {
	set := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	set(&o.RingEvents, 32768)
	set(&o.RingBytes, 16<<20)
	set(&o.QueueEvents, 8192)
	set(&o.QueueBytes, 4<<20)
	set(&o.TotalBytes, 128<<20)
	set(&o.Workers, max(4, runtime.GOMAXPROCS(0)))
	if o.RetryDelay <= 0 {
		o.RetryDelay = 100 * time.Millisecond
	}
	if o.Logger == nil {
		quiet := logrus.New()
		quiet.SetOutput(io.Discard)
		o.Logger = logrus.NewEntry(quiet)
	}
	return o
}

// Hub hands published events to watchers. Make it with [New].
type Hub struct {
	source Source
	opt    Options
	done   chan struct{} // closed when Run ends
	work   chan struct{} // wakes a worker
	retry  chan struct{} // wakes the retry loop
	loaded atomic.Int64  // streams that hold events
	prevs  atomic.Int64  // watchers that want previous key-value pairs

	mu sync.Mutex
	// Guarded by mu.
	published int64 // every event up to here was handed to the watchers in sync
	ring      ring
	index     index
	streams   map[*Stream]struct{}
	ready     []*Stream // to be worked on, first in first out
	failed    []*Stream // to be worked on after a pause
	watchers  int
	slow      int
	pushed    uint64
	touched   []*group  // scratch of Publish
	matched   []*group  // scratch of Publish
	woken     []*Stream // streams to wake before the lock is released
}

// New returns a hub that goes on from the source's current revision. No
// revision may be committed between New and the first Publish without being
// published.
func New(source Source, opt Options) *Hub {
	opt = opt.withDefaults()
	current, _ := source.Revision()
	return &Hub{
		source:    source,
		opt:       opt,
		done:      make(chan struct{}),
		work:      make(chan struct{}, 1),
		retry:     make(chan struct{}, 1),
		published: current,
		ring:      ring{maxEvents: opt.RingEvents, maxBytes: opt.RingBytes, floor: current + 1},
		streams:   map[*Stream]struct{}{},
	}
}

// Run serves the watchers that are behind until ctx ends; then it ends all
// streams, with what is still queued in them, and returns nil. It is called
// once.
func (h *Hub) Run(ctx context.Context) error {
	defer h.closeStreams()
	defer close(h.done)
	g, ctx := errgroup.WithContext(ctx)
	for range h.opt.Workers {
		g.Go(func() error { h.worker(ctx); return nil })
	}
	g.Go(func() error { h.retryFailed(ctx); return nil })
	return g.Wait()
}

// closeStreams closes the streams there are.
func (h *Hub) closeStreams() {
	h.mu.Lock()
	streams := slices.Collect(maps.Keys(h.streams))
	h.mu.Unlock()
	for _, s := range streams {
		s.Close()
	}
}

// Stats are the hub's counts.
type Stats struct {
	Streams      int
	Watchers     int    // all watchers that can still get events
	Slow         int    // those of them that are behind
	EventsPushed uint64 // events put into streams' queues, ever
	RingEvents   int
	RingBytes    int
	Published    int64 // the newest published revision
}

// Stats returns the current counts.
func (h *Hub) Stats() Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	return Stats{
		Streams: len(h.streams), Watchers: h.watchers, Slow: h.slow, EventsPushed: h.pushed,
		RingEvents: h.ring.events, RingBytes: h.ring.bytes, Published: h.published,
	}
}

// Publish hands over the events of all revisions up to revision that were not
// published yet, in order; a batch may hold many. The source shows that state
// already. Publish does not wait for any reader. The events are shared and must
// not change. They have PrevKv where there was a previous version, unless partial
// says that it was left out since [Hub.WantsPrev] was false: watchers that came
// meanwhile and want it then read from the source. Calls must not overlap.
//
// Revisions are dense, so a hole in them means that events were not seen, or
// that history was moved forward on purpose: watchers then read on from the
// source, which tells them if what they need is gone.
func (h *Hub) Publish(revision int64, events []*mvccpb.Event, partial bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.wake()
	if revision <= h.published {
		return
	}
	for len(events) > 0 && events[0].Kv.ModRevision <= h.published {
		events = events[1:]
	}
	n := len(events)
	if n == 0 || events[0].Kv.ModRevision != h.published+1 || events[n-1].Kv.ModRevision != revision {
		h.skipTo(revision)
		return
	}
	changes := make([]*change, n)
	for i, ev := range events {
		c := newChange(ev)
		changes[i] = c
		h.matched = h.index.match(ev.Kv.Key, h.matched[:0])
		for _, g := range h.matched {
			if g.pending == nil {
				g.pending = &run{partial: partial}
				h.touched = append(h.touched, g)
			}
			g.pending.add(c)
		}
	}
	h.published = revision
	h.ring.append(changes, partial)
	for _, g := range h.touched {
		r := g.pending
		g.pending = nil
		// From the end: a watcher that falls behind leaves the group, and the
		// last one takes its place.
		for _, w := range slices.Backward(g.watchers) {
			h.push(w, r)
		}
	}
	clear(h.touched)
	h.touched = h.touched[:0]
	clear(h.matched[:cap(h.matched)])
}

// WantsPrev says whether any watcher wants to know what a key was before.
func (h *Hub) WantsPrev() bool { return h.prevs.Load() > 0 }

// count adds n watchers like w to the hub's counts. The caller holds h.mu.
func (h *Hub) count(w *watcher, n int) {
	w.stream.alive += n
	h.watchers += n
	if w.prevKV {
		h.prevs.Add(int64(n))
	}
}

// push gives w, which is in sync, its part of a run, or notes that it is
// behind now. The caller holds h.mu.
func (h *Hub) push(w *watcher, r *run) {
	r = r.narrow(w.filter, w.next)
	if r.empty() {
		return
	}
	if (!w.prevKV || !r.partial) && w.stream.offer(w, r) {
		h.pushed += uint64(len(r.changes))
		h.mark(w.stream)
		return
	}
	h.fallBehind(w, r.first())
}

// skipTo moves on to revision without knowing the events up to it. The caller
// holds h.mu.
func (h *Hub) skipTo(revision int64) {
	unseen := h.published + 1
	h.published = revision
	h.ring.reset(revision + 1)
	for s := range h.streams {
		for _, w := range s.watchers {
			if w.state == inSync && w.next <= revision {
				h.fallBehind(w, max(w.next, unseen))
			}
		}
	}
}

// mark notes that s has something new to read. The caller holds h.mu.
func (h *Hub) mark(s *Stream) {
	if !s.marked {
		s.marked = true
		h.woken = append(h.woken, s)
	}
}

// wake wakes each marked stream, once. The caller holds h.mu.
func (h *Hub) wake() {
	for i, s := range h.woken {
		s.marked = false
		h.woken[i] = nil
		signal(s.wake)
	}
	h.woken = h.woken[:0]
}

// share is how many bytes of events a stream may hold.
func (h *Hub) share() int {
	return max(1, min(h.opt.QueueBytes, h.opt.TotalBytes/int(max(1, h.loaded.Load()))))
}

// signal leaves a token in c, a channel with room for one.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
