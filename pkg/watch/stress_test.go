package watch

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// reader is a client with watchers that each must see one revision after the
// other, as every revision changes the one key.
type reader struct {
	t    *testing.T
	h    *harness
	s    *Stream
	rng  *rand.Rand
	next map[int64]int64 // by watcher, 0 if it began at some current revision
	turn chan<- struct{} // lets the writer go on, so that it is not far ahead
	auto int64
}

func (r *reader) create() {
	current, _ := r.h.source.Revision()
	req := prefix("a")
	if r.rng.IntN(3) > 0 {
		req.StartRevision = max(2, current-r.rng.Int64N(200)+20)
	}
	req.PrevKV = r.rng.IntN(2) == 0
	r.next[r.auto] = req.StartRevision
	r.auto++
	r.s.Create(req)
}

func (r *reader) cancel() {
	for id := range r.next {
		r.s.Cancel(id)
		delete(r.next, id)
		return
	}
}

func (r *reader) take(resp Response) {
	next, known := r.next[resp.WatchID]
	switch {
	case resp.Created || resp.Canceled || !known:
		return
	case next == 0 && len(resp.Events) > 0:
		next = resp.Events[0].Kv.ModRevision
	}
	for _, ev := range resp.Events {
		if ev.Kv.ModRevision != next {
			r.t.Errorf("watcher %d got revision %d, want %d", resp.WatchID, ev.Kv.ModRevision, next)
		}
		next = ev.Kv.ModRevision + 1
	}
	r.next[resp.WatchID] = next
}

// behind says whether some watcher has not yet seen the last revision.
func (r *reader) behind(last int64) bool {
	for _, next := range r.next {
		if next <= last {
			return true
		}
	}
	return false
}

// run reads, creates and cancels until stop, then calls stopped and reads until
// final is closed and every watcher has seen everything.
func (r *reader) run(stop <-chan struct{}, stopped func(), final <-chan struct{}) {
	timeout := time.After(2 * time.Minute)
	for {
		switch n := r.rng.IntN(100); {
		case stop != nil && n < 5 && len(r.next) < 10:
			r.create()
		case stop != nil && n < 6:
			r.cancel()
		case n < 10:
			r.s.RequestProgress()
		}
		if resp, ok := r.s.Pop(); ok {
			r.take(resp)
			signal(r.turn)
			continue
		}
		last, _ := r.h.source.Revision()
		if final == nil && !r.behind(last) {
			return
		}
		select {
		case <-r.s.Wake():
		case <-stop:
			stop = nil
			stopped()
		case <-final:
			final = nil
		case r.turn <- struct{}{}:
		case <-timeout:
			r.t.Errorf("stalled at %v, want %d", r.next, last)
			return
		}
	}
}

// Everything at once, with queues and a ring that are much too small.
func TestConcurrent(t *testing.T) {
	h := newHarness(t, Options{RingEvents: 50, QueueEvents: 8, Workers: 3}, true)
	stop, final := make(chan struct{}), make(chan struct{})
	turn := make(chan struct{}, 1)
	var readers, stopped sync.WaitGroup
	for i := range 20 {
		r := &reader{t: t, h: h, s: h.stream(), rng: rand.New(rand.NewPCG(uint64(i), 1)), next: map[int64]int64{}, turn: turn}
		for range 5 {
			r.create()
		}
		stopped.Add(1)
		readers.Go(func() { r.run(stop, stopped.Done, final) })
	}
	for i := range 2000 {
		<-turn
		batch := make([][]op, 1+i%4)
		for j := range batch {
			batch[j] = []op{{"a", "x"}}
		}
		h.publish(batch...)
	}
	close(stop)
	stopped.Wait()
	// All watchers see this, those too that began at the current revision.
	for range 30 {
		h.put("a")
	}
	close(final)
	readers.Wait()
	if st := h.hub.Stats(); st.EventsPushed < 100000 || st.Slow > 0 {
		t.Errorf("stats %+v", st)
	}
}
