// Package logtest is the suite that every driver of package eventlog passes;
// a driver exists only if it does. A driver's test calls
//
//	logtest.Run(t, logtest.Harness{Open: …, FailAppend: …})
//
// Most cases play a script against the driver and against a naive model, and
// compare after each step everything the interface can tell: what Load gives,
// Tail from every position, all values; and all of it again after the log was
// closed and opened anew.
package logtest

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// Harness is what the suite needs to know of a driver.
type Harness struct {
	// Open opens the log kept in dir, an empty directory of its own at first;
	// opening it again after Close gives the same log. It does not call Load.
	Open func(t testing.TB, dir string) eventlog.Log

	// FailAppend makes the next Append of log fail. If persisted, the batch
	// becomes durable but the answer is lost: Append returns ErrUnknown. If
	// not, nothing of the batch becomes durable, and Append returns either
	// ErrUnknown or another error that is not ErrStale. The log may be
	// unusable from then on (ErrFailed); it can then be closed and opened.
	FailAppend func(t testing.TB, log eventlog.Log, persisted bool)

	// Corrupt damages the stored value of record seq in dir, whose log is
	// closed. It may be nil if the driver keeps nothing outside the process.
	Corrupt func(t testing.TB, dir string, seq int64)

	// Shared says that a log can be open several times at once, by several
	// servers.
	Shared bool
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, Harness)
	}{
		{"Empty", testEmpty},
		{"Kinds", testKinds},
		{"LargeBatch", testLargeBatch},
		{"NoReferenceKept", testNoReferenceKept},
		{"Stale", testStale},
		{"Tail", testTail},
		{"Values", testValues},
		{"LargeValues", testLargeValues},
		{"LoadStops", testLoadStops},
		{"Compact", testCompact},
		{"CompactEverything", testCompactEverything},
		{"CompactInBatch", testCompactInBatch},
		{"Defragment", testDefragment},
		{"FailedAppend", testFailedAppend},
		{"LostAnswer", testLostAnswer},
		{"Cancelled", testCancelled},
		{"Closed", testClosed},
		{"Corrupt", testCorrupt},
		{"Shared", testShared},
		{"Concurrent", testConcurrent},
		{"CompactBesideAppend", testCompactBesideAppend},
		{"Scan", testScan},
		{"ScanHolds", testScanHolds},
		{"ScanBeside", testScanBeside},
		{"ScanShared", testScanShared},
		{"ScanEnds", testScanEnds},
		{"Random", testRandom},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !h.Shared { // else they would share a server's connections
				t.Parallel() // they wait for the disk most of the time
			}
			c.run(t, h)
		})
	}
}

// tb is what *testing.T and *rapid.T have in common.
type tb interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// subject is the log under test next to the model of what it should be.
type subject struct {
	t     tb
	outer testing.TB // for the harness
	h     Harness
	dir   string
	log   eventlog.Log
	model model
}

// open opens a new log in a directory of its own.
func open(t testing.TB, h Harness) *subject {
	t.Helper()
	s := &subject{t: t, outer: t, h: h, dir: t.TempDir(), model: newModel()}
	s.log = h.Open(t, s.dir)
	t.Cleanup(func() {
		if err := s.log.Close(); err != nil && !errors.Is(err, eventlog.ErrClosed) {
			t.Errorf("Close: %v", err)
		}
	})
	s.load()
	return s
}

// reopen closes the log and opens it again.
func (s *subject) reopen() {
	s.t.Helper()
	if err := s.log.Close(); err != nil {
		s.t.Fatalf("Close: %v", err)
	}
	s.log = s.h.Open(s.outer, s.dir)
	s.load()
}

// load compares what Load gives with the model.
func (s *subject) load() {
	s.t.Helper()
	var got []eventlog.Record
	head, err := s.log.Load(context.Background(), func(r *eventlog.Record) error {
		got = append(got, *r)
		return nil
	})
	if err != nil {
		s.t.Fatalf("Load: %v", err)
	}
	if want := s.model.head(); head != want {
		s.t.Fatalf("Load: head is %+v, want %+v", head, want)
	}
	want := s.model.left()
	if len(got) != len(want) {
		s.t.Fatalf("Load: %d records, want %d", len(got), len(want))
	}
	for i := range want {
		w := want[i]
		w.ValueBytes, w.Value = len(w.Value), nil
		if !equal(got[i], w) || got[i].Value != nil {
			s.t.Fatalf("Load: record %d of %d is %s, want %s", i, len(want), format(got[i]), format(w))
		}
	}
}

// append appends a batch of records after the model's head, to both.
func (s *subject) append(records ...eventlog.Record) eventlog.Batch {
	s.t.Helper()
	b := s.model.next(records...)
	if err := s.log.Append(context.Background(), &b); err != nil {
		s.t.Fatalf("Append at %d: %v", b.Base, err)
	}
	s.model.append(b)
	return b
}

// compact deletes the records with these seqs in both.
func (s *subject) compact(seqs ...int64) {
	s.t.Helper()
	if err := s.log.Compact(context.Background(), seqs); err != nil {
		s.t.Fatalf("Compact: %v", err)
	}
	s.model.compact(seqs...)
}

// check compares the open log with the model, then reopens it and compares
// again.
func (s *subject) check() {
	s.t.Helper()
	s.compare()
	s.reopen()
	s.compare()
}

// compare compares head, tails and values with the model.
func (s *subject) compare() {
	s.t.Helper()
	head, err := s.log.Head(context.Background())
	if want := s.model.head().Position; err != nil || head != want {
		s.t.Fatalf("Head: %d, %v, want %d", head, err, want)
	}
	for after := eventlog.Position(0); after <= head; after++ {
		s.tail(after, 1+int(after)%7)
	}
	s.tail(0, 1<<30)
	s.tail(head+1, 1)
	var seqs []int64
	for _, r := range s.model.left() {
		seqs = append(seqs, r.Seq)
	}
	s.values(seqs...)
	if size := s.log.Size(); size.Total < size.InUse || size.InUse < 0 {
		s.t.Fatalf("Size: %+v", size)
	}
}

// tail compares Tail with the model.
func (s *subject) tail(after eventlog.Position, limit int) {
	s.t.Helper()
	got, err := s.log.Tail(context.Background(), after, limit)
	want, gone, wantErr := s.model.tail(after, limit)
	if gone && errors.Is(err, eventlog.ErrCompacted) {
		return
	}
	if !errors.Is(err, wantErr) {
		s.t.Fatalf("Tail(%d, %d): error %v, want %v", after, limit, err, wantErr)
	}
	if len(got) != len(want) {
		s.t.Fatalf("Tail(%d, %d): %d batches, want %d", after, limit, len(got), len(want))
	}
	for i := range want {
		if err := equalBatch(got[i], want[i]); err != nil {
			s.t.Fatalf("Tail(%d, %d): batch %d: %v", after, limit, i, err)
		}
	}
}

// values compares Values with the model.
func (s *subject) values(seqs ...int64) {
	s.t.Helper()
	got, err := s.log.Values(context.Background(), seqs)
	want, wantErr := s.model.values(seqs)
	if !errors.Is(err, wantErr) {
		s.t.Fatalf("Values(%d seqs): error %v, want %v", len(seqs), err, wantErr)
	}
	if err != nil {
		return
	}
	if len(got) != len(want) {
		s.t.Fatalf("Values: %d values, want %d", len(got), len(want))
	}
	for i := range want {
		if string(got[i]) != string(want[i]) {
			s.t.Fatalf("Values: record %d has %d bytes %.20q, want %d bytes %.20q", seqs[i], len(got[i]), got[i], len(want[i]), want[i])
		}
	}
}

// equal compares records; an empty key is no key.
func equal(a, b eventlog.Record) bool {
	if string(a.Key) != string(b.Key) || string(a.Value) != string(b.Value) {
		return false
	}
	a.Key, a.Value, b.Key, b.Value = nil, nil, nil, nil
	return format(a) == format(b)
}

func equalBatch(got, want eventlog.Batch) error {
	if got.ID != want.ID || got.Base != want.Base || len(got.Records) != len(want.Records) {
		return fmt.Errorf("is %x on %d of %d records, want %x on %d of %d",
			got.ID, got.Base, len(got.Records), want.ID, want.Base, len(want.Records))
	}
	for i := range want.Records {
		g, w := got.Records[i], want.Records[i]
		if !equal(g, w) {
			return fmt.Errorf("record %d is %s, want %s", i, format(g), format(w))
		}
		if w.Kind == eventlog.KindPut && g.Value == nil {
			return fmt.Errorf("record %d: the value of a put is nil", i)
		}
		if w.Kind != eventlog.KindPut && g.Value != nil {
			return fmt.Errorf("record %d: a %v has a value", i, w.Kind)
		}
	}
	return nil
}

func format(r eventlog.Record) string {
	if len(r.Value) > 32 {
		r.Value = append(r.Value[:32:32], "…"...)
	}
	return fmt.Sprintf("%+v", r)
}
