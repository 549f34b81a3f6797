package store

import (
	"context"
	"reflect"
	"slices"
	"testing"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// compactLog records what is to be deleted.
type compactLog struct {
	eventlog.Log
	calls [][]int64
}

func (l *compactLog) Compact(_ context.Context, seqs []int64) error {
	l.calls = append(l.calls, slices.Sorted(slices.Values(seqs)))
	return nil
}

// TestCompactorStages: what a compaction frees is deleted together, once all of
// it is known, and a tombstone not before what it hides.
func TestCompactorStages(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	log := &compactLog{}
	c := newCompactor(log, quiet())
	stopped := make(chan error, 1)

	c.add([]int64{5, 1}, stageSuperseded, -1)
	c.add([]int64{3, 2}, stageSuperseded, -1)
	c.add([]int64{4}, stageTombstones, -1)
	select {
	case <-c.wake:
		t.Fatal("deletion begins before the index is trimmed")
	default:
	}
	c.add([]int64{9, 6}, stageRetired, 7)
	// Another compaction frees more before the first is deleted.
	c.add([]int64{8}, stageSuperseded, -1)
	go func() { stopped <- c.run(ctx) }()
	if err := c.wait(ctx, 7); err != nil {
		t.Fatal(err)
	}
	if want := [][]int64{{1, 2, 3, 5, 8}, {4}, {6, 9}}; !reflect.DeepEqual(log.calls, want) {
		t.Fatalf("deleted %v, want %v", log.calls, want)
	}
	c.add([]int64{10}, stageTombstones, 8)
	if err := c.wait(ctx, 8); err != nil {
		t.Fatal(err)
	}
	c.add(nil, 0, 9) // frees nothing
	if err := c.wait(ctx, 9); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-stopped; err != nil || len(log.calls) != 4 {
		t.Fatalf("%v, deleted %v", err, log.calls)
	}
}
