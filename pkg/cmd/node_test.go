package cmd

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
)

// TestSaveOfNode: the directory of a node is read only if its database has what its
// Raft log has, which it may lack after a crash.
func TestSaveOfNode(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	data, file := filepath.Join(dir, "data"), filepath.Join(dir, "snapshot.db")
	run := func(keys ...string) {
		p := startProcess(t, dir, nil, "--name=a", "--data-dir="+data, "--listen-client-urls=unix://"+dir+"/c",
			"--initial-cluster=a=unix://"+dir+"/p", "--heartbeat-interval=20", "--election-timeout=200")
		p.says(ready)
		for _, key := range keys {
			if _, err := connect(t, "unix://"+dir+"/c").Put(t.Context(), key, "v"); err != nil {
				t.Fatal(err)
			}
		}
		p.signal(syscall.SIGTERM)
		if code := p.ends(); code != exitOK {
			t.Fatalf("exit code %d", code)
		}
	}
	run("first")
	old, err := os.ReadFile(filepath.Join(data, sqlite.FileName))
	if err != nil {
		t.Fatal(err)
	}
	run("second", "third")
	if err := os.WriteFile(filepath.Join(data, sqlite.FileName), old, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"snapshot", "save", file, "--data-dir=" + data}, {"export", "--from=" + data, "--to=" + file}} {
		out, stderr, code := keelson(t, nil, args...)
		if code != exitFailed || !strings.Contains(stderr, "its Raft log has 2 writes that are not in the database yet") {
			t.Errorf("%v: %d, %s%s", args, code, out, stderr)
		}
		if _, err := os.Stat(file); !os.IsNotExist(err) {
			t.Errorf("%v has written a snapshot: %v", args, err)
		}
	}
	run()
	if out, stderr, code := keelson(t, nil, "snapshot", "save", file, "--data-dir="+data); code != exitOK || !strings.Contains(out+stderr, "3 keys") {
		t.Errorf("after a restart: %d, %s%s", code, out, stderr)
	}
}
