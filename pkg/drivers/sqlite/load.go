package sqlite

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	selectLoad = "SELECT seq, header, key FROM log WHERE seq >= ? AND seq < ? ORDER BY seq"
	selectEnds = "SELECT (SELECT min(seq) FROM log), (SELECT max(seq) FROM log)"

	// loadWorkers scan and decode, side by side, ranges of at least rangeWidth
	// seqs; holes make for more ranges than records, so that there are at
	// most loadRanges.
	loadWorkers = 2
	rangeWidth  = 4096
	loadRanges  = 8192
)

// loader checks that records are complete and in order.
type loader struct {
	kept
	newest int64 // seq of the newest row
	prev   *eventlog.Record
	count  int64
	head   eventlog.Head
	mark   int64 // seq of the newest KindCompact record
}

// Load implements eventlog.Log. The values are not read.
func (l *Log) Load(ctx context.Context, fn func(*eventlog.Record) error) (eventlog.Head, error) {
	head, err := l.load(ctx, fn)
	if err != nil {
		return eventlog.Head{}, fmt.Errorf("load %s: %w", l.path, err)
	}
	return head, nil
}

func (l *Log) load(ctx context.Context, fn func(*eventlog.Record) error) (eventlog.Head, error) {
	if err := l.acquire(ctx); err != nil {
		return eventlog.Head{}, err
	}
	defer l.release()
	// Open has emptied the WAL, unless somebody else was reading.
	t, err := l.tree()
	read := l.loadRange
	if t != nil {
		read = l.treeRange(t, loadRow)
	}
	if err != nil {
		return eventlog.Head{}, l.blame(err)
	}
	ld, err := l.loadAll(ctx, read, fn)
	if err != nil {
		return eventlog.Head{}, l.blame(err)
	}
	l.markSeq, l.headRevision = ld.mark, ld.head.Revision
	return ld.head, nil
}

// rangeReader returns the records with seqs in [from, to), in order.
type rangeReader func(ctx context.Context, from, to int64) ([]*eventlog.Record, error)

// loadAll calls fn with all records if they are complete and in order.
func (l *Log) loadAll(ctx context.Context, read rangeReader, fn func(*eventlog.Record) error) (*loader, error) {
	ld := &loader{}
	var oldest int64
	err := l.read(ctx, func(c *conn) error {
		ends, err := c.ints(selectEnds)
		if err != nil {
			return err
		}
		oldest, ld.newest = ends[0], ends[1]
		ld.kept, err = readKept(c)
		return err
	})
	if err != nil {
		return nil, err
	}
	ld.head.Revision = ld.revision
	if ld.newest > 0 {
		if err := scanRanges(ctx, oldest, ld.newest, read, func(records []*eventlog.Record) error {
			for _, r := range records {
				if err := ld.check(r); err != nil {
					return err
				}
				if err := fn(r); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return nil, err
		}
	}
	if ld.count != ld.newest-ld.deleted || ld.newest < ld.floor || ld.head.Seq != ld.newest {
		return nil, fmt.Errorf("%w: %d records up to %d are there, and %d were deleted up to %d",
			eventlog.ErrCorrupt, ld.count, ld.newest, ld.deleted, ld.floor)
	}
	return ld, nil
}

// check takes the next record.
func (ld *loader) check(r *eventlog.Record) error {
	var seq int64
	var position eventlog.Position
	if ld.prev != nil {
		seq, position = ld.prev.Seq, ld.prev.Position
	}
	hole := r.Seq != seq+1
	switch {
	case hole && r.Seq > ld.floor+1:
		return fmt.Errorf("%w: record %d is missing", eventlog.ErrCorrupt, max(seq, ld.floor)+1)
	case r.Position < position || !hole && r.Position > position+1:
		return fmt.Errorf("%w: record %d of position %d follows one of position %d", eventlog.ErrCorrupt, r.Seq, r.Position, position)
	}
	ld.prev = r
	ld.count++
	ld.head.Seq, ld.head.Position = r.Seq, r.Position
	switch r.Kind {
	case eventlog.KindCompact:
		ld.mark = r.Seq
	case eventlog.KindPut, eventlog.KindDelete:
		ld.head.Revision = max(ld.head.Revision, r.Revision.Main)
	}
	return nil
}

// scanRanges calls fn with the records of [oldest, newest] in order, range by
// range.
func scanRanges(ctx context.Context, oldest, newest int64, read rangeReader, fn func([]*eventlog.Record) error) error {
	width := max(rangeWidth, (newest-oldest)/loadRanges+1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	var results [loadWorkers]chan []*eventlog.Record
	for w := range results {
		results[w] = make(chan []*eventlog.Record, 2)
		group.Go(func() error {
			defer close(results[w])
			for from := oldest + int64(w)*width; from <= newest; from += loadWorkers * width {
				records, err := read(ctx, from, from+width)
				if err != nil {
					return err
				}
				select {
				case results[w] <- records:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		})
	}
	for w, from := 0, oldest; from <= newest; w, from = (w+1)%loadWorkers, from+width {
		records, ok := <-results[w]
		if !ok {
			break // the worker's error is the group's
		}
		if err := fn(records); err != nil {
			cancel()
			_ = group.Wait() // what it says comes of the cancellation
			return err
		}
	}
	return group.Wait()
}

// loadRange is a rangeReader that asks SQLite.
func (l *Log) loadRange(ctx context.Context, from, to int64) ([]*eventlog.Record, error) {
	var records []*eventlog.Record
	err := l.read(ctx, func(c *conn) error {
		return c.query(func(row row) error {
			r, h, err := decodeRow(row[0], row[1], row[2])
			if err != nil {
				return err
			}
			r.ValueBytes = h.ValueBytes()
			records = append(records, r)
			return nil
		}, selectLoad, from, to)
	})
	return records, err
}
