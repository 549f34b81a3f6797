package sqlite

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/keelson-io/keelson/pkg/durable"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	selectRows = "SELECT seq, header, key, batch, value FROM log WHERE seq >= ? AND seq <= ? ORDER BY seq"

	// exportBytes of rows are read in one go; no read lasts long.
	exportBytes = 1 << 20
	// importRows are written in one transaction.
	importRows = 10_000
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

// Importer makes a database of the rows of another.
type Importer struct {
	path    string
	conn    *conn
	rows    int64
	floor   int64
	newest  *eventlog.Record
	pending int
}

// NewImporter begins a database in directory dir, which has none and is not
// used by anybody else.
func NewImporter(dir string) (*Importer, error) {
	im := &Importer{path: filepath.Join(dir, FileName), newest: &eventlog.Record{}}
	if err := create(im.path); err != nil {
		return nil, fmt.Errorf("make %s: %w", im.path, err)
	}
	c, err := openConn(im.path, "PRAGMA synchronous=OFF", "BEGIN IMMEDIATE") // Finish syncs
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", im.path, err)
	}
	im.conn = c
	return im, nil
}

// Add adds the next row. One that is damaged or out of order is ErrCorrupt.
func (im *Importer) Add(r Row) error {
	record := &eventlog.Record{Seq: r.Seq, Key: r.Key}
	h, err := eventlog.DecodeHeader(r.Header, record)
	if err != nil {
		return err
	}
	if err := h.VerifyValue(r.Value); err != nil {
		return fmt.Errorf("record %d: %w", r.Seq, err)
	}
	prev := im.newest
	gap := r.Seq != prev.Seq+1
	if r.Seq <= prev.Seq || record.Position < prev.Position || !gap && record.Position > prev.Position+1 {
		return fmt.Errorf("%w: record %d of position %d follows record %d of position %d",
			eventlog.ErrCorrupt, r.Seq, record.Position, prev.Seq, prev.Position)
	}
	if gap {
		im.floor = r.Seq - 1
	}
	if im.pending++; im.pending >= importRows {
		im.pending = 0
		if err := errors.Join(im.conn.exec("COMMIT"), im.conn.exec("BEGIN IMMEDIATE")); err != nil {
			return err
		}
	}
	im.newest = record
	im.rows++
	return im.conn.exec(insertRecord, r.Seq, record.Revision.Main, r.Batch, r.Header, r.Key, r.Value)
}

// Finish makes the database durable if it is whole, which head tells. The
// Importer cannot be used after that.
func (im *Importer) Finish(head eventlog.Head) error {
	if im.newest.Seq != head.Seq || im.newest.Position != head.Position {
		return errors.Join(im.Abort(), fmt.Errorf("%w: the last record is %d of position %d, not %d of position %d",
			eventlog.ErrCorrupt, im.newest.Seq, im.newest.Position, head.Seq, head.Position))
	}
	err := im.conn.exec("UPDATE kept SET floor = ?, deleted = ?, revision = ?", im.floor, head.Seq-im.rows, head.Revision)
	if err == nil {
		err = im.conn.exec("COMMIT")
	}
	if err == nil {
		err = im.conn.exec("PRAGMA wal_checkpoint(TRUNCATE)")
	}
	if err = errors.Join(err, im.conn.close()); err != nil {
		return err
	}
	return errors.Join(durable.Sync(im.path), durable.Sync(filepath.Dir(im.path)))
}

// Abort ends an import that is not to be finished. The files stay.
func (im *Importer) Abort() error { return im.conn.close() }
