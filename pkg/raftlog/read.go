package raftlog

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// reads coalesces the fences of linearizable reads: those that come while one
// is under way share the next one.
type reads struct {
	mu      sync.Mutex
	current uint64    // mu; the request under way, 0 if there is none
	next    *readCall // mu; not begun yet; nil if nobody waits

	confirmed chan uint64 // the index of the request under way; buffered
	last      uint64      // belongs to answerReads: random at first, so that no answer to an earlier process fits
}

// readCall is one request for the index that several callers wait for.
type readCall struct {
	done     chan struct{}
	position eventlog.Position
	err      error
}

// Head implements eventlog.Log: the position at which the database is once it
// has everything that was committed when Head was called, on any node. It
// needs a leader that a majority of the nodes follows; while there is none it
// waits, for an election's time or two.
func (l *Log) Head(ctx context.Context) (eventlog.Position, error) {
	if err := errors.Join(l.check(), ctx.Err()); err != nil {
		return 0, err
	}
	r := &l.reads
	r.mu.Lock()
	if r.next == nil {
		r.next = &readCall{done: make(chan struct{})}
		select {
		case l.readWanted <- struct{}{}:
		default:
		}
	}
	call := r.next
	r.mu.Unlock()
	select {
	case <-call.done:
		return call.position, call.err
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-l.ended:
		return 0, l.check()
	}
}

// answerReads makes requests, one at a time, until ctx ends.
func (l *Log) answerReads(ctx context.Context) {
	r := &l.reads
	r.last = rand.Uint64() >> 1
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.readWanted:
		}
		r.mu.Lock()
		call := r.next
		r.next = nil
		r.mu.Unlock()
		call.position, call.err = l.readIndex(ctx)
		close(call.done)
	}
}

// readIndex asks for the committed index and waits until it is applied.
func (l *Log) readIndex(ctx context.Context) (eventlog.Position, error) {
	r := &l.reads
	r.last++
	r.mu.Lock()
	r.current, r.confirmed = r.last, make(chan uint64, 1)
	confirmed := r.confirmed
	r.mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, l.readTimeout, errNoAnswer)
	defer cancel()

	// A request is lost if there is no leader, or if the leader changes.
	again := time.NewTicker(l.readRetry)
	defer again.Stop()
	request := binary.BigEndian.AppendUint64(nil, r.last)
	for {
		l.node.inputs.put(func(raw *raft.RawNode) { raw.ReadIndex(request) })
		select {
		case index := <-confirmed:
			if err := l.waitApplied(ctx, index); err != nil {
				return 0, err
			}
			return l.local.Head(ctx)
		case <-again.C:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// confirmRead takes an answer to a request.
func (l *Log) confirmRead(request, index uint64) {
	r := &l.reads
	r.mu.Lock()
	defer r.mu.Unlock()
	if request == r.current {
		r.current = 0
		r.confirmed <- index
	}
}

// vouch adds to the requests for the committed index that this node sends which
// term it is in: it will not have helped to elect a leader of a later one
// before it asked.
func (n *node) vouch(messages []*raftpb.Message) {
	for _, m := range messages {
		if m.GetType() == raftpb.MsgReadIndex && m.GetFrom() == n.raw.BasicStatus().ID {
			m.Context = binary.BigEndian.AppendUint64(nil, n.raw.BasicStatus().GetTerm())
		}
	}
}

// answerRead answers a node's request for the committed index at once, where
// raft would ask the other nodes first: if the node that asks and this one are
// a majority, and both are in the term in which this one leads, there was no
// later leader when the node asked. It returns false if raft has to do it.
func (n *node) answerRead(m *raftpb.Message) bool {
	s := n.raw.BasicStatus()
	voters := n.voters()
	switch {
	case s.RaftState != raft.StateLeader || len(m.GetContext()) != 8 || binary.BigEndian.Uint64(m.GetContext()) != s.GetTerm():
		return false
	case len(voters) > 3 || !slices.Contains(voters, m.GetFrom()) || !slices.Contains(voters, s.ID):
		return false
	case n.settledIn != s.GetTerm():
		// What leaders before have committed is known to be only once this one
		// has committed something.
		if term, err := n.disk.mem.Term(s.GetCommit()); err != nil || term != s.GetTerm() {
			return false
		}
		n.settledIn = s.GetTerm()
	}
	n.send([]*raftpb.Message{{
		Type: raftpb.MsgReadIndexResp.Enum(), From: &s.ID, To: m.From, Term: s.Term, Index: s.Commit, Entries: m.Entries,
	}})
	return true
}

// waitApplied waits until entry index is applied.
func (l *Log) waitApplied(ctx context.Context, index uint64) error {
	for {
		at, grown := l.applied.now()
		if at >= index {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
