package backup

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// TestFullDisk: a disk that gets full while a backup is written leaves the
// backups that there are, and room for others as before.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may mount the small file system that this fills")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); errors.Is(err, unix.EPERM) {
		t.Skip("the small file system that this fills cannot be mounted: the right to (CAP_SYS_ADMIN) is missing")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@every 1h", "1")
		f.dir, f.opt.Place, f.opt.Dir, f.opt.Reserve = dir, Directory(dir), dir, 1
		f.run(t, 2*time.Minute)
		write := f.opt.Write
		f.opt.Write = func(_ context.Context, path string) (Contents, error) {
			return Contents{}, os.WriteFile(path, bytes.Repeat([]byte{1}, 2<<20), 0o600)
		}
		f.run(t, time.Hour+time.Second)
		if f.logged(unix.ENOSPC.Error()) == 0 || f.metric(t, "failures_total") == 0 || len(f.files(t)) != 1 {
			t.Errorf("%q", f.files(t))
		}
		f.opt.Write = write
		f.run(t, time.Hour+time.Second)
		if f.metric(t, "successes_total") != 2 || len(f.files(t)) != 1 {
			t.Errorf("then %q", f.files(t))
		}
	})
}
