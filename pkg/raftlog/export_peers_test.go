package raftlog

import "go.etcd.io/raft/v3/raftpb"

// LeaveBytes is leaveBytes.
const LeaveBytes = leaveBytes

// SendNow is sendNow to node id.
func (ps *Peers) SendNow(id uint64, m *raftpb.Message) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.peers[id].sendNow(m)
}
