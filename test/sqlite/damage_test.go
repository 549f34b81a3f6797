package sqlite

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/test/harness"
	"github.com/keelson-io/keelson/test/internal/faults"
)

const damagedKeys = 300

func damagedValue(n int) string {
	return strings.Repeat(fmt.Sprintf("%d is the value of key %d; ", n*7919, n), 40)
}

// TestDamage flips bits and tears pages of the database, before a start and
// under the running server: it refuses to start and says why, refuses the
// requests that need what is damaged, or gives what was written; never
// anything else.
func TestDamage(t *testing.T) {
	srv := harness.StartServer(t, harness.Keelson, onSQLite...)
	c := newClient(t, srv)
	for n := range damagedKeys {
		if _, err := c.Put(t.Context(), fmt.Sprintf("key/%06d", n), damagedValue(n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := srv.Stop(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(srv.Dir, "data", "keelson.db")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	outcomes, rnd := map[string]int{}, faults.NewRandom(t)
	for round := range 18 {
		running := round%3 == 0
		damaged := bytes.Clone(whole)
		for range 1 + rnd.IntN(3) {
			damage(damaged, rnd)
		}
		content := damaged
		if running {
			content = whole
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := srv.TryRestart(); err != nil {
			if running || !strings.Contains(err.Error(), "corrupt") && !strings.Contains(err.Error(), "not a keelson database") {
				t.Fatalf("round %d: %v", round, err)
			}
			outcomes["does not start"]++
			continue
		}
		if _, err := get(t, c, "none"); err != nil { // the client has found back
			t.Fatal(err)
		}
		if running {
			overwrite(t, path, damaged)
		}
		outcomes[readDamaged(t, srv, c)]++
		srv.Kill() // no checkpoint: the damage is ours
		for _, suffix := range []string{"-wal", "-shm"} {
			if err := os.RemoveAll(path + suffix); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%v", outcomes)
	if outcomes["does not start"] == 0 || outcomes["some requests fail"] == 0 {
		t.Errorf("the damage was found by %v only", outcomes)
	}
}

// damage flips a bit, or tears a page: some of its sectors are those of
// another one, or empty.
func damage(b []byte, rnd *rand.Rand) {
	if rnd.IntN(2) == 0 {
		b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
		return
	}
	const page, sector = 4096, 512
	to, from := rnd.IntN(len(b)/page)*page, rnd.IntN(len(b)/page)*page
	other := make([]byte, page)
	if rnd.IntN(2) == 0 {
		copy(other, b[from:])
	}
	cut := sector * (1 + rnd.IntN(page/sector-1))
	copy(b[to+cut:to+page], other[cut:])
}

// overwrite changes a file in place.
func overwrite(t *testing.T, path string, content []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// readDamaged reads every key and says how that went.
func readDamaged(t *testing.T, srv *harness.Server, c *clientv3.Client) string {
	t.Helper()
	outcome := "nothing is noticed"
	for n := range damagedKeys {
		key := fmt.Sprintf("key/%06d", n)
		resp, err := c.Get(t.Context(), key)
		switch {
		case err != nil:
			outcome = "some requests fail"
		case len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != damagedValue(n) || resp.Kvs[0].ModRevision != int64(n+2):
			t.Errorf("%s is served as %.200v", key, resp.Kvs)
		}
	}
	select {
	case <-srv.Done():
		if log := srv.LogTail(5); !strings.Contains(log, "corrupt") {
			t.Errorf("the server ends with\n%s", log)
		}
		return "stops"
	default:
		return outcome
	}
}
