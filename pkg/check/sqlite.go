package check

import (
	"context"
	"errors"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/raftlog"
)

// SQLite checks the data directory dir, which no server has open: a database
// and, if it is a node's of a cluster, the Raft log. The error is why it could
// not be checked.
func SQLite(ctx context.Context, dir string, progress Progress) (*Report, error) {
	c := newChecker("sqlite", progress)
	_, node, idErr := raftlog.Identify(dir)
	c.cluster = node || idErr != nil
	in, err := sqlite.Inspect(dir)
	if errors.Is(err, eventlog.ErrCorrupt) {
		c.found(KindFile, sqlite.FileName, "%s", problem(err))
		return &c.Report, nil
	}
	if err != nil {
		return nil, err
	}
	position, err := c.sqlite(ctx, in)
	if err == nil && c.cluster {
		c.Driver = "sqlite, a node of a cluster"
		c.raft(dir, position)
	}
	return &c.Report, errors.Join(err, in.Close(), ctx.Err())
}

// sqlite returns the position of the newest record.
func (c *checker) sqlite(ctx context.Context, in *sqlite.Inspector) (eventlog.Position, error) {
	if !c.cluster { // else it may be torn: the Raft log has what it lacks
		if err := in.CheckWAL(); errors.Is(err, eventlog.ErrCorrupt) {
			c.found(KindWAL, sqlite.FileName+"-wal", "%s", problem(err))
		} else if err != nil {
			return 0, err
		}
	}
	err := in.Integrity(ctx, MaxFindings+1, func(text string) { c.found(KindFile, sqlite.FileName, "%s", text) })
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if err != nil && c.Count() == 0 {
		c.found(KindFile, sqlite.FileName, "%s", problem(err))
	}
	var k counters
	if k.floor, k.deleted, k.revision, err = in.Kept(); err != nil {
		c.found(KindCounters, "kept", "%s", problem(err))
	}
	newest, err := in.Newest()
	if err != nil {
		newest = unknown
	} else {
		c.of = newest - k.deleted
	}
	rs := newRecords(c, k)
	err = scan(ctx, in, newest, func(s *sqlite.Stored) int64 { return s.Seq }, sqlite.Damage, func(s *sqlite.Stored) {
		rs.add(&row{seq: s.Seq, revision: s.Revision, header: s.Header, key: s.Key, batch: s.Batch, value: s.Value})
	}, rs.skip)
	if err != nil {
		return 0, err
	}
	if newest == unknown {
		newest = rs.newest.Seq
	}
	rs.finish(newest)
	if k.deleted > 0 && rs.mark <= k.floor && rs.unread == 0 {
		c.found(KindCompact, "kept", "records are deleted up to %d, and the newest compaction is record %d", k.floor, rs.mark)
	}
	return rs.newest.Position, nil
}
