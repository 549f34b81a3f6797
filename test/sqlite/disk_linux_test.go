package sqlite

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/test/harness"
)

// These tests mount a file system of their own. The driver's tests
// (pkg/drivers/sqlite, TestDiskFault) let every operation fail on any machine;
// here a kernel does it, and the process has to end with the reason.

// disk is a mounted ext4 of 32 MiB.
type disk struct {
	t           *testing.T
	image, Path string
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root may mount a file system")
	}
	for _, tool := range []string{"mkfs.ext4", "mount", "umount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	dir := harness.TempDir(t)
	d := &disk{t: t, image: filepath.Join(dir, "image"), Path: filepath.Join(dir, "disk")}
	if err := errors.Join(os.Mkdir(d.Path, 0o700), os.WriteFile(d.image, nil, 0o600), os.Truncate(d.image, 32<<20)); err != nil {
		t.Fatal(err)
	}
	d.command("mkfs.ext4", "-q", d.image)
	if out, err := exec.Command("mount", "-o", "loop", d.image, d.Path).CombinedOutput(); err != nil {
		t.Skipf("this machine mounts no files: %v: %s", err, out)
	}
	t.Cleanup(func() { d.command("umount", d.Path) })
	return d
}

func (d *disk) command(name string, args ...string) {
	d.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// TestDiskFull: the server ends when the disk is full and says what to do;
// once that is done it goes on with all that was acknowledged.
func TestDiskFull(t *testing.T) {
	d := newDisk(t)
	ballast := filepath.Join(d.Path, "ballast")
	d.command("fallocate", "-l", "20M", ballast)
	testDisk(t, d, "free space on its file system", func(srv *harness.Server, n int) {
	}, func() {
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	})
}

// TestDiskReadOnly: an ext4 that has found an error on the disk becomes
// read-only under the running server.
func TestDiskReadOnly(t *testing.T) {
	d := newDisk(t)
	testDisk(t, d, "stopped after a storage failure", func(_ *harness.Server, n int) {
		if n == 50 {
			d.command("mount", "-o", "remount,abort", d.Path)
		}
	}, func() {
		d.command("umount", d.Path)
		d.command("mount", "-o", "loop", d.image, d.Path) // the journal is replayed
	})
}

// testDisk writes until the server has ended, repairs the disk and starts the
// server again. Before write n it calls harm.
func testDisk(t *testing.T, d *disk, reason string, harm func(srv *harness.Server, n int), repair func()) {
	srv := harness.StartServer(t, harness.Keelson, append(onSQLite, "--data-dir", filepath.Join(d.Path, "data"))...)
	c := newClient(t, srv)
	value := make([]byte, 64<<10)
	type acknowledged struct {
		value    string
		revision int64
	}
	var writes []acknowledged
	put := func(n int) error {
		if _, err := rand.Read(value); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		resp, err := c.Put(ctx, fmt.Sprintf("key/%06d", n), string(value))
		if err == nil {
			writes = append(writes, acknowledged{string(value), resp.Header.Revision})
		}
		return err
	}
	for n := 0; ; n++ {
		if n == 1000 {
			t.Fatal("the disk does not fail")
		}
		harm(srv, n)
		if err := put(n); err != nil {
			t.Logf("write %d: %v", n, err)
			break
		}
	}
	select {
	case <-srv.Done():
	case <-time.After(patience):
		t.Fatal("the server goes on without a disk")
	}
	if log := srv.LogTail(5); !strings.Contains(log, reason) {
		t.Errorf("the server ends with\n%s\nand not with %q", log, reason)
	}
	repair()
	srv.Restart()
	resp, err := get(t, c, "key/", clientv3.WithPrefix(), clientv3.WithLimit(int64(len(writes))))
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) != len(writes) || len(writes) == 0 {
		t.Fatalf("%d writes are there, %d were acknowledged", len(resp.Kvs), len(writes))
	}
	for n, w := range writes {
		if kv := resp.Kvs[n]; string(kv.Value) != w.value || kv.ModRevision != w.revision {
			t.Errorf("write %d is there as %d bytes of revision %d, acknowledged at %d", n, len(kv.Value), kv.ModRevision, w.revision)
		}
	}
	if err := put(len(writes) + 1); err != nil {
		t.Errorf("after the repair: %v", err)
	}
	t.Logf("%d writes were acknowledged", len(writes)-1)
}
