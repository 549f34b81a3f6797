package raftlog_test

import (
	"testing"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// TestKept: memory holds a few megabytes of the Raft log, and the leader's what
// a node lacks that is cut off, too.
func TestKept(t *testing.T) {
	t.Parallel()
	net, dir := newNetwork(), t.TempDir()
	net.marks = 1000 // what is before two marks is forgotten, whoever lacks it
	nodes := nodesOf(t, net, dir, 3)
	leader := leaderOf(t, nodes...)
	rest := others(nodes, leader)
	head := fill(t, leader, eventlog.Head{}, 80) // 16 MB
	await(t, "what all have is forgotten", func() bool {
		for _, n := range nodes {
			if held := n.Held(); held < 4<<20 || held > 7<<20 {
				return false
			}
		}
		return true
	})
	behind, id := rest[0], rest[0].Status().ID
	net.isolate(id, true)
	head = fill(t, leader, head, 80)
	if held := leader.Held(); held < 80*200<<10 {
		t.Fatalf("the leader holds %d bytes of entries, and a node lacks 16 MB of them", held)
	}
	net.isolate(id, false)
	if at, err := behind.Head(t.Context()); err != nil || at != head.Position {
		t.Fatalf("Head of the node that was cut off: %d, %v, want %d", at, err, head.Position)
	}
	sameBatches(t, leader, behind)

	// One that comes to lead holds no more than it had to as a follower.
	net.isolate(id, true)
	head = fill(t, leader, head, 80)
	if err := leader.MoveLeader(t.Context(), rest[1].Status().ID); err != nil {
		t.Fatalf("MoveLeader: %v", err)
	}
	leader = rest[1]
	if _, err := leader.Head(t.Context()); err != nil {
		t.Fatal(err)
	}
	net.isolate(id, false)
	behind = replaced(t, net, dir, behind, membersOf(3))
	head = appendTo(t, leaderOf(t, append(others(nodes, rest[0]), behind)...), head, "after the snapshot")
	if at, err := behind.Head(t.Context()); err != nil || at != head.Position {
		t.Fatalf("Head of the node that was behind: %d, %v, want %d", at, err, head.Position)
	}
	sameBatches(t, leader, behind)
}
