package watch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	// maxRevisions bounds a page of the past and a response, as in etcd.
	maxRevisions = 1000
	// firstRevisions is the first page of the log for a watcher: the bytes of
	// a revision are known only afterwards.
	firstRevisions = 64
	// pageBytes is what a page should hold at most, and the size above which
	// a response takes no further revision.
	pageBytes = 1 << 20
	// minPageBytes is the least that a page is made to hold.
	minPageBytes = 64 << 10
	// promoteEvents is how many events may be looked through under the lock
	// to bring a watcher in sync.
	promoteEvents = 1024
	// pageChunks is how many batches of the ring are looked through at a time.
	pageChunks = 1024
)

// fallBehind takes w, which was in sync, out of the index; it goes on from
// revision next. The caller holds h.mu.
func (h *Hub) fallBehind(w *watcher, next int64) {
	h.index.remove(w)
	h.setBehind(w, next)
}

// setBehind queues w for the workers. The caller holds h.mu; w is in no state
// yet or was just taken out of the index.
func (h *Hub) setBehind(w *watcher, next int64) {
	s := w.stream
	w.state, w.next, w.limit = behind, next, h.firstPage()
	h.slow++
	s.slow++
	s.behind.push(w)
	h.schedule(s)
}

// schedule hands s to the workers if a watcher of it is behind and its queue
// has room; without room, Pop does it later. The caller holds h.mu.
func (h *Hub) schedule(s *Stream) {
	if s.busy || s.closed || s.behind.len() == 0 || s.starve() {
		return
	}
	s.busy = true
	h.ready = append(h.ready, s)
	signal(h.work)
}

// next returns the stream that has waited longest for a worker, and the
// watcher that has waited longest in it; nil when ctx has ended.
func (h *Hub) next(ctx context.Context) (*Stream, *watcher) {
	for {
		h.mu.Lock()
		if len(h.ready) > 0 {
			s := h.ready[0]
			h.ready[0] = nil
			h.ready = h.ready[1:]
			if len(h.ready) > 0 {
				signal(h.work)
			}
			if s.closed {
				h.mu.Unlock()
				continue
			}
			w := s.behind.pop()
			h.mu.Unlock()
			return s, w
		}
		h.mu.Unlock()
		select {
		case <-h.work:
		case <-ctx.Done():
			return nil, nil
		}
	}
}

func (h *Hub) worker(ctx context.Context) {
	for ctx.Err() == nil {
		s, w := h.next(ctx)
		if s == nil {
			return
		}
		err := h.advance(ctx, w)
		damaged := errors.Is(err, eventlog.ErrCorrupt) && !errors.Is(err, eventlog.ErrFailed)
		switch {
		case err == nil || ctx.Err() != nil:
		case damaged:
			h.opt.Logger.WithError(err).Error("watch: canceled, since its past is damaged")
		default:
			h.opt.Logger.WithError(err).Warn("watch: cannot read the past, trying again")
		}
		h.mu.Lock()
		if err != nil && !damaged {
			s.behind.push(w)
			h.failed = append(h.failed, s) // stays busy until then
			signal(h.retry)
		} else {
			if damaged && w.state == behind {
				h.end(w, Response{Revision: h.published, CancelReason: errDamaged.Error()})
				h.wake()
			}
			s.busy = false
			h.schedule(s)
		}
		h.mu.Unlock()
	}
}

// retryFailed gives streams whose read failed to the workers again after a
// pause, so that they hold up nobody else.
func (h *Hub) retryFailed(ctx context.Context) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-h.retry:
		case <-ctx.Done():
			return
		}
		pause.Reset(h.opt.RetryDelay)
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		h.mu.Lock()
		failed := h.failed
		h.failed = nil
		for _, s := range failed {
			s.busy = false
			h.schedule(s)
		}
		h.mu.Unlock()
	}
}

// advance takes w, which is behind, one page further, and queues it for the
// next one if need be. Only one worker has w. After an error w is as before.
func (h *Hub) advance(ctx context.Context, w *watcher) error {
	_, compacted := h.source.Revision()
	h.mu.Lock()
	if h.settle(w, compacted) {
		h.wake()
		h.mu.Unlock()
		return nil
	}
	from := w.next
	chunks, _, inRing := h.ring.since(from, w.prevKV)
	chunks = append([]*chunk(nil), chunks[:min(len(chunks), pageChunks)]...)
	h.mu.Unlock()

	var r *run
	var next int64
	if inRing {
		r, next = w.collect(chunks, from, compacted, page{maxRevisions, h.pageBytes()})
	} else {
		events, n, err := h.source.History(ctx, w.key, w.end, from, w.limit, w.prevKV)
		if err != nil {
			return h.unread(w, fmt.Errorf("history from revision %d: %w", from, err))
		}
		if n <= from {
			return fmt.Errorf("%w: from %d to %d", errNoAdvance, from, n)
		}
		r, next = pageOf(w, events, h.pageBytes()), n
	}

	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.wake()
	if w.state != behind {
		return nil
	}
	h.deliver(w, r, next)
	// If a compaction came meanwhile, it is told on the next turn.
	if !h.settle(w, compacted) {
		w.stream.behind.push(w)
	}
	return nil
}

// pageBytes is what a page should hold at most at the moment: less than usual
// where many streams are not read.
func (h *Hub) pageBytes() int { return max(minPageBytes, min(pageBytes, h.share()/2)) }

// firstPage is how many revisions a watcher's first page of the log has.
func (h *Hub) firstPage() int {
	if h.pageBytes() < pageBytes {
		return 1
	}
	return firstRevisions
}

// pageOf makes a run of a page of the log and sizes the watcher's next page by
// it, so that it has about the given bytes.
func pageOf(w *watcher, events []*mvccpb.Event, bytes int) *run {
	r := newRun(events)
	switch {
	case r.bytes > bytes:
		w.limit = max(1, w.limit*bytes/r.bytes)
	case r.bytes < bytes/4:
		w.limit = min(maxRevisions, w.limit*4)
	}
	return r.narrow(w.filter, 0)
}

// deliver queues a page of the past. The caller holds h.mu, w is behind.
func (h *Hub) deliver(w *watcher, r *run, next int64) {
	w.next = max(w.next, next)
	if !r.empty() {
		w.stream.pushPage(w, r, max(h.published, r.last()))
		h.pushed += uint64(len(r.changes))
		h.mark(w.stream)
	}
}

// settle ends w's being behind, if that can be done at once: it is cancelled
// if compaction has overtaken it, and put in sync if what it misses is little
// enough to be looked through under the lock and its stream has room for it.
// It reports whether nothing is left to do. The caller holds h.mu.
func (h *Hub) settle(w *watcher, compacted int64) bool {
	if w.state != behind {
		return true
	}
	if w.next < compacted {
		h.expire(w, compacted)
		return true
	}
	if w.next <= h.published {
		chunks, events, ok := h.ring.since(w.next, w.prevKV)
		bound := page{promoteEvents, h.pageBytes()}
		if len(chunks) == 1 { // what Publish would have pushed
			bound = page{events + 1, h.opt.RingBytes + 1}
		} else if events > promoteEvents {
			return false
		}
		if !ok {
			return false
		}
		r, next := w.collect(chunks, w.next, compacted, bound)
		if next <= h.published || !r.empty() && w.stream.crowded() {
			return false
		}
		h.deliver(w, r, next)
	}
	h.leaveBehind(w)
	h.join(w)
	return true
}

// join puts w in sync: it gets what is published from revision w.next on. The
// caller holds h.mu.
func (h *Hub) join(w *watcher) {
	w.state = inSync
	h.index.add(w)
	if w.required() > h.published {
		w.stream.future[w] = struct{}{}
	}
}

func (h *Hub) leaveBehind(w *watcher) {
	h.slow--
	w.stream.slow--
}

// expire cancels w because what it needs is compacted. The caller holds h.mu.
func (h *Hub) expire(w *watcher, compacted int64) {
	h.end(w, Response{CompactRevision: compacted})
}

// end cancels w, which is behind, for the reason that resp has. Its id stays
// taken until the client cancels it. The caller holds h.mu.
func (h *Hub) end(w *watcher, resp Response) {
	h.leaveBehind(w)
	w.state = gone
	h.count(w, -1)
	delete(w.stream.notify, w)
	resp.WatchID, resp.Canceled = w.id, true
	w.stream.pushControl(resp)
	h.mark(w.stream)
}

// unread follows a failed read of w's past: compaction is the reason if it has
// overtaken w, which is cancelled then; else the error is.
func (h *Hub) unread(w *watcher, err error) error {
	_, compacted := h.source.Revision()
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.wake()
	switch {
	case w.state != behind:
		return nil
	case w.next < compacted:
		h.expire(w, compacted)
		return nil
	}
	return err
}
