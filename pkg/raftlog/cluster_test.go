package raftlog_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/raftlog"
)

// batchOn returns a batch with one put that continues head.
func batchOn(head eventlog.Head, key string) *eventlog.Batch {
	b := &eventlog.Batch{ID: eventlog.NewBatchID(), Base: head.Position}
	b.Records = []eventlog.Record{{
		Seq: head.Seq + 1, Position: b.Position(), Kind: eventlog.KindPut,
		Revision: eventlog.Revision{Main: head.Revision + 1}, Key: []byte(key), Value: []byte("value of " + key),
		CreateRevision: head.Revision + 1, Version: 1,
	}}
	return b
}

// after is the head once b is appended.
func after(b *eventlog.Batch) eventlog.Head {
	last := b.Records[len(b.Records)-1]
	return eventlog.Head{Position: b.Position(), Seq: last.Seq, Revision: last.Revision.Main}
}

// nodesOf opens and loads a cluster that the first node leads, unless they elect
// their leader themselves.
func nodesOf(t *testing.T, net *network, dir string, size int) []*raftlog.Log {
	t.Helper()
	var nodes []*raftlog.Log
	for id := range uint64(size) {
		n := openNode(t, net, dir, id+1, size)
		nodes = append(nodes, n)
		t.Cleanup(func() { _ = n.Close() }) // closed by the test already, or in a test that failed
	}
	for _, n := range nodes {
		if _, err := n.Load(t.Context(), func(*eventlog.Record) error { return nil }); err != nil {
			t.Fatalf("Load: %v", err)
		}
	}
	if size > 1 && net.election == patient {
		elect(t, nodes[0], nodes...)
	}
	return nodes
}

// elect makes n the leader of nodes, those of a cluster that can reach it, and
// waits until all of them know.
func elect(t testing.TB, n *raftlog.Log, nodes ...*raftlog.Log) {
	t.Helper()
	tries := 0
	await(t, "the election of a node", func() bool {
		known := true
		for _, other := range nodes {
			known = known && other.Status().Leader == n.Status().ID
		}
		if tries++; !known && !n.Status().Leads && tries&(tries-1) == 0 { // it takes its time, and there may be what is in its way
			for _, other := range nodes {
				other.ForgetLeader() // else they do not vote
			}
			n.Campaign()
		}
		return known && n.Status().Leads
	})
}

// awaitAll waits until n has everything that the leader has: others vote for no
// node that has less than they.
func awaitAll(t testing.TB, n, leader *raftlog.Log) {
	t.Helper()
	await(t, "everything at a node", func() bool { return n.LastIndex() >= max(leader.LastIndex(), leader.Status().Committed) })
}

// leaderOf waits for a leader among nodes that all of them know.
func leaderOf(t *testing.T, nodes ...*raftlog.Log) *raftlog.Log {
	t.Helper()
	var leader *raftlog.Log
	await(t, "a leader that all know", func() bool {
		leader = nil
		for _, n := range nodes {
			if n.Status().Leads {
				leader = n
			}
		}
		for _, n := range nodes {
			if leader == nil || n.Status().Leader != leader.Status().ID {
				return false
			}
		}
		return true
	})
	return leader
}

// forever is longer than anything may take on a machine that is merely slow.
const forever = 3 * time.Minute

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(forever); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, forever)
		}
	}
}

// others returns nodes without n.
func others(nodes []*raftlog.Log, n *raftlog.Log) []*raftlog.Log {
	var out []*raftlog.Log
	for _, other := range nodes {
		if other != n {
			out = append(out, other)
		}
	}
	return out
}

// appendTo appends key through leader.
func appendTo(t *testing.T, leader *raftlog.Log, head eventlog.Head, key string) eventlog.Head {
	t.Helper()
	b := batchOn(head, key)
	if err := leader.Append(t.Context(), b); err != nil {
		t.Fatalf("Append of %s: %v", key, err)
	}
	return after(b)
}

// TestFollowers: what the leader acknowledged, a follower has after a fence;
// a follower does not append.
func TestFollowers(t *testing.T) {
	t.Parallel()
	nodes := nodesOf(t, newNetwork(), t.TempDir(), 3)
	leader := leaderOf(t, nodes...)
	var head eventlog.Head
	for i := range 20 {
		head = appendTo(t, leader, head, fmt.Sprint("key", i))
		for _, n := range nodes {
			if at, err := n.Head(t.Context()); err != nil || at != head.Position {
				t.Fatalf("Head of node %d: %d, %v, want %d", n.Status().ID, at, err, head.Position)
			}
			got, err := n.Tail(t.Context(), head.Position-1, 1)
			if err != nil || len(got) != 1 || string(got[0].Records[0].Key) != fmt.Sprint("key", i) {
				t.Fatalf("Tail of node %d: %v, %v", n.Status().ID, got, err)
			}
		}
	}
	follower := others(nodes, leader)[0]
	if err := follower.Append(t.Context(), batchOn(head, "other")); !errors.Is(err, raftlog.ErrNotLeader) {
		t.Errorf("Append to a follower: %v, want ErrNotLeader", err)
	}
}

// TestCutOffLeader: a leader without a majority acknowledges nothing and
// answers no fence; what it had proposed is gone when it hears of the new one,
// and it says so.
func TestCutOffLeader(t *testing.T) {
	t.Parallel()
	net := newNetwork()
	nodes := nodesOf(t, net, t.TempDir(), 3)
	old := leaderOf(t, nodes...)
	head := appendTo(t, old, eventlog.Head{}, "before")
	rest := others(nodes, old)
	leader := rest[0]
	awaitAll(t, leader, old)

	net.isolate(old.Status().ID, true)
	outcome := make(chan error, 1)
	go func() { outcome <- old.Append(context.Background(), batchOn(head, "lost")) }()
	elect(t, leader, rest...)
	if _, err := leader.Head(t.Context()); err != nil {
		t.Fatalf("Head of the new leader: %v", err)
	}
	head = appendTo(t, leader, head, "after")
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if at, err := old.Head(short); err == nil {
		t.Errorf("a node that is cut off answers a fence: %d", at)
	}
	net.isolate(old.Status().ID, false)
	// The same if it knew already that it does not lead any more.
	if err := <-outcome; !errors.Is(err, raftlog.ErrNotLeader) {
		t.Errorf("Append that was lost: %v, want ErrNotLeader", err)
	}
	await(t, "the old leader's fence", func() bool {
		at, err := old.Head(t.Context())
		return err == nil && at == head.Position
	})
	for _, n := range nodes {
		if _, err := n.Head(t.Context()); err != nil {
			t.Fatalf("Head: %v", err)
		}
		got, err := n.Tail(t.Context(), 0, 100)
		if err != nil || len(got) != 2 || string(got[1].Records[0].Key) != "after" {
			t.Errorf("node %d has %v, %v", n.Status().ID, got, err)
		}
	}
}

// TestReplay: the database may have lost what it had not made durable; all of
// it comes again from the WAL, once.
func TestReplay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	database := filepath.Join(dir, "node1", "keelson.db")
	var head eventlog.Head
	var old []byte
	for round := range 4 {
		n := leaderOf(t, nodesOf(t, newNetwork(), dir, 1)...)
		if at, err := n.Head(t.Context()); err != nil || at != head.Position {
			t.Fatalf("round %d: Head is %d, %v, want %d", round, at, err, head.Position)
		}
		got, err := n.Tail(t.Context(), 0, 1000)
		if err != nil || len(got) != int(head.Position) {
			t.Fatalf("round %d: %d batches, %v, want %d", round, len(got), err, head.Position)
		}
		for i := range 60 { // fewer than a checkpoint takes
			head = appendTo(t, n, head, fmt.Sprintf("key %d.%d", round, i))
		}
		if err := n.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
		switch round {
		case 0:
			if old, err = os.ReadFile(database); err != nil {
				t.Fatal(err)
			}
		default: // closed in order, so that nothing is in SQLite's own WAL
			if err := os.WriteFile(database, old, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestMarks: what the database has made durable is not kept in the WAL, nor
// read at a restart.
func TestMarks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	value := make([]byte, 200<<10)
	var head eventlog.Head
	for round := range 2 {
		n := leaderOf(t, nodesOf(t, newNetwork(), dir, 1)...)
		if at, err := n.Head(t.Context()); err != nil || at != head.Position {
			t.Fatalf("round %d: Head is %d, %v, want %d", round, at, err, head.Position)
		}
		for range 600 { // 117 MiB: marks every 16 MiB, as far as at most 48 of SQLite's WAL and 8 that are pending let them
			b := batchOn(head, "key")
			b.Records[0].Value = value
			if err := n.Append(t.Context(), b); err != nil {
				t.Fatalf("Append: %v", err)
			}
			head = after(b)
		}
		if err := n.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
		files, err := filepath.Glob(filepath.Join(dir, "node1", "raft", "wal", "*.wal"))
		if err != nil || len(files) == 0 || len(files) > 80 {
			t.Errorf("round %d: %d files in the WAL, %v; want at most 80 of 1 MiB after 117 MiB", round, len(files), err)
		}
	}
}

// TestOldDatabase: a database that is older than what the Raft log counts on is
// not taken for one that refuses everything, as nobody else does.
func TestOldDatabase(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	database := filepath.Join(dir, "node1", "keelson.db")
	var head eventlog.Head
	var old []byte
	for round := range 2 {
		n := leaderOf(t, nodesOf(t, newNetwork(), dir, 1)...)
		for i := range 120 {
			head = appendTo(t, n, head, fmt.Sprintf("key %d.%d", round, i))
		}
		if err := n.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
		head = appendTo(t, n, head, fmt.Sprintf("with a mark before it, in round %d", round))
		head = appendTo(t, n, head, "after that")
		if err := n.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
		if round == 0 {
			var err error
			if old, err = os.ReadFile(database); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(database, old, 0o600); err != nil {
		t.Fatal(err)
	}
	opt := raftlog.Options{Dir: filepath.Dir(database), Cluster: 7, ID: 1, Members: membersOf(1), Transport: newNetwork()}
	for name, open := range map[string]func() error{
		"Open": func() error {
			_, err := raftlog.Open(t.Context(), opt)
			return err
		},
		"ForceNewCluster": func() error { return raftlog.ForceNewCluster(t.Context(), opt, raftlog.Member{ID: 1}) },
	} {
		if err := open(); !errors.Is(err, eventlog.ErrCorrupt) || !strings.Contains(err.Error(), "begins after position") {
			t.Errorf("%s with an old database: %v, want ErrCorrupt", name, err)
		}
	}
}

// TestForeign: the Raft log of another node is refused.
func TestForeign(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := openNode(t, newNetwork(), dir, 1, 1)
	if err := n.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	_, err := raftlog.Open(t.Context(), raftlog.Options{Dir: filepath.Join(dir, "node1"), Cluster: 8, ID: 1, Members: membersOf(1), Transport: newNetwork()})
	if err == nil || !strings.Contains(err.Error(), "belongs to node 1 of cluster 7") {
		t.Errorf("Open with the WAL of another cluster: %v", err)
	}
}

// TestNotEmpty: only the first node of a cluster may have data.
func TestNotEmpty(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	local, err := sqlite.Open(t.Context(), sqlite.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := local.Load(t.Context(), func(*eventlog.Record) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(local.Append(t.Context(), batchOn(eventlog.Head{}, "key")), local.Close()); err != nil {
		t.Fatal(err)
	}
	for _, members := range []int{0, 3, 1} {
		n, err := raftlog.Open(t.Context(), raftlog.Options{Dir: dir, Cluster: 7, ID: 1, Members: membersOf(members), Transport: newNetwork()})
		if members != 1 && !errors.Is(err, raftlog.ErrNotEmpty) {
			t.Fatalf("Open with data and %d members: %v, want ErrNotEmpty", members, err)
		}
		if members == 1 && (err != nil || n.Close() != nil) {
			t.Fatalf("Open with data as the only member: %v", err)
		}
	}
}

// TestForceNewCluster: a node that is left alone goes on with all that it knew
// to be committed, and the others are members no more.
func TestForceNewCluster(t *testing.T) {
	t.Parallel()
	net, dir := newNetwork(), t.TempDir()
	nodes := nodesOf(t, net, dir, 3)
	leader := leaderOf(t, nodes...)
	var head eventlog.Head
	for i := range 20 {
		head = appendTo(t, leader, head, fmt.Sprint("key", i))
	}
	for _, n := range nodes {
		if _, err := n.Head(t.Context()); err != nil {
			t.Fatalf("Head: %v", err)
		}
	}
	want := dump(t, leader)
	for _, n := range nodes {
		if err := n.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
	}
	opt := raftlog.Options{Dir: filepath.Join(dir, "node2"), Cluster: 7, ID: 2, Transport: net}
	if err := raftlog.ForceNewCluster(t.Context(), opt, raftlog.Member{}); err != nil {
		t.Fatalf("ForceNewCluster: %v", err)
	}
	n := startNode(t, net, dir, 2, nil)
	appendTo(t, leaderOf(t, n), head, "alone")
	if got := dump(t, n); len(got) != len(want)+1 || string(got[len(want)].Records[0].Key) != "alone" {
		t.Errorf("%d batches, want %d and one", len(got), len(want))
	}
	if m := n.Members(); len(m.Members) != 1 || m.Members[0].ID != 2 || len(m.Removed) != 2 {
		t.Errorf("the members are %+v", m)
	}
	// A node that was removed knows itself no more.
	if err := n.AddMember(t.Context(), raftlog.Member{ID: 9, PeerURLs: []string{"http://node9"}, Learner: true}); err != nil {
		t.Fatalf("AddMember: %v", err)
	}
	joined := startNode(t, net, dir, 9, nil)
	joined = replaced(t, net, dir, joined, nil)
	if _, err := joined.Head(t.Context()); err != nil {
		t.Fatalf("Head: %v", err)
	}
	if err := n.RemoveMember(t.Context(), 9); err != nil {
		t.Fatalf("RemoveMember: %v", err)
	}
	<-joined.Failed()
	if err := errors.Join(joined.Close(), n.Close()); err != nil {
		t.Fatalf("Close: %v", err)
	}
	opt = raftlog.Options{Dir: filepath.Join(dir, "node9"), Cluster: 7, ID: 9, Transport: net}
	if err := raftlog.ForceNewCluster(t.Context(), opt, raftlog.Member{Name: "n9", PeerURLs: []string{"http://other9"}}); err != nil {
		t.Fatalf("ForceNewCluster of a node that was removed: %v", err)
	}
	alone := leaderOf(t, startNode(t, net, dir, 9, nil))
	m := alone.Members()
	if len(m.Members) != 1 || m.Members[0].ID != 9 || len(m.Members[0].PeerURLs) != 1 || m.Members[0].Learner {
		t.Fatalf("the members are %+v", m)
	}
	// The others may have told it of its removal before its log did.
	if name, url := m.Members[0].Name, m.Members[0].PeerURLs[0]; (name != "n9" || url != "http://other9") && (name != "" || url != "http://node9") {
		t.Errorf("the member is %+v", m.Members[0])
	}
	if err := raftlog.ForceNewCluster(t.Context(), raftlog.Options{Dir: t.TempDir(), Cluster: 7, ID: 2, Transport: net}, raftlog.Member{}); err == nil {
		t.Error("ForceNewCluster of no node")
	}
}

// TestForceNewClusterKeepsTail: what a node has in its Raft log is kept, though
// its disk does not say that it was committed: it may have been acknowledged.
func TestForceNewClusterKeepsTail(t *testing.T) {
	t.Parallel()
	net, dir := newNetwork(), t.TempDir()
	nodes := nodesOf(t, net, dir, 3)
	leader := leaderOf(t, nodes...)
	id := leader.Status().ID
	head := appendTo(t, leader, eventlog.Head{}, "committed")
	net.isolate(id, true)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	outcome, before := make(chan error, 1), leader.LastIndex()
	go func() { outcome <- leader.Append(ctx, batchOn(head, "tail")) }()
	await(t, "the entry is in the leader's log", func() bool { return leader.LastIndex() > before })
	cancel()
	if err := <-outcome; !errors.Is(err, eventlog.ErrUnknown) {
		t.Fatalf("Append of a leader that is cut off: %v", err)
	}
	for _, n := range nodes {
		if err := n.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
	}
	opt := raftlog.Options{Dir: filepath.Join(dir, fmt.Sprint("node", id)), Cluster: 7, ID: id, Transport: net}
	if err := raftlog.ForceNewCluster(t.Context(), opt, raftlog.Member{}); err != nil {
		t.Fatalf("ForceNewCluster: %v", err)
	}
	net.isolate(id, false)
	n := leaderOf(t, startNode(t, net, dir, id, nil))
	if got := dump(t, n); len(got) != 2 || string(got[1].Records[0].Key) != "tail" {
		t.Errorf("it has %v", got)
	}
	appendTo(t, n, after(batchOn(head, "tail")), "alone")
}

// TestReadsOfFollowers: the leader answers a node at once whose question proves
// that no other one leads, and asks the others where it does not.
func TestReadsOfFollowers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		size   int
		change func(request *raftpb.Message)
		asked  bool // the leader asks the others
	}{
		{"three nodes", 3, func(*raftpb.Message) {}, false},
		{"five nodes", 5, func(*raftpb.Message) {}, true},
		{"a node of another term", 3, func(m *raftpb.Message) {
			if len(m.Context) > 0 { // else raft asks, since the answer is late
				m.Context[7]++
			}
		}, true},
		{"a node that says nothing", 3, func(m *raftpb.Message) { m.Context = nil }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			net := newNetwork()
			if !c.asked {
				net.heartbeat = net.election / 5 // else an answer that is late is asked for through raft
			}
			nodes := nodesOf(t, net, t.TempDir(), c.size)
			leader := leaderOf(t, nodes...)
			head := appendTo(t, leader, eventlog.Head{}, "k")
			asked := 0 // by net.watch
			net.mu.Lock()
			net.watch = func(m *raftpb.Message) {
				if m.GetType() == raftpb.MsgHeartbeat && len(m.Context) > 0 {
					asked++
				}
				if m.GetType() == raftpb.MsgReadIndex {
					c.change(m)
				}
			}
			net.mu.Unlock()
			for _, n := range nodes {
				if n == leader {
					continue
				}
				if at, err := n.Head(t.Context()); err != nil || at != head.Position {
					t.Errorf("Head is %d, %v; want %d", at, err, head.Position)
				}
			}
			net.mu.Lock()
			defer net.mu.Unlock()
			if net.watch = nil; (asked > 0) != c.asked {
				t.Errorf("the leader has asked %d times", asked)
			}
		})
	}
}

// TestReadsShare: fences that come while a question is under way share the next
// one, on the leader and elsewhere.
func TestReadsShare(t *testing.T) {
	t.Parallel()
	net := newNetwork()
	nodes := nodesOf(t, net, t.TempDir(), 3)
	leader := leaderOf(t, nodes...)
	head := appendTo(t, leader, eventlog.Head{}, "k")
	for _, n := range []*raftlog.Log{leader, others(nodes, leader)[0]} {
		if _, err := n.Head(t.Context()); err != nil {
			t.Fatal(err)
		}
		net.mu.Lock()
		net.drop = func(m *raftpb.Message) bool { // no question is answered
			return m.GetType() == raftpb.MsgReadIndex || m.GetType() == raftpb.MsgReadIndexResp || len(m.Context) > 0
		}
		net.mu.Unlock()
		before := n.Questions()
		var answers []func(context.Context) (eventlog.Position, error)
		for range 100 {
			answers = append(answers, n.BeginHead())
		}
		net.mu.Lock()
		net.drop = nil
		net.mu.Unlock()
		for _, answer := range answers {
			if at, err := answer(t.Context()); err != nil || at != head.Position {
				t.Errorf("Head: %d, %v, want %d", at, err, head.Position)
			}
		}
		if questions := n.Questions() - before; questions != 2 {
			t.Errorf("%d questions for %d fences", questions, len(answers))
		}
	}
}

// TestReadsWithoutOne: whichever follower the leader asks, it does not depend
// on it.
func TestReadsWithoutOne(t *testing.T) {
	t.Parallel()
	net := newNetwork()
	nodes := nodesOf(t, net, t.TempDir(), 3)
	leader := leaderOf(t, nodes...)
	head := appendTo(t, leader, eventlog.Head{}, "k")
	for range 2 {
		for _, n := range others(nodes, leader) {
			net.isolate(n.Status().ID, true)
			if at, err := leader.Head(t.Context()); err != nil || at != head.Position {
				t.Errorf("Head without node %d: %d, %v, want %d", n.Status().ID, at, err, head.Position)
			}
			net.isolate(n.Status().ID, false)
		}
	}
}

// TestReadsOfDeposedLeader: a leader that has not heard of the next one, as it
// may be when its process was stopped for a while, answers no fence, although
// the others hear its question.
func TestReadsOfDeposedLeader(t *testing.T) {
	t.Parallel()
	net := newNetwork()
	nodes := nodesOf(t, net, t.TempDir(), 3)
	old := leaderOf(t, nodes...)
	head := appendTo(t, old, eventlog.Head{}, "before")
	if at, err := old.Head(t.Context()); err != nil || at != head.Position {
		t.Fatalf("Head of the leader: %d, %v, want %d", at, err, head.Position)
	}
	leader := nodes[2]
	awaitAll(t, leader, old)

	net.mu.Lock()
	known := old.Status().Committed
	net.watch = func(m *raftpb.Message) { // nor does the one that it will ask know what is new
		if m.GetTo() == 2 && m.GetCommit() > known {
			m.Commit = &known
		}
	}
	asked := make(chan uint64, 1) // the first node
	net.drop = func(m *raftpb.Message) bool {
		switch m.GetType() {
		case raftpb.MsgReadIndex, raftpb.MsgReadIndexResp:
			if m.GetFrom() == 1 {
				select {
				case asked <- m.GetTo():
				default:
				}
			}
			return false
		}
		return m.GetFrom() == 1 || m.GetTo() == 1
	}
	net.mu.Unlock()
	elect(t, leader, nodes[1:]...)
	if _, err := leader.Head(t.Context()); err != nil {
		t.Fatalf("Head of the new leader: %v", err)
	}
	head = appendTo(t, leader, head, "after")
	short, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if at, err := old.Head(short); err == nil {
			t.Errorf("Head of the leader that was deposed: %d", at)
		}
	}()
	if id := <-asked; id != 2 || !old.Status().Leads {
		t.Errorf("the old leader has asked node %d: %+v", id, old.Status())
	}
	time.AfterFunc(200*time.Millisecond, cancel) // so long it may be wrong
	<-done
	net.mu.Lock()
	net.drop, net.watch = nil, nil
	net.mu.Unlock()
	if at, err := old.Head(t.Context()); err != nil || at != head.Position {
		t.Errorf("Head of a node that leads no more: %d, %v, want %d", at, err, head.Position)
	}
}
