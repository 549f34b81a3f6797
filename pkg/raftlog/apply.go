package raftlog

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// mark is a place in the Raft log from which it may be read after a restart,
// once the database has position.
type mark struct {
	index, term uint64
	position    eventlog.Position
	conf        *raftpb.ConfState
	members     Members
}

// marks says when it is time for one. It belongs to the apply goroutine.
type marks struct {
	entries, bytes uint64 // since the newest of due
	due            []mark // in order; the database may not be so far yet
	kept           int    // how many were made since memory was given back
}

// maxKept is how many marks' entries memory holds for the sake of a node that
// receives a snapshot, and would need another one without them: 512 MiB.
const maxKept = 32

// markBytes is how much of the Raft log a restart reads at most, together with
// what the database has not made durable, and half of what memory holds of it
// for a follower that is far behind.
const markBytes = 16 << 20

// What memory holds of the Raft log while every follower has it: what has to be
// there if another node becomes the leader, and one is a little behind it. It is
// in each node's memory, and the collector's headroom is as much again. (etcd
// keeps 5000 entries, of a write each.)
const (
	keptBytes = 4 << 20
	keptStep  = 1 << 20
	entrySize = 256 // of an entry beside its data, about
)

// kept are the places in the Raft log up to which memory holds entries on. It
// belongs to the apply goroutine.
type kept struct {
	bytes uint64   // since the newest of steps
	steps []uint64 // indexes, keptStep apart
}

// applyEntries applies committed entries, in order.
func (l *Log) applyEntries(ctx context.Context, entries []*raftpb.Entry) error {
	for _, e := range entries {
		if err := errors.Join(l.behind.room(ctx), ctx.Err()); err != nil {
			return err
		}
		if err := l.applyEntry(ctx, e); err != nil {
			return fmt.Errorf("apply entry %d of the raft log: %w", e.GetIndex(), err)
		}
	}
	return nil
}

func (l *Log) applyEntry(ctx context.Context, e *raftpb.Entry) (err error) {
	l.applying.Lock()
	defer l.applying.Unlock()
	switch {
	case e.GetType() == raftpb.EntryConfChange:
		err = l.applyChange(ctx, e)
	case e.GetType() != raftpb.EntryNormal:
		err = fmt.Errorf("it is a %v, which this keelson does not know: use a newer keelson", e.GetType())
	case len(e.Data) > 0: // a new leader's first entry is empty
		err = l.applyBatch(e)
	}
	if err != nil {
		return err
	}
	first := e.GetTerm() != l.term // of its leader: it is empty
	l.term = e.GetTerm()
	l.proposals.lost(e.GetTerm())
	l.changes.dropped(e, first)
	l.applied.advance(e.GetIndex())
	l.noteKept(e)
	return l.noteMark(e)
}

// noteKept gives back the memory of entries when enough newer ones are there.
func (l *Log) noteKept(e *raftpb.Entry) {
	k := &l.kept
	if k.bytes += uint64(len(e.Data)) + entrySize; k.bytes < keptStep {
		return
	}
	k.bytes = 0
	k.steps = append(k.steps, e.GetIndex())
	if len(k.steps) > keptBytes/keptStep {
		if !l.sendsSnapshots() {
			l.node.forgetKnown(k.steps[0])
		}
		k.steps = k.steps[1:]
	}
}

// applyBatch applies one batch, whose fate is final with that.
func (l *Log) applyBatch(e *raftpb.Entry) error {
	id, err := eventlog.PeekBatchID(e.Data)
	if err != nil {
		return err
	}
	batch := l.proposals.begin(id)
	own := batch != nil // its author goes on with it
	if !own {
		if batch, err = eventlog.DecodeBatch(e.Data); err != nil {
			return err
		}
	}
	stale, err := l.behind.add(e.Data, batch, own)
	if err != nil {
		return err
	}
	l.proposals.settle(id, stale)
	return nil
}

// noteMark makes a mark when it is time for one, and the database has durably
// what was applied up to it.
func (l *Log) noteMark(e *raftpb.Entry) error {
	m := &l.marks
	m.entries++
	m.bytes += uint64(len(e.Data))
	if m.entries >= l.snapshotCount || m.bytes >= markBytes {
		m.due = append(m.due, mark{index: e.GetIndex(), term: e.GetTerm(), position: l.behind.now().Position, conf: l.conf, members: l.Members()})
		m.entries, m.bytes = 0, 0
	}
	for len(m.due) > 0 && l.local.Stats().Checkpointed >= m.due[0].position {
		before := l.node.disk.marked
		done, err := l.node.disk.mark(m.due[0])
		if err != nil {
			return fmt.Errorf("%w: mark entry %d in the raft log: %w", eventlog.ErrFailed, m.due[0].index, err)
		}
		if !done {
			return nil
		}
		m.due = m.due[1:]
		if m.kept++; m.kept > maxKept || !l.sendsSnapshots() {
			m.kept = 0
			l.node.forget(before)
		}
	}
	return nil
}

// progress is a number that does not fall, and whose setting can be waited for.
type progress struct {
	mu   sync.Mutex
	at   uint64        // mu
	next chan struct{} // mu; closed when at is set
}

// newProgress returns one that is at at.
func newProgress(at uint64) *progress { return &progress{at: at, next: make(chan struct{})} }

// advance sets the number, which is not smaller than before.
func (p *progress) advance(to uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at = to
	close(p.next)
	p.next = make(chan struct{})
}

// now returns the number, and what is closed when it is set again.
func (p *progress) now() (uint64, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at, p.next
}
