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

// A linearizable read needs to know what was committed when it came. Of two or
// three voters any two are a majority, so that it takes one question and its
// answer, of which raft need not know:
//
//	a follower                the leader
//	 I am in term 5     ──▶    I lead in term 5
//	                    ◀──    index 7 is committed
//
//	the leader                a follower
//	 I lead in term 5   ──▶    I am in term 5
//	                    ◀──    so am I
//
// A node publishes its term before any message leaves it that may make another
// one the leader of that term, and what is committed before anybody can hear of
// it. So if the one who asks was in term 5 when it asked, and the other one is
// when it answers, neither had helped to elect a later leader when the question
// was asked, and without both of them nobody can: what the leader of term 5 knew
// to be committed was all. It may be deposed by then, or have been stopped for
// an hour in between: who asked before that is answered rightly, and who asks
// afterwards is in another term, or gets no answer. Clocks do not matter. A
// change of the members is at most one ahead of what the leader has applied, and
// the majority of four has one of the two, too.
//
// Whatever this does not cover is asked through raft, and what is not answered
// is asked again so: with more voters, by a learner, without a leader, or by one
// who has committed nothing in its term yet.

// readVoters is up to how many voters any two are a majority.
const readVoters = 3

// reads coalesces the fences of linearizable reads: those that come while one
// question is under way share the next one.
type reads struct {
	mu    sync.Mutex
	asked *question // mu; under way, nil if there is none
	next  *question // mu; not asked yet, nil if nobody waits
	last  uint64    // mu; the id of the newest; random at first, so that no answer to an earlier process fits
	avoid uint64    // mu; a follower that did not answer

	watch *time.Timer // calls askAgain
	timed bool        // mu; watch is set
	seen  uint64      // mu; the id of the question that watch found under way last
}

// question is one that several callers wait for.
type question struct {
	id    uint64
	begun time.Time
	to    uint64 // the node that was asked; 0 if it was raft
	known uint64 // what was committed here when it was asked

	done  chan struct{} // closed when index or err is set
	index uint64
	err   error
}

// init makes r ready for use; askAgain is called while questions are under way.
func (r *reads) init(askAgain func()) {
	r.last = rand.Uint64() >> 1
	r.watch = time.AfterFunc(time.Hour, askAgain)
	r.watch.Stop()
}

// Head implements eventlog.Log: the position of what is applied once that is
// everything that was committed when Head was called, on any node. It
// needs a leader that a majority of the nodes follows; while there is none it
// waits, for an election timeout and 5 s at most, as etcd does.
func (l *Log) Head(ctx context.Context) (eventlog.Position, error) {
	if err := errors.Join(l.check(), ctx.Err()); err != nil {
		return 0, err
	}
	return l.answer(ctx, l.nextQuestion())
}

// answer waits for what Head returns.
func (l *Log) answer(ctx context.Context, q *question) (eventlog.Position, error) {
	select {
	case <-q.done:
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-l.ended:
		return 0, l.check()
	}
	if q.err != nil {
		return 0, q.err
	}
	if at, _ := l.applied.now(); at < q.index {
		ctx, cancel := context.WithTimeoutCause(ctx, l.readTimeout, errNoAnswer)
		defer cancel()
		if err := l.waitApplied(ctx, q.index); err != nil {
			return 0, err
		}
	}
	return l.behind.now().Position, l.check()
}

// nextQuestion returns one that is asked after the call.
func (l *Log) nextQuestion() *question {
	r := &l.reads
	r.mu.Lock()
	if r.next == nil {
		r.next = &question{done: make(chan struct{})}
	}
	q := r.next
	if r.asked != nil {
		r.mu.Unlock()
		return q
	}
	m := l.begin()
	r.mu.Unlock()
	l.ask(q, m)
	return q
}

// begin makes the next question the one under way, and returns what asks it,
// nil if raft has to. The caller holds l.reads.mu.
func (l *Log) begin() *raftpb.Message {
	r := &l.reads
	q := r.next
	r.asked, r.next = q, nil
	r.last++
	q.id, q.begun = r.last, time.Now()
	if !r.timed {
		r.timed = true
		r.watch.Reset(l.readRetry)
	}
	var m *raftpb.Message
	if m, q.known = l.node.question(q.id, r.avoid); m != nil {
		q.to = m.GetTo()
	}
	return m
}

// ask sends m, or lets raft ask.
func (l *Log) ask(q *question, m *raftpb.Message) {
	if m != nil {
		l.node.transport.Send([]*raftpb.Message{m})
		return
	}
	l.node.inputs.put(func(*raft.RawNode) { l.node.askRaft(requestOf(q.id)) })
}

// askRaft lets raft ask what is committed. It belongs to the loop.
func (n *node) askRaft(request []byte) {
	n.unasked = nil
	if n.unsettledAlone() {
		n.unasked = request
		return
	}
	n.raw.ReadIndex(request)
}

// unsettledAlone reports whether this node is a leader that alone votes and has
// committed nothing in its term: raft would answer at once what is committed,
// even before it knows again that what it had acknowledged before a restart is.
// It belongs to the loop.
func (n *node) unsettledAlone() bool {
	s := n.raw.BasicStatus()
	return s.RaftState == raft.StateLeader && n.settled.Load() != s.GetTerm() && len(n.raw.Status().Config.Voters.IDs()) == 1
}

// confirmRead takes an answer to a question. It does not block.
func (l *Log) confirmRead(id, index uint64) {
	r := &l.reads
	r.mu.Lock()
	q := r.asked
	if q == nil || q.id != id {
		r.mu.Unlock()
		return
	}
	q.index = max(index, q.known)
	m, next := l.finish(q)
	r.mu.Unlock()
	if next != nil {
		l.ask(next, m)
	}
}

// finish ends question q, which is under way, and begins the next one if
// somebody waits for it. The caller holds l.reads.mu.
func (l *Log) finish(q *question) (*raftpb.Message, *question) {
	r := &l.reads
	close(q.done)
	r.asked = nil
	next := r.next
	if next == nil {
		return nil, nil
	}
	return l.begin(), next
}

// askAgain is called once in readRetry while there are questions: one is lost
// if there is no leader, or the leader changes.
func (l *Log) askAgain() {
	r := &l.reads
	r.mu.Lock()
	q := r.asked
	var m *raftpb.Message
	switch {
	case q == nil || l.check() != nil:
		r.timed = false
		r.mu.Unlock()
		return
	case time.Since(q.begun) >= l.readTimeout:
		if r.next != nil { // the same would be said of it
			r.next.err = errNoAnswer
			close(r.next.done)
			r.next = nil
		}
		q.err = errNoAnswer
		m, q = l.finish(q)
	case r.seen == q.id:
		if q.to != 0 {
			r.avoid = q.to
		}
	default: // it is not old yet
		r.seen, q = q.id, nil
	}
	r.watch.Reset(l.readRetry)
	r.mu.Unlock()
	if q != nil {
		l.ask(q, m)
	}
}

// unreachable says that node id does not get what is sent to it. If that is a
// question, raft asks others.
func (l *Log) unreachable(id uint64) {
	r := &l.reads
	r.mu.Lock()
	q := r.asked
	if q == nil || q.to != id {
		r.mu.Unlock()
		return
	}
	q.to, r.avoid = 0, id
	r.mu.Unlock()
	l.ask(q, nil)
}

// question returns what asks another node what is committed, and what is
// committed here; nil if raft has to ask. Of followers it asks none that is to
// be avoided if there is another one. Any goroutine may call it.
func (n *node) question(id, avoid uint64) (m *raftpb.Message, known uint64) {
	s := n.status.Load() // before what is committed, which is of this term then, or of a later one
	voters := n.voters()
	if len(voters) > readVoters || !slices.Contains(voters, s.ID) {
		return nil, 0
	}
	to := s.Leader
	if s.Leads {
		if n.settled.Load() != s.Term {
			return nil, 0
		}
		known, to = n.committed.Load(), 0
		for _, voter := range voters {
			if voter != s.ID && (to == 0 || to == avoid) {
				to = voter
			}
		}
	}
	if to == 0 {
		return nil, 0
	}
	return &raftpb.Message{
		Type: raftpb.MsgReadIndex.Enum(), From: &s.ID, To: &to,
		Context: binary.BigEndian.AppendUint64(nil, s.Term), Entries: []*raftpb.Entry{{Data: requestOf(id)}},
	}, known
}

// requestOf is a question's id as it travels.
func requestOf(id uint64) []byte { return binary.BigEndian.AppendUint64(nil, id) }

// answerRead answers another node's question for what is committed if the two
// know it together. Any goroutine may call it.
func (n *node) answerRead(m *raftpb.Message) bool {
	s := n.status.Load() // before what is committed
	if len(m.GetContext()) != 8 || binary.BigEndian.Uint64(m.GetContext()) != s.Term {
		return false
	}
	switch voters := n.voters(); {
	case !s.Leads && s.Leader != m.GetFrom():
		return false
	case s.Leads && (n.settled.Load() != s.Term || len(voters) > readVoters ||
		!slices.Contains(voters, s.ID) || !slices.Contains(voters, m.GetFrom())):
		return false
	}
	committed := n.committed.Load()
	n.transport.Send([]*raftpb.Message{{
		Type: raftpb.MsgReadIndexResp.Enum(), From: &s.ID, To: m.From, Term: &s.Term, Index: &committed, Entries: m.Entries,
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
		case <-l.ended:
			return l.check()
		}
	}
}
