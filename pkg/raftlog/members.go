package raftlog

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/pkg/durable"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

// What may be wrong with a change of the members; the conditions are etcd's.
var (
	ErrMemberExists    = errors.New("raft: a node has this id already")
	ErrMemberRemoved   = errors.New("raft: a node with this id was removed, and ids are not used again")
	ErrMemberNotFound  = errors.New("raft: no node has this id")
	ErrPeerURLExists   = errors.New("raft: another node has this peer URL")
	ErrNotLearner      = errors.New("raft: the node votes already")
	ErrTooManyLearners = fmt.Errorf("raft: there are %d learners, as many as may be", maxLearners)
	ErrLearnerNotReady = errors.New("raft: the learner is not up to date yet")
	ErrNotEnoughNodes  = errors.New("raft: too few nodes are up: without a majority nothing could be written any more")

	// ErrRemoved ends the log of a node that its cluster has removed.
	ErrRemoved = errors.New("raft: this node was removed from the cluster")
)

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
		return ms, fmt.Errorf("%w: the last node that votes cannot be removed", ErrNotEnoughNodes)
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
// it hears of it.
func (l *Log) RemoveMember(ctx context.Context, id uint64) error {
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

// openChange is a change that was proposed in term, or is about to be (0).
type openChange struct {
	term    uint64
	outcome chan error // has room for one
}

// errDropped: raft has dropped the change, since one before it was not applied
// yet, or a new leader's log does not have it.
var errDropped = fmt.Errorf("%w: the change was dropped; try again", ErrNotLeader)

// dropped ends the changes that can be in no log any more: raft leaves an empty
// entry for one that it drops, and none of an earlier term comes after e.
func (cs *changes) dropped(e *raftpb.Entry) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for _, c := range cs.open {
		if c.term != 0 && (c.term < e.GetTerm() || c.term == e.GetTerm() && e.GetType() == raftpb.EntryNormal && len(e.Data) == 0) {
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
	m = edit(m)
	if _, err := l.Members().with(kind, m); err != nil {
		return err
	}
	c := change{Request: rand.Uint64(), Member: m}
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	open := &openChange{outcome: make(chan error, 1)}
	l.changes.mu.Lock()
	if l.changes.open == nil {
		l.changes.open = make(map[uint64]*openChange)
	}
	l.changes.open[c.Request] = open
	l.changes.mu.Unlock()
	defer func() {
		l.changes.mu.Lock()
		delete(l.changes.open, c.Request)
		l.changes.mu.Unlock()
	}()
	refused := make(chan error, 1)
	l.node.inputs.put(func(raw *raft.RawNode) {
		l.changes.mu.Lock()
		open.term = raw.BasicStatus().GetTerm()
		l.changes.mu.Unlock()
		refused <- proposeChange(raw, &raftpb.ConfChange{Type: kind.Enum(), NodeId: &m.ID, Context: data})
	})
	for {
		select {
		case err := <-refused:
			if err != nil {
				return err
			}
		case err := <-open.outcome:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-l.ended:
			return l.check()
		}
	}
}

// proposeChange proposes cc if this node leads and the cluster would go on
// with it. The conditions are those of etcd's strict check.
func proposeChange(raw *raft.RawNode, cc *raftpb.ConfChange) error {
	if raw.BasicStatus().RaftState != raft.StateLeader {
		return ErrNotLeader
	}
	voters, up, match, last, learner := 0, 0, uint64(0), uint64(0), false
	gone := 0 // voters that are down and removed by cc
	raw.WithProgress(func(id uint64, typ raft.ProgressType, p tracker.Progress) {
		active := p.RecentActive || id == raw.BasicStatus().ID
		if id == cc.GetNodeId() {
			match, learner = p.Match, typ == raft.ProgressTypeLearner
		}
		if id == raw.BasicStatus().ID {
			last = p.Match
		}
		if typ != raft.ProgressTypePeer {
			return
		}
		voters++
		if active {
			up++
		}
		if id == cc.GetNodeId() && cc.GetType() == raftpb.ConfChangeRemoveNode {
			gone = 1
			if active {
				up--
			}
		}
	})
	switch cc.GetType() {
	case raftpb.ConfChangeAddNode:
		if learner && match*10 < last*9 {
			return ErrLearnerNotReady
		}
		// The first other node may be added although it is not up yet.
		if up <= voters/2 || !learner && voters > 1 && up < (voters+1)/2+1 {
			return ErrNotEnoughNodes
		}
	case raftpb.ConfChangeRemoveNode:
		if left := voters - gone; gone == 1 && up <= left/2 {
			return ErrNotEnoughNodes
		}
	}
	if err := raw.ProposeConfChange(cc); err != nil {
		return fmt.Errorf("%w: %w", ErrNotLeader, err) // it is handing the leadership over
	}
	return nil
}

// applyChange applies a change of the members.
func (l *Log) applyChange(ctx context.Context, e *raftpb.Entry) error {
	cc := new(raftpb.ConfChange)
	c := change{}
	if err := errors.Join(proto.Unmarshal(e.Data, cc), json.Unmarshal(cc.Context, &c)); err != nil {
		return fmt.Errorf("%w: a change of the members cannot be decoded: %w", eventlog.ErrCorrupt, err)
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
		l.logger.WithField("members", members.Members).Infof("the members have changed: %v of %x", cc.GetType(), c.Member.ID)
		l.onMembers(members)
	}
	l.changes.mu.Lock()
	if open := l.changes.open[c.Request]; open != nil {
		open.settle(refused)
	}
	l.changes.mu.Unlock()
	if slices.Contains(members.Removed, l.id) {
		return ErrRemoved
	}
	return nil
}

// membersFile is where the members as of mark index stand.
func membersFile(dir string, index uint64) string {
	return filepath.Join(dir, fmt.Sprintf("members-%016x.json", index))
}

// writeMembers makes the members as of mark index durable, before the mark.
func writeMembers(dir string, index uint64, ms Members) error {
	data, err := json.MarshalIndent(ms, "", "\t")
	if err != nil {
		return err
	}
	return durable.Write(membersFile(dir, index), append(data, '\n'))
}

// readMembers reads those of mark index, and removes others.
func readMembers(dir string, index uint64) (Members, error) {
	var ms Members
	path := membersFile(dir, index)
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &ms)
	}
	if err != nil {
		return ms, fmt.Errorf("%w: the members as of entry %d: %w", eventlog.ErrCorrupt, index, err)
	}
	return ms, removeMembers(dir, index)
}

// removeMembers removes the files of marks other than index.
func removeMembers(dir string, index uint64) error {
	files, err := filepath.Glob(filepath.Join(dir, "members-*.json"))
	for _, file := range files {
		if file != membersFile(dir, index) {
			err = errors.Join(err, os.Remove(file))
		}
	}
	return err
}
