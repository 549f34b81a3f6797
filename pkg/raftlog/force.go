package raftlog

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/sirupsen/logrus"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

// ForceNewCluster makes self, the node of opt, which nobody has open, the only
// member of its cluster, with everything that its Raft log has: the way out if a
// majority is lost for good, as etcd's --force-new-cluster. What the others had
// committed without this node's knowledge is lost. They must not be started
// again with their data. What self says counts if the cluster had removed the
// node.
//
// etcd keeps what is known to be committed only. But a write may have been
// acknowledged without this node's disk knowing that it was committed, which is
// not synced; what was not acknowledged has no known outcome, and may stay.
func ForceNewCluster(ctx context.Context, opt Options, self Member) error {
	if err := opt.complete(); err != nil {
		return err
	}
	id, known, err := Identify(opt.Dir)
	if err != nil {
		return err
	}
	if !known {
		return fmt.Errorf("%s is not the data directory of a node of a cluster", opt.Dir)
	}
	dir := filepath.Join(opt.Dir, raftDir)
	if err := finishWAL(dir); err != nil {
		return err
	}
	if err := installSnapshot(opt.Dir, id); err != nil {
		return err
	}
	d, err := openDisk(dir, id, Members{})
	if err != nil {
		return err
	}
	state, entries, last, err := d.everything()
	if err == nil && last == 0 {
		err = errors.New("this node has joined and has no data yet")
	}
	if err = errors.Join(err, d.close()); err != nil {
		return err
	}
	members, err := applyAlone(ctx, opt, d, entries)
	if err != nil {
		return err
	}
	if known, ok := members.Member(id.Node); ok { // else it was removed
		self = known
	}
	self.ID, self.Learner = id.Node, false
	alone := Members{Members: []Member{self}, Removed: slices.DeleteFunc(slices.Clone(members.Removed), func(other uint64) bool { return other == id.Node })}
	var left []string // behind
	for _, m := range members.Members {
		if m.ID != id.Node {
			alone.Removed = append(alone.Removed, m.ID)
			left = append(left, formatID(m.ID))
		}
	}
	term, err := d.mem.Term(last)
	if err != nil {
		return err
	}
	opt.Logger.WithFields(logrus.Fields{"entry": last, "term": term, "removed": left}).
		Warn("this node is the only one of its cluster from now on; do not start the others again with their data")
	return renewWAL(dir, id, state, snapshotMeta{
		Index: last, Term: term, Members: alone,
		Conf: raftpb.EnsureConfState(&raftpb.ConfState{Voters: []uint64{id.Node}}),
	})
}

// everything returns the entries after the newest mark, the index of the last
// one, and the state they go to.
func (d *disk) everything() (state *raftpb.HardState, entries []*raftpb.Entry, last uint64, err error) {
	if state, _, err = d.mem.InitialState(); err != nil {
		return nil, nil, 0, err
	}
	if last, err = d.mem.LastIndex(); err != nil {
		return nil, nil, 0, err
	}
	first, err := d.mem.FirstIndex()
	if err != nil || first > last {
		return state, nil, last, err
	}
	entries, err = d.mem.Entries(first, last+1, 1<<62)
	return state, entries, last, err
}

// applyAlone brings entries, those of d, to the database, durably, and returns the
// members after them.
func applyAlone(ctx context.Context, opt Options, d *disk, entries []*raftpb.Entry) (Members, error) {
	members := d.members
	local, err := sqlite.Open(ctx, sqlite.Options{Dir: opt.Dir, Synchronous: sqlite.UnsafeLosesAcknowledgedWritesOnPowerCut, Logger: opt.Logger})
	if err != nil {
		return members, err
	}
	behind := newWriteBehind(local, eventlog.Head{})
	head, err := behind.load(ctx, func(*eventlog.Record) error { return nil })
	if err == nil {
		err = d.goesOn(head.Position)
	}
	for _, e := range entries {
		if err != nil {
			break
		}
		switch {
		case e.GetType() == raftpb.EntryConfChange:
			var cc *raftpb.ConfChange
			var c change
			if cc, c, err = decodeChange(e); err == nil {
				members, _ = members.with(cc.GetType(), c.Member) // refused then as now
			}
		case len(e.Data) > 0:
			var batch *eventlog.Batch
			if batch, err = eventlog.DecodeBatch(e.Data); err == nil {
				_, err = behind.add(e.Data, batch, false) // stale then as now
			}
		}
		if err != nil {
			err = fmt.Errorf("apply entry %d of the raft log: %w", e.GetIndex(), err)
		}
	}
	if err == nil {
		err = behind.flush(ctx)
	}
	if err == nil { // the only other copy goes
		err = local.Checkpoint(ctx)
	}
	return members, errors.Join(err, local.Close())
}
