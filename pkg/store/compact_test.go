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
	if seqs, through := c.take(); len(seqs) > 0 || through >= 0 {
		t.Fatalf("took %v through %d while more comes", seqs, through)
	}
	c.add(nil, 0, 8)
	go func() { stopped <- c.run(ctx) }()
	if err := c.wait(ctx, 7); err != nil {
		t.Fatal(err)
	}
	if want := [][]int64{{1, 2, 3, 5, 8}, {4}, {6, 9}}; !reflect.DeepEqual(log.calls, want) {
		t.Fatalf("deleted %v, want %v", log.calls, want)
	}
	c.add([]int64{10}, stageTombstones, 9)
	if err := c.wait(ctx, 9); err != nil {
		t.Fatal(err)
	}
	c.add(nil, 0, 10) // frees nothing
	if err := c.wait(ctx, 10); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-stopped; err != nil || len(log.calls) != 4 {
		t.Fatalf("%v, deleted %v", err, log.calls)
	}
}

// TestCompactorStartsEarly: of much that is pending the older half is deleted
// before all is known.
func TestCompactorStartsEarly(t *testing.T) {
	c := newCompactor(&compactLog{}, quiet())
	for seq := int64(enoughPending); seq > 0; seq-- {
		c.add([]int64{seq}, stageSuperseded, -1)
	}
	<-c.wake
	seqs, through := c.take()
	if len(seqs) != enoughPending/2 || seqs[0] != 1 || seqs[len(seqs)-1] != enoughPending/2 || through >= 0 {
		t.Fatalf("took %d records through %d", len(seqs), through)
	}
	if seqs, through = c.take(); len(seqs) > 0 || through >= 0 {
		t.Fatalf("took %d records through %d while little is pending", len(seqs), through)
	}
	c.add([]int64{enoughPending + 1}, stageSuperseded, 5)
	if seqs, through = c.take(); len(seqs) != enoughPending/2+1 || through >= 0 {
		t.Fatalf("took %d records through %d", len(seqs), through)
	}
	if seqs, through = c.take(); len(seqs) > 0 || through != 5 {
		t.Fatalf("took %d records through %d once nothing is left", len(seqs), through)
	}
}
