package backup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// stubborn is a Place that does not remove.
type stubborn struct{ Directory }

func (stubborn) Remove(context.Context, string) error { return errors.New("not allowed") }

func TestRemovalRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@every 1h", "1")
		f.opt.Place = stubborn{Directory(f.dir)}
		f.run(t, 3*time.Hour+time.Second)
		if len(f.files(t)) != 4 || f.metric(t, "successes_total") != 4 || f.metric(t, "removal_failures_total") != 3 || f.logged("not allowed") != 3 {
			t.Errorf("%q, %v", f.files(t), f.metric(t, "removal_failures_total"))
		}
		f.opt.Place = Directory(f.dir)
		f.run(t, time.Hour+time.Second)
		if len(f.files(t)) != 1 {
			t.Errorf("then %q", f.files(t))
		}
	})
}

// TestDirectoryGone: a directory that cannot be written is a failure like any
// other.
func TestDirectoryGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@every 1h", "1")
		file := filepath.Join(f.dir, "file")
		f.put(t, "file")
		f.opt.Place, f.opt.Dir = Directory(file), file
		f.run(t, time.Second)
		if f.metric(t, "failures_total") != 1 || f.logged("the place for them cannot be used") != 1 {
			t.Error("nothing is said at the start")
		}
		f.run(t, time.Hour+time.Second)
		if f.metric(t, "failures_total") != 3 || f.logged("not a directory") == 0 {
			t.Error("nothing is said")
		}
	})
}

// unsure is a Place that does not know whether it has kept a backup, and does
// not remove any, until some time.
type unsure struct {
	Directory
	until time.Time
}

func (u unsure) Keep(ctx context.Context, path, name string) error {
	err := u.Directory.Keep(ctx, path, name)
	if time.Now().Before(u.until) {
		err = errors.Join(err, errors.New("not sure"))
	}
	return err
}

func (u unsure) Remove(ctx context.Context, name string) error {
	if time.Now().Before(u.until) {
		return errors.New("not allowed")
	}
	return u.Directory.Remove(ctx, name)
}

// TestFailedIsNone: what a failed try has left is neither taken for a backup nor
// counts as one, and is removed once that is possible.
func TestFailedIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@every 1h", "2")
		start := time.Now()
		good := name(ourID, 1, start.Add(-time.Hour))
		f.put(t, good)
		f.opt.Place = unsure{Directory(f.dir), start.Add(62 * time.Second)} // tries: after 60, 70 and 90 s
		go func() {
			time.Sleep(65 * time.Second)
			if age := f.metric(t, "age_seconds"); age != 3665 || len(f.files(t)) != 2 {
				t.Errorf("age %v, %q", age, f.files(t))
			}
		}()
		f.run(t, 2*time.Minute)
		if got := f.files(t); len(got) != 2 || got[0] != good || got[1] != name(ourID, 11, start.Add(70*time.Second)) {
			t.Errorf("%q", got)
		}
		if f.metric(t, "failures_total") != 1 || f.metric(t, "successes_total") != 1 {
			t.Errorf("%v failures", f.metric(t, "failures_total"))
		}
	})
}

// TestFailedStays: as long as it cannot be removed it is in nobody's way.
func TestFailedStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@every 1h", "2")
		start := time.Now()
		f.put(t, name(ourID, 1, start.Add(-time.Hour)))
		f.opt.Place = unsure{Directory(f.dir), start.Add(day)}
		f.run(t, 20*time.Minute) // tries: after 1 minute, and 10, 30, 70, 150, 310, 630 s later
		if n := f.metric(t, "failures_total"); n != 7 || f.metric(t, "removal_failures_total") != 6 || f.metric(t, "age_seconds") != 80*60 {
			t.Errorf("%v failures, age %v", n, f.metric(t, "age_seconds"))
		}
		if got := f.files(t); len(got) != 8 {
			t.Errorf("%q", got)
		}
	})
}

// TestDirectoryKeep: what is not durable under its name is not left there.
func TestDirectoryKeep(t *testing.T) {
	path := file(t, 8)
	t.Chdir(t.TempDir())
	// Names in "" are those in the working directory, but "" itself cannot be
	// synced.
	if err := Directory("").Keep(t.Context(), path, "backup"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Keep: %v", err)
	}
	if _, err := os.Stat("backup"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is there: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it was not renamed, so that nothing was tested: %v", err)
	}
}

// TestDirectoryTry leaves nothing, also of a process that was killed in it.
func TestDirectoryTry(t *testing.T) {
	dir := Directory(t.TempDir())
	for range 2 {
		if err := dir.Try(t.Context()); err != nil {
			t.Fatal(err)
		}
		if entries, err := os.ReadDir(string(dir)); err != nil || len(entries) != 0 {
			t.Errorf("%q is there, %v", entries, err)
		}
		if err := os.WriteFile(filepath.Join(string(dir), tryFile), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
