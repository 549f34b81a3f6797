package sqlite

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	// stepTime bounds a transaction of Compact and Defragment, and with it
	// what an Append that comes meanwhile waits; one that waits ends it at
	// the next check.
	stepTime = 3 * time.Millisecond
	// stepRows rows are deleted, or pages moved, between two checks.
	stepRows = 16

	// While batches come, Compact makes no transactions of its own, whose fsync
	// an Append would wait for: each batch takes some rows along, as many as it
	// has records, so that Compact keeps up, but at least stepRows, and for no
	// longer than alongTime. It goes on by itself after a pause of quietTime.
	alongTime = time.Millisecond
	quietTime = 10 * time.Millisecond

	// So many pages may be free, for the writes to come; Compact gives back
	// what is more. A smaller share would move pages only to need room again.
	freeShare  = 0.25
	freeNumber = 4 << 20 / pageSize

	// vacuumStep moves stepRows pages.
	vacuumStep = "PRAGMA incremental_vacuum(16)"
)

// Compact implements eventlog.Log.
func (l *Log) Compact(ctx context.Context, seqs []int64) error {
	select {
	case l.compacting <- struct{}{}:
	case <-l.done:
		return eventlog.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-l.compacting }()
	if err := l.doom(ctx, seqs); err != nil {
		return err
	}
	err := l.compactDoomed(ctx)
	if err == nil {
		return l.vacuum(ctx, freeShare, freeNumber)
	}
	if l.acquire(context.Background()) == nil { // else nobody writes any more
		l.doomed = nil
		l.release()
	}
	return err
}

// doom notes what is to be deleted.
func (l *Log) doom(ctx context.Context, seqs []int64) error {
	seqs = slices.Clone(seqs)
	slices.Sort(seqs)
	if err := l.acquire(ctx); err != nil {
		return err
	}
	defer l.release()
	n, _ := slices.BinarySearch(seqs, l.markSeq)
	if n < len(seqs) && seqs[n] <= l.headSeq {
		return fmt.Errorf("compact: record %d is not below the newest compaction mark, record %d", seqs[n], l.markSeq)
	}
	l.doomed = seqs[:n] // the others are not there
	l.left.Store(int64(n))
	return nil
}

// compactDoomed deletes what is doomed, or waits while Appends do.
func (l *Log) compactDoomed(ctx context.Context) error {
	for l.left.Load() > 0 {
		along := l.along.Load()
		err := l.step(ctx, func(more func() bool) error {
			return l.deleteDoomed(func(rows int) bool { return rows%stepRows != 0 || rows == 0 || more() })
		})
		if err != nil {
			return err
		}
		for l.left.Load() > 0 && along != l.along.Load() {
			along = l.along.Load()
			select {
			case <-time.After(quietTime):
			case <-l.ended:
				return l.Err()
			case <-l.done:
				return eventlog.ErrClosed
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// takeAlong deletes some of what is doomed in the transaction of a batch.
func (l *Log) takeAlong(records int) error {
	if len(l.doomed) == 0 {
		return nil
	}
	l.along.Add(1)
	start := time.Now()
	return l.deleteDoomed(func(rows int) bool { return rows < max(stepRows, records) && time.Since(start) < alongTime })
}

// deleteDoomed deletes the first of what is doomed in the transaction under
// way, as long as more, which is told the number of rows so far, says so.
func (l *Log) deleteDoomed(more func(rows int) bool) error {
	var floor, deleted int64
	for rows := 0; len(l.doomed) > 0 && more(rows); rows++ {
		changes, err := l.writer.execChanges("DELETE FROM log WHERE seq = ?", l.doomed[0])
		if err != nil {
			return fmt.Errorf("delete record %d: %w", l.doomed[0], err)
		}
		if changes > 0 {
			floor = l.doomed[0]
			deleted += changes
		}
		l.doomed = l.doomed[1:]
	}
	if deleted == 0 {
		return nil
	}
	return l.writer.exec("UPDATE kept SET floor = max(floor, ?), deleted = deleted + ?, revision = ?", floor, deleted, l.headRevision)
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
		err := l.step(ctx, func(more func() bool) error {
			free, err := l.writer.int("PRAGMA freelist_count")
			for first := true; err == nil && !enough(free) && (first || more()); first = false {
				before := free
				if err = l.writer.exec(vacuumStep); err != nil {
					return err
				}
				if free, err = l.writer.int("PRAGMA freelist_count"); err == nil && free >= before {
					err = fmt.Errorf("incremental vacuum gets no further than %d free pages", before)
				}
			}
			return err
		})
		if err != nil {
			return err
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
