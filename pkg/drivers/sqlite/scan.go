package sqlite

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const selectScan = "SELECT seq, header, key, value FROM log WHERE seq >= ? AND seq <= ? ORDER BY seq"

// scan is an eventlog.Scan. It keeps Compact out.
type scan struct {
	log     *Log
	through int64 // seq
	closed  bool
}

// Scan implements eventlog.Log.
func (l *Log) Scan(ctx context.Context, begin func(eventlog.Position) (int64, error)) (eventlog.Scan, error) {
	if err := l.enter(ctx); err != nil {
		return nil, err
	}
	through, err := begin(eventlog.Position(l.head.Load()))
	if err != nil {
		l.leave()
		return nil, err
	}
	return &scan{log: l, through: through}, nil
}

// Records implements eventlog.Scan. While fn has one page, the next is read.
func (s *scan) Records(ctx context.Context, fn func([]eventlog.Record) error) error {
	if s.closed {
		return eventlog.ErrClosed
	}
	ctx, cancel := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	pages := make(chan []eventlog.Record)
	group.Go(func() error {
		defer close(pages)
		for next := int64(0); next <= s.through; {
			records, err := s.page(ctx, next)
			if err != nil || len(records) == 0 {
				return err
			}
			next = records[len(records)-1].Seq + 1
			select {
			case pages <- records:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for records := range pages {
		if err := fn(records); err != nil {
			cancel()
			_ = group.Wait() // what it says comes of the cancellation
			return err
		}
	}
	defer cancel()
	return group.Wait()
}

// page reads the records from seq from on, in a transaction of its own.
func (s *scan) page(ctx context.Context, from int64) (records []eventlog.Record, err error) {
	err = s.log.read(ctx, func(c *conn) error {
		size := 0
		err := c.query(func(row row) error {
			r, h, err := decodeRow(row[0], row[1], row[2])
			if err != nil {
				return err
			}
			if r.Value, err = takeValue(r, h, row[3]); err != nil {
				return err
			}
			records = append(records, *r)
			if size += len(r.Key) + len(r.Value); size >= eventlog.ScanBytes {
				return errEnough
			}
			return nil
		}, selectScan, from, s.through)
		if errors.Is(err, errEnough) {
			return nil
		}
		return err
	})
	return records, err
}

// Close implements eventlog.Scan.
func (s *scan) Close() error {
	if !s.closed {
		s.closed = true
		s.log.leave()
	}
	return nil
}
