package check

import (
	"errors"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/raftlog"
)

// raft checks the Raft log in dir, over a database whose newest record is of
// position.
func (c *checker) raft(dir string, position eventlog.Position) {
	in, err := raftlog.Inspect(dir)
	switch {
	case errors.Is(err, eventlog.ErrCorrupt):
		c.found(KindRaft, "raft", "%s", problem(err))
		return
	case err != nil:
		c.found(KindRaft, "raft", "%s", err)
		return
	}
	if in.Batches > 0 && in.Base > position {
		c.found(KindRaft, "raft", "the log goes on from position %d, and the database ends at %d: what is between is lost here", in.Base, position)
	}
	c.note("node %x of cluster %x, %d members, entries %d to %d, committed up to %d", in.Node.Node, in.Node.Cluster, in.Members, in.Mark, in.Last, in.Commit)
}
