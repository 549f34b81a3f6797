package systems

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestChildrenTime(t *testing.T) {
	// A program's name may look like fields.
	stat := "42 (a) S 9 9) S 1 42 42 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 9 0 1 1 1"
	if got, err := childrenTime([]byte(stat)); err != nil || got != 150*time.Millisecond {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := childrenTime([]byte("42 (a) S 1")); err == nil {
		t.Error("too few fields are no error")
	}
}

func TestUsageOfAProcessThatEnded(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	if _, err := ReadUsage(pid); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its usage: %v", err)
	}
	var spent unix.Timespec
	if err := noProcess(unix.ClockGettime(processClock(pid), &spent)); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("its clock: %v", err)
	}
}

func TestReadUsage(t *testing.T) {
	before, err := ReadUsage(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); time.Since(began) < 10*time.Second; {
		after, err := ReadUsage(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		// Where temporary files are in memory, nothing is written.
		wrote := after.Written-before.Written >= 1<<20 || after.Written == 0
		if after.CPU-before.CPU >= 50*time.Millisecond && wrote {
			if after.RSS == 0 || after.PeakRSS < after.RSS/2 {
				t.Errorf("RSS %d, its peak %d", after.RSS, after.PeakRSS)
			}
			return
		}
	}
	t.Error("10 s of reading and a MiB written do not show")
}

func TestFind(t *testing.T) {
	found, err := Find([]string{"keelson", "etcd"})
	if err != nil || len(found) != 2 || found[0].Name != "etcd" {
		t.Errorf("%v, %v", found, err)
	}
	if _, err := Find([]string{"etcd", "zookeeper"}); err == nil {
		t.Error("an unknown system is no error")
	}
}

func TestFindByPattern(t *testing.T) {
	found, err := Find([]string{"*-pg3"})
	if err != nil || len(found) != 2 || found[0].Name != "kine-pg3" || found[1].Base != "kine-pg3" {
		t.Errorf("%v, %v", found, err)
	}
}

// Data is copied between systems with the same files, so that all must find it.
func TestLoaderHasTheSameFiles(t *testing.T) {
	for name, want := range map[string]string{
		"etcd": "etcd", "kine-full": "kine", "keelson": "keelson", "kine-pg-5ms": "kine-pg", "keelson-pg3": "keelson-pg", "keelson-cluster": "keelson-cluster", "etcd-cluster": "etcd-cluster",
	} {
		found, err := Find([]string{name})
		if err != nil {
			t.Fatal(err)
		}
		if loader := found[0].Loader().Name; loader != want {
			t.Errorf("%s loads for %s", loader, name)
		}
	}
}

// A node that joins again has the same addresses and no data.
func TestNodePlaces(t *testing.T) {
	found, err := Find([]string{"keelson-cluster"})
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{System: found[0]}
	s.places = s.nodePlaces(t.TempDir())
	seen := map[string]bool{}
	for i, p := range s.places {
		client, peer := s.NodeURLs(i)
		if seen[client] || seen[peer] || client == peer || seen[p.data] || p.node.initial != s.places[0].node.initial {
			t.Errorf("node %d: %+v", i, *p.node)
		}
		seen[client], seen[peer], seen[p.data] = true, true, true
	}
	p := s.places[1]
	if err := os.MkdirAll(p.data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.EmptyNode(1); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p.data); !errors.Is(err, os.ErrNotExist) || p.node.state != "existing" || s.places[0].node.state != "new" {
		t.Errorf("after EmptyNode: %v, %+v", err, *p.node)
	}
}

func TestUserVersion(t *testing.T) {
	page := make([]byte, 100)
	copy(page, "SQLite format 3\x00")
	page[63] = 7
	if version, err := userVersion(page); err != nil || version != 7 {
		t.Errorf("%d, %v", version, err)
	}
	if _, err := userVersion(make([]byte, 100)); err == nil {
		t.Error("no database is no error")
	}
}
