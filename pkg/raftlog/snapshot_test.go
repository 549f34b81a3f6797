package raftlog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/raftlog"
)

// fill appends n batches of 200 KiB.
func fill(t *testing.T, leader *raftlog.Log, head eventlog.Head, n int) eventlog.Head {
	t.Helper()
	for i := range n {
		b := batchOn(head, fmt.Sprint("large", i))
		b.Records[0].Value = bytes.Repeat([]byte{byte(i)}, 200<<10)
		if err := leader.Append(t.Context(), b); err != nil {
			t.Fatalf("Append: %v", err)
		}
		head = after(b)
	}
	return head
}

// forgotten appends batches of which the leader's memory does not have all.
func forgotten(t *testing.T, leader *raftlog.Log, head eventlog.Head) eventlog.Head {
	t.Helper()
	head = fill(t, leader, head, 200)
	if err := leader.Checkpoint(t.Context()); err != nil { // marks are made
		t.Fatalf("Checkpoint: %v", err)
	}
	head = appendTo(t, leader, head, "after marks")
	await(t, "what is before the marks is forgotten", func() bool { return leader.Held() < 150*200<<10 })
	return head
}

// dump returns all of a node's batches.
func dump(t *testing.T, n *raftlog.Log) []eventlog.Batch {
	t.Helper()
	var all []eventlog.Batch
	for after := eventlog.Position(0); ; after = all[len(all)-1].Position() {
		got, err := n.Tail(t.Context(), after, 100)
		if err != nil {
			t.Fatalf("Tail of node %d: %v", n.Status().ID, err)
		}
		if len(got) == 0 {
			return all
		}
		all = append(all, got...)
	}
}

// sameBatches compares what two nodes have.
func sameBatches(t *testing.T, a, b *raftlog.Log) {
	t.Helper()
	left, right := dump(t, a), dump(t, b)
	if len(left) != len(right) {
		t.Fatalf("node %d has %d batches, node %d %d", a.Status().ID, len(left), b.Status().ID, len(right))
	}
	for i := range left {
		if !bytes.Equal(eventlog.AppendBatch(nil, &left[i]), eventlog.AppendBatch(nil, &right[i])) {
			t.Fatalf("batch %d differs between node %d and node %d", left[i].Position(), a.Status().ID, b.Status().ID)
		}
	}
}

// replaced waits until a node has received a snapshot, and opens it again.
func replaced(t *testing.T, net *network, dir string, n *raftlog.Log, members []raftlog.Member) *raftlog.Log {
	t.Helper()
	select {
	case <-n.Failed():
	case <-time.After(forever):
		t.Fatalf("node %d has received no snapshot within %v", n.Status().ID, forever)
	}
	if err := n.Err(); !errors.Is(err, raftlog.ErrReplaced) {
		t.Fatalf("the node ended with %v, want ErrReplaced", err)
	}
	if err := n.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	return startNode(t, net, dir, n.Status().ID, members)
}

// startNode opens and loads a node.
func startNode(t *testing.T, net *network, dir string, id uint64, members []raftlog.Member) *raftlog.Log {
	t.Helper()
	n := openMember(t, net, dir, id, members)
	t.Cleanup(func() { _ = n.Close() }) // closed by the test already, or in a test that failed
	if _, err := n.Load(t.Context(), func(*eventlog.Record) error { return nil }); err != nil {
		t.Fatalf("Load: %v", err)
	}
	return n
}

// TestSnapshot: a follower that is so far behind that memory has not what it
// lacks gets the whole, while the leader goes on, and then follows.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	net, dir := newNetwork(), t.TempDir()
	nodes := nodesOf(t, net, dir, 3)
	leader := leaderOf(t, nodes...)
	head := appendTo(t, leader, eventlog.Head{}, "first")
	behind := others(nodes, leader)[0]
	id := behind.Status().ID
	net.isolate(id, true)
	head = forgotten(t, leader, head)
	if err := leader.Compact(t.Context(), []int64{}); err != nil {
		t.Fatalf("Compact: %v", err)
	}
	net.isolate(id, false)

	behind = replaced(t, net, dir, behind, membersOf(3))
	head = fill(t, leader, head, 3)
	if at, err := behind.Head(t.Context()); err != nil || at != head.Position {
		t.Fatalf("Head of the node that was behind: %d, %v, want %d", at, err, head.Position)
	}
	sameBatches(t, leader, behind)

	// And it is a member in full.
	third := others(others(nodes, leader), nodes[id-1])[0]
	net.isolate(third.Status().ID, true)
	appendTo(t, leader, head, "with its vote")
}

// TestDamagedSnapshot: a snapshot that is cut off, or has one bit wrong,
// changes nothing.
func TestDamagedSnapshot(t *testing.T) {
	t.Parallel()
	net, dir := newNetwork(), t.TempDir()
	leader := leaderOf(t, nodesOf(t, net, dir, 1)...)
	var head eventlog.Head
	for i := range 30 {
		head = appendTo(t, leader, head, fmt.Sprint("key", i))
	}
	var whole bytes.Buffer
	if err := leader.WriteSnapshot(t.Context(), &whole); err != nil {
		t.Fatalf("WriteSnapshot: %v", err)
	}
	joining := startNode(t, net, dir, 2, nil)
	for i := 0; i < whole.Len(); i += 61 {
		if err := joining.ReadSnapshot(t.Context(), bytes.NewReader(whole.Bytes()[:i])); err == nil {
			t.Fatalf("a snapshot of %d of %d bytes was taken", i, whole.Len())
		}
		damaged := bytes.Clone(whole.Bytes())
		damaged[i] ^= 0x10
		if err := joining.ReadSnapshot(t.Context(), bytes.NewReader(damaged)); err == nil {
			t.Fatalf("a snapshot with a wrong bit in byte %d of %d was taken", i, whole.Len())
		}
	}
	if err := joining.ReadSnapshot(t.Context(), &whole); err != nil {
		t.Fatalf("ReadSnapshot: %v", err)
	}
	joining = replaced(t, net, dir, joining, nil)
	sameBatches(t, leader, joining)
}

// during calls a function before each Read.
type during struct {
	io.Reader
	do func()
}

func (d during) Read(p []byte) (int, error) {
	d.do()
	return d.Reader.Read(p)
}

// TestSnapshotBesideWrites: a snapshot has what was appended while it was sent.
func TestSnapshotBesideWrites(t *testing.T) {
	t.Parallel()
	net, dir := newNetwork(), t.TempDir()
	leader := leaderOf(t, nodesOf(t, net, dir, 1)...)
	head := fill(t, leader, eventlog.Head{}, 30)
	joining := startNode(t, net, dir, 2, nil)
	r, w := io.Pipe()
	go func() { w.CloseWithError(leader.WriteSnapshot(context.Background(), w)) }()
	before := head.Position
	if err := joining.ReadSnapshot(t.Context(), during{r, func() {
		if head.Position < before+20 {
			head = fill(t, leader, head, 1)
		}
	}}); err != nil {
		t.Fatalf("ReadSnapshot: %v", err)
	}
	joining = replaced(t, net, dir, joining, nil)
	want, got := dump(t, leader), dump(t, joining)
	if len(got) <= int(before) || len(got) > len(want) {
		t.Fatalf("the snapshot has %d batches; there were %d when it began, and %d in the end", len(got), before, len(want))
	}
	if !reflect.DeepEqual(got, want[:len(got)]) {
		t.Errorf("the snapshot has other batches than the leader")
	}
}

// TestSnapshotRefused: one of another format is, by name, and one of a database
// that is damaged, before it takes the place of what there is.
func TestSnapshotRefused(t *testing.T) {
	t.Parallel()
	net, dir := newNetwork(), t.TempDir()
	nodes := nodesOf(t, net, dir, 1)
	head := fill(t, leaderOf(t, nodes...), eventlog.Head{}, 3)
	joining := startNode(t, net, dir, 2, nil)
	read := func(want string, r io.Reader) {
		t.Helper()
		err := joining.ReadSnapshot(t.Context(), r)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ReadSnapshot: %v, want %q", err, want)
		}
		if err := joining.Err(); err != nil {
			t.Fatal(err)
		}
	}
	read(`it begins with "keelson snapshot 1\n", where "keelson snapshot 2\n" is what this keelson knows`,
		strings.NewReader("keelson snapshot 1\nand what follows"))

	if err := nodes[0].Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "node1", sqlite.FileName)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(data, bytes.Repeat([]byte{2}, 1000)) // in the value of the last batch
	data[at+500]++
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	leader := leaderOf(t, startNode(t, net, dir, 1, membersOf(1)))
	if at, err := leader.Head(t.Context()); err != nil || at != head.Position {
		t.Fatalf("the node with damage is at %d, %v; want %d", at, err, head.Position)
	}
	var whole bytes.Buffer
	if err := leader.WriteSnapshot(t.Context(), &whole); err != nil {
		t.Fatalf("WriteSnapshot: %v", err)
	}
	read("checksum of the value does not match", &whole)
	left, err := filepath.Glob(filepath.Join(dir, "node2", "raft", "receiving-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("what was refused is left: %v, %v", left, err)
	}
}

// TestMembers grows a node that has data to three, and shrinks them.
func TestMembers(t *testing.T) {
	t.Parallel()
	net, dir := newNetwork(), t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), forever)
	defer cancel()
	first := leaderOf(t, nodesOf(t, net, dir, 1)...)
	var head eventlog.Head
	for i := range 10 {
		head = appendTo(t, first, head, fmt.Sprint("key", i))
	}
	all := []*raftlog.Log{first}
	for id := uint64(2); id <= 3; id++ {
		m := raftlog.Member{ID: id, Name: fmt.Sprint("n", id), PeerURLs: []string{fmt.Sprint("http://node", id)}, Learner: true}
		if err := first.AddMember(ctx, m); err != nil {
			t.Fatalf("AddMember %d: %v", id, err)
		}
		joined := replaced(t, net, dir, startNode(t, net, dir, id, nil), nil)
		all = append(all, joined)
		await(t, "the learner is ready", func() bool {
			err := first.PromoteMember(ctx, id)
			if err != nil && !errors.Is(err, raftlog.ErrLearnerNotReady) && !errors.Is(err, raftlog.ErrUnhealthy) {
				t.Fatalf("PromoteMember %d: %v", id, err)
			}
			return err == nil
		})
		head = appendTo(t, first, head, fmt.Sprint("after", id))
	}
	for _, n := range all {
		if at, err := n.Head(ctx); err != nil || at != head.Position {
			t.Fatalf("Head of node %d: %d, %v, want %d", n.Status().ID, at, err, head.Position)
		}
		if got := n.Members(); len(got.Members) != 3 || got.Members[2].Learner || got.Members[2].Name != "n3" {
			t.Fatalf("node %d knows the members %+v", n.Status().ID, got)
		}
		sameBatches(t, first, n)
	}
	for _, c := range []struct {
		what string
		err  error
		want error
	}{
		{"add a member again", first.AddMember(ctx, raftlog.Member{ID: 2, PeerURLs: []string{"http://other"}}), raftlog.ErrMemberExists},
		{"add one with another's URL", first.AddMember(ctx, raftlog.Member{ID: 4, PeerURLs: []string{"http://node2"}}), raftlog.ErrPeerURLExists},
		{"promote a voter", first.PromoteMember(ctx, 2), raftlog.ErrNotLearner},
		{"remove a stranger", first.RemoveMember(ctx, 9), raftlog.ErrMemberNotFound},
		{"add through a follower", all[1].AddMember(ctx, raftlog.Member{ID: 4, PeerURLs: []string{"http://node4"}}), raftlog.ErrNotLeader},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, c.err, c.want)
		}
	}
	if err := first.RemoveMember(ctx, 3); err != nil {
		t.Fatalf("RemoveMember: %v", err)
	}
	if err := first.AddMember(ctx, raftlog.Member{ID: 3, PeerURLs: []string{"http://node3"}}); !errors.Is(err, raftlog.ErrMemberRemoved) {
		t.Errorf("add a member that was removed: %v", err)
	}
	for _, n := range all[:2] {
		if err := n.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
	}
	// The members are known after a restart, whatever it is told.
	again := []*raftlog.Log{startNode(t, net, dir, 1, membersOf(1)), startNode(t, net, dir, 2, nil)}
	elect(t, again[0], again...)
	appendTo(t, again[0], head, "with two")
	if got := again[0].Members(); len(got.Members) != 2 || len(got.Removed) != 1 {
		t.Errorf("the members after a restart: %+v", got)
	}
}

// resolute is an election timeout for leaders that hand over: raft tries again
// after it if nobody has taken the leadership.
const resolute = 10 * time.Second

// TestChangeAtOnce: a leader that has heard of nobody yet waits until it has,
// before it says that nobody is there.
func TestChangeAtOnce(t *testing.T) {
	t.Parallel()
	net := newNetwork()
	net.election = resolute
	nodes := nodesOf(t, net, t.TempDir(), 3)
	leader := leaderOf(t, nodes...)
	for round := range 8 {
		before := leader.Status().ID
		if err := leader.HandOver(t.Context()); err != nil {
			t.Fatalf("HandOver %d: %v", round, err)
		}
		for leader.Status().ID == before {
			for _, n := range nodes {
				if n.Status().Leads {
					leader = n
				}
			}
		}
		m := raftlog.Member{ID: uint64(10 + round), PeerURLs: []string{fmt.Sprint("http://node", 10+round)}}
		if err := leader.AddMember(t.Context(), m); err != nil {
			t.Fatalf("AddMember %d: %v", round, err)
		}
		if err := leader.RemoveMember(t.Context(), m.ID); err != nil {
			t.Fatalf("RemoveMember %d: %v", round, err)
		}
	}
}

// TestRemoveLeader: a leader that is to be removed is so by another one, also if
// there are but two.
func TestRemoveLeader(t *testing.T) {
	t.Parallel()
	net := newNetwork()
	net.election = resolute
	nodes := nodesOf(t, net, t.TempDir(), 3)
	var head eventlog.Head
	for len(nodes) > 1 {
		leader := leaderOf(t, nodes...)
		id := leader.Status().ID
		head = appendTo(t, leader, head, fmt.Sprint("before ", id))
		if err := leader.RemoveMember(t.Context(), id); !errors.Is(err, raftlog.ErrNotLeader) {
			t.Fatalf("RemoveMember of the leader: %v, want ErrNotLeader", err)
		}
		next := leaderOf(t, nodes...)
		if next == leader {
			t.Fatal("the leader that is to be removed has not handed over")
		}
		if err := next.RemoveMember(t.Context(), id); err != nil {
			t.Fatalf("RemoveMember: %v", err)
		}
		<-leader.Failed()
		if err := leader.Err(); !errors.Is(err, raftlog.ErrRemoved) {
			t.Errorf("the node that was removed ended with %v", err)
		}
		net.set(id, nil)
		nodes = others(nodes, leader)
		head = appendTo(t, leaderOf(t, nodes...), head, fmt.Sprint("after ", id))
	}
	if err := nodes[0].RemoveMember(t.Context(), nodes[0].Status().ID); !errors.Is(err, raftlog.ErrNotStarted) {
		t.Errorf("RemoveMember of the last one: %v, want ErrNotStarted", err)
	}
}
