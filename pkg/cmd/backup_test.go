package cmd

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keelson-io/keelson/pkg/snapshot/etcdfile"
)

// TestKilledInABackup kills the server while it writes one: nothing by half has
// the name of a backup, and the next start clears up.
func TestKilledInABackup(t *testing.T) {
	dir := shortDir(t)
	place := filepath.Join(dir, "snapshots")
	args := []string{"--data-dir=" + dir, "--listen-client-urls=unix://" + dir + "/k.sock", "--snapshot-schedule=@every 1s", "--snapshot-retention=2"}
	p := startProcess(t, dir, nil, args...)
	p.says(ready)
	c := connect(t, "unix://"+dir+"/k.sock")
	value := strings.Repeat("v", 1<<20)
	for _, key := range strings.Split("abcdefghijklmnopqrst", "") {
		if _, err := c.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	partial := func() []string {
		found, err := filepath.Glob(filepath.Join(place, ".keelson-*.partial", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	for end := time.Now().Add(time.Minute); len(partial()) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no backup is made")
		}
	}
	p.signal(syscall.SIGKILL)
	p.ends()
	left := len(partial())
	t.Logf("%d partial files are left", left)
	whole(t, place)

	p = startProcess(t, dir, nil, args...)
	p.says("backup done")
	p.signal(syscall.SIGTERM)
	if code := p.ends(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if whole(t, place) == 0 || len(partial()) != 0 {
		t.Errorf("%q are left", partial())
	}
}

// whole opens all backups in place, and returns how many there are.
func whole(t *testing.T, place string) int {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(place, "keelson-*.db"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		file, err := etcdfile.Open(t.Context(), name, etcdfile.OpenOptions{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	}
	entries, err := os.ReadDir(place)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Type().IsRegular() && !strings.HasSuffix(e.Name(), ".db") {
			t.Errorf("%s is there", e.Name())
		}
	}
	return len(names)
}
