package watch

import (
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Response is one message to the client.
type Response struct {
	WatchID int64
	// Revision is for the header: of the newest event when it was published
	// just now, the current one when catching up or without events, 0 in a
	// cancellation by compaction.
	Revision int64
	// Events may be shared with other responses, slice and all.
	Events          []*mvccpb.Event
	Created         bool
	Canceled        bool
	CancelReason    string
	CompactRevision int64
	Fragment        bool // the watcher takes its events in fragments
}

// item is one entry of a stream's queue: an answer, progress, or events of one
// watcher, which become one response or, if they are many, several.
type item struct {
	w      *watcher  // nil if the item is for the whole stream
	answer *Response // nil if it is events or progress
	epoch  uint64    // see Stream.epoch

	// Events: those of first, from sent on, and of more. None is progress.
	first *run
	more  []*run
	sent  int
	// revision is the current revision when progress or a page of the past
	// was queued, 0 for published events.
	revision int64
}

// full says whether the queue takes no further events. The caller holds s.mu.
func (s *Stream) full() bool {
	return s.events >= s.hub.opt.QueueEvents || s.bytes+s.sending >= s.hub.share()
}

// reckon sees to it that the hub counts s if it holds events. The caller holds
// s.mu and has changed bytes or sending.
func (s *Stream) reckon() {
	loaded := s.bytes+s.sending > 0
	switch {
	case loaded && !s.loaded:
		s.hub.loaded.Add(1)
	case !loaded && s.loaded:
		s.hub.loaded.Add(-1)
	}
	s.loaded = loaded
}

// crowded is full for callers that hold only h.mu.
func (s *Stream) crowded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.full()
}

// starve is crowded, and if so has Pop schedule the stream once there is room.
func (s *Stream) starve() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.starved = s.full()
	return s.starved
}

// offer queues published events of w, false if there is no room. The caller
// holds h.mu, as for all that queues.
func (s *Stream) offer(w *watcher, r *run) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full() {
		return false
	}
	s.enqueue(w, r, 0)
	return true
}

// pushPage queues a page of w's past, read at the given current revision.
func (s *Stream) pushPage(w *watcher, r *run, current int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enqueue(w, r, current)
}

// enqueue appends to w's newest item, if its events have not all been sent and
// no barrier came after it. The caller holds s.mu.
func (s *Stream) enqueue(w *watcher, r *run, current int64) {
	if s.ended {
		return
	}
	s.events += len(r.changes)
	s.bytes += r.bytes
	s.reckon()
	if it := w.newest; it != nil && it.first != nil && it.epoch == s.epoch {
		it.more = append(it.more, r)
		it.revision = max(it.revision, current)
		return
	}
	w.newest = &item{w: w, first: r, revision: current, epoch: s.epoch}
	s.queue.push(w.newest)
}

// pushControl queues an answer.
func (s *Stream) pushControl(resp Response) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.controls++
	s.queue.push(&item{answer: &resp})
}

// pushProgressAll queues progress for the whole stream. It is a barrier: what
// is published afterwards must not be sent before it.
func (s *Stream) pushProgressAll(revision int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	if it := s.queue.last(); it != nil && it.w == nil && it.answer == nil {
		it.revision = revision
		return
	}
	s.epoch++
	s.queue.push(&item{revision: revision})
}

// pushProgress queues progress for w alone. The next events of w come in an
// item of their own.
func (s *Stream) pushProgress(w *watcher, revision int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	if it := w.newest; it != nil && it.first == nil && it.epoch == s.epoch {
		it.revision = revision
		return
	}
	w.newest = &item{w: w, revision: revision, epoch: s.epoch}
	s.queue.push(w.newest)
}

// takeQuiet returns whether w was sent no events since the last call.
func (s *Stream) takeQuiet(w *watcher) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	quiet := w.quiet
	w.quiet = true
	return quiet
}

// drop makes Pop pass over what is queued for w since the last barrier.
func (s *Stream) drop(w *watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.dropped, w.dropAt = true, s.epoch
}

// end empties the queue for good.
func (s *Stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.queue = fifo[*item]{}
	s.events, s.bytes, s.sending, s.controls = 0, 0, 0, 0
	s.reckon()
	signal(s.room)
	signal(s.wake)
}

// admits says whether the client may send another request.
func (s *Stream) admits() (admitted, ended bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.controls < maxControls, s.ended
}

// Pop takes the next response from the queue, false if there is none now.
func (s *Stream) Pop() (Response, bool) {
	resp, events, ok, hungry := s.take()
	if hungry {
		s.hub.mu.Lock()
		s.hub.schedule(s)
		s.hub.mu.Unlock()
	}
	resp.Events = events.make()
	return resp, ok
}

// taken is what a response's events are made of: a run, or changes.
type taken struct {
	run     *run
	changes []*change
	prevKV  bool
}

func (t taken) make() []*mvccpb.Event {
	switch {
	case t.run != nil:
		return t.run.events(t.prevKV)
	case len(t.changes) > 0:
		return eventsOf(t.changes, t.prevKV)
	}
	return nil
}

// take is Pop but for what is better done without s.mu: to make the events, and
// to let the workers go on with the stream, if it is hungry.
func (s *Stream) take() (resp Response, events taken, ok, hungry bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sending = 0 // the last response is sent, or the caller would not be back
	for !ok && s.queue.len() > 0 {
		it := s.queue.first()
		ok = true
		switch {
		case it.answer != nil:
			s.queue.pop()
			s.controls--
			signal(s.room)
			resp = *it.answer
		case it.w != nil && it.w.dropped && it.epoch >= it.w.dropAt:
			s.queue.pop()
			s.forget(it)
			ok = false
		case it.first == nil: // progress
			s.queue.pop()
			s.retire(it)
			resp = Response{WatchID: NoWatch, Revision: it.revision}
			if it.w != nil {
				resp.WatchID = it.w.id
			}
		default:
			queued := s.bytes
			resp, events = s.takeEvents(it)
			s.sending = queued - s.bytes
		}
	}
	s.reckon()
	if s.starved && s.events <= s.hub.opt.QueueEvents/2 && s.bytes+s.sending <= s.hub.share()/2 {
		s.starved = false
		hungry = true
	}
	return resp, events, ok, hungry
}

// takeEvents takes as many whole revisions of the queue's first item as make
// one response. The caller holds s.mu.
func (s *Stream) takeEvents(it *item) (Response, taken) {
	w := it.w
	w.quiet = false
	resp := Response{WatchID: w.id, Fragment: w.fragment}
	if r := it.first; it.sent == 0 && len(it.more) == 0 && r.revisions <= maxRevisions && r.bytes <= pageBytes {
		s.queue.pop()
		s.retire(it)
		s.events -= len(r.changes)
		s.bytes -= r.bytes
		resp.Revision = max(it.revision, r.last())
		return resp, taken{run: r, prevKV: w.prevKV}
	}
	changes := s.cut(it)
	resp.Revision = max(it.revision, changes[len(changes)-1].revision())
	return resp, taken{changes: changes, prevKV: w.prevKV}
}

// cut takes one response's worth of changes off the queue's first item. The
// caller holds s.mu.
func (s *Stream) cut(it *item) []*change {
	var taken []*change
	revisions, bytes := 0, 0
	for {
		for _, c := range it.first.changes[it.sent:] {
			if n := len(taken); n == 0 || taken[n-1].revision() != c.revision() {
				if revisions == maxRevisions || bytes >= pageBytes {
					return taken
				}
				revisions++
			}
			taken = append(taken, c)
			bytes += c.size
			it.sent++
			s.events--
			s.bytes -= c.size
		}
		if len(it.more) == 0 {
			s.queue.pop()
			s.retire(it)
			return taken
		}
		it.first, it.sent = it.more[0], 0
		it.more[0] = nil
		it.more = it.more[1:]
	}
}

// retire notes that nothing of it is queued any more. The caller holds s.mu.
func (s *Stream) retire(it *item) {
	if it.w != nil && it.w.newest == it {
		it.w.newest = nil
	}
}

// forget takes what it holds off the queue's account. The caller holds s.mu.
func (s *Stream) forget(it *item) {
	s.retire(it)
	if it.first == nil {
		return
	}
	for _, c := range it.first.changes[it.sent:] {
		s.events--
		s.bytes -= c.size
	}
	for _, r := range it.more {
		s.events -= len(r.changes)
		s.bytes -= r.bytes
	}
}

// fifo is a queue that gives its memory back.
type fifo[T any] struct {
	items []T
	head  int
}

func (f *fifo[T]) len() int { return len(f.items) - f.head }

func (f *fifo[T]) push(v T) { f.items = append(f.items, v) }

// first returns the oldest entry; the queue is not empty.
func (f *fifo[T]) first() T { return f.items[f.head] }

// last returns the newest entry, the zero value if there is none.
func (f *fifo[T]) last() (v T) {
	if f.len() > 0 {
		v = f.items[len(f.items)-1]
	}
	return v
}

func (f *fifo[T]) pop() T {
	var zero T
	v := f.items[f.head]
	f.items[f.head] = zero
	f.head++
	switch {
	case f.len() == 0 && cap(f.items) > 1024:
		*f = fifo[T]{}
	case f.len() == 0:
		f.items, f.head = f.items[:0], 0
	case f.head >= 64 && f.head >= f.len():
		n := copy(f.items, f.items[f.head:])
		clear(f.items[n:])
		f.items, f.head = f.items[:n], 0
	}
	return v
}
