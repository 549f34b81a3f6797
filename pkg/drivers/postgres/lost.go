package postgres

import (
	"bytes"
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	lockHead   = "SELECT position, seq, revision, epoch, batch FROM keelson.head WHERE id = 1 FOR UPDATE"
	updateLost = `UPDATE keelson.head
		SET position = $1, seq = $2, revision = $3, batch = $4, bytes = bytes + $5, epoch = epoch + 1, fence = fence + 1 WHERE id = 1`
	insertMark = "INSERT INTO keelson.log (seq, position, revision, batch, header) VALUES ($1, $2, 0, $3, $4)"

	selectBatches = "SELECT position, batch FROM keelson.log WHERE position = ANY($1) AND batch IS NOT NULL"

	// revisionJump is added to the newest revision known: other instances may
	// have acknowledged more than this one has heard of.
	revisionJump = 1_000_000
)

// past is what a Log has seen of the database.
type past struct {
	seen, given     place
	revision, epoch int64
}

func (l *Log) past() past {
	l.mu.Lock()
	defer l.mu.Unlock()
	return past{l.seen, l.given, l.revision, l.epoch}
}

// lost ends the log for err, which says what the database has lost. Before
// that it lets the revision jump past all that clients can have seen, and
// compacts what is before, so that they list anew, and do not wait for
// revisions that were other events once. A new epoch tells the other
// instances. If that fails, the Load after Reopen does it.
func (l *Log) lost(err error) error {
	err = fmt.Errorf("%w: %w", ErrLost, err)
	if l.check() == nil {
		ctx, cancel := context.WithTimeout(context.Background(), l.timeout)
		defer cancel()
		p := l.past()
		if jumpErr := l.with(ctx, func(c *pgx.Conn) error {
			return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error { return l.restart(ctx, tx, &p, true) })
		}); jumpErr != nil {
			err = fmt.Errorf("%w; its revision could not be raised past what clients have seen: %w", err, jumpErr)
		}
	}
	return l.fail(err)
}

// restart lets the revision jump past all that p knows if the log is not the
// one that p has seen, which proven says it is not, and no other instance has
// done so.
func (l *Log) restart(ctx context.Context, tx pgx.Tx, p *past, proven bool) error {
	var h headRow
	var id []byte
	if err := tx.QueryRow(ctx, l.sql.lockHead).Scan(&h.position, &h.seq, &h.revision, &h.epoch, &id); err != nil {
		return err
	}
	copy(h.id[:], id)
	if h.epoch != p.epoch {
		if h.revision > p.revision {
			return nil // another instance has done so
		}
	} else if !proven {
		other, err := l.isOther(ctx, tx, &h, p)
		if err != nil || !other {
			return err
		}
	}
	mark := eventlog.Record{
		Seq: h.seq + 1, Position: h.position + 1, Kind: eventlog.KindCompact,
		Revision: eventlog.Revision{Main: max(h.revision, p.revision) + revisionJump},
	}
	header := eventlog.AppendHeader(nil, &mark)
	batch := eventlog.NewBatchID()
	if _, err := tx.Exec(ctx, l.sql.restart, int64(mark.Position), mark.Seq, mark.Revision.Main, batch[:], int64(rowOverhead+len(header))); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, l.sql.insert, mark.Seq, int64(mark.Position), eventlog.EncodeBatchID(mark.Seq, batch), header)
	return err
}

// isOther reports whether the log with head h lacks what p has seen. What
// compaction has deleted cannot be told.
func (l *Log) isOther(ctx context.Context, tx pgx.Tx, h *headRow, p *past) (bool, error) {
	if h.position < p.seen.position || h.position == p.seen.position && h.id != p.seen.id {
		return true, nil
	}
	rows, err := tx.Query(ctx, l.sql.batches, []int64{int64(p.seen.position), int64(p.given.position)})
	if err != nil {
		return false, err
	}
	other := false
	var position int64
	var batch []byte
	_, err = pgx.ForEachRow(rows, []any{&position, &batch}, func() error {
		for _, seen := range []place{p.seen, p.given} {
			if int64(seen.position) == position && !bytes.HasPrefix(batch, seen.id[:]) {
				other = true
			}
		}
		return nil
	})
	return other, err
}

// Reopen opens the log again after Close, whatever it has failed of. The new
// one remembers what this one has seen: its Load makes sure that clients which
// have seen more than the database now has list anew.
func (l *Log) Reopen(ctx context.Context) (*Log, error) {
	next, err := Open(ctx, l.opt)
	if err != nil {
		return nil, err
	}
	if p := l.past(); p.epoch != 0 {
		next.before = &p
	} else {
		next.before = l.before // l has never loaded
	}
	return next, nil
}

// reconcile compares the database with what the Log before this one has seen
// of it.
func (l *Log) reconcile(ctx context.Context) error {
	if l.before == nil {
		return nil
	}
	return l.try(ctx, func(ctx context.Context, c *pgx.Conn) error {
		return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error { return l.restart(ctx, tx, l.before, false) })
	})
}
