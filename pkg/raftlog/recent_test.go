package raftlog_test

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// TestTailOfFollowers: what a follower has in memory of the newest batches is
// what its database has, each part of it, and bounded.
func TestTailOfFollowers(t *testing.T) {
	nodes := nodesOf(t, newNetwork(), t.TempDir(), 3)
	leader := leaderOf(t, nodes...)
	follower := others(nodes, leader)[0]
	var head eventlog.Head
	for i := range 12 {
		b := batchOn(head, string(rune('a'+i)))
		b.Records[0].Value = bytes.Repeat([]byte{byte(i)}, i*100_000)
		second := b.Records[0]
		second.Seq++
		second.Kind, second.Key, second.Value, second.CreateRevision, second.Version = eventlog.KindDelete, []byte("deleted"), nil, 0, 0
		second.Revision.Sub++
		b.Records = append(b.Records, second)
		if err := leader.Append(t.Context(), b); err != nil {
			t.Fatalf("Append: %v", err)
		}
		head = after(b)
	}
	if at, err := follower.Head(t.Context()); err != nil || at != head.Position {
		t.Fatalf("Head: %d, %v", at, err)
	}
	if n := follower.Recent(); n == 0 || n == 12 {
		t.Fatalf("%d batches of 6.6 MB are in memory", n)
	}
	if n := leader.Recent(); n != 0 {
		t.Errorf("the leader keeps %d of its store's batches", n)
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
}
