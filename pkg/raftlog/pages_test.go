package raftlog_test

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/raftlog"
)

// TestOtherPages: a database whose pages somebody has given another size, which
// could not be copied to other nodes, is refused at once, and what the message
// says to do helps.
func TestOtherPages(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := leaderOf(t, nodesOf(t, newNetwork(), dir, 1)...)
	head := appendTo(t, n, eventlog.Head{}, "key")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	database := filepath.Join(dir, "node1", sqlite.FileName)
	for _, size := range []string{"8192", "65536"} {
		change(t, database, "PRAGMA journal_mode=DELETE", "PRAGMA page_size="+size, "VACUUM", "PRAGMA journal_mode=WAL")
		_, err := raftlog.Open(t.Context(), raftlog.Options{Dir: filepath.Dir(database), Cluster: 7, ID: 1, Members: membersOf(1), Transport: newNetwork()})
		if !errors.Is(err, sqlite.ErrForeign) || !strings.Contains(err.Error(), "have "+size+" bytes") {
			t.Fatalf("Open: %v", err)
		}
		var cure []string
		for _, quoted := range regexp.MustCompile(`'PRAGMA [^']*'|VACUUM`).FindAllString(err.Error(), -1) {
			cure = append(cure, strings.Trim(quoted, "'"))
		}
		change(t, database, cure...)
		n = leaderOf(t, nodesOf(t, newNetwork(), dir, 1)...)
		if at, err := n.Head(t.Context()); err != nil || at != head.Position {
			t.Errorf("Head: %d, %v, want %d", at, err, head.Position)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// change runs statements on one connection to a database.
func change(t *testing.T, database string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	conn, err := db.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, statement := range statements {
		if _, err := conn.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}
