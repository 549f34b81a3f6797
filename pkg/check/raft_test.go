package check

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/raftlog"
)

// nobody is the transport of a node that is alone.
type nobody struct{}

func (nobody) Send([]*raftpb.Message) {}

func makeNode(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	log, err := raftlog.Open(t.Context(), raftlog.Options{
		Dir: dir, Cluster: 7, ID: 1, Members: []raftlog.Member{{ID: 1, PeerURLs: []string{"http://127.0.0.1:1"}}},
		Transport: nobody{}, HeartbeatInterval: 10 * time.Millisecond, ElectionTimeout: 100 * time.Millisecond, Logger: quiet(),
	})
	if err != nil {
		t.Fatal(err)
	}
	history(t, log, 3, 200)
	return dir
}

func TestNode(t *testing.T) {
	clean := makeNode(t)
	wals, err := filepath.Glob(filepath.Join(clean, "raft", "wal", "*.wal"))
	if err != nil || len(wals) != 1 {
		t.Fatal(wals, err)
	}
	r := checkSQLite(t, clean)
	if !r.Clean() || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "node 1 of cluster 7, 1 members") {
		t.Errorf("%+v", r)
	}
	for name, tt := range map[string]struct {
		file   string
		damage func([]byte) []byte // nil removes the file
		want   string
	}{
		"WAL":     {"wal", func(b []byte) []byte { b[2000] ^= 1; return b }, ""},
		"members": {"members-", func([]byte) []byte { return []byte("{") }, "members as of entry"},
		"none":    {"members-", nil, "members as of entry"},
		"node":    {"node.json", func(b []byte) []byte { return []byte(strings.Replace(string(b), "7", "8", 1)) }, "another node"},
		"nobody":  {"node.json", func([]byte) []byte { return []byte("{}") }, "does not say who the node is"},
		"no WAL":  {"wal", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(clean)); err != nil {
				t.Fatal(err)
			}
			matches, err := filepath.Glob(filepath.Join(dir, "raft", tt.file+"*"))
			if tt.file == "wal" {
				matches, err = filepath.Glob(filepath.Join(dir, "raft", "wal", "*.wal"))
			}
			if err != nil || len(matches) != 1 {
				t.Fatal(matches, err)
			}
			data, err := os.ReadFile(matches[0])
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(matches[0]); err != nil {
				t.Fatal(err)
			}
			if tt.damage != nil {
				if err := os.WriteFile(matches[0], tt.damage(data), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			r := checkSQLite(t, dir)
			if !has(r, KindRaft) || !strings.Contains(r.Findings[0].Problem, tt.want) || !strings.Contains(r.Findings[0].Advice, "remove this node") {
				t.Errorf("%+v", r.Findings)
			}
		})
	}
}

// TestNodesEnds: the database neither ends before the Raft log goes on, nor has
// more than that leads to.
func TestNodesEnds(t *testing.T) {
	in := &raftlog.Inspection{Durable: new(eventlog.Position(5)), Reached: new(eventlog.Position(9))}
	for position, want := range map[eventlog.Position]bool{4: true, 5: false, 9: false, 10: true} {
		c := newChecker("", nil)
		if c.ends(in, position); has(&c.Report, KindRaft) != want {
			t.Errorf("at %d: %+v", position, c.Findings)
		}
	}
	c := newChecker("", nil)
	if c.ends(&raftlog.Inspection{}, 7); !c.Clean() {
		t.Errorf("%+v", c.Findings)
	}
}
