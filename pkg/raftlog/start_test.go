package raftlog_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/raftlog"
)

// TestAloneAtOnce: a node that alone votes leads after a restart without an
// election timeout, though its log has changes of the members to apply first,
// and has nothing to warn of.
func TestAloneAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := leaderOf(t, nodesOf(t, newNetwork(), dir, 1)...)
	head := appendTo(t, n, eventlog.Head{}, "before")
	if err := n.AddMember(t.Context(), raftlog.Member{ID: 2, PeerURLs: []string{"http://node2"}, Learner: true}); err != nil {
		t.Fatalf("AddMember: %v", err)
	}
	for range 5 { // so that the log says that the change is committed
		head = appendTo(t, n, head, "after")
	}
	if err := n.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}

	logger, hook := test.NewNullLogger()
	n, err := raftlog.Open(t.Context(), raftlog.Options{
		Dir: filepath.Join(dir, "node1"), Cluster: 7, ID: 1, Transport: newNetwork(),
		ElectionTimeout: time.Hour, Logger: logrus.NewEntry(logger),
	})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	defer n.Close()
	if _, err := n.Load(t.Context(), func(*eventlog.Record) error { return nil }); err != nil {
		t.Fatalf("Load: %v", err)
	}
	if at, err := n.Head(t.Context()); err != nil || at != head.Position {
		t.Errorf("Head: %d, %v, want %d", at, err, head.Position)
	}
	for _, e := range hook.AllEntries() {
		if e.Level <= logrus.WarnLevel {
			t.Errorf("it warns: %s", e.Message)
		}
	}
}
