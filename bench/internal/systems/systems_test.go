package systems

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestCPUTime(t *testing.T) {
	// A program's name may look like fields.
	stat := "42 (a) S 9 9) S 1 42 42 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 9 0 1 1 1"
	for children, want := range map[bool]time.Duration{false: 2 * time.Second, true: 2150 * time.Millisecond} {
		got, err := cpuTime([]byte(stat), children)
		if err != nil || got != want {
			t.Errorf("%v, %v; want %v", got, err, want)
		}
	}
	if _, err := cpuTime([]byte("42 (a) S 1"), false); err == nil {
		t.Error("too few fields are no error")
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

// Data is copied from one kine to the other, so that both must find it.
func TestLoaderHasTheSameFiles(t *testing.T) {
	found, err := Find([]string{"kine-full"})
	if err != nil {
		t.Fatal(err)
	}
	if loader := found[0].Loader().Name; loader != "kine" {
		t.Errorf("%s loads for kine-full", loader)
	}
}
