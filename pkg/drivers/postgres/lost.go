package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	lockHead   = "SELECT position, seq, revision, epoch FROM keelson.head WHERE id = 1 FOR UPDATE"
	updateLost = `UPDATE keelson.head
		SET position = $1, seq = $2, revision = $3, batch = $4, bytes = bytes + $5, epoch = epoch + 1, fence = fence + 1 WHERE id = 1`
	insertMark = "INSERT INTO keelson.log (seq, position, revision, batch, header) VALUES ($1, $2, 0, $3, $4)"

	// revisionJump is added to the newest revision known: other instances may
	// have acknowledged more than this one has heard of.
	revisionJump = 1_000_000
)

// lost ends the log for err, which says what the database has lost. Before
// that it lets the revision jump past all that clients can have seen, and
// compacts what is before, so that they list anew, and do not wait for
// revisions that were other events once. A new epoch tells the other
// instances.
func (l *Log) lost(err error) error {
	err = fmt.Errorf("%w: %w", ErrLost, err)
	if l.check() == nil {
		ctx, cancel := context.WithTimeout(context.Background(), l.timeout)
		defer cancel()
		if jumpErr := l.with(ctx, func(c *pgx.Conn) error {
			return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error { return l.jump(ctx, tx) })
		}); jumpErr != nil {
			err = fmt.Errorf("%w; its revision could not be raised past what clients have seen: %w", err, jumpErr)
		}
	}
	return l.fail(err)
}

func (l *Log) jump(ctx context.Context, tx pgx.Tx) error {
	l.mu.Lock()
	seen, known := l.revision, l.epoch
	l.mu.Unlock()
	var position, seq, revision, epoch int64
	if err := tx.QueryRow(ctx, l.sql.lockHead).Scan(&position, &seq, &revision, &epoch); err != nil {
		return err
	}
	if epoch != known && revision > seen {
		return nil // another instance has done so
	}
	mark := eventlog.Record{
		Seq: seq + 1, Position: eventlog.Position(position + 1), Kind: eventlog.KindCompact,
		Revision: eventlog.Revision{Main: max(revision, seen) + revisionJump},
	}
	header := eventlog.AppendHeader(nil, &mark)
	id := eventlog.NewBatchID()
	if _, err := tx.Exec(ctx, l.sql.restart, position+1, mark.Seq, mark.Revision.Main, id[:], int64(rowOverhead+len(header))); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, l.sql.insert, mark.Seq, position+1, eventlog.EncodeBatchID(mark.Seq, id), header)
	return err
}
