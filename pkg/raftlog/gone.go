package raftlog

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/raft/v3"
)

// A leader whose process has ended need not be waited for: its machine says so.
// Its connections to this node end, and a new one is refused. Nodes that see
// that forget the leader, vote again, and try to become the leader one after
// the other, a heartbeat interval apart. Nothing is taken for granted by that:
// while others hear from the leader they do not vote (PreVote, CheckQuorum),
// and this node follows it again with the next message. Of a machine that is
// gone nothing is heard; for that there is the election timeout.

// knockTimeout is how long it may take to be refused.
const knockTimeout = 500 * time.Millisecond

// heard notes that a stream of node id has begun (1) or ended (-1), and returns
// how many there are.
func (ps *Peers) heard(id uint64, more int) int {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.streams[id] += more
	n := ps.streams[id]
	if n == 0 {
		delete(ps.streams, id)
	}
	return n
}

// checkGone is called when a stream to or from node id has ended: if the node
// leads and its process is gone, raft hears of it.
func (ps *Peers) checkGone(ctx context.Context, id uint64) {
	log := ps.log.Load()
	if log == nil || log.Status().Leader != id || ps.heard(id, 0) > 0 {
		return
	}
	ps.mu.Lock()
	p := ps.peers[id]
	ps.mu.Unlock()
	if p != nil && refuses(ctx, p.addresses) {
		log.leaderGone(id)
	}
}

// refuses reports whether nobody listens at any of addresses, which the machine
// says.
func refuses(ctx context.Context, addresses []string) bool {
	ctx, cancel := context.WithTimeout(ctx, knockTimeout)
	defer cancel()
	for _, address := range addresses {
		conn, err := connect(ctx, address)
		if err == nil {
			_ = conn.Close()
			return false
		}
		noSocket := strings.HasPrefix(address, "unix:") && errors.Is(err, fs.ErrNotExist)
		if !errors.Is(err, syscall.ECONNREFUSED) && !noSocket {
			return false
		}
	}
	return true
}

// leaderGone says that the process of node id, which led, has ended.
func (l *Log) leaderGone(id uint64) {
	if l.check() == nil {
		l.node.inputs.put(func(*raft.RawNode) { l.node.leaderGone(id) })
	}
}

// leaderGone is called by the loop.
func (n *node) leaderGone(id uint64) {
	s := n.raw.BasicStatus()
	if s.Lead != id || s.RaftState != raft.StateFollower {
		return
	}
	n.logger.WithField("leader", formatID(id)).Warn("the leader has ended")
	_ = n.raw.ForgetLeader() // no follower refuses
	left := slices.DeleteFunc(n.voters(), func(voter uint64) bool { return voter == id })
	slices.Sort(left)
	if rank := slices.Index(left, s.ID); rank >= 0 {
		n.campaignIn, n.campaignEvery, n.campaignFor = 1+rank, len(n.voters())+rank, int(n.election/n.tick)
	}
}

// tickOnce is called by the loop once in a heartbeat interval.
func (n *node) tickOnce() {
	if n.starts { // else raft would campaign, too early
		return
	}
	n.raw.Tick()
	if n.campaignFor == 0 {
		return
	}
	n.campaignFor--
	if n.raw.BasicStatus().Lead != raft.None { // one that may not last: who has voted for it may have campaigned since
		return
	}
	if n.campaignIn--; n.campaignIn == 0 {
		n.campaignIn = n.campaignEvery // if others had not noticed yet, or have tried at the same time: they do not the next time
		_ = n.raw.Campaign()           // who is refused waits for it
	}
}
