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
	c.ends(in, position)
	c.note("node %x of cluster %x, %d members, entries %d to %d, the last of term %d, committed up to %d",
		in.Node.Node, in.Node.Cluster, in.Members, in.Mark, in.Last, in.LastTerm, in.Commit)
}

// ends compares where the database ends with where the Raft log does.
func (c *checker) ends(in *raftlog.Inspection, position eventlog.Position) {
	if in.Durable != nil && position < *in.Durable {
		c.found(KindRaft, "raft", "the database ends at position %d, and the raft log goes on from position %d: what is between is lost here", position, *in.Durable)
	}
	if in.Reached != nil && position > *in.Reached {
		c.found(KindRaft, "raft", "the end of the raft log is lost: it leads to position %d, and the database is at %d", *in.Reached, position)
	}
}
