package watch

import (
	"context"
	"errors"
	"sync"
)

// The reasons for which a watcher is refused, in etcd's words.
var (
	errEmptyRange  = errors.New("mvcc: watcher range is empty")
	errDuplicateID = errors.New("mvcc: duplicate watch ID provided on the WatchStream")
)

// NoWatch is the watch id in responses that belong to no watcher: a refused
// creation, or progress of the whole stream.
const NoWatch = -1

// maxControls is how many answers to a client's own requests may wait to be
// read before [Stream.Admit] holds the client back.
const maxControls = 64

// Request asks for a watcher.
type Request struct {
	ID       int64  // 0: the stream picks one
	Key, End []byte // by etcd's conventions: no End is one key, "\0" all keys from Key on
	// StartRevision is the first revision wanted; 0 means what comes after
	// the current one.
	StartRevision   int64
	NoPut, NoDelete bool
	PrevKV          bool
	Fragment        bool
	ProgressNotify  bool
}

type watcherState uint8

const (
	fresh  watcherState = iota
	inSync              // in the index
	behind              // in Stream.behind, or with a worker
	gone                // gets nothing any more
)

// watcher is one watch of a stream.
type watcher struct {
	stream   *Stream
	id       int64
	span     span
	key, end []byte
	start    int64
	filter   filter
	prevKV   bool
	fragment bool

	// Guarded by Hub.mu.
	state watcherState
	next  int64 // the first revision it still accepts
	group *group
	place int // in group.watchers

	limit int // revisions of its next page; owned by the worker that has it

	// Guarded by Stream.mu.
	newest  *item // its last queued events or progress, if not all sent
	quiet   bool  // no events were sent since the last progress interval
	dropped bool  // cancelled: what is queued for it since dropAt is not sent
	dropAt  uint64
}

// required is the revision that must be published before w's stream can claim
// progress.
func (w *watcher) required() int64 { return max(w.start, w.next-1) }

// Stream is the queue of responses to one client, and its watchers. All
// methods may be called at the same time, but Pop from one goroutine only.
type Stream struct {
	hub  *Hub
	wake chan struct{} // there is something to pop
	room chan struct{} // an answer was popped

	// Guarded by Hub.mu.
	watchers map[int64]*watcher // by id; those that the hub has ended too
	auto     int64              // the next id to pick
	alive    int                // watchers that are not gone
	slow     int                // those of them that are behind
	behind   fifo[*watcher]     // to be worked on; some may be gone
	busy     bool               // in Hub.ready or Hub.failed, or with a worker
	closed   bool
	marked   bool                  // in Hub.woken
	future   map[*watcher]struct{} // in sync, maybe not at their required revision
	notify   map[*watcher]struct{} // want regular progress

	mu sync.Mutex
	// Guarded by mu.
	queue    fifo[*item]
	events   int
	bytes    int
	sending  int  // bytes of the events that Pop returned last: they are being sent
	loaded   bool // counted in Hub.loaded
	controls int
	epoch    uint64 // counts the barriers: no event may be put before an earlier one
	starved  bool   // a watcher is behind, and waits for room
	ended    bool
}

// NewStream returns a stream without watchers. It must be closed.
func (h *Hub) NewStream() *Stream {
	s := &Stream{
		hub:      h,
		wake:     make(chan struct{}, 1),
		room:     make(chan struct{}, 1),
		watchers: map[int64]*watcher{},
		future:   map[*watcher]struct{}{},
		notify:   map[*watcher]struct{}{},
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.streams[s] = struct{}{}
	return s
}

// Create adds a watcher and queues the answer, ahead of its events: created,
// or created and cancelled with the reason.
func (s *Stream) Create(req Request) {
	h := s.hub
	current, compacted := h.source.Revision()
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.wake()
	if s.closed {
		return
	}
	now := max(current, h.published)
	w := &watcher{
		stream: s, span: newSpan(req.Key, req.End), key: req.Key, end: req.End, start: req.StartRevision,
		prevKV: req.PrevKV, fragment: req.Fragment, quiet: true,
	}
	if req.NoPut {
		w.filter |= noPut
	}
	if req.NoDelete {
		w.filter |= noDelete
	}
	if w.span.empty() {
		s.refuse(now, errEmptyRange.Error())
		return
	}
	if w.id = req.ID; w.id == 0 {
		for s.watchers[s.auto] != nil {
			s.auto++
		}
		w.id = s.auto
		s.auto++
	} else if s.watchers[w.id] != nil {
		s.refuse(now, errDuplicateID.Error())
		return
	}
	s.watchers[w.id] = w
	h.count(w, 1)
	if req.ProgressNotify {
		s.notify[w] = struct{}{}
	}
	s.pushControl(Response{WatchID: w.id, Created: true, Revision: now})
	h.mark(s)
	if w.start == 0 || w.start > now {
		w.next = max(w.start, now+1)
		h.join(w)
		return
	}
	// Take the short way where it is one; else the workers get it.
	w.state, w.next, w.limit = behind, w.start, h.firstPage()
	h.slow++
	s.slow++
	if !h.settle(w, compacted) {
		s.behind.push(w)
		h.schedule(s)
	}
}

// Refuse queues the answer to a creation that is cancelled at once.
func (s *Stream) Refuse(reason string) {
	h := s.hub
	current, _ := h.source.Revision()
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.wake()
	s.refuse(max(current, h.published), reason)
}

// refuse is Refuse under h.mu.
func (s *Stream) refuse(revision int64, reason string) {
	s.pushControl(Response{WatchID: NoWatch, Created: true, Canceled: true, CancelReason: reason, Revision: revision})
	s.hub.mark(s)
}

// Cancel ends a watcher and queues the answer. What is still queued for the
// watcher is not sent, unless progress of the stream is queued behind it. An
// unknown id is not answered.
func (s *Stream) Cancel(id int64) {
	h := s.hub
	current, _ := h.source.Revision()
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.wake()
	w := s.watchers[id]
	if w == nil || s.closed {
		return
	}
	h.remove(w)
	s.drop(w)
	s.pushControl(Response{WatchID: id, Canceled: true, Revision: max(current, h.published)})
	h.mark(s)
}

// remove forgets w. The caller holds h.mu.
func (h *Hub) remove(w *watcher) {
	s := w.stream
	delete(s.watchers, w.id)
	delete(s.future, w)
	delete(s.notify, w)
	switch w.state {
	case gone:
		return
	case inSync:
		h.index.remove(w)
	case behind:
		h.leaveBehind(w)
	}
	w.state = gone
	h.count(w, -1)
}

// RequestProgress queues one answer for the whole stream behind everything
// that is queued, if all watchers are in sync and have reached their start;
// else it does nothing. It reports which.
func (s *Stream) RequestProgress() bool {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.wake()
	if s.alive == 0 || s.slow > 0 {
		return false
	}
	for w := range s.future {
		if w.required() > h.published {
			return false
		}
		delete(s.future, w)
	}
	s.pushProgressAll(h.published)
	h.mark(s)
	return true
}

// NotifyProgress is called in regular intervals: it queues progress for each
// watcher that wants it, is in sync, has reached its start and was sent no
// events since the last call.
func (s *Stream) NotifyProgress() {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.wake()
	for w := range s.notify {
		if s.takeQuiet(w) && w.state == inSync && w.required() <= h.published {
			s.pushProgress(w, h.published)
			h.mark(s)
		}
	}
}

// Close ends the stream and all its watchers. Pop then returns nothing.
func (s *Stream) Close() {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	delete(h.streams, s)
	n := 0
	for _, w := range s.watchers { // nobody else touches the map now
		h.remove(w)
		if n++; n%1024 == 0 { // let others have the lock in between
			h.mu.Unlock()
			h.mu.Lock()
		}
	}
	s.behind = fifo[*watcher]{}
	s.end()
}

// Admit waits until the client may send its next request: until not too many
// of the answers to its earlier ones are unread.
func (s *Stream) Admit(ctx context.Context) error {
	for {
		switch admitted, ended := s.admits(); {
		case ended:
			select {
			case <-s.hub.done:
				return ErrStopped
			default:
				return ErrClosed
			}
		case admitted:
			return nil
		}
		select {
		case <-s.room:
		case <-s.hub.done:
			return ErrStopped
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Done is closed when the hub has stopped: nothing will come any more.
func (s *Stream) Done() <-chan struct{} { return s.hub.done }

// Rouse signals Wake: there is something else to do than to pop.
func (s *Stream) Rouse() { signal(s.wake) }

// Wake is signalled when there may be something to pop, by Rouse, and at the
// end of the stream.
func (s *Stream) Wake() <-chan struct{} { return s.wake }
