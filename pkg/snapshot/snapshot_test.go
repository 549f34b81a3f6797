package snapshot

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// memory is a source and a sink.
type memory struct {
	state    State
	records  []eventlog.Record
	finished bool
	aborted  bool
}

func (m *memory) State() State { return m.state }
func (m *memory) Close() error { return nil }

func (m *memory) Records(_ context.Context, fn func(*eventlog.Record) error) error {
	for i := range m.records {
		if err := fn(&m.records[i]); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) Begin(_ context.Context, s State) error { m.state = s; return nil }
func (m *memory) Finish(context.Context) error           { m.finished = true; return nil }
func (m *memory) Abort() error                           { m.aborted = true; return nil }

func (m *memory) Add(_ context.Context, r *eventlog.Record) error {
	m.records = append(m.records, *r)
	return nil
}

func put(main, sub, create int64, key string) eventlog.Record {
	return eventlog.Record{
		Kind: eventlog.KindPut, Revision: eventlog.Revision{Main: main, Sub: sub}, CreateRevision: create, Version: 1, Key: []byte(key), Value: []byte("v"),
	}
}

func TestCopy(t *testing.T) {
	src := &memory{state: State{Revision: 4, Leases: []Lease{{ID: 1, TTL: 5}}}}
	src.records = []eventlog.Record{put(2, 0, 2, "a"), put(2, 1, 2, "b"), {Kind: eventlog.KindDelete, Revision: eventlog.Revision{Main: 4}, Key: []byte("a")}}
	var dst memory
	var last Progress
	done, err := Copy(t.Context(), &dst, src, func(p Progress) { last = p })
	if err != nil || !dst.finished || dst.aborted {
		t.Fatalf("Copy: %v, finished %v, aborted %v", err, dst.finished, dst.aborted)
	}
	if want := (Progress{3, 5}); done != want || last != want {
		t.Errorf("copied %+v, the last report %+v, want %+v", done, last, want)
	}
	if !slices.EqualFunc(src.records, dst.records, func(a, b eventlog.Record) bool { return a.Revision == b.Revision }) || len(dst.state.Leases) != 1 {
		t.Errorf("copied %v and %v", dst.state, dst.records)
	}
}

func TestCopyRefuses(t *testing.T) {
	broken := errors.New("broken")
	for name, records := range map[string][]eventlog.Record{
		"order":     {put(3, 0, 3, "a"), put(2, 0, 2, "b")},
		"twice":     {put(3, 0, 3, "a"), put(3, 0, 3, "b")},
		"future":    {put(5, 0, 5, "a")},
		"no key":    {put(2, 0, 2, "")},
		"create":    {put(2, 0, 3, "a")},
		"no create": {put(2, 0, 0, "a")},
		"kind":      {{Kind: eventlog.KindCompact, Revision: eventlog.Revision{Main: 2}}},
	} {
		src, dst := &memory{state: State{Revision: 4}, records: records}, &memory{}
		if _, err := Copy(t.Context(), dst, src, nil); !errors.Is(err, ErrInvalid) || dst.finished || !dst.aborted {
			t.Errorf("%s: %v, finished %v, aborted %v", name, err, dst.finished, dst.aborted)
		}
	}
	src, dst := &failing{memory{state: State{Revision: 4}}, broken}, &memory{}
	if _, err := Copy(t.Context(), dst, src, nil); !errors.Is(err, broken) || !dst.aborted {
		t.Errorf("a source that fails: %v, aborted %v", err, dst.aborted)
	}
}

// failing is a source whose records end in an error.
type failing struct {
	memory
	err error
}

func (f *failing) Records(context.Context, func(*eventlog.Record) error) error { return f.err }
