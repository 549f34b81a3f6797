package cluster

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keelson-io/keelson/test/harness"
	"github.com/keelson-io/keelson/test/internal/faultdisk"
	"github.com/keelson-io/keelson/test/internal/faults"
)

// failure is a disk that fails in some way.
type failure struct {
	name  string
	err   syscall.Errno
	calls []uintptr
	files string // a part of their paths
	says  string // a regular expression of what the node says
}

var failures = []failure{
	{"a failed fsync of the raft log", syscall.EIO, faultdisk.Sync, "/data/raft/wal/", "write the raft log"},
	{"no space for the raft log", syscall.ENOSPC, faultdisk.Write, "/data/raft/wal/", "write the raft log"},
	{"a failed fsync of the database", syscall.EIO, faultdisk.Sync, "/data/keelson.db", "disk I/O error"},
	{"no space for the database", syscall.ENOSPC, faultdisk.Write, "/data/keelson.db", "free space on its file system"},
	{"a disk that is full", syscall.ENOSPC, faultdisk.Write, "/data/", "no space left on device|free space on its file system"}, // of the Raft log, or of the database
}

// TestDiskFails lets the disk of the leader and of another node fail in each of
// these ways while clients race through all nodes: the node ends and says why,
// the others go on, and it serves again once the disk is whole.
func TestDiskFails(t *testing.T) {
	t.Parallel() // it waits, mostly
	rnd := faults.NewRandom(t)
	var disks []*faultdisk.Disk
	for range 3 {
		disks = append(disks, faultdisk.New(t, harness.KeelsonBinary(t)))
	}
	c := startClusterOf(t, 3, func(i int) string { return disks[i].Program })
	load := c.startLoad(faults.StartLoad(t, rnd), c.nodes...)
	for range faults.Rounds(t) {
		for _, at := range rnd.Perm(len(failures)) {
			for _, ofLeader := range []bool{true, false} {
				load.Flows("before " + failures[at].name)
				victim := c.leader()
				if !ofLeader {
					victim = c.others(victim)[rnd.IntN(2)]
				}
				c.failDisk(victim, disks[indexOf(c.nodes, victim)], failures[at])
			}
		}
	}
	c.finish(load, c.nodes...)
}

func indexOf(nodes []*node, x *node) int {
	for i, other := range nodes {
		if other == x {
			return i
		}
	}
	return -1
}

func (c *cluster) failDisk(victim *node, disk *faultdisk.Disk, f failure) {
	t := c.t
	t.Helper()
	what := fmt.Sprintf("%s of %s", f.name, victim.name)
	began, before := time.Now(), len(victim.Log())
	disk.Fail(f.err, f.calls, func(path string) bool { return strings.Contains(path, f.files) })
	ballast := strings.Repeat("x", 64<<10) // so that the database is checkpointed soon
	for !victim.ends() {
		if time.Since(began) > faults.Patience {
			t.Fatalf("%s, %d times: it goes on:\n%s", what, disk.Failed(), victim.LogTail(10))
		}
		try, cancel := context.WithTimeout(t.Context(), time.Second)
		_, _ = c.others(victim)[0].client.Put(try, "ballast", ballast) // there may be no leader
		cancel()
	}
	if said := string(victim.Log()[before:]); !regexp.MustCompile(f.says).MatchString(said) || !strings.Contains(said, "stopped after a storage failure") {
		t.Errorf("%s: it says\n%s\nand not %q", what, said, f.says)
	}
	t.Logf("%s: it has ended after %v", what, time.Since(began).Round(time.Millisecond))
	c.serve(what+", without it,", c.others(victim)...)
	disk.Heal()
	victim.Restart()
	c.serve(what, c.nodes...)
}
