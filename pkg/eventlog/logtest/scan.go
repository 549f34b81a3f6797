package logtest

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// scan begins a scan of all that the model has.
func (s *subject) scan() eventlog.Scan {
	s.t.Helper()
	scan, err := s.log.Scan(context.Background(), func(head eventlog.Position) (int64, error) {
		if want := s.model.head().Position; head > want {
			s.t.Errorf("Scan: the head is %d, want at most %d", head, want)
		}
		return s.model.head().Seq, nil
	})
	if err != nil {
		s.t.Fatalf("Scan: %v", err)
	}
	return scan
}

// scanned compares what scan shows with want, which has the values.
func (s *subject) scanned(scan eventlog.Scan, want []eventlog.Record) {
	s.t.Helper()
	var got []eventlog.Record
	err := scan.Records(context.Background(), func(records []eventlog.Record) error {
		size := 0
		for _, r := range records[:max(len(records)-1, 0)] {
			size += len(r.Key) + len(r.Value)
		}
		if len(records) == 0 || size >= 2*eventlog.ScanBytes {
			s.t.Errorf("Records: %d records at a time, %d bytes but for the last", len(records), size)
		}
		for _, r := range records {
			r.Key, r.Value = bytes.Clone(r.Key), bytes.Clone(r.Value) // theirs only until this returns
			got = append(got, r)
		}
		return nil
	})
	if err != nil {
		s.t.Fatalf("Records: %v", err)
	}
	if len(got) != len(want) {
		s.t.Fatalf("Records: %d records, want %d", len(got), len(want))
	}
	for i := range want {
		if !equal(got[i], want[i]) || (got[i].Value != nil) != (want[i].Kind == eventlog.KindPut) {
			s.t.Fatalf("Records: record %d of %d is %s, want %s", i, len(want), format(got[i]), format(want[i]))
		}
	}
}

func (s *subject) close(scan eventlog.Scan) {
	s.t.Helper()
	for range 2 {
		if err := scan.Close(); err != nil {
			s.t.Fatalf("Close of the scan: %v", err)
		}
	}
}

func testScan(t *testing.T, h Harness) {
	s := open(t, h)
	scan := s.scan()
	s.scanned(scan, nil)
	s.close(scan)

	s.append(put("a", ""), del("a"), grant(7), put("b", string(pattern(1, 3<<20))), put("c", "2"))
	for range 5 {
		s.append(puts(700, 1000)...)
	}
	s.append(mark(s.model.head().Revision))
	s.compact(1, 3, 700, 701, 702)
	scan = s.scan()
	want := s.model.left()
	s.scanned(scan, want)
	s.append(puts(10, 10)...)
	s.scanned(scan, want) // again, and not what came after begin
	s.close(scan)
	s.check()

	// Only a part, and begin may itself wait for more.
	scan, err := s.log.Scan(context.Background(), func(eventlog.Position) (int64, error) {
		s.append(put("x", "1"))
		return s.model.head().Seq, nil
	})
	if err != nil {
		t.Fatalf("Scan: %v", err)
	}
	s.scanned(scan, s.model.left())
	s.close(scan)
	scan, err = s.log.Scan(context.Background(), func(eventlog.Position) (int64, error) { return 10, nil })
	if err != nil {
		t.Fatalf("Scan: %v", err)
	}
	n := 0
	for n < len(want) && want[n].Seq <= 10 {
		n++
	}
	s.scanned(scan, want[:n])
	s.close(scan)
}

// testScanBeside scans beside a scan, also while a Compact waits for it, and from
// both at the same time.
func testScanBeside(t *testing.T, h Harness) {
	s := open(t, h)
	s.append(puts(3000, 1000)...)
	s.append(mark(s.model.head().Revision))
	first := s.scan()
	want := s.model.left()
	compacted := make(chan error, 1)
	go func() { compacted <- s.log.Compact(context.Background(), []int64{1, 2}) }()
	time.Sleep(20 * time.Millisecond) // so that it waits, as a rule
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	second, err := s.log.Scan(ctx, func(eventlog.Position) (int64, error) { return want[len(want)-1].Seq, nil })
	if err != nil {
		t.Fatalf("a second Scan: %v", err)
	}
	beside := make(chan int, 1)
	go func() {
		n := 0
		err := second.Records(ctx, func(records []eventlog.Record) error { n += len(records); return nil })
		if err != nil {
			n = -1
		}
		beside <- n
	}()
	s.scanned(first, want)
	s.close(first)
	if n := <-beside; n < len(want)-2 { // on a log that is shared the two may be gone
		t.Errorf("the second Scan has shown %d records of %d", n, len(want))
	}
	s.close(second)
	if err := <-compacted; err != nil {
		t.Fatal(err)
	}
	s.model.compact(1, 2)
	s.check()
}

// testScanHolds compacts, defragments, appends and scans beside a scan.
func testScanHolds(t *testing.T, h Harness) {
	s := open(t, h)
	s.append(puts(3000, 1000)...)
	s.append(mark(s.model.head().Revision))
	scan := s.scan()
	want := s.model.left()
	var seqs []int64
	for seq := int64(1); seq < 3000; seq++ {
		seqs = append(seqs, seq)
	}
	done := make(chan error, 3)
	go func() { done <- s.log.Compact(context.Background(), seqs) }()
	go func() { done <- s.log.Defragment(context.Background()) }()
	go func() {
		other, err := s.log.Scan(context.Background(), func(eventlog.Position) (int64, error) { return 1, nil })
		if err == nil {
			err = other.Close()
		}
		done <- err
	}()
	for range 20 {
		s.append(put("a", "1"))
	}
	s.scanned(scan, want)
	s.close(scan)
	for range cap(done) {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	s.model.compact(seqs...)
	s.check()
}

// testScanShared has another server compact before and while one scans.
func testScanShared(t *testing.T, h Harness) {
	if !h.Shared {
		return
	}
	s := open(t, h)
	s.append(puts(3000, 100)...)
	other := &subject{t: t, outer: t, h: h, dir: s.dir, log: h.Open(t, s.dir), model: s.model}
	defer func() {
		if err := other.log.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}()
	other.load()
	m := other.append(mark(1))
	other.compact(1, 2)
	s.model = other.model
	deleted := make(chan error, 2)
	scan, err := s.log.Scan(context.Background(), func(head eventlog.Position) (int64, error) {
		if head < m.Position() {
			t.Errorf("Scan: the head is %d although records were deleted for position %d", head, m.Position())
		}
		s.tail(m.Base, 1) // as who reads the head would; the other one waits for that
		go func() { deleted <- other.log.Compact(context.Background(), []int64{5, 6}) }()
		time.Sleep(200 * time.Millisecond) // it may try
		return m.Records[0].Seq, nil
	})
	if err != nil {
		t.Fatalf("Scan: %v", err)
	}
	want := other.model.left()
	other.append(put("a", "1"))
	other.append(mark(2))
	go func() { deleted <- other.log.Compact(context.Background(), []int64{3, 4, 2000}) }()
	s.scanned(scan, want)
	s.model = other.model
	s.tail(m.Position(), 10) // the other one may wait for that
	for range cap(deleted) {
		if err := <-deleted; err != nil {
			t.Errorf("Compact: %v", err)
		}
	}
	s.scanned(scan, want)
	s.close(scan)
	other.model.compact(3, 4, 5, 6, 2000)
	s.model = other.model
	s.compare()
}

// testScanEnds ends scans early in every way: the next ones are not held up.
func testScanEnds(t *testing.T, h Harness) {
	s := open(t, h)
	s.append(puts(20, 1000)...)
	ctx, cancel := context.WithCancel(context.Background())
	stop := errors.New("stop")
	if _, err := s.log.Scan(ctx, func(eventlog.Position) (int64, error) { return 0, stop }); !errors.Is(err, stop) {
		t.Fatalf("Scan that begin refuses: %v, want its error", err)
	}
	scan := s.scan()
	if err := scan.Records(ctx, func([]eventlog.Record) error { return stop }); !errors.Is(err, stop) {
		t.Fatalf("Records that are refused: %v, want the error", err)
	}
	cancel()
	if err := scan.Records(ctx, func([]eventlog.Record) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Fatalf("Records: %v, want the context's error", err)
	}
	s.close(scan)
	if err := scan.Records(context.Background(), func([]eventlog.Record) error { return nil }); err == nil {
		t.Fatalf("Records after Close: no error")
	}
	if _, err := s.log.Scan(ctx, func(eventlog.Position) (int64, error) { return 0, nil }); !errors.Is(err, context.Canceled) {
		t.Fatalf("Scan: %v, want the context's error", err)
	}
	s.check()
	// One that is open when the log is closed.
	scan = s.scan()
	closed := make(chan error, 1)
	go func() { closed <- s.log.Close() }()
	for err := error(nil); err == nil; { // until Close is under way
		err = scan.Records(context.Background(), func([]eventlog.Record) error { return nil })
	}
	s.close(scan)
	if err := <-closed; err != nil {
		t.Fatalf("Close: %v", err)
	}
	if _, err := s.log.Scan(context.Background(), func(eventlog.Position) (int64, error) { return 0, nil }); !errors.Is(err, eventlog.ErrClosed) {
		t.Fatalf("Scan after Close: %v, want ErrClosed", err)
	}
	s.log = h.Open(t, s.dir)
	s.load()
}
