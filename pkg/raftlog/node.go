package raftlog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"golang.org/x/sync/errgroup"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	// maxWaiting is how many messages of peers may wait for the loop; more are
	// dropped, which Raft takes for a bad network.
	maxWaiting = 4096

	maxMessageBytes   = 1 << 20  // of entries in one message; one entry may be larger
	maxInflight       = 512      // messages on their way to a follower
	maxInflightBytes  = 64 << 20 // and the bytes in them
	maxApplyingBytes  = 16 << 20 // entries handed to apply at once
	maxUncommitBytes  = 256 << 20
	readContextLength = 8
)

// node runs raft: one goroutine has the state machine, one writes the WAL and
// one applies, beside each other, so that the leader's fsync and those of its
// followers take place at the same time.
type node struct {
	raw       *raft.RawNode
	disk      *disk
	transport Transport
	tick      time.Duration // between two heartbeats
	election  time.Duration // the election timeout

	inputs  *mailbox[func(*raft.RawNode)]
	appends *mailbox[*raftpb.Message]
	applies *mailbox[*raftpb.Message]

	apply  func(context.Context, []*raftpb.Entry) error // by the apply goroutine
	onRead func(request, index uint64)                  // does not block
	voters func() []uint64                              // does not block

	// Belong to the loop: after how many ticks this node campaigns, and every how
	// many then, if campaignFor is not 0; and for how many ticks it does, while no
	// other node leads.
	campaignIn, campaignEvery, campaignFor int

	unasked []byte // belongs to the loop: see askRaft
	starts  bool   // belongs to the loop: see campaignAlone

	offered *raftpb.Message // belongs to the loop: see takeOver

	logger *logrus.Entry
	halted error // belongs to the loop, which ends with it

	status    atomic.Pointer[Status]
	changes   *progress     // of the status
	committed atomic.Uint64 // index of the newest entry known to be committed
	settled   atomic.Uint64 // the newest term of which an entry is: a leader of it knows all that is
}

// newNode makes the node of id over what d holds.
func newNode(d *disk, opt Options) (*node, error) {
	mark, err := d.mem.Snapshot()
	if err != nil {
		return nil, err
	}
	n := &node{
		disk:      d,
		transport: opt.Transport,
		tick:      opt.HeartbeatInterval,
		election:  opt.ElectionTimeout,
		inputs:    newMailbox[func(*raft.RawNode)](),
		appends:   newMailbox[*raftpb.Message](),
		applies:   newMailbox[*raftpb.Message](),
		changes:   newProgress(0),
		logger:    opt.Logger,
	}
	n.raw, err = raft.NewRawNode(&raft.Config{
		ID:                        opt.ID,
		ElectionTick:              int(opt.ElectionTimeout / opt.HeartbeatInterval),
		HeartbeatTick:             1, // a tick is what lies between two heartbeats
		Storage:                   d.mem,
		Applied:                   mark.GetMetadata().GetIndex(),
		AsyncStorageWrites:        true,
		MaxSizePerMsg:             maxMessageBytes,
		MaxCommittedSizePerReady:  maxApplyingBytes,
		MaxUncommittedEntriesSize: maxUncommitBytes,
		MaxInflightMsgs:           maxInflight,
		MaxInflightBytes:          maxInflightBytes,
		CheckQuorum:               true,
		PreVote:                   true,
		DisableProposalForwarding: true, // a batch is evaluated on the leader's state
		StepDownOnRemoval:         true,
		Logger:                    quiet{opt.Logger},
	})
	if err != nil {
		return nil, err
	}
	n.publish()
	return n, nil
}

// run runs until ctx ends (nil) or the WAL or the database fails.
func (n *node) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.loop(ctx) })
	g.Go(func() error { return n.serve(ctx, n.appends, n.save) })
	g.Go(func() error {
		return n.serve(ctx, n.applies, func(m *raftpb.Message) error { return n.apply(ctx, m.Entries) })
	})
	return g.Wait()
}

// loop has the state machine: nothing else touches raw.
func (n *node) loop(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			broken, ok := p.(errBroken)
			if !ok {
				panic(p)
			}
			err = broken
		}
	}()
	if n.starts = n.alone(); !n.starts {
		n.hurry()
	}
	ticker := time.NewTicker(n.tick)
	defer ticker.Stop()
	for {
		for n.raw.HasReady() {
			n.dispatch(n.raw.Ready())
		}
		if n.campaignAlone() || n.takeOver() {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			n.tickOnce()
		case <-n.inputs.wake:
			for _, input := range n.inputs.take() {
				if input(n.raw); n.halted != nil {
					return n.halted
				}
			}
		}
	}
}

// alone reports whether no other node votes.
func (n *node) alone() bool {
	voters := n.raw.Status().Config.Voters.IDs()
	_, votes := voters[n.raw.BasicStatus().ID]
	return votes && len(voters) == 1
}

// campaignAlone reports whether a node that starts, and alone votes, campaigns.
// It does once all that it knows to be committed is applied: raft refuses, with
// a warning, while there may be a change of the members in it.
func (n *node) campaignAlone() bool {
	if !n.starts {
		return false
	}
	if s := n.raw.BasicStatus(); s.Applied < s.GetCommit() {
		return false
	}
	n.starts = false
	if !n.alone() {
		n.hurry()
		return false
	}
	_ = n.raw.Campaign() // it is not the leader, and raft has no other reason to refuse
	return true
}

// takeOver reports whether a node that was handed the leadership campaigns now.
// raft refuses while there may be a change of the members to apply, of which the
// leader does not hear: it would wait, and take no writes, for an election timeout.
func (n *node) takeOver() bool {
	s := n.raw.BasicStatus()
	if n.offered == nil || s.Applied < s.GetCommit() {
		return false
	}
	m := n.offered
	n.offered = nil
	return s.RaftState == raft.StateFollower && s.GetTerm() == m.GetTerm() && n.raw.Step(m) == nil
}

// hurry lets the timeout of a node that starts be nearly over, as etcd does: a
// leader that there is will be heard within two heartbeats, and would not be
// disturbed (PreVote); where all start there is none to wait for.
func (n *node) hurry() {
	for range n.election/n.tick - 2 {
		n.raw.Tick()
	}
}

// dispatch hands out what raft wants done. Messages may leave at once: those
// that promise durability come as the responses of a write. What they promise
// of terms, and make known to be committed, is published before.
func (n *node) dispatch(rd raft.Ready) {
	if rd.SoftState != nil || rd.HardState != nil {
		n.publish()
	}
	if entries := rd.CommittedEntries; len(entries) > 0 {
		n.settled.Store(entries[len(entries)-1].GetTerm())
	}
	for _, read := range rd.ReadStates {
		if len(read.RequestCtx) == readContextLength {
			n.onRead(binary.BigEndian.Uint64(read.RequestCtx), read.Index)
		}
	}
	n.send(rd.Messages)
	if n.unasked != nil {
		n.askRaft(n.unasked)
	}
}

// send delivers messages to where they belong.
func (n *node) send(messages []*raftpb.Message) {
	var away []*raftpb.Message
	for _, m := range messages {
		switch m.GetTo() {
		case raft.LocalAppendThread:
			n.appends.put(m)
		case raft.LocalApplyThread:
			n.applies.put(m)
		case n.status.Load().ID:
			n.inputs.put(func(raw *raft.RawNode) { _ = raw.Step(m) }) // a message of raft to itself: it fails for none
		default:
			away = append(away, m)
		}
	}
	if len(away) > 0 {
		n.transport.Send(away)
	}
}

// step takes a message of a peer.
func (n *node) step(m *raftpb.Message) error {
	switch m.GetType() {
	case raftpb.MsgProp, raftpb.MsgSnap, raftpb.MsgTransferLeader: // no node sends them
		return fmt.Errorf("a peer sent a %v, which is not taken", m.GetType())
	}
	if raft.IsLocalMsgTarget(m.GetFrom()) || raft.IsLocalMsg(m.GetType()) || m.GetTo() != n.status.Load().ID {
		return fmt.Errorf("a peer sent a %v from %x to %x, which only this node may", m.GetType(), m.GetFrom(), m.GetTo())
	}
	switch m.GetType() {
	case raftpb.MsgReadIndex:
		if n.answerRead(m) {
			return nil
		}
	case raftpb.MsgReadIndexResp:
		if entries := m.GetEntries(); len(entries) == 1 && len(entries[0].GetData()) == readContextLength {
			n.onRead(binary.BigEndian.Uint64(entries[0].GetData()), m.GetIndex())
		}
		return nil
	}
	if n.inputs.len() >= maxWaiting {
		return nil
	}
	n.inputs.put(func(raw *raft.RawNode) {
		if m.GetType() == raftpb.MsgReadIndex && (raw.BasicStatus().RaftState != raft.StateLeader || n.unsettledAlone()) {
			return // who asked will ask the leader, again
		}
		_ = raw.Step(m) // an answer of a node that is no member is dropped
		if m.GetType() == raftpb.MsgTimeoutNow {
			n.offered = m
		}
	})
	return nil
}

// serve does the writes that raft asks for, in order, and sends the messages
// that wait for them.
func (n *node) serve(ctx context.Context, box *mailbox[*raftpb.Message], do func(*raftpb.Message) error) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-box.wake:
		}
		for _, m := range box.take() {
			if err := do(m); err != nil {
				if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
					return nil
				}
				return err
			}
			n.send(m.Responses)
		}
	}
}

// forget gives back the memory of entries up to index, as far as raft is done
// with them.
func (n *node) forget(index uint64) {
	n.inputs.put(func(raw *raft.RawNode) {
		index = min(index, raw.BasicStatus().Applied)
		if first, err := n.disk.mem.FirstIndex(); err == nil && first <= index {
			_ = n.disk.mem.Compact(index) // it is there
		}
	})
}

// forgetKnown is forget for entries that no other node lacks, as far as this one
// knows: the leader does. A node that turns out to lack them gets a snapshot,
// which has at least what is forgotten.
func (n *node) forgetKnown(index uint64) {
	n.inputs.put(func(raw *raft.RawNode) {
		s := raw.BasicStatus()
		index = min(index, s.Applied)
		if s.RaftState == raft.StateLeader {
			raw.WithProgress(func(_ uint64, _ raft.ProgressType, p tracker.Progress) { index = min(index, p.Match) })
		}
		if first, err := n.disk.mem.FirstIndex(); err == nil && first <= index {
			_, _ = n.disk.mem.CreateSnapshot(index, nil, nil) // else a mark says the same of more
			_ = n.disk.mem.Compact(index)                     // it is there
		}
	})
}

// save is the write of the WAL.
func (n *node) save(m *raftpb.Message) error {
	if err := n.disk.save(m); err != nil {
		return fmt.Errorf("%w: write the raft log: %w", eventlog.ErrFailed, err)
	}
	return nil
}

// errBroken is what raft panics with if it comes to what cannot be while every
// node keeps what it has promised.
type errBroken string

func (e errBroken) Error() string {
	return "raft cannot go on, as if data of this node was lost that others count on; if it was, remove the node from the cluster, and add it again with an empty data directory: " + string(e)
}

// quiet logs what raft has for information as details: the node says itself
// what an operator needs to know.
type quiet struct{ *logrus.Entry }

func (q quiet) Info(args ...any)                 { q.Debug(args...) }
func (q quiet) Infof(format string, args ...any) { q.Debugf(format, args...) }

func (quiet) Panic(args ...any)                 { panic(errBroken(fmt.Sprint(args...))) }
func (quiet) Panicf(format string, args ...any) { panic(errBroken(fmt.Sprintf(format, args...))) }

// publish makes the node's status known.
func (n *node) publish() {
	s := n.raw.BasicStatus()
	n.committed.Store(s.GetCommit())
	now := &Status{ID: s.ID, Leader: s.Lead, Term: s.GetTerm(), Leads: s.RaftState == raft.StateLeader}
	if old := n.status.Load(); old != nil {
		if now.Leaders = old.Leaders; now.Leader != old.Leader && now.Leader != 0 {
			now.Leaders++
		}
	}
	old := n.status.Swap(now)
	if old == nil || *old != *now {
		n.changes.advance(0)
	}
	if old == nil || old.Leader == now.Leader {
		return
	}
	logger := n.logger.WithFields(logrus.Fields{"leader": formatID(now.Leader), "term": now.Term})
	switch {
	case now.Leader == 0:
		logger.Warn("there is no leader: nothing can be written until one is elected")
	case now.Leads:
		logger.Info("this node leads")
	default:
		logger.Info("another node leads")
	}
}
