package cluster

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/test/internal/faults"
)

// dataFile returns the path of a file in the data directory of x.
func (x *node) dataFile(parts ...string) string {
	return filepath.Join(append([]string{x.Dir, "data"}, parts...)...)
}

// newest returns the last of the files that match a pattern, by name.
func newest(t *testing.T, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("there is no %s: %v", pattern, err)
	}
	return files[len(files)-1]
}

// edit changes the content of a file.
func edit(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// records returns where each record of a file of the Raft log begins, and where
// the last one ends: a length, whose highest byte says how it is padded, the
// record and the padding.
func records(wal []byte) []int {
	at := 0
	begins := []int{0}
	for at+8 <= len(wal) {
		length := int64(binary.LittleEndian.Uint64(wal[at:]))
		if length == 0 {
			break
		}
		at += 8 + int(uint64(length)&^(0xff<<56))
		if length < 0 {
			at += int(length>>56) & 7
		}
		begins = append(begins, at)
	}
	return begins
}

// sector is what a disk writes whole.
const sector = 512

// TestTornRaftLog kills the leader and another node while clients race through
// all nodes, and leaves the first sectors of one more record at the end of its
// Raft log, as a power cut during a write does: the node starts and nothing
// that was acknowledged is lost.
func TestTornRaftLog(t *testing.T) {
	t.Parallel() // it waits, mostly
	rnd := faults.NewRandom(t)
	c := startCluster(t, 3)
	load := c.startLoad(faults.StartLoad(t, rnd), c.nodes...)
	for range faults.Rounds(t) {
		for _, ofLeader := range []bool{true, false} {
			load.Flows("before a node is killed")
			victim := c.leader()
			if !ofLeader {
				victim = c.others(victim)[rnd.IntN(2)]
			}
			victim.Kill()
			edit(t, newest(t, victim.dataFile("raft", "wal", "*.wal")), func(wal []byte) []byte {
				begins := records(wal)
				return tear(wal, begins[len(begins)-1], rnd)
			})
			victim.Restart()
			c.serve("a torn raft log of "+victim.name, c.nodes...)
		}
	}
	c.finish(load, c.nodes...)
}

// tear leaves a part of a record at the end of a file of the Raft log.
func tear(wal []byte, end int, rnd *rand.Rand) []byte {
	const size = 8 * sector
	if len(wal) < end+2*size { // what was repaired before has no space for more
		wal = append(wal, make([]byte, 2*size)...)
	}
	binary.LittleEndian.PutUint64(wal[end:], size)
	written := sector - end%sector + rnd.IntN(7)*sector
	for i := 8; i < written; i++ {
		wal[end+i] = byte(rnd.Uint32())
	}
	return wal
}

const damagedKeys = 200

func damagedValue(n int) string {
	return strings.Repeat(fmt.Sprintf("%d is the value of key %d; ", n*7919, n), 40)
}

// damaged is a place where a bit flips.
type damaged struct {
	file string // the newest of its pattern, in the data directory
	// part returns the bytes one of which is damaged.
	part func(content []byte) []byte
	// refused is in how many of the rounds, at least, the node does not start.
	// There are bits that do not matter, or not yet: padding, and in the
	// database what nobody has asked for.
	refused int
	rounds  int
}

func whole(content []byte) []byte { return content }

var damages = []damaged{
	{"raft/wal/*.wal", func(wal []byte) []byte {
		begins := records(wal)
		return wal[:begins[len(begins)*3/4]] // what is damaged at the end might be torn
	}, 1, 6}, // where records are small, a fifth is padding
	{"raft/members-*.json", whole, 1, 3},
	{"raft/node.json", whole, 1, 3}, // the case of a field's name does not matter
	{"keelson.db", whole, 0, 5},
	{"keelson.db-wal", whole, 0, 3},
}

// TestDamage flips a bit in each of the files of a node that was killed: it
// does not start and says why, or refuses the requests that need what is
// damaged, or gives what was written; never anything else. The others go on.
// With its files as they were before, a node that did not start does; in place
// of another, a new one joins.
func TestDamage(t *testing.T) {
	t.Parallel() // it waits, mostly
	rnd := faults.NewRandom(t)
	c := startCluster(t, 3)
	written := make([]int64, damagedKeys) // the revision of each
	for n := range damagedKeys {
		faults.Retry(t, "a write", func(ctx context.Context) error {
			resp, err := c.nodes[n%3].client.Put(ctx, fmt.Sprintf("key/%06d", n), damagedValue(n))
			if err == nil {
				written[n] = resp.Header.Revision
			}
			return err
		})
	}
	members := c.nodes
	victim := c.others(c.leader())[rnd.IntN(2)]
	saved := victim.save(t)
	for range faults.Rounds(t) {
		for _, d := range damages {
			outcomes := map[string]int{}
			for range d.rounds {
				outcome := c.startDamaged(victim, d, written, rnd)
				outcomes[outcome]++
				victim.Kill()
				rest := without(members, victim)
				if outcome == "does not start" {
					victim.load(t, saved)
					continue
				}
				// It has promised to keep what is not in the old files.
				c.remove(rest, victim)
				victim = c.join(rest, func(*node) bool { return false })
				members = append(rest, victim)
				saved = victim.save(t)
			}
			c.serve(d.file+" was damaged, without "+victim.name, without(members, victim)...)
			if t.Logf("%s is damaged: %v", d.file, outcomes); outcomes["does not start"] < d.refused {
				t.Errorf("%s is damaged, and the node starts too often", d.file)
			}
		}
	}
	victim.Restart()
	c.serve("all was repaired", members...)
	c.sameData(members...)
}

// save kills a node that has everything and returns a copy of its files.
func (x *node) save(t *testing.T) string {
	t.Helper()
	var last int64
	for range 20 { // its logs have something
		faults.Retry(t, "a write", func(ctx context.Context) error {
			resp, err := x.client.Put(ctx, "more", "")
			if err == nil {
				last = resp.Header.Revision
			}
			return err
		})
	}
	// The database follows within 50 ms, which nothing outside tells while the node
	// runs; until then only the leader notices that the end of the Raft log is lost.
	for deadline := time.Now().Add(faults.Patience); ; x.Restart() {
		time.Sleep(200 * time.Millisecond)
		x.Kill()
		wal, err := os.Stat(x.dataFile("keelson.db-wal"))
		revision := x.databaseEnd(t)
		if err == nil && wal.Size() > 0 && revision >= last {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the database of %s ends at revision %d and should at %d: %v, %v", x.name, revision, last, wal, err)
		}
	}
	saved := x.dataFile() + ".saved"
	copyAll(t, x.dataFile(), saved)
	return saved
}

// load puts a copy of the files of a node in their place.
func (x *node) load(t *testing.T, saved string) {
	t.Helper()
	if err := os.RemoveAll(x.dataFile()); err != nil {
		t.Fatal(err)
	}
	copyAll(t, saved, x.dataFile())
}

// copyAll copies a directory.
func copyAll(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", "--sparse=always", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}

// startDamaged flips a bit, starts the node and says what it does.
func (c *cluster) startDamaged(victim *node, d damaged, written []int64, rnd *rand.Rand) string {
	t := c.t
	t.Helper()
	var place int
	var bit byte = 1 << rnd.IntN(8)
	file := newest(t, victim.dataFile(strings.Split(d.file, "/")...))
	edit(t, file, func(content []byte) []byte {
		place = rnd.IntN(len(d.part(content)))
		content[place] ^= bit
		return content
	})
	said := len(victim.Log())
	if err := victim.TryRestart(); err != nil {
		if log := string(victim.Log()[said:]); !strings.Contains(log, "corrupt") && !strings.Contains(log, "belongs to") && !strings.Contains(log, "is not one of its cluster") {
			t.Errorf("bit %#x of byte %d of %s is damaged: it ends with\n%s", bit, place, file, victim.LogTail(3))
		}
		return "does not start"
	}
	outcome := c.readDamaged(victim, written)
	t.Logf("bit %#x of byte %d of %s is damaged: it %s", bit, place, filepath.Base(file), outcome)
	return outcome
}

// readDamaged reads every key through a node.
func (c *cluster) readDamaged(x *node, written []int64) string {
	outcome := "notices nothing"
	for n := range damagedKeys {
		key := fmt.Sprintf("key/%06d", n)
		try, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
		resp, err := x.client.Get(try, key, clientv3.WithSerializable())
		cancel()
		switch {
		case err != nil && !x.ends():
			outcome = "refuses some requests"
		case err != nil:
			return "stops"
		case len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != damagedValue(n) || resp.Kvs[0].ModRevision != written[n]:
			c.t.Errorf("%s is served as %.200v", key, resp.Kvs)
		}
	}
	return outcome
}

// ends reports whether the process has ended.
func (x *node) ends() bool {
	select {
	case <-x.Done():
		return true
	default:
		return false
	}
}
