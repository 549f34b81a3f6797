package sqlite

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	// What is deleted between two looks at the clock takes about chunkTime: a
	// run of records, at most chunkRows, or some pages that are moved.
	chunkTime = 20 * time.Microsecond
	chunkRows = 64

	// While batches come, Compact makes no transactions of its own, whose fsync
	// an Append would wait for: each batch takes some deleting along, for
	// half of the time that it takes itself, of which alongCost goes into the
	// pages that any deleting changes. Compact goes on by itself after a
	// pause of quietTime, in transactions whose deleting takes about as long as
	// a batch, so that one that comes meanwhile does not wait for much, or
	// maxPace once no batch came for idleTime.
	alongShare = 2
	alongCost  = 50 * time.Microsecond
	quietTime  = 10 * time.Millisecond
	idleTime   = time.Second
	minPace    = 100 * time.Microsecond
	maxPace    = 3 * time.Millisecond

	// So many pages may be free, for the writes to come; Compact gives back
	// what is more. A smaller share would move pages only to need room again.
	freeShare  = 0.25
	freeNumber = 4 << 20 / pageSize

	// vacuumStep moves 4 pages.
	vacuumStep = "PRAGMA incremental_vacuum(4)"
)

// errStuck: the database does not get smaller although pages are free.
var errStuck = errors.New("incremental vacuum gets no further")

// Compact implements eventlog.Log. Free pages are given back after it returned.
func (l *Log) Compact(ctx context.Context, seqs []int64) error {
	err := l.alone(ctx, func() error {
		if err := l.doom(ctx, seqs); err != nil {
			return err
		}
		return l.workOff(ctx, func() bool { return l.left.Load() > 0 }, l.deleteDoomed)
	})
	select {
	case l.freed <- struct{}{}:
	default: // already known
	}
	return err
}

// vacuumLoop gives back what Compact has freed, until Close. It makes way for
// another Compact, which comes back to it.
func (l *Log) vacuumLoop() {
	defer l.stopped.Done()
	ctx := context.Background()
	for {
		select {
		case <-l.freed:
		case <-l.done:
			return
		}
		err := l.alone(ctx, func() error {
			return l.vacuum(ctx, spare{freeShare, freeNumber}, func() bool { return l.waiting.Load() == 0 })
		})
		if err != nil && !errors.Is(err, eventlog.ErrClosed) {
			l.mishap(err, "free pages cannot be given back")
		}
	}
}

// alone runs fn when no other is under way, and then leaves nothing for
// batches to take along.
func (l *Log) alone(ctx context.Context, fn func() error) error {
	if err := l.enter(ctx); err != nil {
		return err
	}
	defer l.leave()
	return fn()
}

// enter waits until no Compact or Defragment is under way; leave lets the next
// one in.
func (l *Log) enter(ctx context.Context) error {
	if err := errors.Join(l.check(), ctx.Err()); err != nil {
		return err
	}
	l.waiting.Add(1)
	var err error
	select {
	case l.compacting <- struct{}{}:
	case <-l.done:
		err = eventlog.ErrClosed
	case <-ctx.Done():
		err = ctx.Err()
	}
	l.waiting.Add(-1)
	return err
}

func (l *Log) leave() {
	if l.acquire(context.Background()) == nil { // else nobody writes any more
		l.doomed, l.spare = nil, nil
		l.release()
	}
	l.held.Store(0)
	<-l.compacting
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

// workOff runs work in transactions of its own as long as there is some left,
// or waits while batches take it along, or Scans hold it up.
func (l *Log) workOff(ctx context.Context, left func() bool, work func(more func() bool) error) error {
	for left() {
		along := l.along.Load()
		if err := l.step(ctx, work); err != nil {
			return err
		}
		for held := l.scans.Load() > 0; left() && (held || along != l.along.Load()); held = l.scans.Load() > 0 {
			along = l.along.Load()
			start := time.Now()
			if err := l.pause(ctx); err != nil {
				return err
			}
			if held {
				l.held.Add(int64(time.Since(start)))
			}
		}
	}
	return nil
}

// pause waits for quietTime.
func (l *Log) pause(ctx context.Context) error {
	select {
	case <-time.After(quietTime):
		return nil
	case <-l.ended:
		return l.Err()
	case <-l.done:
		return eventlog.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// takeAlong does some of Compact's work in the transaction of a batch, and
// reports whether there was any.
func (l *Log) takeAlong() (some bool, err error) {
	if l.scans.Load() > 0 {
		return false, nil
	}
	work := l.deleteDoomed
	if len(l.doomed) == 0 {
		if l.spare == nil {
			return false, nil
		}
		work = func(more func() bool) error { return l.movePages(*l.spare, more) }
	}
	l.along.Add(1)
	start := time.Now()
	err = work(func() bool { return time.Since(start) < l.pace/alongShare-alongCost })
	l.worked = time.Since(start)
	if errors.Is(err, errStuck) {
		l.spare, err = nil, nil // vacuum will find that too
	}
	return true, err
}

// keepPace notes how long a batch took that was begun at start. The pace goes
// up and down in small steps, so that it ends up at the median.
func (l *Log) keepPace(start time.Time) {
	l.lastBatch = time.Now()
	took := l.lastBatch.Sub(start) - 2*l.worked // COMMIT writes what was changed, which takes about as long again
	l.worked = 0
	if took > l.pace {
		l.pace = min(l.pace+l.pace/16, maxPace)
	} else {
		l.pace = max(l.pace-l.pace/16, minPace)
	}
}

// deleteDoomed deletes the first of what is doomed in the transaction under
// way, until more says that it is enough.
func (l *Log) deleteDoomed(more func() bool) error {
	var floor, deleted int64
	for first := true; len(l.doomed) > 0 && (first || more()); first = false {
		start := time.Now()
		n := run(l.doomed[:min(len(l.doomed), l.chunk)])
		changes, err := l.writer.execChanges("DELETE FROM log WHERE seq BETWEEN ? AND ?", l.doomed[0], l.doomed[n-1])
		if err != nil {
			return fmt.Errorf("delete records %d to %d: %w", l.doomed[0], l.doomed[n-1], err)
		}
		switch took := time.Since(start); {
		case took > 2*chunkTime:
			l.chunk = max(n/2, 1)
		case took < chunkTime && n == l.chunk:
			l.chunk = min(2*n, chunkRows)
		}
		if changes > 0 {
			floor = l.doomed[n-1]
			deleted += changes
		}
		l.doomed = l.doomed[n:]
	}
	if deleted == 0 {
		return nil
	}
	k, err := readKept(l.writer)
	if err != nil {
		return err
	}
	return writeKept(l.writer, kept{max(k.floor, floor), k.deleted + deleted, l.headRevision})
}

// run returns how many of seqs, which ascend, follow the first without a gap.
func run(seqs []int64) int {
	n := 1
	for n < len(seqs) && seqs[n] == seqs[0]+int64(n) {
		n++
	}
	return n
}

// step runs fn in a write transaction of its own, unless there is a Scan. fn is
// to stop soon once more returns false.
func (l *Log) step(ctx context.Context, fn func(more func() bool) error) error {
	if err := l.acquire(ctx); err != nil {
		return err
	}
	defer l.release()
	if l.scans.Load() > 0 {
		return nil
	}
	start, limit := time.Now(), l.pace
	if start.Sub(l.lastBatch) > idleTime {
		limit = maxPace
	}
	if err := l.begin(); err != nil {
		return l.fail(err)
	}
	doomed := l.doomed
	if err := fn(func() bool { return l.writers.Load() == 0 && time.Since(start) < limit }); err != nil {
		l.doomed = doomed
		return l.rollback(err)
	}
	if err := l.commit(); err != nil {
		return err
	}
	l.afterCommit()
	return nil
}

// spare is how many pages may be free: this share of all, or this number.
type spare struct {
	share  float64
	number int64
}

// exceeded reports whether of so many pages too many are free.
func (s spare) exceeded(free, pages int64) bool {
	return free > max(s.number, int64(s.share*float64(pages)))
}

// vacuum moves pages from the end of the file into free ones until no more are
// free than are to be, or goOn says no.
func (l *Log) vacuum(ctx context.Context, s spare, goOn func() bool) error {
	if err := l.acquire(ctx); err != nil {
		return err
	}
	l.spare = &s
	l.release()
	return l.workOff(ctx, func() bool { return s.exceeded(l.freePages.Load(), l.pages.Load()) && goOn() },
		func(more func() bool) error { return l.movePages(s, more) })
}

// movePages does that in the transaction under way, until more says that it is
// enough.
func (l *Log) movePages(s spare, more func() bool) error {
	pages := l.pages.Load()
	free, err := l.writer.int("PRAGMA freelist_count")
	for first := true; err == nil && s.exceeded(free, pages) && (first || more()); first = false {
		before := free
		if err = l.writer.exec(vacuumStep); err != nil {
			return err
		}
		if free, err = l.writer.int("PRAGMA freelist_count"); err == nil && free >= before {
			err = fmt.Errorf("%w: %d pages are free", errStuck, free)
		}
	}
	return err
}

// Defragment implements eventlog.Log: it empties the list of free pages, in
// small transactions, and truncates both files.
func (l *Log) Defragment(ctx context.Context) error {
	err := l.alone(ctx, func() error { return l.vacuum(ctx, spare{0, 0}, func() bool { return true }) })
	if err != nil {
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
