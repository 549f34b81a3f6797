package cmd

import (
	"context"
	"fmt"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/raftlog"
)

// complete fails if log, which has loaded, is the database of a node of a cluster
// and lacks what the node's Raft log has. That may have been acknowledged, and may
// not: only the cluster knows.
func (p place) complete(ctx context.Context, log eventlog.Log) error {
	if p.kind != placeSQLite {
		return nil
	}
	if _, node, err := raftlog.Identify(p.at); err != nil || !node {
		return err
	}
	at, err := log.Head(ctx)
	if err != nil {
		return err
	}
	to := at
	in, err := raftlog.Inspect(p.at)
	if err == nil {
		to, err = in.LeadsTo(at)
	}
	const without = "to do without, copy " + sqlite.FileName + " and " + sqlite.FileName + "-wal into a directory of their own"
	switch {
	case err != nil:
		return fmt.Errorf("%s is the data directory of a node of a cluster, and what was written last is only in its Raft log, which cannot be read; %s: %w", p, without, err)
	case to > at:
		return fmt.Errorf("%s is the data directory of a node of a cluster, and its Raft log has %d writes that are not in its database, as one that was stopped while others wrote: which of them count only the cluster knows: save a snapshot of a server of the cluster; or, if its majority is lost, start this node with --force-new-cluster and save one of it; %s", p, to-at, without)
	}
	return nil
}
