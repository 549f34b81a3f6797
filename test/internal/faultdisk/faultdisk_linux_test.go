package faultdisk

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

// TestDisk: only the calls that are to fail do, and only until the disk heals.
func TestDisk(t *testing.T) {
	dd, err := exec.LookPath("dd")
	if err != nil {
		t.Skip("dd is not installed")
	}
	d := New(t, dd)
	file := filepath.Join(t.TempDir(), "bad")
	write := func(file string) (string, bool) {
		out, err := exec.Command(d.Program, "if=/dev/zero", "of="+file, "bs=10", "count=1", "conv=fsync").CombinedOutput()
		return string(out), err == nil
	}
	if out, ok := write(file); !ok {
		t.Fatalf("a disk that is whole: %s", out)
	}
	for _, c := range []struct {
		err   syscall.Errno
		calls []uintptr
	}{{syscall.EIO, Sync}, {syscall.ENOSPC, Write}} {
		d.Fail(c.err, c.calls, func(path string) bool { return path == file })
		if out, ok := write(file); ok || !strings.Contains(strings.ToLower(out), c.err.Error()) || d.Failed() != 1 {
			t.Errorf("%d calls have failed with %v: %s", d.Failed(), c.err, out)
		}
		if out, ok := write(file + ".other"); !ok {
			t.Errorf("another file: %s", out)
		}
		d.Heal()
		if out, ok := write(file); !ok {
			t.Errorf("a disk that is whole again: %s", out)
		}
	}
}
