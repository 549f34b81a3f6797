package cmd

import (
	"context"
	"fmt"
	"time"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

// tally counts what goes through it to a sink, or to nowhere: a dry run.
type tally struct {
	to    snapshot.Sink // nil: nowhere
	state snapshot.State
	began time.Time

	keys      int64 // that live at the newest revision
	versions  int64 // of keys, tombstones included
	revisions int64 // main revisions
	bytes     int64 // of keys and values
	last      int64
}

var _ snapshot.Sink = (*tally)(nil)

func newTally(to snapshot.Sink) *tally { return &tally{to: to, began: time.Now()} }

// Begin implements snapshot.Sink.
func (t *tally) Begin(ctx context.Context, state snapshot.State) error {
	t.state = state
	if t.to == nil {
		return nil
	}
	return t.to.Begin(ctx, state)
}

// Add implements snapshot.Sink. Which keys live is told without an index: a
// version is a key's first if it has just been created, or if it is what a
// compaction has left.
func (t *tally) Add(ctx context.Context, r *eventlog.Record) error {
	compacted := r.Revision.Main <= t.state.Compacted
	switch {
	case r.Kind == eventlog.KindPut && (compacted || r.Version == 1):
		t.keys++
	case r.Kind == eventlog.KindDelete && !compacted:
		t.keys--
	}
	if r.Revision.Main != t.last {
		t.last = r.Revision.Main
		t.revisions++
	}
	t.versions++
	t.bytes += int64(len(r.Key) + len(r.Value))
	if t.to == nil {
		return nil
	}
	return t.to.Add(ctx, r)
}

// Finish implements snapshot.Sink.
func (t *tally) Finish(ctx context.Context) error {
	if t.to == nil {
		return nil
	}
	return t.to.Finish(ctx)
}

// Abort implements snapshot.Sink.
func (t *tally) Abort() error {
	if t.to == nil {
		return nil
	}
	return t.to.Abort()
}

// String says what was counted, and how long it took.
func (t *tally) String() string {
	return fmt.Sprintf("%d keys, %d versions in %d revisions, %d leases, %s; %s",
		t.keys, t.versions, t.revisions, len(t.state.Leases), formatBytes(t.bytes), time.Since(t.began).Round(10*time.Millisecond))
}
