package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	selectState = `SELECT h.position, h.seq, h.revision, h.batch, h.epoch, h.fence, h.bytes, k.floor, k.deleted, k.freed
		FROM keelson.head h CROSS JOIN keelson.kept k WHERE h.id = 1 AND k.id = 1`
	selectLoad = "SELECT seq, header, key FROM keelson.log WHERE seq > $1 ORDER BY seq LIMIT $2"

	// loadRows are read at a time, within loadTimeout, which is generous: a
	// database that has just started reads from its disk.
	loadRows    = 10_000
	loadTimeout = time.Minute
)

// loader checks that records are complete and in order.
type loader struct {
	headRow
	floor, deleted int64
	prev           *eventlog.Record
	count          int64
}

// Load implements eventlog.Log. The values are not read. All of it is one
// state of the database (REPEATABLE READ), whatever is appended and deleted
// meanwhile.
func (l *Log) Load(ctx context.Context, fn func(*eventlog.Record) error) (eventlog.Head, error) {
	if err := errors.Join(l.check(), ctx.Err()); err != nil {
		return eventlog.Head{}, err
	}
	if err := l.reconcile(ctx); err != nil {
		return eventlog.Head{}, fmt.Errorf("load %s: %w", l.set, err)
	}
	// Before the snapshot: nobody deletes then what comes after it.
	if err := l.report(ctx); err != nil {
		return eventlog.Head{}, err
	}
	var ld loader
	err := l.with(ctx, func(c *pgx.Conn) error {
		return pgx.BeginTxFunc(ctx, c, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			return l.load(ctx, tx, &ld, fn)
		})
	})
	if err != nil {
		return eventlog.Head{}, fmt.Errorf("load %s: %w", l.set, classify(err))
	}
	l.learnHead(ld.headRow)
	l.learn(ld.place, true)
	l.mu.Lock()
	l.epoch = ld.epoch
	l.mu.Unlock()
	if err := l.report(ctx); err != nil {
		return eventlog.Head{}, err
	}
	l.spawn(l.keepReporting)
	return eventlog.Head{Position: ld.position, Seq: ld.seq, Revision: ld.revision}, nil
}

func (l *Log) load(ctx context.Context, tx pgx.Tx, ld *loader, fn func(*eventlog.Record) error) error {
	var id []byte
	if err := tx.QueryRow(ctx, l.sql.loadState).Scan(&ld.position, &ld.seq, &ld.revision, &id, &ld.epoch, &ld.fence,
		&ld.appended, &ld.floor, &ld.deleted, &ld.freed); err != nil {
		return err
	}
	copy(ld.id[:], id)
	for more := true; more; {
		n, err := l.loadPage(ctx, tx, ld, fn)
		if err != nil {
			return err
		}
		more = n == loadRows
	}
	return ld.finish()
}

// loadPage passes the next records to fn and returns how many there were.
func (l *Log) loadPage(ctx context.Context, tx pgx.Tx, ld *loader, fn func(*eventlog.Record) error) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	after := int64(0)
	if ld.prev != nil {
		after = ld.prev.Seq
	}
	rows, err := tx.Query(ctx, l.sql.load, after, loadRows)
	if err != nil {
		return 0, err
	}
	n := 0
	var row pageRow
	_, err = pgx.ForEachRow(rows, []any{&row.seq, &row.header, &row.key}, func() error {
		n++
		r, h, err := decodeRow(row.seq, row.header, row.key)
		if err != nil {
			return err
		}
		r.ValueBytes = h.ValueBytes()
		if err := ld.check(r); err != nil {
			return err
		}
		return fn(r)
	})
	return n, err
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
	// fn may keep and change its record.
	ld.prev = &eventlog.Record{Seq: r.Seq, Position: r.Position}
	ld.count++
	return nil
}

// finish compares what was read with the rows that count it.
func (ld *loader) finish() error {
	var last eventlog.Record
	if ld.prev != nil {
		last = *ld.prev
	}
	switch {
	case ld.count != ld.seq-ld.deleted || ld.floor > ld.seq || last.Seq > ld.seq:
		return fmt.Errorf("%w: %d records up to %d are there, and %d of %d were deleted up to %d",
			eventlog.ErrCorrupt, ld.count, last.Seq, ld.deleted, ld.seq, ld.floor)
	case ld.seq > ld.floor && (last.Seq != ld.seq || last.Position != ld.position):
		return fmt.Errorf("%w: the newest record is %d of position %d, and %d of position %d should be",
			eventlog.ErrCorrupt, last.Seq, last.Position, ld.seq, ld.position)
	}
	return nil
}
