package raftlog

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

// Status is what a node knows of its cluster.
type Status struct {
	ID        uint64 // the node
	Leader    uint64 // 0 if it knows of none
	Leads     bool   // it is the leader
	Term      uint64
	Committed uint64 // index of the newest entry that it knows to be committed
	Applied   uint64 // of the newest one that is applied
	Leaders   uint64 // how many changes of the leader the node has seen
}

// Status returns what the node knows of its cluster.
func (l *Log) Status() Status {
	s := *l.node.status.Load()
	s.Applied, _ = l.applied.now() // before the other: it is not larger
	s.Committed = l.node.committed.Load()
	return s
}

// Leadership returns the status, and what is closed when the leader or the
// term may have changed since.
func (l *Log) Leadership() (Status, <-chan struct{}) {
	_, changed := l.node.changes.now()
	return l.Status(), changed
}

// MoveLeader hands the leadership over to node id and returns when it has it,
// or this node does not lead any more.
func (l *Log) MoveLeader(ctx context.Context, id uint64) error {
	if err := l.check(); err != nil {
		return err
	}
	asked := make(chan error, 1)
	l.node.inputs.put(func(raw *raft.RawNode) {
		if raw.BasicStatus().RaftState != raft.StateLeader {
			asked <- ErrNotLeader
			return
		}
		raw.TransferLeader(id)
		asked <- nil
	})
	again := time.NewTicker(l.node.tick)
	defer again.Stop()
	for {
		s, changed := l.Leadership()
		switch {
		case s.Leader == id:
			return nil
		case !s.Leads && s.Leader != 0:
			return fmt.Errorf("%w: another one has become it", ErrNotLeader)
		}
		select {
		case err := <-asked:
			if err != nil {
				return err
			}
		case <-changed:
		case <-again.C:
			l.node.inputs.put(func(raw *raft.RawNode) { transferAgain(raw, id) })
		case <-ctx.Done():
			return ctx.Err()
		case <-l.ended:
			return l.check()
		}
	}
}

// transferAgain repeats a transfer to node id that raft has given up, since a
// message of it was lost. A node that is down is not waited for: nothing can be
// written meanwhile.
func transferAgain(raw *raft.RawNode, id uint64) {
	if s := raw.BasicStatus(); s.RaftState != raft.StateLeader || s.LeadTransferee != 0 {
		return
	}
	active := false
	raw.WithProgress(func(other uint64, _ raft.ProgressType, p tracker.Progress) {
		active = active || other == id && p.RecentActive
	})
	if active {
		raw.TransferLeader(id)
	}
}

// HandOver hands the leadership, if this node has it, over to the node that is
// furthest of those that vote and answer. ErrUnhealthy: none of them does.
func (l *Log) HandOver(ctx context.Context) error {
	if err := l.check(); err != nil {
		return err
	}
	var to uint64
	if err := l.whileUnsure(ctx, func() (err error) {
		to, err = l.successor(ctx)
		return err
	}); err != nil || to == 0 {
		return err
	}
	return l.MoveLeader(ctx, to)
}

// successor returns whom to hand the leadership over to; 0 if this node does
// not lead, or alone votes.
func (l *Log) successor(ctx context.Context) (uint64, error) {
	type answer struct {
		id  uint64
		err error
	}
	found := make(chan answer, 1)
	l.node.inputs.put(func(raw *raft.RawNode) {
		id, err := successor(raw)
		found <- answer{id, err}
	})
	select {
	case a := <-found:
		return a.id, a.err
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-l.ended:
		return 0, l.check()
	}
}

func successor(raw *raft.RawNode) (best uint64, err error) {
	self := raw.BasicStatus()
	if self.RaftState != raft.StateLeader {
		return 0, nil
	}
	var match uint64
	raw.WithProgress(func(id uint64, typ raft.ProgressType, p tracker.Progress) {
		if id == self.ID || typ != raft.ProgressTypePeer {
			return
		}
		if best == 0 {
			err = ErrUnhealthy
		}
		if p.RecentActive && (best == 0 || p.Match > match) {
			best, match, err = id, p.Match, nil
		}
	})
	return best, err
}
