package raftlog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/eventlog/logtest"
	"github.com/keelson-io/keelson/pkg/raftlog"
)

// behindNetwork returns one for nodes that bring what they apply to the database
// only when they have to.
func behindNetwork() *network {
	net := newNetwork()
	net.writeDelay = time.Hour
	return net
}

// TestLogWriteBehind: a log whose database is behind is one as any other.
func TestLogWriteBehind(t *testing.T) {
	t.Parallel()
	logtest.Run(t, logtest.Harness{
		Open: func(t testing.TB, dir string) eventlog.Log { return openCluster(t, behindNetwork(), dir, 1) },
		FailAppend: func(_ testing.TB, log eventlog.Log, persisted bool) {
			log.(*cluster).Log.(*raftlog.Log).FailAppend(persisted)
		},
	})
}

// sizedBatch is a batch of a put of n bytes and of a delete.
func sizedBatch(head eventlog.Head, key string, n int) *eventlog.Batch {
	b := batchOn(head, key)
	b.Records[0].Value = bytes.Repeat([]byte(key), n)
	second := b.Records[0]
	second.Seq++
	second.Kind, second.Key, second.Value, second.CreateRevision, second.Version = eventlog.KindDelete, []byte("deleted"), nil, 0, 0
	second.Revision.Sub++
	b.Records = append(b.Records, second)
	return b
}

// TestTailOfFollowers: what a follower has in memory of the newest batches is
// what its database has, each part of it, and bounded.
func TestTailOfFollowers(t *testing.T) {
	t.Parallel()
	nodes := nodesOf(t, newNetwork(), t.TempDir(), 3)
	leader := leaderOf(t, nodes...)
	follower := others(nodes, leader)[0]
	var head eventlog.Head
	for i := range 12 {
		b := sizedBatch(head, string(rune('a'+i)), i*100_000)
		if err := leader.Append(t.Context(), b); err != nil {
			t.Fatalf("Append: %v", err)
		}
		head = after(b)
	}
	if at, err := follower.Head(t.Context()); err != nil || at != head.Position {
		t.Fatalf("Head: %d, %v", at, err)
	}
	for from := eventlog.Position(0); from <= head.Position; from++ {
		for _, limit := range []int{1, 3, 1000} {
			got, err := follower.Tail(t.Context(), from, limit)
			if err != nil {
				t.Fatalf("Tail: %v", err)
			}
			want, err := follower.LocalTail(t.Context(), from, limit)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("Tail(%d, %d) has %d batches, the database %d, %v", from, limit, len(got), len(want), err)
			}
		}
	}
	if all, pending := follower.Newest(); all == 0 || all == 12 || pending != 0 {
		t.Fatalf("%d batches of 6.6 MB are in memory, %d of them not in the database", all, pending)
	}
	if _, err := leader.LocalTail(t.Context(), 0, 1); err != nil {
		t.Fatal(err)
	}
	if n, _ := leader.Newest(); n != 0 {
		t.Errorf("the leader keeps %d of its store's batches", n)
	}
}

// TestPending: what the database does not have yet is read as if it had it, on
// every node, alone and together with what it has.
func TestPending(t *testing.T) {
	t.Parallel()
	nodes := nodesOf(t, behindNetwork(), t.TempDir(), 3)
	leader := leaderOf(t, nodes...)
	var head eventlog.Head
	var batches []*eventlog.Batch
	for i := range 10 {
		if i == 5 {
			for _, n := range nodes {
				if _, err := n.Head(t.Context()); err != nil {
					t.Fatal(err)
				}
				if _, err := n.LocalTail(t.Context(), 0, 1); err != nil { // the first five are written
					t.Fatal(err)
				}
			}
		}
		b := sizedBatch(head, fmt.Sprint("key", i), i)
		sent := *b
		sent.Records = append([]eventlog.Record{}, b.Records...)
		if err := leader.Append(t.Context(), &sent); err != nil {
			t.Fatalf("Append: %v", err)
		}
		clear(sent.Records) // its author's again
		batches, head = append(batches, b), after(b)
	}
	for _, n := range nodes {
		if at, err := n.Head(t.Context()); err != nil || at != head.Position {
			t.Fatalf("Head: %d, %v", at, err)
		}
		id := n.Status().ID
		if _, pending := n.Newest(); pending != 5 {
			t.Fatalf("node %d has not written %d batches, want 5", id, pending)
		}
		for from := range batches {
			got, err := n.Tail(t.Context(), eventlog.Position(from), 1)
			if err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], *batches[from]) {
				t.Errorf("node %d: Tail(%d) is %v, %v, want %v", id, from, got, err, *batches[from])
			}
		}
		var seqs []int64
		var want [][]byte
		for _, b := range []int{9, 0, 5, 4, 9} {
			seqs = append(seqs, batches[b].Records[0].Seq, batches[b].Records[1].Seq)
			want = append(want, batches[b].Records[0].Value, nil)
		}
		if got, err := n.Values(t.Context(), seqs); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("node %d: Values(%v) are %q, %v, want %q", id, seqs, got, err, want)
		}
		if got, err := n.Values(t.Context(), []int64{head.Seq, head.Seq + 1}); !errors.Is(err, eventlog.ErrCompacted) {
			t.Errorf("node %d: Values of a record that is not there: %q, %v", id, got, err)
		}
		if _, pending := n.Newest(); pending != 5 {
			t.Errorf("node %d has written what is read", id)
		}
	}
	size := leader.Size()
	if err := leader.Append(t.Context(), sizedBatch(head, "large", 10_000)); err != nil {
		t.Fatal(err)
	}
	if grown := leader.Size(); grown.InUse < size.InUse+50_000 || grown.Total < size.Total+50_000 {
		t.Errorf("the size grows from %+v to %+v with 50 kB", size, grown)
	}
}

// TestPendingScan: what a state has that is not in the database yet, a scan and
// a snapshot have.
func TestPendingScan(t *testing.T) {
	t.Parallel()
	net, dir := behindNetwork(), t.TempDir()
	n := leaderOf(t, nodesOf(t, net, dir, 1)...)
	var head eventlog.Head
	for i := range 10 {
		head = appendTo(t, n, head, fmt.Sprint("key", i))
	}
	scan, err := n.Scan(t.Context(), func(eventlog.Position) (int64, error) {
		head = appendTo(t, n, head, "meanwhile")
		return head.Seq, nil
	})
	if err != nil {
		t.Fatalf("Scan: %v", err)
	}
	var found []eventlog.Record
	err = scan.Records(t.Context(), func(records []eventlog.Record) error {
		found = append(found, records...)
		return nil
	})
	if err = errors.Join(err, scan.Close()); err != nil || len(found) != 11 {
		t.Errorf("the scan has %d of 11 records, %v", len(found), err)
	}
	head = appendTo(t, n, head, "after")
	var snapshot bytes.Buffer
	if err := n.WriteSnapshot(t.Context(), &snapshot); err != nil {
		t.Fatalf("WriteSnapshot: %v", err)
	}
	joining := startNode(t, net, dir, 2, nil)
	if err := joining.ReadSnapshot(t.Context(), &snapshot); err != nil {
		t.Fatalf("ReadSnapshot: %v", err)
	}
	joining = replaced(t, net, dir, joining, nil)
	sameBatches(t, n, joining)
}

// crashed copies the data of node id as kill -9 would leave it now.
func crashed(t *testing.T, dir string, id uint64) string {
	t.Helper()
	copied, node := t.TempDir(), fmt.Sprint("node", id)
	if err := os.CopyFS(filepath.Join(copied, node), os.DirFS(filepath.Join(dir, node))); err != nil {
		t.Fatal(err)
	}
	return copied
}

// TestCrashPending: what was applied and is not in the database comes again from
// the Raft log after a crash, whatever of it was checkpointed and marked before.
func TestCrashPending(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := leaderOf(t, nodesOf(t, behindNetwork(), dir, 1)...)
	var head eventlog.Head
	for round := range 4 {
		for i := range 70 { // more than between two marks
			head = appendTo(t, n, head, fmt.Sprintf("key %d.%d", round, i))
		}
		switch round {
		case 1: // a mark is made of what is before
			if err := n.Checkpoint(t.Context()); err != nil {
				t.Fatal(err)
			}
		case 2: // and none of what is pending
			if err := n.CheckpointWritten(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if _, pending := n.Newest(); pending < 70 && round != 1 {
			t.Fatalf("round %d: %d batches are pending", round, pending)
		}
		want := dump(t, n)
		again := leaderOf(t, nodesOf(t, behindNetwork(), crashed(t, dir, 1), 1)...)
		if at, err := again.Head(t.Context()); err != nil || at != head.Position {
			t.Fatalf("round %d: after a crash Head is %d, %v, want %d", round, at, err, head.Position)
		}
		if got := dump(t, again); !reflect.DeepEqual(got, want) {
			t.Fatalf("round %d: after a crash there are %d batches, want %d", round, len(got), len(want))
		}
		if err := again.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
		// What a node writes when it is closed is no less than what it has applied.
		if all, pending := again.Newest(); pending != 0 {
			t.Errorf("%d of %d batches are not written by Close", pending, all)
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if n.Marked() < 70 {
		t.Errorf("the newest mark is %d: none was made", n.Marked())
	}
}

// TestPendingBound: more than some megabytes are never pending, although nobody
// asks for them to be written.
func TestPendingBound(t *testing.T) {
	t.Parallel()
	n := leaderOf(t, nodesOf(t, behindNetwork(), t.TempDir(), 1)...)
	var head eventlog.Head
	most := 0
	for i := range 60 {
		b := sizedBatch(head, fmt.Sprint("large", i), 100_000) // 600 kB
		if err := n.Append(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		head = after(b)
		_, pending := n.Newest()
		most = max(most, pending)
	}
	if most > 16 {
		t.Errorf("%d batches of 600 kB were pending", most)
	}
	await(t, "all but the last ones are written", func() bool { _, pending := n.Newest(); return pending <= 2 })
}

// TestWritten: without being asked the database has everything soon.
func TestWritten(t *testing.T) {
	t.Parallel()
	nodes := nodesOf(t, newNetwork(), t.TempDir(), 3)
	leader := leaderOf(t, nodes...)
	var head eventlog.Head
	for i := range 100 {
		head = appendTo(t, leader, head, fmt.Sprint("key", i))
	}
	for _, n := range nodes {
		if _, err := n.Head(context.Background()); err != nil {
			t.Fatal(err)
		}
		await(t, "the database has everything", func() bool { _, pending := n.Newest(); return pending == 0 })
	}
}
