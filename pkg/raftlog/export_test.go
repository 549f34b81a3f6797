package raftlog

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/raft/v3"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// LoadAgain is Load for a log that runs already, between two batches.
func (l *Log) LoadAgain(ctx context.Context, fn func(*eventlog.Record) error) (eventlog.Head, error) {
	if err := l.check(); err != nil {
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
func (l *Log) Checkpoint(ctx context.Context) error { return l.local.Checkpoint(ctx) }

// SetSnapshotPatience changes snapshotPatience until undo is called.
func SetSnapshotPatience(d time.Duration) (undo func()) {
	old := snapshotPatience
	snapshotPatience = d
	return func() { snapshotPatience = old }
}

// Campaign makes the node try to become the leader now.
func (l *Log) Campaign() {
	l.node.inputs.put(func(raw *raft.RawNode) { _ = raw.Campaign() })
}

// LocalTail is Tail as the database answers it.
func (l *Log) LocalTail(ctx context.Context, after eventlog.Position, limit int) ([]eventlog.Batch, error) {
	return l.local.Tail(ctx, after, limit)
}

// Recent is how many batches Tail need not ask the database for.
func (l *Log) Recent() int {
	l.recent.mu.Lock()
	defer l.recent.mu.Unlock()
	return len(l.recent.batches)
}

// LeaderGone says that the process of node id, which leads, has ended.
func (l *Log) LeaderGone(id uint64) { l.leaderGone(id) }
