package sqlite

import (
	"context"
	"errors"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	selectRows = "SELECT seq, header, key, batch, value FROM log WHERE seq >= ? AND seq <= ? ORDER BY seq"

	// exportBytes of rows are read in one go; no read lasts long.
	exportBytes = 1 << 20
)

// Row is a record as it is stored, with its checksums. A nil slice is NULL.
type Row struct {
	Seq                       int64
	Header, Key, Batch, Value []byte
}

// State returns the head as of the newest batch.
func (l *Log) State(ctx context.Context) (eventlog.Head, error) {
	if err := l.acquire(ctx); err != nil {
		return eventlog.Head{}, err
	}
	defer l.release()
	return eventlog.Head{Position: eventlog.Position(l.head.Load()), Seq: l.headSeq, Revision: l.headRevision}, nil
}

// Export calls fn with the rows there are up to the seq that begin returns, in
// order and some at a time. Batches are appended meanwhile, but nothing is
// deleted from before begin is called until Export returns, so that the rows
// are the log as it was then.
func (l *Log) Export(ctx context.Context, begin func() (through int64, err error), fn func([]Row) error) error {
	return l.alone(ctx, func() error {
		through, err := begin()
		if err != nil {
			return err
		}
		for next := int64(0); next <= through; {
			rows, err := l.exportFrom(ctx, next, through)
			if err != nil || len(rows) == 0 {
				return err
			}
			if err := fn(rows); err != nil {
				return err
			}
			next = rows[len(rows)-1].Seq + 1
		}
		return nil
	})
}

func (l *Log) exportFrom(ctx context.Context, from, through int64) (rows []Row, err error) {
	err = l.read(ctx, func(c *conn) error {
		size := 0
		err := c.query(func(r row) error {
			seq, _ := r[0].(int64)
			out := Row{Seq: seq, Header: blob(r[1]), Key: blob(r[2]), Batch: blob(r[3]), Value: blob(r[4])}
			rows = append(rows, out)
			if size += len(out.Header) + len(out.Key) + len(out.Value); size >= exportBytes {
				return errEnough
			}
			return nil
		}, selectRows, from, through)
		if errors.Is(err, errEnough) {
			return nil
		}
		return err
	})
	return rows, err
}

// blob is a column: empty blobs are not NULL.
func blob(v any) []byte {
	b, ok := v.([]byte)
	if ok && b == nil {
		return []byte{}
	}
	return b
}
