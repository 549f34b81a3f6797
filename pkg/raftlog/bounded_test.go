package raftlog_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// TestMarksOfSmallWrites: the Raft log is bounded also by writes that are slower
// than the checkpoints of the database, which starts its WAL over by itself then.
func TestMarksOfSmallWrites(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := leaderOf(t, nodesOf(t, newNetwork(), dir, 1)...)
	defer n.Close()
	value := make([]byte, 32<<10)
	var head eventlog.Head
	most := 0
	for i := range 1500 { // 47 MiB
		b := batchOn(head, "key")
		b.Records[0].Value = value
		if err := n.Append(t.Context(), b); err != nil {
			t.Fatalf("Append: %v", err)
		}
		head = after(b)
		time.Sleep(time.Millisecond) // this is the pace
		if i%100 == 0 {
			files, err := filepath.Glob(filepath.Join(dir, "node1", "raft", "wal", "*.wal"))
			if err != nil || len(files) == 0 {
				t.Fatalf("%d files in the WAL, %v", len(files), err)
			}
			most = max(most, len(files))
		}
	}
	t.Logf("the WAL had %d files of 1 MiB", most)
	if most > 36 {
		t.Errorf("the WAL had %d files of 1 MiB; a mark comes after 16 MiB, and some checkpoints", most)
	}
}
