package watch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// fakeSource is a store that keeps all events in a slice.
type fakeSource struct {
	mu        sync.Mutex
	events    []*mvccpb.Event
	live      map[string]*mvccpb.KeyValue
	current   int64
	compacted int64
	fail      error         // what History returns
	gate      chan struct{} // if set, History takes a token first
	calls     int
}

func newFakeSource() *fakeSource {
	return &fakeSource{live: map[string]*mvccpb.KeyValue{}, current: 1, compacted: -1}
}

// op is a put, or a delete if the value is empty.
type op struct{ key, value string }

// commit applies each ops as one revision and returns what to publish.
func (f *fakeSource) commit(revisions ...[]op) (int64, []*mvccpb.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var events []*mvccpb.Event
	for _, ops := range revisions {
		rev := f.current + 1
		n := len(events)
		for _, o := range ops {
			prev := f.live[o.key]
			if o.value == "" {
				if prev == nil {
					continue
				}
				delete(f.live, o.key)
				events = append(events, &mvccpb.Event{
					Type: mvccpb.Event_DELETE, PrevKv: prev,
					Kv: &mvccpb.KeyValue{Key: []byte(o.key), ModRevision: rev},
				})
				continue
			}
			kv := &mvccpb.KeyValue{Key: []byte(o.key), Value: []byte(o.value), CreateRevision: rev, ModRevision: rev, Version: 1}
			if prev != nil {
				kv.CreateRevision, kv.Version = prev.CreateRevision, prev.Version+1
			}
			f.live[o.key] = kv
			events = append(events, &mvccpb.Event{Kv: kv, PrevKv: prev})
		}
		if len(events) > n {
			f.current = rev
		}
	}
	f.events = append(f.events, events...)
	return f.current, events
}

func (f *fakeSource) compact(rev int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.compacted = rev
}

func (f *fakeSource) Revision() (int64, int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current, f.compacted
}

func (f *fakeSource) History(ctx context.Context, key, end []byte, from int64, limit int, prevKV bool) ([]*mvccpb.Event, int64, error) {
	f.mu.Lock()
	gate := f.gate
	f.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.fail != nil {
		return nil, 0, f.fail
	}
	if from < f.compacted {
		return nil, 0, errors.New("fake: compacted")
	}
	sp := newSpan(key, end)
	var events []*mvccpb.Event
	revisions, last := 0, int64(0)
	for _, ev := range f.events {
		rev := ev.Kv.ModRevision
		if rev < from || !sp.contains(ev.Kv.Key) {
			continue
		}
		if rev != last {
			if revisions == limit {
				return events, rev, nil
			}
			revisions++
			last = rev
		}
		if ev.PrevKv != nil && (!prevKV || rev <= f.compacted) {
			ev = &mvccpb.Event{Type: ev.Type, Kv: ev.Kv}
		}
		events = append(events, ev)
	}
	return events, f.current + 1, nil
}

func (f *fakeSource) historyCalls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

var errFake = errors.New("fake: broken")

// harness is a hub over a fake source.
type harness struct {
	t      testing.TB
	source *fakeSource
	hub    *Hub
}

// newHarness returns a hub, which runs only if run is set, until the test ends.
func newHarness(t testing.TB, opt Options, run bool) *harness {
	source := newFakeSource()
	h := &harness{t: t, source: source, hub: New(source, opt)}
	if run {
		h.run()
	}
	return h
}

func (h *harness) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.hub.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Errorf("Run: %v", err)
		}
	})
	h.t.Cleanup(stop)
	return stop
}

// put commits and publishes one revision for each key, as one batch.
func (h *harness) put(keys ...string) {
	var revisions [][]op
	for _, k := range keys {
		revisions = append(revisions, []op{{k, "v"}})
	}
	h.publish(revisions...)
}

func (h *harness) publish(revisions ...[]op) {
	rev, events := h.source.commit(revisions...)
	h.hub.Publish(rev, events, false)
}

// withoutPrev returns events as a store makes them that leaves PrevKv out.
func withoutPrev(events []*mvccpb.Event) []*mvccpb.Event {
	var plain []*mvccpb.Event
	for _, ev := range events {
		plain = append(plain, &mvccpb.Event{Type: ev.Type, Kv: ev.Kv})
	}
	return plain
}

// stream returns a stream that is closed when the test ends.
func (h *harness) stream() *Stream {
	s := h.hub.NewStream()
	h.t.Cleanup(s.Close)
	return s
}

// next waits for the stream's next response.
func (h *harness) next(s *Stream) Response {
	h.t.Helper()
	for timeout := time.After(time.Minute); ; {
		if resp, ok := s.Pop(); ok {
			return resp
		}
		select {
		case <-s.Wake():
		case <-timeout:
			h.t.Fatal("no response")
		}
	}
}

// text is a response in one line.
func text(r Response) string {
	s := fmt.Sprintf("#%d @%d", r.WatchID, r.Revision)
	if r.Created {
		s += " created"
	}
	if r.Canceled {
		s += " canceled"
	}
	if r.CancelReason != "" {
		s += " because: " + r.CancelReason
	}
	if r.CompactRevision != 0 {
		s += fmt.Sprintf(" compacted %d", r.CompactRevision)
	}
	for _, ev := range r.Events {
		sign := "+"
		if ev.Type == mvccpb.Event_DELETE {
			sign = "-"
		}
		s += fmt.Sprintf(" %s%s/%d", sign, ev.Kv.Key, ev.Kv.ModRevision)
		if ev.PrevKv != nil {
			s += fmt.Sprintf("<%d", ev.PrevKv.ModRevision)
		}
	}
	return s
}

// expect compares the stream's next responses with lines.
func (h *harness) expect(s *Stream, lines ...string) {
	h.t.Helper()
	for _, want := range lines {
		if got := text(h.next(s)); got != want {
			h.t.Fatalf("got  %s\nwant %s", got, want)
		}
	}
}

// quiet checks that the stream has nothing to say.
func (h *harness) quiet(s *Stream) {
	h.t.Helper()
	if resp, ok := s.Pop(); ok {
		h.t.Fatalf("unexpected %s", text(resp))
	}
}

func single(key string) Request { return Request{Key: []byte(key)} }
func prefix(p string) Request {
	end := []byte(p)
	end[len(end)-1]++
	return Request{Key: []byte(p), End: end}
}

func (r Request) from(rev int64) Request { r.StartRevision = rev; return r }
func (r Request) id(id int64) Request    { r.ID = id; return r }
func (r Request) prev() Request          { r.PrevKV = true; return r }
