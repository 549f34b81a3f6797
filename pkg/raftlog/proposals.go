package raftlog

import (
	"context"
	"fmt"
	"sync"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// errLost: the batch was proposed, but the leader changed before it was
// committed, and the log went on without it.
var errLost = fmt.Errorf("%w: the leader changed before the batch was committed, and it is not there", ErrNotLeader)

// proposal is a batch on its way through raft.
type proposal struct {
	batch   *eventlog.Batch // nil once its author does not wait any more
	id      eventlog.BatchID
	term    uint64        // of the leader that proposed it
	outcome error         // set before done is closed
	done    chan struct{} // closed when the outcome is final
	applied bool          // apply has begun with it
}

// proposals are those whose outcome is not known yet.
type proposals struct {
	mu   sync.Mutex
	open map[eventlog.BatchID]*proposal // mu
}

// add notes batch as proposed in term.
func (ps *proposals) add(batch *eventlog.Batch, term uint64) *proposal {
	p := &proposal{batch: batch, id: batch.ID, term: term, done: make(chan struct{})}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.open == nil {
		ps.open = make(map[eventlog.BatchID]*proposal)
	}
	ps.open[p.id] = p
	return p
}

// begin returns this node's own batch id, to be applied without decoding it
// again, or nil.
func (ps *proposals) begin(id eventlog.BatchID) *eventlog.Batch {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.open[id]
	if p == nil {
		return nil
	}
	p.applied = true
	return p.batch
}

// settle sets the outcome of batch id, if it is this node's.
func (ps *proposals) settle(id eventlog.BatchID, outcome error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p := ps.open[id]; p != nil {
		ps.end(p, outcome)
	}
}

// lost ends the proposals of terms before term, an entry of which was applied:
// every log that has this entry has none of an earlier term after it, and
// those before it were applied before.
func (ps *proposals) lost(term uint64) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.open {
		if p.term < term {
			ps.end(p, errLost)
		}
	}
}

func (ps *proposals) end(p *proposal, outcome error) {
	delete(ps.open, p.id)
	p.outcome = outcome
	close(p.done)
}

// abandon says that p's author waits no more. It returns false if p is being
// applied, so that the author, whose batch is in use, has to wait.
func (ps *proposals) abandon(p *proposal) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p.applied {
		return false
	}
	p.batch = nil
	return true
}

// settled waits until the outcome of every batch is known.
func (ps *proposals) settled(ctx context.Context, ended <-chan struct{}) error {
	for {
		ps.mu.Lock()
		var p *proposal
		for _, p = range ps.open {
			break
		}
		ps.mu.Unlock()
		if p == nil {
			return nil
		}
		select {
		case <-p.done:
		case <-ended:
			return nil // the caller says why
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
