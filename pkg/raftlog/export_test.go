package raftlog

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// LoadAgain is Load for a log that runs already, between two batches.
func (l *Log) LoadAgain(ctx context.Context, fn func(*eventlog.Record) error) (eventlog.Head, error) {
	if err := l.check(); err != nil {
		return eventlog.Head{}, err
	}
	if err := l.flush(ctx); err != nil {
		return eventlog.Head{}, err
	}
	return l.local.Load(ctx, fn)
}

// FailAppend makes the next Append lose its answer if persisted, and fail
// before anything was proposed if not.
func (l *Log) FailAppend(persisted bool) {
	l.onAppend = func(commit func() error) error {
		l.onAppend = nil
		if !persisted {
			return errors.New("injected fault")
		}
		return errors.Join(commit(), eventlog.ErrUnknown)
	}
}

// Checkpoint makes the database durable, so that there can be a mark.
func (l *Log) Checkpoint(ctx context.Context) error {
	if err := l.flush(ctx); err != nil {
		return err
	}
	return l.local.Checkpoint(ctx)
}

// CheckpointWritten is Checkpoint for what is written already.
func (l *Log) CheckpointWritten(ctx context.Context) error { return l.local.Checkpoint(ctx) }

// SetWriteDelay changes writeDelay, before Load.
func (l *Log) SetWriteDelay(d time.Duration) { l.behind.delay = d }

// SetSnapshotPatience changes snapshotPatience, before anything is sent.
func (ps *Peers) SetSnapshotPatience(d time.Duration) { ps.patience = d }

// BeginHead is the first half of Head, which does not wait; answer is the other.
func (l *Log) BeginHead() (answer func(context.Context) (eventlog.Position, error)) {
	q := l.nextQuestion()
	return func(ctx context.Context) (eventlog.Position, error) { return l.answer(ctx, q) }
}

// Questions is how many questions fences have asked, plus a constant.
func (l *Log) Questions() uint64 {
	l.reads.mu.Lock()
	defer l.reads.mu.Unlock()
	return l.reads.last
}

// LastIndex is that of the newest entry in the WAL.
func (l *Log) LastIndex() uint64 {
	last, _ := l.node.disk.mem.LastIndex() // of the WAL, it fails for none
	return last
}

// Campaign makes the node try to become the leader now.
func (l *Log) Campaign() {
	l.node.inputs.put(func(raw *raft.RawNode) { _ = raw.Campaign() })
}

// LocalTail is Tail as the database answers it, once it has everything.
func (l *Log) LocalTail(ctx context.Context, after eventlog.Position, limit int) ([]eventlog.Batch, error) {
	if err := l.flush(ctx); err != nil {
		return nil, err
	}
	return l.local.Tail(ctx, after, limit)
}

// Newest is how many batches are in memory, and how many of these are not in the
// database yet.
func (l *Log) Newest() (all, pending int) {
	l.behind.mu.Lock()
	defer l.behind.mu.Unlock()
	return len(l.behind.batches), len(l.behind.batches) - l.behind.written
}

// Held is how much memory holds of the entries.
func (l *Log) Held() (bytes int) {
	mem := l.node.disk.mem
	first, err := mem.FirstIndex()
	if err != nil {
		return 0
	}
	last, err := mem.LastIndex()
	if err != nil || first > last {
		return 0
	}
	entries, err := mem.Entries(first, last+1, 1<<40)
	for _, e := range entries {
		bytes += len(e.Data)
	}
	if err != nil { // some were forgotten meanwhile
		return 0
	}
	return bytes
}

// Marked is the index of the newest mark, of a log that is closed.
func (l *Log) Marked() uint64 { return l.node.disk.marked }

// LeaderGone says that the process of node id, which leads, has ended.
func (l *Log) LeaderGone(id uint64) { l.leaderGone(id) }

// Removed tells the node that its cluster has removed it.
func (l *Log) Removed() { l.stop(ErrRemoved) }

// ForgetLeader makes the node vote, although it has heard of a leader.
func (l *Log) ForgetLeader() {
	l.node.inputs.put(func(raw *raft.RawNode) { _ = raw.ForgetLeader() })
}

// LeaveBytes is leaveBytes.
const LeaveBytes = leaveBytes

// SendNow is sendNow to node id.
func (ps *Peers) SendNow(id uint64, m *raftpb.Message) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.peers[id].sendNow(m)
}
