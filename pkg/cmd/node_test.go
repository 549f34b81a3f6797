package cmd

import (
	"fmt"
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
		if code != exitFailed || !strings.Contains(stderr, "its Raft log has 2 writes that are not in its database") {
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

// TestRemovedNode: a node that its cluster has removed ends in a way that systemd
// can tell from others, and says why; also when it was not up.
func TestRemovedNode(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	run := func(i int) *process {
		return startProcess(t, dir, nil, fmt.Sprint("--name=n", i), fmt.Sprint("--data-dir=d", i), fmt.Sprintf("--listen-client-urls=unix://%s/c%d", dir, i),
			fmt.Sprintf("--initial-cluster=n0=unix://%[1]s/p0,n1=unix://%[1]s/p1,n2=unix://%[1]s/p2", dir), "--heartbeat-interval=20", "--election-timeout=1000") // a busy machine keeps its leader
	}
	var nodes [3]*process
	for i := range nodes {
		nodes[i] = run(i)
	}
	for _, p := range nodes {
		p.says(ready)
	}
	client := connect(t, "unix://"+dir+"/c0")
	ids := map[string]uint64{}
	for len(ids) < len(nodes) { // those that have said who they are
		list, err := client.MemberList(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range list.Members {
			if m.Name != "" {
				ids[m.Name] = m.ID
			}
		}
	}
	if _, err := client.MemberRemove(t.Context(), ids["n2"]); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		nodes[2].says("the data directory is of no use to the cluster any more")
		if code := nodes[2].ends(); code != exitRemoved {
			t.Errorf("exit code %d", code)
		}
		nodes[2] = run(2)
	}
}
