package check

import (
	"bytes"
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/keelson-io/keelson/pkg/drivers/postgres"
)

// Postgres checks the data in the schema that url names, beside instances that
// may run: as of one moment. The error is why it could not be checked.
func Postgres(ctx context.Context, url string, progress Progress) (*Report, error) {
	c := newChecker("postgres", progress)
	in, err := postgres.Inspect(ctx, url)
	if err != nil {
		return nil, err
	}
	err = c.postgres(ctx, in)
	return &c.Report, errors.Join(err, in.Close())
}

func (c *checker) postgres(ctx context.Context, in *postgres.Inspector) error {
	head, err := in.Counters(ctx)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		c.found(KindCounters, "head and kept", "one of them has no row")
	case postgres.Damage(err):
		c.found(KindCounters, "head and kept", "%s", err)
	case err != nil:
		return err
	}
	newest, err := in.Newest(ctx)
	if err != nil && !postgres.Damage(err) {
		return err
	}
	newest = max(newest, head.Seq)
	c.of = newest - head.Deleted
	rs := newRecords(c, counters{floor: head.Floor, deleted: head.Deleted, revision: head.Revision})
	var size int64
	err = scan(ctx, in, newest, func(s *postgres.Stored) int64 { return s.Seq }, postgres.Damage, func(s *postgres.Stored) {
		size += s.Bytes()
		rs.add(&row{seq: s.Seq, position: &s.Position, revision: s.Revision, header: s.Header, key: s.Key, batch: s.Batch, value: s.Value})
	}, rs.skip)
	if err != nil {
		return err
	}
	rs.finish(newest)
	c.head(&head, rs, size)
	return nil
}

// head compares the row that every Append changes with the rows that it has
// counted.
func (c *checker) head(h *postgres.Counters, rs *records, size int64) {
	const place = "head"
	if h.Seq > h.Floor && (rs.newest.Seq != h.Seq || int64(rs.newest.Position) != h.Position) {
		c.found(KindCounters, place, "the newest record is %d of position %d, and %d of position %d is said to be", rs.newest.Seq, rs.newest.Position, h.Seq, h.Position)
	}
	if rs.last.Main > h.Revision {
		c.found(KindCounters, place, "the newest revision is %d, and %d is said to be", rs.last.Main, h.Revision)
	}
	if h.Position > 0 && rs.batchID != nil && int64(rs.newest.Position) == h.Position && !bytes.HasPrefix(rs.batchID, h.Batch) {
		c.found(KindCounters, place, "it names another batch than the newest records")
	}
	if len(h.Batch) != 16 && h.Position > 0 {
		c.found(KindCounters, place, "the id of the newest batch has %d bytes", len(h.Batch))
	}
	if h.Epoch < 1 || h.Fence < 1 {
		c.found(KindCounters, place, "epoch %d and fence %d", h.Epoch, h.Fence)
	}
	if rs.unread == 0 && h.Appended-h.Freed != size {
		c.found(KindCounters, place, "the records have %d bytes, and %d are counted: the quota is held against these", size, h.Appended-h.Freed)
	}
	// An import takes the place of all records before it, whether it has a mark
	// or not.
	if h.Deleted > 0 && h.Deleted < h.Floor && rs.mark <= h.Floor && rs.unread == 0 {
		c.found(KindCompact, "kept", "records are deleted up to %d, and the newest compaction is record %d", h.Floor, rs.mark)
	}
}
