package raftlog

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// What may be wrong with a change of the members; the conditions are etcd's.
var (
	ErrMemberExists    = errors.New("raft: a node has this id already")
	ErrMemberRemoved   = errors.New("raft: a node with this id was removed, and ids are not used again")
	ErrMemberNotFound  = errors.New("raft: no node has this id")
	ErrPeerURLExists   = errors.New("raft: another node has this peer URL")
	ErrBadURLs         = errors.New("raft: no URLs at which others reach a node")
	ErrNotLearner      = errors.New("raft: the node votes already")
	ErrTooManyLearners = fmt.Errorf("raft: there are %d learners, as many as may be", maxLearners)
	ErrLearnerNotReady = errors.New("raft: the learner is not up to date yet")
	ErrNotStarted      = errors.New("raft: too few of the nodes that vote have ever been up: without a majority nothing could be written any more")
	ErrUnhealthy       = errors.New("raft: too few nodes are up: without a majority nothing could be written any more")

	// ErrRemoved, an eventlog.ErrFailed, ends the log of a node that its cluster has
	// removed.
	ErrRemoved error = removed{}
)

// removed is an eventlog.ErrFailed that does not talk of storage.
type removed struct{}

func (removed) Error() string        { return "raft: this node was removed from the cluster" }
func (removed) Is(target error) bool { return target == eventlog.ErrFailed }

// maxLearners is etcd's default of --max-learners.
const maxLearners = 1

// Member is a node of a cluster.
type Member struct {
	ID         uint64   `json:"id"`
	Name       string   `json:"name,omitempty"` // empty until the node has been up
	PeerURLs   []string `json:"peerURLs"`
	ClientURLs []string `json:"clientURLs,omitempty"`
	Learner    bool     `json:"learner,omitempty"`
}

// Members are the nodes of a cluster, in order of their ids, and those it has
// removed. They are read-only.
type Members struct {
	Members []Member `json:"members"`
	Removed []uint64 `json:"removed,omitempty"`
}

// Member returns the one with id.
func (ms Members) Member(id uint64) (Member, bool) {
	for _, m := range ms.Members {
		if m.ID == id {
			return m, true
		}
	}
	return Member{}, false
}

// ids returns those of the members that vote, or of the learners.
func (ms Members) ids(learners bool) []uint64 {
	var ids []uint64
	for _, m := range ms.Members {
		if m.Learner == learners {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

// change is a change of the members as it stands in the Raft log.
type change struct {
	Request uint64 `json:"request"` // drawn by its author
	Member  Member `json:"member"`
}

// with returns the members after a change of kind, or why it cannot be made.
// Every node decides alike.
func (ms Members) with(kind raftpb.ConfChangeType, m Member) (Members, error) {
	old, exists := ms.Member(m.ID)
	out := Members{Members: slices.Clone(ms.Members), Removed: slices.Clone(ms.Removed)}
	at := slices.IndexFunc(out.Members, func(other Member) bool { return other.ID == m.ID })
	if slices.Contains(ms.Removed, m.ID) {
		return ms, ErrMemberRemoved
	}
	promotes := kind == raftpb.ConfChangeAddNode && exists
	if kind != raftpb.ConfChangeRemoveNode && !promotes {
		for _, other := range ms.Members {
			if other.ID != m.ID && slices.ContainsFunc(other.PeerURLs, func(u string) bool { return slices.Contains(m.PeerURLs, u) }) {
				return ms, fmt.Errorf("%w: node %x", ErrPeerURLExists, other.ID)
			}
		}
	}
	switch {
	case promotes && !old.Learner:
		return ms, ErrMemberExists
	case promotes:
		out.Members[at].Learner = false
	case kind == raftpb.ConfChangeAddLearnerNode && exists:
		return ms, ErrMemberExists
	case kind == raftpb.ConfChangeAddLearnerNode && len(ms.ids(true)) >= maxLearners:
		return ms, ErrTooManyLearners
	case kind == raftpb.ConfChangeAddNode || kind == raftpb.ConfChangeAddLearnerNode:
		m.Learner = kind == raftpb.ConfChangeAddLearnerNode
		out.Members = append(out.Members, m)
		slices.SortFunc(out.Members, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	case !exists:
		return ms, ErrMemberNotFound
	case kind == raftpb.ConfChangeRemoveNode && !old.Learner && len(ms.ids(false)) == 1:
		return ms, fmt.Errorf("%w: the last node that votes cannot be removed", ErrNotStarted)
	case kind == raftpb.ConfChangeRemoveNode:
		out.Members = slices.Delete(out.Members, at, at+1)
		out.Removed = append(out.Removed, m.ID)
	default: // ConfChangeUpdateNode
		m.Learner = old.Learner
		out.Members[at] = m
	}
	return out, nil
}

// Members returns the members as of what is applied.
func (l *Log) Members() Members { return *l.members.Load() }

// AddMember makes m a member, one that votes unless it is a Learner. Its node
// may be started once this returns.
func (l *Log) AddMember(ctx context.Context, m Member) error {
	kind := raftpb.ConfChangeAddNode
	if m.Learner {
		kind = raftpb.ConfChangeAddLearnerNode
	}
	return l.changeMembers(ctx, kind, m.ID, func(Member) Member { return m })
}

// PromoteMember lets learner id vote, once it has nearly everything.
func (l *Log) PromoteMember(ctx context.Context, id uint64) error {
	m, ok := l.Members().Member(id)
	switch {
	case !ok:
		return ErrMemberNotFound
	case !m.Learner:
		return ErrNotLearner
	}
	return l.changeMembers(ctx, raftpb.ConfChangeAddNode, id, func(m Member) Member { return m })
}

// RemoveMember removes node id for good; its node stops with ErrRemoved when
// it hears of it. A leader that is to remove itself hands over first, and it is
// ErrNotLeader: once it has stopped nobody could tell the last one of two that
// the change is committed.
func (l *Log) RemoveMember(ctx context.Context, id uint64) error {
	if m, ok := l.Members().Member(id); id == l.id && ok && !m.Learner && len(l.Members().ids(false)) > 1 && l.Status().Leads {
		if err := l.HandOver(ctx); err != nil {
			return err
		}
		return fmt.Errorf("%w: it has handed over, to be removed by the next one", ErrNotLeader)
	}
	return l.changeMembers(ctx, raftpb.ConfChangeRemoveNode, id, func(m Member) Member { return m })
}

// UpdateMember changes the peer URLs of member id.
func (l *Log) UpdateMember(ctx context.Context, id uint64, peerURLs []string) error {
	return l.changeMembers(ctx, raftpb.ConfChangeUpdateNode, id, func(m Member) Member {
		m.PeerURLs = peerURLs
		return m
	})
}

// publish changes what a member says of itself, and nothing else.
func (l *Log) publish(ctx context.Context, self Member) error {
	return l.changeMembers(ctx, raftpb.ConfChangeUpdateNode, self.ID, func(m Member) Member {
		m.Name, m.ClientURLs = self.Name, self.ClientURLs
		return m
	})
}

// changes are the changes of the members that wait for their outcome.
type changes struct {
	one  chan struct{} // holds the token of the one change under way: raft takes no second one
	mu   sync.Mutex
	open map[uint64]*openChange // mu; by request
}

// openChange is a change that was proposed in term.
type openChange struct {
	request uint64
	term    uint64
	outcome chan error // has room for one
}

func (cs *changes) add(c *openChange, term uint64) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.open == nil {
		cs.open = make(map[uint64]*openChange)
	}
	c.term = term
	cs.open[c.request] = c
}

func (cs *changes) forget(c *openChange) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	delete(cs.open, c.request)
}

// settle sets the outcome of a change, if it is this node's.
func (cs *changes) settle(request uint64, outcome error) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if c := cs.open[request]; c != nil {
		c.settle(outcome)
	}
}

// errDropped: raft has dropped the change, since one before it was not applied
// yet, or a new leader's log does not have it.
var errDropped = fmt.Errorf("%w: the change was dropped; try again", ErrNotLeader)

// dropped ends the changes that can be in no log any more: raft leaves an empty
// entry for one that it drops, as which the first of a leader must not be taken,
// and none of an earlier term comes after e.
func (cs *changes) dropped(e *raftpb.Entry, first bool) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	empty := e.GetType() == raftpb.EntryNormal && len(e.Data) == 0 && !first
	for _, c := range cs.open {
		if c.term < e.GetTerm() || c.term == e.GetTerm() && empty {
			c.settle(errDropped)
		}
	}
}

func (c *openChange) settle(err error) {
	select {
	case c.outcome <- err:
	default: // it is settled
	}
}

// changeMembers makes member id what edit makes of it, on the leader, and
// returns when that is applied here. After an error of ctx the change may still
// be made.
func (l *Log) changeMembers(ctx context.Context, kind raftpb.ConfChangeType, id uint64, edit func(Member) Member) error {
	if err := errors.Join(l.check(), ctx.Err()); err != nil {
		return err
	}
	select {
	case <-l.changes.one:
		defer func() { l.changes.one <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	case <-l.ended:
		return l.check()
	}
	m, _ := l.Members().Member(id)
	m.ID = id
	return l.whileUnsure(ctx, func() error {
		open, err := l.proposeMember(kind, edit(m))
		if err != nil {
			return err
		}
		defer l.changes.forget(open)
		select {
		case err := <-open.outcome:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-l.ended:
			return l.check()
		}
	})
}

// whileUnsure repeats fn while that returns ErrUnhealthy or errDropped, for an
// election timeout: a leader that is new has not heard of the others nor applied
// its log yet, and raft forgets once in that time whom it has heard of.
func (l *Log) whileUnsure(ctx context.Context, fn func() error) error {
	patience := time.NewTimer(l.node.election)
	defer patience.Stop()
	for {
		err := fn()
		if !errors.Is(err, ErrUnhealthy) && !errors.Is(err, errDropped) {
			return err
		}
		select {
		case <-time.After(l.node.tick):
		case <-patience.C:
			return err
		case <-ctx.Done():
			return err
		case <-l.ended:
			return l.check()
		}
	}
}

// proposeMember hands a change that makes a member m to raft, or says why it
// will not be made.
func (l *Log) proposeMember(kind raftpb.ConfChangeType, m Member) (*openChange, error) {
	if _, err := l.Members().with(kind, m); err != nil {
		return nil, err
	}
	open := &openChange{request: rand.Uint64(), outcome: make(chan error, 1)}
	data, err := json.Marshal(change{Request: open.request, Member: m})
	if err != nil {
		return nil, err
	}
	proposed := make(chan error, 1)
	l.node.inputs.put(func(raw *raft.RawNode) {
		l.changes.add(open, raw.BasicStatus().GetTerm())
		proposed <- proposeChange(raw, l.Members(), &raftpb.ConfChange{Type: kind.Enum(), NodeId: &m.ID, Context: data})
	})
	select { // the loop answers at once; without it there is no loop any more
	case err = <-proposed:
	case <-l.ended:
		err = l.check()
	}
	if err != nil {
		l.changes.forget(open)
		return nil, err
	}
	return open, nil
}

// proposeChange proposes cc, a change of members, if this node leads and the
// cluster would go on with it. The conditions are those of etcd's strict check,
// but that a learner may be added whoever is up, and has to be up to be promoted.
func proposeChange(raw *raft.RawNode, members Members, cc *raftpb.ConfChange) error {
	if raw.BasicStatus().RaftState != raft.StateLeader {
		return ErrNotLeader
	}
	var voters, started, up int // after cc
	for _, m := range members.Members {
		if !m.Learner && (cc.GetType() != raftpb.ConfChangeRemoveNode || m.ID != cc.GetNodeId()) {
			voters++
			if m.Name != "" {
				started++
			}
		}
	}
	last, subject := uint64(0), tracker.Progress{}
	raw.WithProgress(func(id uint64, typ raft.ProgressType, p tracker.Progress) {
		self := id == raw.BasicStatus().ID
		if self {
			last = p.Match
		}
		if id == cc.GetNodeId() {
			subject = p
		} else if typ == raft.ProgressTypePeer && (self || p.RecentActive) {
			up++
		}
	})
	old, exists := members.Member(cc.GetNodeId())
	switch cc.GetType() {
	case raftpb.ConfChangeAddNode:
		alone := voters == 1 // the first other node may be added although it is not up yet
		voters++
		if exists { // a learner is promoted
			alone = false
			started++
			if subject.RecentActive {
				up++
			}
			if subject.Match*10 < last*9 {
				return ErrLearnerNotReady
			}
		}
		switch {
		case alone:
		case started < voters/2+1:
			return ErrNotStarted
		case up < voters/2+1:
			return ErrUnhealthy
		}
	case raftpb.ConfChangeRemoveNode:
		switch {
		case old.Learner:
		case started < voters/2+1:
			return ErrNotStarted
		case up < voters/2+1:
			return ErrUnhealthy
		}
	}
	if err := raw.ProposeConfChange(cc); err != nil {
		return fmt.Errorf("%w: %w", ErrNotLeader, err) // it is handing the leadership over
	}
	return nil
}

// decodeChange returns what an entry changes about the members.
func decodeChange(e *raftpb.Entry) (*raftpb.ConfChange, change, error) {
	cc, c := new(raftpb.ConfChange), change{}
	if err := errors.Join(proto.Unmarshal(e.Data, cc), json.Unmarshal(cc.Context, &c)); err != nil {
		return nil, c, fmt.Errorf("%w: a change of the members cannot be decoded: %w", eventlog.ErrCorrupt, err)
	}
	return cc, c, nil
}

// applyChange applies a change of the members.
func (l *Log) applyChange(ctx context.Context, e *raftpb.Entry) error {
	cc, c, err := decodeChange(e)
	if err != nil {
		return err
	}
	members, refused := l.Members().with(cc.GetType(), c.Member)
	if refused == nil {
		conf := make(chan *raftpb.ConfState, 1)
		l.node.inputs.put(func(raw *raft.RawNode) { conf <- raw.ApplyConfChange(cc) })
		select {
		case l.conf = <-conf:
		case <-ctx.Done():
			return ctx.Err() // the loop has ended: this entry is not applied
		}
		l.members.Store(&members)
		l.logChange(cc.GetType(), c.Member)
		l.onMembers(members)
	}
	l.changes.settle(c.Request, refused)
	if slices.Contains(members.Removed, l.id) {
		return ErrRemoved
	}
	return nil
}

// changeTexts are what is logged of each kind of change.
var changeTexts = map[raftpb.ConfChangeType]string{
	raftpb.ConfChangeAddNode:        "a node is a member that votes",
	raftpb.ConfChangeAddLearnerNode: "a node is a member, and learns",
	raftpb.ConfChangeRemoveNode:     "a node was removed",
	raftpb.ConfChangeUpdateNode:     "a member has said who it is, or has other URLs",
}

// logChange logs a change of the members. When the Raft log is read again at a
// start, before there is a leader, it is no news.
func (l *Log) logChange(kind raftpb.ConfChangeType, m Member) {
	level := logrus.InfoLevel
	if l.Status().Leader == 0 {
		level = logrus.DebugLevel
	}
	l.logger.WithFields(logrus.Fields{"node": formatID(m.ID), "name": m.Name, "peer-urls": m.PeerURLs}).Log(level, changeTexts[kind])
}
