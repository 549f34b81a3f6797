package watch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

func TestCreate(t *testing.T) {
	h := newHarness(t, Options{}, false)
	h.put("a", "b") // 2, 3
	s := h.stream()
	s.Create(prefix("a"))
	s.Create(single("b").id(1))
	s.Create(single("c"))
	s.Create(single("c").id(1))
	s.Create(single("c").id(7))
	s.Create(Request{Key: []byte("c"), End: []byte("b")})
	s.Create(Request{Key: []byte("c"), End: []byte("c")})
	s.Create(Request{Key: []byte{0}, End: []byte{0}})
	h.expect(s,
		"#0 @3 created",
		"#1 @3 created",
		"#2 @3 created", // 1 is taken
		"#-1 @3 created canceled because: mvcc: duplicate watch ID provided on the WatchStream",
		"#7 @3 created",
		"#-1 @3 created canceled because: mvcc: watcher range is empty",
		"#-1 @3 created canceled because: mvcc: watcher range is empty",
		"#3 @3 created",
	)
	h.quiet(s)
	s.Refuse("too bad")
	h.expect(s, "#-1 @3 created canceled because: too bad")
}

func TestLiveEvents(t *testing.T) {
	h := newHarness(t, Options{}, false)
	s := h.stream()
	s.Create(prefix("a").prev())
	s.Create(single("a1"))
	h.expect(s, "#0 @1 created", "#1 @1 created")
	h.publish([]op{{"a1", "x"}, {"a2", "x"}, {"b", "x"}})
	h.expect(s, "#1 @2 +a1/2", "#0 @2 +a1/2 +a2/2")
	h.publish([]op{{"a1", "y"}})
	h.publish([]op{{"a1", ""}, {"b", ""}})
	// What was not read yet becomes one response.
	h.expect(s, "#1 @4 +a1/3 -a1/4", "#0 @4 +a1/3<2 -a1/4<3")
	h.publish([]op{{"b", "x"}})
	h.quiet(s)
}

func TestSharedEvents(t *testing.T) {
	h := newHarness(t, Options{}, false)
	s, u := h.stream(), h.stream()
	for _, st := range []*Stream{s, u} {
		st.Create(prefix("a").prev())
		st.Create(prefix("a"))
	}
	h.expect(s, "#0 @1 created", "#1 @1 created")
	h.expect(u, "#0 @1 created", "#1 @1 created")
	h.put("a")
	h.next(s)
	h.next(s)
	h.next(u)
	h.next(u)
	h.put("a")
	for range 2 {
		if a, b := h.next(s), h.next(u); &a.Events[0] != &b.Events[0] {
			t.Error("two watchers of the same got events of their own")
		}
	}
}

// Each stream that gets something is woken, once for a batch.
func TestWake(t *testing.T) {
	h := newHarness(t, Options{}, false)
	var streams []*Stream
	for range 50 {
		s := h.stream()
		s.Create(prefix("a"))
		s.Create(single("b"))
		<-s.Wake()
		h.expect(s, "#0 @1 created", "#1 @1 created")
		streams = append(streams, s)
	}
	idle := h.stream()
	h.put("a1", "a2", "b")
	for _, s := range append(streams, idle) {
		woken := 0
		for range 2 {
			select {
			case <-s.Wake():
				woken++
			default:
			}
		}
		if s == idle && woken != 0 || s != idle && woken != 1 {
			t.Fatalf("woken %d times", woken)
		}
	}
}

func TestFilters(t *testing.T) {
	h := newHarness(t, Options{}, false)
	s := h.stream()
	noPuts, noDeletes, nothing := prefix("a"), prefix("a"), prefix("a")
	noPuts.NoPut = true
	noDeletes.NoDelete = true
	nothing.NoPut, nothing.NoDelete = true, true
	for _, r := range []Request{noPuts, noDeletes, nothing} {
		s.Create(r)
	}
	h.expect(s, "#0 @1 created", "#1 @1 created", "#2 @1 created")
	h.put("a1")
	h.expect(s, "#1 @2 +a1/2")
	h.publish([]op{{"a1", ""}, {"a2", "x"}})
	// Watchers of one span are served newest first.
	h.expect(s, "#1 @3 +a2/3", "#0 @3 -a1/3")
	h.publish([]op{{"a2", ""}})
	h.expect(s, "#0 @4 -a2/4")
	h.quiet(s)
	s.Create(noPuts.from(2))
	h.expect(s, "#3 @4 created", "#3 @4 -a1/3 -a2/4")
}

func TestFutureStart(t *testing.T) {
	h := newHarness(t, Options{}, false)
	s := h.stream()
	s.Create(prefix("a").from(3))
	s.Create(prefix("a").from(2))
	h.expect(s, "#0 @1 created", "#1 @1 created")
	if s.RequestProgress() {
		t.Fatal("progress before the start")
	}
	h.publish([]op{{"a", "x"}})
	if s.RequestProgress() {
		t.Fatal("progress before a start")
	}
	h.expect(s, "#1 @2 +a/2")
	h.publish([]op{{"a", "x"}}, []op{{"a", "x"}})
	if !s.RequestProgress() {
		t.Fatal("no progress")
	}
	h.expect(s, "#1 @4 +a/3 +a/4", "#0 @4 +a/3 +a/4", "#-1 @4")

	// A batch that holds revisions before and after the start.
	s.Create(prefix("a").from(6))
	h.expect(s, "#2 @4 created")
	s.Cancel(0)
	s.Cancel(1)
	h.expect(s, "#0 @4 canceled", "#1 @4 canceled")
	h.publish([]op{{"a", "x"}}, []op{{"a", "x"}})
	h.expect(s, "#2 @6 +a/6")
}

func TestStartBetweenCommitAndPublish(t *testing.T) {
	h := newHarness(t, Options{}, false)
	s := h.stream()
	rev, events := h.source.commit([]op{{"a", "x"}}, []op{{"a", "y"}})
	s.Create(prefix("a")) // knows of 3
	s.Create(prefix("a").from(3))
	h.expect(s, "#0 @3 created", "#1 @3 created")
	if s.RequestProgress() {
		t.Fatal("progress behind what the client knows")
	}
	h.hub.Publish(rev, events, false)
	h.expect(s, "#1 @3 +a/3")
	h.put("a")
	h.expect(s, "#1 @4 +a/4", "#0 @4 +a/4")
}

// Where nobody wants previous versions, events come without them. Who comes
// later, or meanwhile, and wants them gets them nevertheless.
func TestPrevLeftOut(t *testing.T) {
	h := newHarness(t, Options{}, true)
	h.put("a")
	plain, s := h.stream(), h.stream()
	plain.Create(prefix("a"))
	h.expect(plain, "#0 @2 created")
	if h.hub.WantsPrev() {
		t.Fatal("previous versions are wanted by a watcher without them")
	}
	rev, events := h.source.commit([]op{{"a", "x"}}, []op{{"a", ""}})
	s.Create(prefix("a").prev().from(3))
	s.Create(prefix("a").prev().from(4))
	s.Create(prefix("a").prev())
	h.expect(s, "#0 @4 created", "#1 @4 created", "#2 @4 created")
	if !h.hub.WantsPrev() {
		t.Fatal("previous versions are not wanted by a watcher with them")
	}
	h.hub.Publish(rev, withoutPrev(events), true)
	h.expect(plain, "#0 @4 +a/3 -a/4")
	got := []string{text(h.next(s)), text(h.next(s))}
	if slices.Sort(got); got[0] != "#0 @4 +a/3<2 -a/4<3" || got[1] != "#1 @4 -a/4<3" {
		t.Fatalf("got %q", got)
	}
	calls := h.source.historyCalls()

	rev, events = h.source.commit([]op{{"a", "y"}}, []op{{"a", "z"}})
	h.hub.Publish(rev, withoutPrev(events), true)
	h.expect(plain, "#0 @6 +a/5 +a/6")
	for range 3 {
		if resp := h.next(s); text(Response{Events: resp.Events}) != "#0 @0 +a/5 +a/6<5" {
			t.Fatalf("got %s", text(resp))
		}
	}
	s.Create(single("a").prev().from(6))
	h.expect(s, "#3 @6 created", "#3 @6 +a/6<5")
	if h.source.historyCalls() == calls {
		t.Fatal("previous versions out of thin air")
	}

	h.publish([]op{{"a", "!"}})
	for id := range int64(4) {
		h.next(s)
		s.Cancel(id)
		if wants := id < 3; h.hub.WantsPrev() != wants {
			t.Fatalf("after %d cancellations: wanted: %v", id+1, !wants)
		}
	}
}

func TestPastFromRing(t *testing.T) {
	h := newHarness(t, Options{}, false)
	h.put("a", "b", "a")
	h.put("a")
	s := h.stream()
	s.Create(prefix("a").from(2).prev())
	h.expect(s, "#0 @5 created", "#0 @5 +a/2 +a/4<2 +a/5<4")
	s.Create(single("b").from(4))
	h.expect(s, "#1 @5 created")
	if !s.RequestProgress() {
		t.Fatal("no progress")
	}
	h.expect(s, "#-1 @5")
	h.put("b")
	h.expect(s, "#1 @6 +b/6")
	if n := h.source.historyCalls(); n != 0 {
		t.Fatalf("%d reads of the log", n)
	}
}

func TestPastFromLog(t *testing.T) {
	h := newHarness(t, Options{RingEvents: 1}, true)
	h.put("a", "b", "a", "b")
	s := h.stream()
	s.Create(prefix("a").from(2).prev())
	h.expect(s, "#0 @5 created", "#0 @5 +a/2 +a/4<2")
	h.put("a")
	h.expect(s, "#0 @6 +a/6<4")
}

// A page of the log holds revisions that were not published yet: they come
// once.
func TestPastAheadOfPublish(t *testing.T) {
	h := newHarness(t, Options{RingEvents: 1}, true)
	h.put("a", "a", "a")
	rev, events := h.source.commit([]op{{"a", "x"}}, []op{{"a", "y"}})
	s := h.stream()
	s.Create(prefix("a").from(3))
	h.expect(s, "#0 @6 created", "#0 @6 +a/3 +a/4 +a/5 +a/6")
	if s.RequestProgress() {
		t.Fatal("progress behind what the client knows")
	}
	h.hub.Publish(rev, events, false)
	if !s.RequestProgress() {
		t.Fatal("no progress")
	}
	h.put("a")
	h.expect(s, "#-1 @6", "#0 @7 +a/7")
}

func TestPagesOfThousand(t *testing.T) {
	for _, ring := range []int{1, 100000} {
		t.Run(fmt.Sprintf("ring=%d", ring), func(t *testing.T) {
			h := newHarness(t, Options{RingEvents: ring}, true)
			for range 5 {
				keys := make([]string, 500)
				for i := range keys {
					keys[i] = "a"
				}
				h.put(keys...)
			}
			s := h.stream()
			s.Create(prefix("a").from(2))
			h.expect(s, "#0 @2501 created")
			for next := int64(2); next <= 2501; {
				resp := h.next(s)
				if n := len(resp.Events); n == 0 || n > 1000 {
					t.Fatalf("%d events", n)
				}
				if resp.Revision != 2501 {
					t.Fatalf("header revision %d when catching up", resp.Revision)
				}
				for _, ev := range resp.Events {
					if ev.Kv.ModRevision != next {
						t.Fatalf("got revision %d, want %d", ev.Kv.ModRevision, next)
					}
					next++
				}
			}
			h.put("a")
			h.expect(s, "#0 @2502 +a/2502")
		})
	}
}

func TestCompactedStart(t *testing.T) {
	for _, ring := range []int{1, 1000} {
		t.Run(fmt.Sprintf("ring=%d", ring), func(t *testing.T) {
			h := newHarness(t, Options{RingEvents: ring}, true)
			h.put("a", "a")
			h.publish([]op{{"a", ""}})
			h.put("a") // 5
			h.source.compact(4)
			s := h.stream()
			s.Create(prefix("a").from(3))
			h.expect(s, "#0 @5 created", "#0 @0 canceled compacted 4")
			s.Create(prefix("a").from(4).prev())
			// What was before revision 4 is gone.
			h.expect(s, "#1 @5 created", "#1 @5 -a/4 +a/5")
			if !s.RequestProgress() {
				t.Fatal("a dead watcher holds progress up")
			}
			h.expect(s, "#-1 @5")
			// The id is taken until the client has cancelled it.
			s.Create(prefix("a").id(8).from(2))
			h.expect(s, "#8 @5 created", "#8 @0 canceled compacted 4")
			s.Create(prefix("a").id(8))
			h.expect(s, "#-1 @5 created canceled because: mvcc: duplicate watch ID provided on the WatchStream")
			s.Cancel(8)
			h.expect(s, "#8 @5 canceled")
			s.Create(prefix("a").id(8))
			h.expect(s, "#8 @5 created")
			if n := h.hub.Stats().Watchers; n != 2 {
				t.Fatalf("%d watchers", n)
			}
		})
	}
}

func TestCompactionOvertakesSlowWatcher(t *testing.T) {
	h := newHarness(t, Options{RingEvents: 1, QueueEvents: 2}, true)
	s := h.stream()
	s.Create(prefix("a"))
	s.Create(prefix("b"))
	h.expect(s, "#0 @1 created", "#1 @1 created")
	h.put("a", "a")
	h.put("a")
	h.put("a", "b")
	if st := h.hub.Stats(); st.Slow != 2 {
		t.Fatalf("%d slow watchers", st.Slow)
	}
	h.source.compact(5)
	// What was queued comes first; 4 is gone; the other goes on from 6.
	h.expect(s, "#0 @3 +a/2 +a/3")
	got := map[string]bool{text(h.next(s)): true, text(h.next(s)): true}
	if !got["#0 @0 canceled compacted 5"] || !got["#1 @6 +b/6"] {
		t.Fatalf("got %v", got)
	}
}

// Compaction comes while a page is being read.
func TestCompactionDuringRead(t *testing.T) {
	h := newHarness(t, Options{RingEvents: 1}, true)
	gate := make(chan struct{})
	h.source.gate = gate
	h.put("a", "a", "a")
	s := h.stream()
	s.Create(prefix("a").from(2))
	h.source.compact(3)
	close(gate)
	h.expect(s, "#0 @4 created", "#0 @0 canceled compacted 3")
}

func TestCancel(t *testing.T) {
	h := newHarness(t, Options{}, false)
	s := h.stream()
	s.Create(prefix("a"))
	h.expect(s, "#0 @1 created")
	s.Cancel(5)
	h.quiet(s)
	h.put("a")
	s.Cancel(0)
	h.expect(s, "#0 @2 canceled") // without the event
	s.Cancel(0)
	h.put("a")
	h.quiet(s)
	if st := h.hub.Stats(); st.Watchers != 0 || st.Slow != 0 {
		t.Fatalf("left over: %+v", st)
	}
	// The same id again, explicitly: what was queued for the old one stays away.
	s.Create(prefix("a").id(3))
	h.put("a")
	s.Cancel(3)
	s.Create(prefix("a").id(3))
	h.put("a")
	h.expect(s, "#3 @3 created", "#3 @4 canceled", "#3 @4 created", "#3 @5 +a/5")
}

// Progress says that all before it was seen, by cancelled watchers too.
func TestCancelBehindProgress(t *testing.T) {
	h := newHarness(t, Options{}, false)
	s := h.stream()
	s.Create(prefix("a"))
	h.put("a")
	s.RequestProgress()
	h.put("a")
	s.Cancel(0)
	h.expect(s, "#0 @1 created", "#0 @2 +a/2", "#-1 @2", "#0 @3 canceled")
	h.quiet(s)
	if s.events != 0 || s.bytes != 0 {
		t.Fatalf("left on the account: %d events, %d bytes", s.events, s.bytes)
	}
}

func TestCancelWhileBehind(t *testing.T) {
	h := newHarness(t, Options{RingEvents: 1}, true)
	gate := make(chan struct{})
	h.source.gate = gate
	h.put("a", "a", "a")
	s := h.stream()
	s.Create(prefix("a").from(2))
	s.Create(prefix("a").from(3))
	s.Cancel(0)
	close(gate)
	h.expect(s, "#0 @4 created", "#1 @4 created", "#0 @4 canceled", "#1 @4 +a/3 +a/4")
	h.quiet(s)
}

func TestProgressBehindEvents(t *testing.T) {
	h := newHarness(t, Options{}, false)
	s := h.stream()
	if s.RequestProgress() {
		t.Fatal("progress without watchers")
	}
	s.Create(prefix("a"))
	s.Create(prefix("b"))
	h.put("a")
	s.RequestProgress()
	h.put("c")
	s.RequestProgress() // says it all at once
	h.put("a")
	s.RequestProgress()
	h.put("b")
	h.expect(s, "#0 @1 created", "#1 @1 created",
		"#0 @2 +a/2", "#-1 @3", "#0 @4 +a/4", "#-1 @4", "#1 @5 +b/5")
	h.quiet(s)
}

func TestProgressNotWhileBehind(t *testing.T) {
	h := newHarness(t, Options{RingEvents: 1}, true)
	gate := make(chan struct{})
	h.source.gate = gate
	h.put("a", "a", "a")
	s := h.stream()
	s.Create(prefix("b"))
	s.Create(prefix("a").from(2))
	h.expect(s, "#0 @4 created", "#1 @4 created")
	if s.RequestProgress() {
		t.Fatal("progress with a watcher that is behind")
	}
	h.quiet(s)
	close(gate)
	h.expect(s, "#1 @4 +a/2 +a/3 +a/4")
	if !s.RequestProgress() {
		t.Fatal("no progress")
	}
	h.expect(s, "#-1 @4")
}

func TestNotifyProgress(t *testing.T) {
	h := newHarness(t, Options{}, false)
	s := h.stream()
	notify := prefix("a")
	notify.ProgressNotify = true
	s.Create(notify)
	s.Create(prefix("b"))
	s.Create(notify.from(4))
	h.expect(s, "#0 @1 created", "#1 @1 created", "#2 @1 created")
	s.NotifyProgress()
	h.expect(s, "#0 @1")
	s.NotifyProgress()
	h.put("c")
	s.NotifyProgress()
	h.expect(s, "#0 @2")
	h.put("a")
	h.expect(s, "#0 @3 +a/3")
	s.NotifyProgress() // skipped once
	h.quiet(s)
	h.put("c")
	s.NotifyProgress()
	got := map[string]bool{text(h.next(s)): true, text(h.next(s)): true}
	if !got["#0 @4"] || !got["#2 @4"] {
		t.Fatalf("got %v", got)
	}
	s.NotifyProgress()
	s.Cancel(0)
	h.expect(s, "#2 @4", "#0 @4 canceled")
}

func TestSlowReader(t *testing.T) {
	h := newHarness(t, Options{QueueEvents: 10}, true)
	slow, quick := h.stream(), h.stream()
	slow.Create(prefix("a"))
	quick.Create(prefix("a"))
	h.expect(slow, "#0 @1 created")
	h.expect(quick, "#0 @1 created")
	for i := range 1000 {
		h.put("a")
		h.expect(quick, fmt.Sprintf("#0 @%d +a/%d", i+2, i+2))
	}
	if st := h.hub.Stats(); st.Slow != 1 || st.Watchers != 2 || st.Streams != 2 {
		t.Fatalf("stats %+v", st)
	}
	if slow.events > 10 {
		t.Fatalf("%d events queued", slow.events)
	}
	for next := int64(2); next <= 1001; {
		for _, ev := range h.next(slow).Events {
			if ev.Kv.ModRevision != next {
				t.Fatalf("got revision %d, want %d", ev.Kv.ModRevision, next)
			}
			next++
		}
	}
	h.put("a")
	h.expect(slow, "#0 @1002 +a/1002")
	if st := h.hub.Stats(); st.Slow != 0 {
		t.Fatalf("stats %+v", st)
	}
}

// Streams that nobody reads share a budget, whatever is in the middle of being
// sent included, and lose nothing by it.
func TestUnreadStreamsShareABudget(t *testing.T) {
	const total, streams, puts = 1 << 20, 50, 1000
	h := newHarness(t, Options{TotalBytes: total}, true)
	var all []*Stream
	for range streams {
		s := h.stream()
		s.Create(prefix("a"))
		h.expect(s, "#0 @1 created")
		all = append(all, s)
	}
	next := make([]int64, streams)
	for i := range next {
		next[i] = 2
	}
	see := func(i int, r Response) {
		for _, ev := range r.Events {
			if ev.Kv.ModRevision != next[i] {
				t.Fatalf("stream %d got revision %d, want %d", i, ev.Kv.ModRevision, next[i])
			}
			next[i]++
		}
	}
	h.put("a")
	for i, s := range all { // what they are sending when they get stuck
		see(i, h.next(s))
	}
	for range puts {
		h.put("a")
	}
	held := 0
	for _, s := range all {
		s.mu.Lock()
		held += s.bytes + s.sending
		s.mu.Unlock()
	}
	if held < total/4 || held > 2*total {
		t.Errorf("%d bytes are held of %d", held, total)
	}
	for i, s := range all {
		for next[i] < puts+3 {
			see(i, h.next(s))
		}
		if _, ok := s.Pop(); ok {
			t.Error("more than was published")
		}
	}
	if n := h.hub.loaded.Load(); n != 0 {
		t.Errorf("%d streams are counted that hold nothing", n)
	}
}

// What a watcher gets to catch up with the newest events goes by its stream's
// share, too: they may be few and large.
func TestPromotionKeepsToTheBound(t *testing.T) {
	const queue, value, puts = 256 << 10, 16 << 10, 500
	h := newHarness(t, Options{QueueBytes: queue}, true)
	s := h.stream()
	s.Create(prefix("a"))
	h.expect(s, "#0 @1 created")
	for range puts { // 8 MiB: all of it is in the ring
		h.publish([]op{{"a", strings.Repeat("v", value)}})
	}
	for next := int64(2); next < puts+2; {
		for _, ev := range h.next(s).Events {
			if ev.Kv.ModRevision != next {
				t.Fatalf("got revision %d, want %d", ev.Kv.ModRevision, next)
			}
			next++
		}
		s.mu.Lock()
		held := s.bytes
		s.mu.Unlock()
		if held > 2*queue {
			t.Fatalf("%d bytes are queued, of %d", held, queue)
		}
	}
	h.put("a")
	h.expect(s, fmt.Sprintf("#0 @%d +a/%d", puts+2, puts+2))
}

// Watchers that cannot be read for hold up neither others nor progress.
func TestFailingHistory(t *testing.T) {
	h := newHarness(t, Options{RingEvents: 1, Workers: 1, RetryDelay: time.Millisecond}, true)
	h.put("a", "a")
	h.source.mu.Lock()
	h.source.fail = errFake
	h.source.mu.Unlock()
	s := h.stream()
	s.Create(prefix("a").from(2))
	h.expect(s, "#0 @3 created")
	s.Create(prefix("b"))
	h.expect(s, "#1 @3 created")
	h.put("b")
	h.expect(s, "#1 @4 +b/4")
	h.source.mu.Lock()
	h.source.fail = nil
	h.source.mu.Unlock()
	h.expect(s, "#0 @4 +a/2 +a/3")
}

// A watcher whose past is damaged ends, and the others go on.
func TestDamagedHistory(t *testing.T) {
	logger, logged := logtest.NewNullLogger()
	h := newHarness(t, Options{RingEvents: 1, Workers: 1, RetryDelay: time.Hour, Logger: logrus.NewEntry(logger)}, true)
	h.put("a", "a", "b")
	h.source.mu.Lock()
	h.source.fail = fmt.Errorf("fake: %w: record 7", eventlog.ErrCorrupt)
	h.source.mu.Unlock()
	s := h.stream()
	s.Create(prefix("a").from(2))
	h.expect(s, "#0 @4 created", "#0 @4 canceled because: etcdserver: corrupt cluster")
	s.Create(prefix("b"))
	h.put("a", "b")
	h.expect(s, "#1 @4 created", "#1 @6 +b/6")
	if calls := h.source.historyCalls(); calls != 1 {
		t.Errorf("the past was read %d times", calls)
	}
	if n := len(logged.AllEntries()); n != 1 || logged.LastEntry().Level != logrus.ErrorLevel {
		t.Errorf("%d lines in the log, the last one %v", n, logged.LastEntry())
	}
	if n := h.hub.Stats(); n.Watchers != 1 || n.Slow != 0 {
		t.Errorf("%+v", n)
	}
}

// Revisions that were never published are read from the source.
func TestHoleInRevisions(t *testing.T) {
	h := newHarness(t, Options{}, true)
	s := h.stream()
	s.Create(prefix("a"))
	s.Create(prefix("b").from(9))
	h.put("a")
	h.expect(s, "#0 @1 created", "#1 @1 created", "#0 @2 +a/2")
	h.source.commit([]op{{"a", "x"}}, []op{{"b", "x"}})
	h.publish([]op{{"a", "x"}})
	h.expect(s, "#0 @5 +a/3 +a/5")
	// Published again: nothing.
	h.hub.Publish(5, h.source.events, false)
	h.put("a", "a", "a", "b")
	h.expect(s, "#0 @8 +a/6 +a/7 +a/8", "#1 @9 +b/9")

	// History moved forward and what was before is gone.
	h.source.mu.Lock()
	h.source.current, h.source.compacted = 1000, 1000
	h.source.mu.Unlock()
	h.hub.Publish(1000, nil, false)
	got := map[string]bool{text(h.next(s)): true, text(h.next(s)): true}
	if !got["#0 @0 canceled compacted 1000"] || !got["#1 @0 canceled compacted 1000"] {
		t.Fatalf("got %v", got)
	}
}

func TestResponseSize(t *testing.T) {
	h := newHarness(t, Options{}, false)
	s := h.stream()
	s.Create(prefix("a"))
	h.expect(s, "#0 @1 created")
	big := string(make([]byte, 300<<10))
	var batch [][]op
	for range 3 {
		batch = append(batch, []op{{"a1", big}, {"a2", big}}, []op{{"a1", ""}}, []op{{"a2", ""}})
	}
	h.publish(batch...)
	// A response is closed once it holds 1 MiB, the previous values counted.
	h.expect(s,
		"#0 @4 +a1/2 +a2/2 -a1/3 -a2/4",
		"#0 @7 +a1/5 +a2/5 -a1/6 -a2/7",
		"#0 @10 +a1/8 +a2/8 -a1/9 -a2/10")
	if s.events != 0 || s.bytes != 0 {
		t.Fatalf("left on the account: %d events, %d bytes", s.events, s.bytes)
	}
}

func TestAdmit(t *testing.T) {
	h := newHarness(t, Options{}, false)
	s := h.stream()
	for range maxControls {
		if err := s.Admit(context.Background()); err != nil {
			t.Fatal(err)
		}
		s.Create(single("a"))
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Admit(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	admitted := make(chan error)
	go func() { admitted <- s.Admit(context.Background()) }()
	h.next(s)
	if err := <-admitted; err != nil {
		t.Fatal(err)
	}
	s.Create(single("a"))
	go func() { admitted <- s.Admit(context.Background()) }()
	s.Close()
	if err := <-admitted; !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v", err)
	}
	if st := h.hub.Stats(); st.Watchers != 0 || st.Streams != 0 {
		t.Fatalf("left over: %+v", st)
	}
}

func TestRunEnds(t *testing.T) {
	h := newHarness(t, Options{RingEvents: 1}, false)
	stop := h.run()
	h.source.gate = make(chan struct{}) // never opens
	h.put("a", "a")
	s := h.stream()
	s.Create(prefix("a").from(2))
	for range maxControls - 1 {
		s.Create(single("b"))
	}
	stop()
	<-s.Done()
	if err := s.Admit(context.Background()); !errors.Is(err, ErrStopped) {
		t.Fatalf("got %v", err)
	}
	if resp, ok := s.Pop(); ok {
		t.Fatalf("got %v of a hub that has stopped", resp)
	}
}

func TestManyWatchersBehind(t *testing.T) {
	const n = 20000
	h := newHarness(t, Options{RingEvents: 1, QueueEvents: 500}, true)
	h.put("k", "x")
	s := h.stream()
	got := 0
	for range n {
		s.Create(single("k").from(2))
		for resp, ok := s.Pop(); ok; resp, ok = s.Pop() {
			got += len(resp.Events)
		}
	}
	for got < n {
		got += len(h.next(s).Events)
	}
	h.put("k")
	for got < 2*n {
		got += len(h.next(s).Events)
	}
	h.quiet(s)
	if st := h.hub.Stats(); st.Slow != 0 || st.Watchers != n {
		t.Fatalf("stats %+v", st)
	}
}
