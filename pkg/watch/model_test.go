package watch

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"pgregory.net/rapid"
)

// modelWatcher is what one watcher has to see, by the source's plain list.
type modelWatcher struct {
	req  Request
	span span
	from int64 // the first revision that it must see
	at   int   // its place in the source's events
	seen int64 // the newest revision that it has seen
	live bool  // neither cancelled nor overtaken
	dead bool  // was created below the compacted revision: sees nothing
}

// wants is whether the watcher sees ev.
func (w *modelWatcher) wants(ev *mvccpb.Event) bool {
	if ev.Kv.ModRevision < w.from || !w.span.contains(ev.Kv.Key) {
		return false
	}
	if ev.Type == mvccpb.Event_DELETE {
		return !w.req.NoDelete
	}
	return !w.req.NoPut
}

// answer is what a request of the client must be answered with.
type answer struct {
	text string
	w    *modelWatcher // if it was created
}

// modelStream is a client.
type modelStream struct {
	s        *Stream
	answers  []answer                // still to come
	watchers map[int64]*modelWatcher // created, by what the answers say
	taken    map[int64]bool          // ids in use, by what was requested
	auto     int64
}

// model drives a hub with random calls and checks all it says.
type model struct {
	t       *rapid.T
	source  *fakeSource
	hub     *Hub
	streams []*modelStream
	newest  int64 // published up to here
	held    []*mvccpb.Event
}

var modelKeys = []string{"a", "a1", "a2", "b", "b1", "c"}

func (m *model) keyRange() (key, end []byte) {
	key = []byte(rapid.SampledFrom(modelKeys).Draw(m.t, "key"))
	switch rapid.IntRange(0, 3).Draw(m.t, "range") {
	case 0:
		return key, nil
	case 1:
		return key, []byte{0}
	case 2:
		return []byte{0}, []byte{0}
	}
	return key, []byte(string(key) + "~")
}

func (m *model) commit() {
	var revisions [][]op
	for range rapid.IntRange(1, 4).Draw(m.t, "revisions") {
		var ops []op
		for _, k := range rapid.SliceOfNDistinct(rapid.SampledFrom(modelKeys), 1, 3, rapid.ID).Draw(m.t, "keys") {
			ops = append(ops, op{k, rapid.SampledFrom([]string{"", "x", "y"}).Draw(m.t, "value")})
		}
		revisions = append(revisions, ops)
	}
	_, events := m.source.commit(revisions...)
	m.held = append(m.held, events...)
}

func (m *model) publish() {
	m.newest = m.source.current
	partial := rapid.Bool().Draw(m.t, "partial")
	if partial {
		m.held = withoutPrev(m.held)
	}
	m.hub.Publish(m.newest, m.held, partial)
	m.held = nil
}

func (m *model) create() {
	st := rapid.SampledFrom(m.streams).Draw(m.t, "stream")
	if len(st.answers) >= maxControls {
		return
	}
	key, end := m.keyRange()
	current, compacted := m.source.Revision()
	w := &modelWatcher{span: newSpan(key, end), live: true, req: Request{
		Key: key, End: end,
		ID:            rapid.SampledFrom([]int64{0, 0, 0, 2, 50}).Draw(m.t, "id"),
		StartRevision: max(0, rapid.SampledFrom([]int64{0, 1, current - 5, current - 1, current, current + 1, current + 3}).Draw(m.t, "start")),
		NoPut:         rapid.IntRange(0, 4).Draw(m.t, "noput") == 0,
		NoDelete:      rapid.IntRange(0, 4).Draw(m.t, "nodelete") == 0,
		PrevKV:        rapid.Bool().Draw(m.t, "prev"),
	}}
	if w.from = w.req.StartRevision; w.from == 0 {
		w.from = current + 1
	}
	w.dead = w.from < compacted
	id := w.req.ID
	st.s.Create(w.req)
	if id == 0 {
		for id = st.auto; st.taken[id]; id++ {
		}
		st.auto = id + 1
	} else if st.taken[id] {
		st.answers = append(st.answers, answer{"#-1 created canceled", nil})
		return
	}
	st.taken[id] = true
	st.answers = append(st.answers, answer{fmt.Sprintf("#%d created", id), w})
}

func (m *model) cancel() {
	st := rapid.SampledFrom(m.streams).Draw(m.t, "stream")
	if len(st.answers) >= maxControls || len(st.taken) == 0 {
		return
	}
	ids := []int64{}
	for id := range st.taken {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	id := rapid.SampledFrom(ids).Draw(m.t, "id")
	st.s.Cancel(id)
	delete(st.taken, id)
	st.answers = append(st.answers, answer{fmt.Sprintf("#%d canceled", id), nil})
}

func (m *model) compact() {
	current, compacted := m.source.Revision()
	m.source.compact(rapid.Int64Range(max(compacted, 1), current).Draw(m.t, "compact"))
}

// read pops up to n responses of a stream.
func (m *model) read() {
	st := rapid.SampledFrom(m.streams).Draw(m.t, "stream")
	for range rapid.IntRange(1, 20).Draw(m.t, "n") {
		resp, ok := st.s.Pop()
		if !ok {
			return
		}
		m.check(st, resp)
	}
}

// check checks one response against what the client must see.
func (m *model) check(st *modelStream, resp Response) {
	t := m.t
	current, compacted := m.source.Revision()
	if resp.Revision > current {
		t.Fatalf("%s: revision is in the future", text(resp))
	}
	switch {
	case resp.CompactRevision != 0:
		w := st.watchers[resp.WatchID]
		if w == nil || !w.live || w.from >= resp.CompactRevision || resp.CompactRevision > compacted || resp.Revision != 0 {
			t.Fatalf("%s: wrong; watcher %+v", text(resp), w)
		}
		w.live = false
	case resp.Created || resp.Canceled:
		got := fmt.Sprintf("#%d", resp.WatchID)
		if resp.Created {
			got += " created"
		}
		if resp.Canceled {
			got += " canceled"
		}
		if len(st.answers) == 0 || st.answers[0].text != got {
			t.Fatalf("%s: expected one of %v", text(resp), st.answers)
		}
		if w := st.answers[0].w; w != nil {
			st.watchers[resp.WatchID] = w
		} else {
			delete(st.watchers, resp.WatchID)
		}
		st.answers = st.answers[1:]
	case len(resp.Events) == 0:
		if resp.WatchID != NoWatch || resp.Revision > m.newest {
			t.Fatalf("%s: wrong", text(resp))
		}
		for id, w := range st.watchers {
			if ev := m.peek(w); w.live && (resp.Revision < w.req.StartRevision || ev != nil && ev.Kv.ModRevision <= resp.Revision) {
				t.Fatalf("%s: ahead of watcher %d, which is to see %v", text(resp), id, ev)
			}
			if w.seen > resp.Revision {
				t.Fatalf("%s: watcher %d has seen %d before", text(resp), id, w.seen)
			}
		}
	default:
		m.checkEvents(st.watchers[resp.WatchID], resp)
	}
}

func (m *model) checkEvents(w *modelWatcher, resp Response) {
	if w == nil || !w.live || w.dead {
		m.t.Fatalf("%s: nobody is to see this", text(resp))
	}
	for _, got := range resp.Events {
		want := m.peek(w)
		if want == nil || want.Kv != got.Kv || want.Type != got.Type {
			m.t.Fatalf("%s: got %v, want %v", text(resp), got, want)
		}
		mayMiss := !w.req.PrevKV || got.Kv.ModRevision <= m.source.compacted
		mayHave := w.req.PrevKV
		if got.PrevKv != want.PrevKv && (!mayMiss || got.PrevKv != nil) || got.PrevKv != nil && !mayHave {
			m.t.Fatalf("%s: got previous %v, want %v", text(resp), got.PrevKv, want.PrevKv)
		}
		w.at++
		w.from, w.seen = got.Kv.ModRevision, got.Kv.ModRevision
		if resp.Revision < w.from {
			m.t.Fatalf("%s: header behind its events", text(resp))
		}
	}
	if next := m.peek(w); next != nil && next.Kv.ModRevision == w.from {
		m.t.Fatalf("%s: a revision was split", text(resp))
	}
	w.from++
}

// peek returns the next event that w has to see, nil if there is none yet.
func (m *model) peek(w *modelWatcher) *mvccpb.Event {
	for ; w.at < len(m.source.events); w.at++ {
		if ev := m.source.events[w.at]; w.wants(ev) {
			return ev
		}
	}
	return nil
}

// settle reads everything until each watcher has seen all and is in sync.
func (m *model) settle() {
	for _, st := range m.streams {
		m.readUntil(st, func() bool {
			if len(st.answers) > 0 {
				return false
			}
			for _, w := range st.watchers {
				if w.live && (w.dead || m.peek(w) != nil) {
					return false
				}
			}
			return true
		})
	}
}

func (m *model) readUntil(st *modelStream, done func() bool) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		if resp, ok := st.s.Pop(); ok {
			m.check(st, resp)
			continue
		}
		if done() {
			return
		}
		select {
		case <-st.s.Wake():
		case <-ctx.Done():
			for id, w := range st.watchers {
				m.t.Logf("watcher %d: %+v to see %v", id, w, m.peek(w))
			}
			m.t.Fatalf("stalled; answers %v, hub %+v", st.answers, m.hub.Stats())
		}
	}
}

func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{t: t, source: newFakeSource(), newest: 1}
		m.hub = New(m.source, Options{
			RingEvents:  rapid.SampledFrom([]int{1, 8, 1000}).Draw(t, "ring"),
			QueueEvents: rapid.SampledFrom([]int{1, 4, 100}).Draw(t, "queue"),
			Workers:     rapid.SampledFrom([]int{1, 4}).Draw(t, "workers"),
		})
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- m.hub.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("Run: %v", err)
			}
		}()
		for range 3 {
			st := &modelStream{s: m.hub.NewStream(), watchers: map[int64]*modelWatcher{}, taken: map[int64]bool{}}
			defer st.s.Close()
			m.streams = append(m.streams, st)
		}
		t.Repeat(map[string]func(*rapid.T){
			"commit": func(t *rapid.T) { m.t = t; m.commit() },
			"publish": func(t *rapid.T) {
				m.t = t
				m.commit()
				m.publish()
			},
			"hole": func(t *rapid.T) {
				m.t = t
				if rapid.IntRange(0, 9).Draw(t, "rare") == 0 {
					m.held = nil
				}
			},
			"create":  func(t *rapid.T) { m.t = t; m.create() },
			"create2": func(t *rapid.T) { m.t = t; m.create() },
			"cancel":  func(t *rapid.T) { m.t = t; m.cancel() },
			"read":    func(t *rapid.T) { m.t = t; m.read() },
			"read2":   func(t *rapid.T) { m.t = t; m.read() },
			"compact": func(t *rapid.T) { m.t = t; m.compact() },
			"progress": func(t *rapid.T) {
				rapid.SampledFrom(m.streams).Draw(t, "stream").s.RequestProgress()
			},
		})
		m.t = t
		m.publish()
		m.settle()
		// Nothing more comes, and everyone sees what comes next.
		_, events := m.source.commit([]op{{"a", "z"}, {"a1", "z"}, {"b1", "z"}, {"c", "z"}}, []op{{"a", ""}, {"b1", "x"}})
		m.held = events
		m.publish()
		m.settle()
		// Watchers with nothing to see say nothing when they are in sync.
		for deadline := time.Now().Add(time.Minute); m.hub.Stats().Slow > 0; runtime.Gosched() {
			if time.Now().After(deadline) {
				t.Fatalf("stay behind: %+v", m.hub.Stats())
			}
			m.settle() // a cancellation may be among it
		}
		m.settle()
		for _, st := range m.streams {
			if st.s.events != 0 || st.s.bytes != 0 || st.s.controls != 0 {
				t.Fatalf("left on the account: %d events, %d bytes, %d answers", st.s.events, st.s.bytes, st.s.controls)
			}
		}
	})
}

func TestIndex(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var x index
		var watchers []*watcher
		letters := rapid.SliceOfN(rapid.SampledFrom([]byte("abcd")), 0, 3)
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				w := &watcher{}
				switch w.span.start = string(letters.Draw(t, "start")); rapid.IntRange(0, 4).Draw(t, "kind") {
				case 0:
					w.span.single = true
				case 1:
					w.span.open = true
				default:
					w.span.end = string(letters.Draw(t, "end"))
				}
				if !w.span.empty() {
					x.add(w)
					watchers = append(watchers, w)
				}
			},
			"remove": func(t *rapid.T) {
				if n := len(watchers); n > 0 {
					i := rapid.IntRange(0, n-1).Draw(t, "i")
					x.remove(watchers[i])
					watchers = slices.Delete(watchers, i, i+1)
				}
			},
			"": func(t *rapid.T) {
				checkTree(t, x.ranges)
				key := letters.Draw(t, "key")
				found := map[*watcher]bool{}
				for _, g := range x.match(key, nil) {
					if len(g.watchers) == 0 {
						t.Fatalf("group %+v is empty", g.span)
					}
					for _, w := range g.watchers {
						if found[w] {
							t.Fatalf("%+v found twice", w.span)
						}
						found[w] = true
					}
				}
				for _, w := range watchers {
					if w.span.contains(key) != found[w] {
						t.Fatalf("key %q: watcher %+v found: %v", key, w.span, found[w])
					}
					delete(found, w)
				}
				if len(found) > 0 {
					t.Fatalf("key %q: %d removed watchers found", key, len(found))
				}
			},
		})
	})
}

// checkTree checks the tree's balance and order, and returns its height.
func checkTree(t *rapid.T, n *node) int {
	if n == nil {
		return 0
	}
	l, r := checkTree(t, n.left), checkTree(t, n.right)
	if max(l, r)+1 != n.height || l-r > 1 || r-l > 1 {
		t.Fatalf("node of height %d has subtrees of heights %d and %d", n.height, l, r)
	}
	if n.left != nil && n.left.group.span.compare(n.group.span) >= 0 || n.right != nil && n.right.group.span.compare(n.group.span) <= 0 {
		t.Fatalf("order is broken at %+v", n.group.span)
	}
	return n.height
}

var benchKey = bytes.Repeat([]byte("k"), 40)

func benchmarkHub(b *testing.B, n int, request func(i int) Request, streams int) (*Hub, []*Stream) {
	hub := New(newFakeSource(), Options{})
	all := make([]*Stream, streams)
	for i := range all {
		all[i] = hub.NewStream()
	}
	for i := range n {
		all[i%streams].Create(request(i))
	}
	for _, s := range all {
		for _, ok := s.Pop(); ok; _, ok = s.Pop() {
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	return hub, all
}

// batch returns events of revisions from first on.
func benchBatch(first int64, n int, key func(i int) []byte) []*mvccpb.Event {
	events := make([]*mvccpb.Event, n)
	for i := range events {
		k := key(i)
		events[i] = &mvccpb.Event{
			Kv:     &mvccpb.KeyValue{Key: k, ModRevision: first + int64(i), Value: benchKey},
			PrevKv: &mvccpb.KeyValue{Key: k, ModRevision: 1, Value: benchKey},
		}
	}
	return events
}

// BenchmarkPublishSame publishes batches of 100 revisions that all watchers
// want, each on a stream of its own; reading is counted in.
func BenchmarkPublishSame(b *testing.B) {
	for _, n := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprintf("watchers=%d", n), func(b *testing.B) {
			hub, streams := benchmarkHub(b, n, func(int) Request { return prefix("k") }, n)
			rev := int64(2)
			for b.Loop() {
				hub.Publish(rev+99, benchBatch(rev, 100, func(int) []byte { return benchKey }), false)
				rev += 100
				for _, s := range streams {
					for _, ok := s.Pop(); ok; _, ok = s.Pop() {
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/watcher")
		})
	}
}

// BenchmarkPublishDistinct publishes batches of 100 revisions, each of which
// one of the watchers on distinct ranges of one stream wants.
func BenchmarkPublishDistinct(b *testing.B) {
	for _, n := range []int{100, 1000, 10000, 100000} {
		b.Run(fmt.Sprintf("watchers=%d", n), func(b *testing.B) {
			keys := make([][]byte, n)
			for i := range keys {
				keys[i] = fmt.Appendf(nil, "/registry/pods/%06d/x", i)
			}
			hub, streams := benchmarkHub(b, n, func(i int) Request {
				return prefix(fmt.Sprintf("/registry/pods/%06d/", i))
			}, 1)
			rev, at := int64(2), 0
			for b.Loop() {
				hub.Publish(rev+99, benchBatch(rev, 100, func(int) []byte {
					at = (at + 7919) % n
					return keys[at]
				}), false)
				rev += 100
				for _, ok := streams[0].Pop(); ok; _, ok = streams[0].Pop() {
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/event")
		})
	}
}
