package sqlite

import (
	"context"
	"fmt"
	"slices"
	"time"
)

const (
	// stepTime bounds a transaction of Compact and Defragment, and with it
	// what an Append that comes meanwhile waits; one that waits ends it at
	// the next check.
	stepTime = 3 * time.Millisecond
	// stepRows rows are deleted, or pages moved, between two checks.
	stepRows = 16

	// So many pages may be free, for the writes to come; Compact gives back
	// what is more. A smaller share would move pages only to need room again.
	freeShare  = 0.25
	freeNumber = 4 << 20 / pageSize

	// vacuumStep moves stepRows pages.
	vacuumStep = "PRAGMA incremental_vacuum(16)"
)

// Compact implements eventlog.Log.
func (l *Log) Compact(ctx context.Context, seqs []int64) error {
	seqs = slices.Clone(seqs)
	slices.Sort(seqs)
	for first := true; first || len(seqs) > 0; first = false {
		err := l.step(ctx, func(more func() bool) error {
			if i, _ := slices.BinarySearch(seqs, l.markSeq); i < len(seqs) && seqs[i] <= l.headSeq {
				return fmt.Errorf("compact: record %d is not below the newest compaction mark, record %d", seqs[i], l.markSeq)
			}
			var floor, deleted int64
			for i := 0; len(seqs) > 0 && (i%stepRows != 0 || i == 0 || more()); i++ {
				changes, err := l.writer.execChanges("DELETE FROM log WHERE seq = ?", seqs[0])
				if err != nil {
					return err
				}
				if changes > 0 {
					floor = seqs[0]
					deleted += changes
				}
				seqs = seqs[1:]
			}
			if deleted == 0 {
				return nil
			}
			return l.writer.exec("UPDATE kept SET floor = max(floor, ?), deleted = deleted + ?, revision = ?", floor, deleted, l.headRevision)
		})
		if err != nil {
			return err
		}
	}
	return l.vacuum(ctx, freeShare, freeNumber)
}

// step runs fn in a write transaction of its own. fn is to stop soon once
// more returns false.
func (l *Log) step(ctx context.Context, fn func(more func() bool) error) error {
	if err := l.acquire(ctx); err != nil {
		return err
	}
	defer l.release()
	start := time.Now()
	if err := l.begin(); err != nil {
		return l.fail(err)
	}
	if err := fn(func() bool { return l.writers.Load() == 0 && time.Since(start) < stepTime }); err != nil {
		return l.rollback(err)
	}
	if err := l.commit(); err != nil {
		return err
	}
	l.afterCommit()
	return nil
}

// vacuum moves pages from the end of the file into free ones until at most
// this share of the pages, or this number of them, is free.
func (l *Log) vacuum(ctx context.Context, share float64, number int64) error {
	enough := func(free int64) bool { return free <= max(number, int64(share*float64(l.pages.Load()))) }
	for !enough(l.freePages.Load()) {
		before := l.freePages.Load()
		err := l.step(ctx, func(more func() bool) error {
			for first := true; first || more(); first = false {
				if err := l.writer.exec(vacuumStep); err != nil {
					return err
				}
				free, err := l.writer.int("PRAGMA freelist_count")
				if err != nil || enough(free) {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if l.freePages.Load() == before {
			return fmt.Errorf("incremental vacuum gets no further than %d free pages", before)
		}
	}
	return nil
}

// Defragment implements eventlog.Log: it empties the list of free pages, in
// small transactions, and truncates both files.
func (l *Log) Defragment(ctx context.Context) error {
	if err := l.vacuum(ctx, 0, 0); err != nil {
		return err
	}
	if err := l.acquire(ctx); err != nil {
		return err
	}
	defer l.release()
	if err := l.checkpointAll("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		return l.fail(err)
	}
	return nil
}
