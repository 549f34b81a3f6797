package postgres

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"
)

const (
	// deleteRecords counts what it deletes: another instance may have been
	// faster.
	deleteRecords = `WITH gone AS (
			DELETE FROM keelson.log WHERE seq = ANY($1)
			RETURNING seq, $2 + octet_length(header) + coalesce(octet_length(key), 0) + coalesce(octet_length(value), 0) AS bytes
		), counted AS (
			SELECT max(seq) AS seq, count(*) AS records, sum(bytes) AS bytes FROM gone
		)
		UPDATE keelson.kept
		SET floor = greatest(floor, counted.seq), deleted = deleted + counted.records, freed = freed + counted.bytes
		FROM counted WHERE id = 1 AND counted.records > 0
		RETURNING freed`

	vacuumLog = "VACUUM keelson.log"

	// deleteRows are deleted in one transaction. It does not hold up an
	// Append, but for what both write.
	deleteRows = 1000
)

// Compact implements eventlog.Log.
func (l *Log) Compact(ctx context.Context, seqs []int64) error {
	if err := errors.Join(l.check(), ctx.Err()); err != nil {
		return err
	}
	// In order, so that two instances that delete the same do not deadlock.
	seqs = slices.Clone(seqs)
	slices.Sort(seqs)
	for part := range slices.Chunk(seqs, deleteRows) {
		if err := l.waitForReaders(ctx, part[len(part)-1]); err != nil {
			return err
		}
		err := l.try(ctx, func(ctx context.Context, c *pgx.Conn) error {
			var freed int64
			err := c.QueryRow(ctx, l.sql.compact, part, int64(rowOverhead)).Scan(&freed)
			if errors.Is(err, pgx.ErrNoRows) {
				return nil
			}
			if err == nil {
				l.size.freed.Store(freed)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Defragment implements eventlog.Log: VACUUM, which makes the room of deleted
// records free for new ones and does not hold up anything. The database
// returns room to the operating system only from the end of the table; what
// could return more, VACUUM FULL, would lock everybody out.
func (l *Log) Defragment(ctx context.Context) error {
	if err := l.reader(ctx); err != nil {
		return err
	}
	defer func() { <-l.readers }()
	if err := l.with(ctx, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, l.sql.vacuum)
		return err
	}); err != nil {
		return classify(err)
	}
	return l.measure(ctx)
}
