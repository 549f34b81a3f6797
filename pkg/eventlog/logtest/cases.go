package logtest

import (
	"context"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

func testEmpty(t *testing.T, h Harness) {
	s := open(t, h)
	s.check()
	s.values(1)
	s.compact(1, 2, 3) // all unknown
	s.check()
}

// testKinds appends every kind with every field set to something telling.
func testKinds(t *testing.T, h Harness) {
	s := open(t, h)
	s.append(put("a", "1"))
	s.check()
	s.append(
		eventlog.Record{
			Kind: eventlog.KindPut, Key: []byte("b\x00\xff'\""), Value: []byte{0, 0xff, 0}, CreateRevision: 2, Version: math.MaxInt64, Lease: -7,
		},
		put("empty value", ""),
		eventlog.Record{Kind: eventlog.KindPut, Key: []byte("nil value")},
		del("a"),
	)
	s.check()
	s.append(eventlog.Record{Kind: eventlog.KindLeaseGrant, Lease: math.MaxInt64, TTL: 9_000_000_000})
	s.append(eventlog.Record{Kind: eventlog.KindLeaseRevoke, Lease: math.MinInt64})
	s.append(eventlog.Record{Kind: eventlog.KindAlarmRaise, Member: math.MaxUint64, Alarm: 1})
	s.append(eventlog.Record{Kind: eventlog.KindAlarmDisarm, Member: 1, Alarm: math.MaxInt32})
	s.append(mark(1))
	s.append(append(puts(3, 100), grant(5), del("b"))...)
	s.check()
	s.values(1, 2, 3, 4, 5, 6, 10)
}

func testLargeBatch(t *testing.T, h Harness) {
	s := open(t, h)
	s.append(put("a", "1"))
	s.append(puts(5000, 200)...)
	s.append(put("b", "2"))
	s.tail(0, 1)
	s.tail(0, 2)
	s.tail(1, 1)
	s.tail(2, 1)
	s.reopen()
	s.tail(0, math.MaxInt)
}

func testNoReferenceKept(t *testing.T, h Harness) {
	s := open(t, h)
	b := s.model.next(put("key", "value"))
	if err := s.log.Append(context.Background(), &b); err != nil {
		t.Fatalf("Append: %v", err)
	}
	b.Records[0].Key[0], b.Records[0].Value[0], b.Records[0].Version = 'X', 'X', 99
	b.ID[0]++
	got, err := s.log.Tail(context.Background(), 0, 1)
	if err != nil || len(got) != 1 {
		t.Fatalf("Tail: %d batches, %v", len(got), err)
	}
	if r := got[0].Records[0]; string(r.Key) != "key" || string(r.Value) != "value" || r.Version != 1 || got[0].ID == b.ID {
		t.Fatalf("the log changed with the batch: %s", format(r))
	}
	// And what it returns is the caller's.
	values, err := s.log.Values(context.Background(), []int64{1, 1})
	if err != nil {
		t.Fatalf("Values: %v", err)
	}
	values[0][0] = 'Y'
	if string(values[1]) != "value" {
		t.Fatalf("a value asked for twice is one slice: %q", values)
	}
	if values, err = s.log.Values(context.Background(), []int64{1}); err != nil || string(values[0]) != "value" {
		t.Fatalf("Values: %q, %v after a change to an earlier result", values, err)
	}
}

func testStale(t *testing.T, h Harness) {
	s := open(t, h)
	stale := s.model.next(put("x", "first"))
	s.append(put("a", "1"))
	s.append(put("b", "2"))
	early := s.model.next(put("y", "early"))
	early.Base++
	early.Records[0].Position++
	for _, b := range []*eventlog.Batch{&stale, &early} {
		if err := s.log.Append(context.Background(), b); !errors.Is(err, eventlog.ErrStale) {
			t.Fatalf("Append at %d with the head at 2: %v, want ErrStale", b.Base, err)
		}
		s.compare()
	}
	s.check()
	s.append(put("c", "3"))
	s.check()
}

func testTail(t *testing.T, h Harness) {
	s := open(t, h)
	for i := range 12 {
		s.append(puts(1+i*i%5, 50)...)
	}
	for _, again := range []bool{false, true} {
		for after := eventlog.Position(0); after <= 13; after++ {
			for _, limit := range []int{0, 1, 2, 3, 5, 8, 13, 1000} {
				s.tail(after, limit)
			}
		}
		if !again {
			s.reopen()
		}
	}
}

func testValues(t *testing.T, h Harness) {
	s := open(t, h)
	s.append(puts(300, 40)...)
	s.append(del("a"), put("b", ""), grant(1))
	var all []int64
	for seq := int64(1); seq <= 303; seq++ {
		all = append(all, seq)
	}
	backwards := slices.Clone(all)
	slices.Reverse(backwards)
	for _, seqs := range [][]int64{nil, {}, {7}, {300, 1, 150}, {5, 5, 4, 5}, {301, 302, 303}, all, backwards, {1, 304}, {0}, {-1}, {math.MaxInt64}} {
		s.values(seqs...)
	}
	got, err := s.log.Values(context.Background(), []int64{302})
	if err != nil || len(got) != 1 || got[0] == nil {
		t.Fatalf("Values of an empty value: %#v, %v, want one that is empty and not nil", got, err)
	}
}

func testLargeValues(t *testing.T, h Harness) {
	s := open(t, h)
	s.append(put("big", string(pattern(1, 5<<20))), put("small", "x"), put("big too", string(pattern(2, 3<<20+1))))
	s.append(put("odd", string(pattern(3, 70_001))))
	s.values(3, 4, 1, 2)
	s.check()
}

func testLoadStops(t *testing.T, h Harness) {
	s := open(t, h)
	s.append(puts(10, 10)...)
	s.reopen()
	stop, calls := errors.New("stop"), 0
	if err := s.log.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	s.log = h.Open(t, s.dir)
	_, err := s.log.Load(context.Background(), func(*eventlog.Record) error {
		if calls++; calls == 4 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || calls != 4 {
		t.Fatalf("Load: %v after %d calls, want fn's error after 4", err, calls)
	}
}

func testCompact(t *testing.T, h Harness) {
	s := open(t, h)
	s.append(put("a", "1"))                // 1
	s.append(put("a", "2"), put("b", "1")) // 2 3
	s.append(del("b"))                     // 4
	s.append(put("c", "1"))                // 5
	s.append(mark(3))                      // 6
	s.append(put("d", "1"))                // 7
	s.compact()
	s.check()
	s.compact(1)
	s.check()
	s.values(1, 2)
	s.values(2)
	s.compact(4, 3, 1, 99, 0, -5) // some are gone, some never were
	s.check()
	s.compact(1, 3, 4) // cut off and repeated
	s.check()
	s.append(put("e", "1"))
	s.tail(3, 10)
	s.check()
}

// testCompactEverything leaves only the mark, and later not even the older
// mark: the head does not move.
func testCompactEverything(t *testing.T, h Harness) {
	s := open(t, h)
	s.append(put("a", "1"), put("b", "1"))
	s.append(del("a"), del("b"))
	s.append(mark(2))
	s.compact(1, 2, 3, 4)
	s.check()
	if got := s.model.head(); got.Revision != 2 || got.Seq != 5 || got.Position != 3 {
		t.Fatalf("the model's head is %+v", got)
	}
	s.append(put("c", "1"))
	s.append(del("c"))
	s.append(mark(4))
	s.compact(5, 6, 7)
	s.check()
	s.tail(5, 1)
	s.tail(6, 1)
	s.append(put("d", "1"))
	s.check()
}

// testCompactInBatch deletes the first, the last, and a middle record of
// batches: such a batch is never returned in part.
func testCompactInBatch(t *testing.T, h Harness) {
	for _, gone := range []int64{4, 5, 6} {
		s := open(t, h)
		for range 4 {
			s.append(put("a", "1"), put("b", "2"), put("c", "3"))
		}
		s.append(mark(4))
		s.compact(gone)
		s.check()
	}
}

func testDefragment(t *testing.T, h Harness) {
	s := open(t, h)
	for range 20 {
		s.append(puts(20, 4000)...)
	}
	s.append(mark(20))
	full := s.log.Size()
	var seqs []int64
	for seq := int64(1); seq <= 390; seq++ {
		seqs = append(seqs, seq)
	}
	s.compact(seqs...)
	if err := s.log.Defragment(context.Background()); err != nil {
		t.Fatalf("Defragment: %v", err)
	}
	if size := s.log.Size(); size.InUse >= full.InUse || size.Total > full.Total {
		t.Fatalf("Size: %+v after nearly everything was deleted, before %+v", size, full)
	}
	s.check()
	s.append(put("a", "1"))
	s.check()
}

// settle brings a log back that may have stopped for good.
func (s *subject) settle() {
	s.t.Helper()
	if _, err := s.log.Head(context.Background()); err != nil {
		if !errors.Is(err, eventlog.ErrFailed) {
			s.t.Fatalf("Head after a failed Append: %v", err)
		}
		s.reopen()
	}
}

func testFailedAppend(t *testing.T, h Harness) {
	s := open(t, h)
	s.append(put("a", "1"))
	for range 2 {
		b := s.model.next(puts(3, 100)...)
		h.FailAppend(t, s.log, false)
		if err := s.log.Append(context.Background(), &b); err == nil || errors.Is(err, eventlog.ErrStale) {
			t.Fatalf("Append that fails: %v", err)
		}
		s.settle()
		s.tail(b.Base, 1) // tells that it is not there
		s.check()
		s.append(put("b", "2"))
		s.check()
	}
}

func testLostAnswer(t *testing.T, h Harness) {
	s := open(t, h)
	s.append(put("a", "1"))
	for range 2 {
		b := s.model.next(puts(3, 100)...)
		h.FailAppend(t, s.log, true)
		if err := s.log.Append(context.Background(), &b); !errors.Is(err, eventlog.ErrUnknown) {
			t.Fatalf("Append whose answer is lost: %v, want ErrUnknown", err)
		}
		s.model.append(b)
		s.settle()
		got, err := s.log.Tail(context.Background(), b.Base, 1)
		if err != nil || len(got) != 1 || got[0].ID != b.ID {
			t.Fatalf("Tail(%d): %d batches, %v, want the one whose answer was lost", b.Base, len(got), err)
		}
		again := s.model.batches[b.Base]
		if err := s.log.Append(context.Background(), &again); !errors.Is(err, eventlog.ErrStale) {
			t.Fatalf("Append of the same batch again: %v, want ErrStale", err)
		}
		s.check()
		s.append(put("b", "2"))
		s.check()
	}
}

// testCancelled calls everything with a context that has ended: what returns
// an error has done nothing.
func testCancelled(t *testing.T, h Harness) {
	s := open(t, h)
	s.append(put("a", "1"), put("a", "2"))
	s.append(mark(1))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	expect := func(method string, err error) bool {
		t.Helper()
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatalf("%s: %v, want the context's error or none", method, err)
		}
		return err == nil
	}
	b := s.model.next(put("b", "1"))
	if expect("Append", s.log.Append(ctx, &b)) {
		s.model.append(b)
	}
	_, err := s.log.Head(ctx)
	expect("Head", err)
	_, err = s.log.Tail(ctx, 0, 1)
	expect("Tail", err)
	_, err = s.log.Values(ctx, []int64{1})
	expect("Values", err)
	expect("Defragment", s.log.Defragment(ctx))
	s.check()
	if expect("Compact", s.log.Compact(ctx, []int64{1})) {
		s.model.compact(1)
	}
	s.compact(1)
	s.check()
}

func testClosed(t *testing.T, h Harness) {
	s := open(t, h)
	s.append(put("a", "1"))
	if err := s.log.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	ctx := context.Background()
	b := s.model.next(put("b", "1"))
	_, head := s.log.Head(ctx)
	_, tail := s.log.Tail(ctx, 0, 1)
	_, values := s.log.Values(ctx, []int64{1})
	_, load := s.log.Load(ctx, func(*eventlog.Record) error { return nil })
	for method, err := range map[string]error{
		"Append":     s.log.Append(ctx, &b),
		"Head":       head,
		"Tail":       tail,
		"Values":     values,
		"Load":       load,
		"Compact":    s.log.Compact(ctx, []int64{1}),
		"Defragment": s.log.Defragment(ctx),
	} {
		if !errors.Is(err, eventlog.ErrClosed) {
			t.Errorf("%s after Close: %v, want ErrClosed", method, err)
		}
	}
	_ = s.log.Size() // must not panic
	s.log = h.Open(t, s.dir)
	s.load()
	s.compare()
}

func testCorrupt(t *testing.T, h Harness) {
	if h.Corrupt == nil {
		return // nothing is stored that could be damaged
	}
	s := open(t, h)
	s.append(put("a", string(pattern(1, 500))))
	s.append(put("b", string(pattern(2, 500))))
	s.append(put("c", string(pattern(3, 500))))
	if err := s.log.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	h.Corrupt(t, s.dir, 2)
	s.log = h.Open(t, s.dir)
	s.load() // reads no value
	for _, seqs := range [][]int64{{2}, {1, 2, 3}} {
		if _, err := s.log.Values(context.Background(), seqs); !errors.Is(err, eventlog.ErrCorrupt) {
			t.Errorf("Values(%v): %v, want ErrCorrupt", seqs, err)
		}
	}
	for after := eventlog.Position(0); after <= 1; after++ {
		if _, err := s.log.Tail(context.Background(), after, 10); !errors.Is(err, eventlog.ErrCorrupt) {
			t.Errorf("Tail(%d): %v, want ErrCorrupt", after, err)
		}
	}
	scan := s.scan()
	if err := scan.Records(context.Background(), func([]eventlog.Record) error { return nil }); !errors.Is(err, eventlog.ErrCorrupt) {
		t.Errorf("Records: %v, want ErrCorrupt", err)
	}
	s.close(scan)
	s.values(1, 3)
	s.tail(2, 10)
}

// testShared has two servers on one log.
func testShared(t *testing.T, h Harness) {
	if !h.Shared {
		return // a second Open is the driver's own test
	}
	s := open(t, h)
	s.append(put("a", "1"))
	other := &subject{t: t, outer: t, h: h, dir: s.dir, log: h.Open(t, s.dir), model: s.model}
	defer func() {
		if err := other.log.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}()
	other.load()
	stale := other.model.next(put("b", "other's"))
	s.append(put("b", "2"), put("c", "3"))
	if err := other.log.Append(context.Background(), &stale); !errors.Is(err, eventlog.ErrStale) {
		t.Fatalf("Append behind the other's: %v, want ErrStale", err)
	}
	other.model = s.model
	other.compare()
	other.append(mark(2))
	other.compact(1)
	s.model = other.model
	s.compare()
	s.append(put("d", "4"))
	other.model = s.model
	other.compare()
}
