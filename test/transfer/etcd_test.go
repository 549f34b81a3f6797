package transfer

import (
	"bytes"
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/test/harness"
)

// fillEtcd gives a server a random history of all that etcd can do: changes of
// several keys at once, deletes of ranges, leases, and a compaction.
func fillEtcd(t *testing.T, c *clientv3.Client, seed uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 5))
	for id := range int64(3) {
		_, err := clientv3.RetryLeaseClient(c).LeaseGrant(t.Context(), &pb.LeaseGrantRequest{ID: 0x1000 + id, TTL: 1000 + id})
		check(t, err)
	}
	key := func() string { return fmt.Sprintf("%c\x00/%02d", 'a'+rune(rng.IntN(3)), rng.IntN(20)) }
	put := func(key string) clientv3.Op {
		if rng.IntN(4) == 0 {
			return clientv3.OpPut(key, "leased", clientv3.WithLease(clientv3.LeaseID(0x1000+rng.Int64N(2))))
		}
		return clientv3.OpPut(key, strings.Repeat("\xfe", rng.IntN(50)))
	}
	for i := range 200 {
		ops := []clientv3.Op{put(key())}
		switch rng.IntN(8) {
		case 0:
			ops = []clientv3.Op{clientv3.OpDelete(key())}
		case 1:
			from := key()
			ops = []clientv3.Op{clientv3.OpDelete(from, clientv3.WithRange(from+"\x01")), put("z-of-txn"), put("b-of-txn")}
		}
		resp, err := c.Txn(t.Context()).Then(ops...).Commit()
		check(t, err)
		if i == 120 {
			_, err := c.Compact(t.Context(), resp.Header.Revision-30, clientv3.WithCompactPhysical())
			check(t, err)
		}
	}
}

// nobody is where no server listens.
const nobody = "http://127.0.0.1:1"

// all is everything that a server says of its keys and leases.
func all(t *testing.T, c *clientv3.Client) string {
	t.Helper()
	resp, err := c.Get(t.Context(), "\x00", clientv3.WithFromKey())
	check(t, err)
	var b strings.Builder
	fmt.Fprintf(&b, "revision %d\n", resp.Header.Revision)
	for _, kv := range resp.Kvs {
		fmt.Fprintf(&b, "%q=%q create %d mod %d version %d lease %x\n", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease)
	}
	leases, err := c.Leases(t.Context())
	check(t, err)
	slices.SortFunc(leases.Leases, func(a, b clientv3.LeaseStatus) int { return cmp.Compare(a.ID, b.ID) })
	for _, l := range leases.Leases {
		ttl, err := c.TimeToLive(t.Context(), l.ID, clientv3.WithAttachedKeys())
		check(t, err)
		slices.SortFunc(ttl.Keys, bytes.Compare)
		fmt.Fprintf(&b, "lease %x ttl %d keys %q\n", l.ID, ttl.GrantedTTL, ttl.Keys)
	}
	return b.String()
}

// TestEtcd goes from an etcd that runs to keelson, to another etcd that runs,
// and by a snapshot to a third one.
func TestEtcd(t *testing.T) {
	first := harness.StartServer(t, harness.Etcd)
	from := connect(t, first.Endpoint)
	fillEtcd(t, from, 1)
	want := all(t, from)

	s := startKeelson(t, func(dir string) {
		fails(t, "--to is missing", "import", "--from", first.Endpoint)
		counted := keelson(t, "import", "--from", first.Endpoint, "--dry-run")
		imported := keelson(t, "import", "--from", first.Endpoint, "--to", dir)
		if !strings.Contains(counted, "3 leases") || !strings.Contains(imported, "3 leases") {
			t.Errorf("counted: %simported: %s", counted, imported)
		}
		keelson(t, "verify", first.Endpoint, dir)
	})
	if got := all(t, connect(t, s.Endpoint)); got != want {
		t.Errorf("keelson has\n%swant\n%s", got, want)
	}
	keelson(t, "verify", first.Endpoint, s.Endpoint)

	second := harness.StartServer(t, harness.Etcd)
	keelson(t, "export", "--from", s.Endpoint, "--to", second.Endpoint)
	keelson(t, "verify", "--values", s.Endpoint, second.Endpoint)
	fails(t, "nothing was written; --existing", "export", "--from", s.Endpoint, "--to", second.Endpoint)
	fails(t, "nothing was written; --existing", "export", "--from", nobody, "--to", second.Endpoint) // before anything is read
	keelson(t, "export", "--from", s.Endpoint, "--to", second.Endpoint, "--existing")

	file := filepath.Join(t.TempDir(), "snapshot.db")
	keelson(t, "export", "--from", s.Endpoint, "--to", file)
	fails(t, "is there already", "export", "--from", s.Endpoint, "--to", file)
	third := restoreEtcd(t, file)
	if got := all(t, connect(t, third.Endpoint)); got != want {
		t.Errorf("the last etcd has\n%swant\n%s", got, want)
	}
	keelson(t, "verify", first.Endpoint, third.Endpoint)
	for _, version := range []string{"3.5", "3.7"} { // of an etcd that is older, and of one as new
		keelson(t, "export", "--from", s.Endpoint, "--to", file, "--force", "--etcd-version", version)
		keelson(t, "verify", file, restoreEtcd(t, file).Endpoint)
	}
	check(t, third.Stop())
	keelson(t, "verify", file, filepath.Join(third.Dir, "data"))
}

// TestKilled: the data directory of an etcd that was killed is refused while its
// log has more than its database, and taken when etcd has been stopped.
func TestKilled(t *testing.T) {
	s := harness.StartServer(t, harness.Etcd, "--backend-batch-interval=1h", "--backend-batch-limit=1000000") // its database is behind
	c := connect(t, s.Endpoint)
	fillEtcd(t, c, 6)
	_, err := c.Put(t.Context(), "acknowledged", "")
	check(t, err)
	s.Kill()
	dir := filepath.Join(s.Dir, "data")
	link := filepath.Join(t.TempDir(), "db")
	check(t, os.Symlink(filepath.Join(dir, "member", "snap", "db"), link))
	for _, args := range [][]string{
		{"snapshot", "restore", link, "--skip-hash-check", "--dry-run"},
		{"import", "--from", dir, "--dry-run"}, {"snapshot", "restore", dir, "--skip-hash-check", "--dry-run"},
		{"export", "--from", filepath.Join(dir, "member", "snap", "db"), "--dry-run"},
	} {
		fails(t, "start it once more and stop it", args...)
	}
	s.Restart()
	check(t, s.Stop())
	to := filepath.Join(t.TempDir(), "data")
	keelson(t, "import", "--from", dir, "--to", to)
	keelson(t, "verify", dir, to)
	s.Restart()
	keelson(t, "verify", s.Endpoint, to)
}

// restoreEtcd starts an etcd on what etcdutl makes of a snapshot.
func restoreEtcd(t *testing.T, file string) *harness.Server {
	t.Helper()
	s := harness.NewServer(t, harness.Etcd, harness.Tool(t, "etcd"))
	peer := "unix://" + filepath.Join(s.Dir, "peer.sock")
	out, err := exec.Command(harness.Tool(t, "etcdutl"), "snapshot", "restore", file, "--data-dir", filepath.Join(s.Dir, "data"),
		"--initial-cluster", "default="+peer, "--initial-advertise-peer-urls", peer).CombinedOutput()
	if err != nil {
		t.Fatalf("etcdutl snapshot restore: %v\n%s", err, out)
	}
	s.Restart()
	return s
}

// TestPages: without a snapshot, the keys come with the revisions that they
// have, from etcd and from a kine that runs.
func TestPages(t *testing.T) {
	etcd := harness.StartServer(t, harness.Etcd)
	c := connect(t, etcd.Endpoint)
	fillEtcd(t, c, 2)
	s := startKeelson(t, func(dir string) {
		keelson(t, "import", "--no-snapshot", "--from", etcd.Endpoint, "--to", dir)
	})
	if got, want := all(t, connect(t, s.Endpoint)), all(t, c); got != want {
		t.Errorf("keelson has\n%swant\n%s", got, want)
	}

	k := startKine(t, "", "")
	w, want := fill(t, k, 1)
	fails(t, "--no-snapshot", "import", "--from", k.endpoint, "--dry-run")
	s = startKeelson(t, func(dir string) {
		keelson(t, "import", "--no-snapshot", "--from", k.endpoint, "--to", dir)
	})
	to := connect(t, s.Endpoint)
	if got := listing(t, to, 0); got != want.lists[0] {
		t.Errorf("from kine keelson has\n%swant\n%s", got, want.lists[0])
	}
	w.goesOn(to)
}

// TestVerify: a difference is printed, and is the exit code.
func TestVerify(t *testing.T) {
	a, b := harness.StartServer(t, harness.Etcd), harness.StartServer(t, harness.Keelson)
	x, y := connect(t, a.Endpoint), connect(t, b.Endpoint)
	fillEtcd(t, x, 3)
	fillEtcd(t, y, 3)
	keelson(t, "verify", a.Endpoint, b.Endpoint) // the same requests, the same data
	_, err := x.Put(t.Context(), "only", "here")
	check(t, err)
	_, err = y.Put(t.Context(), "z-of-txn", "other")
	check(t, err)
	out, err := tryKeelson(t, nil, "verify", a.Endpoint, b.Endpoint)
	if err == nil || err.Error() != "exit status 1" {
		t.Errorf("verify: %v", err)
	}
	for _, text := range []string{`"only": only in the first`, `"z-of-txn": value (`, "mod revision ", "2 differences"} {
		if !strings.Contains(out, text) {
			t.Errorf("there is no %q in\n%s", text, out)
		}
	}
	_, err = y.Put(t.Context(), "later", "")
	check(t, err)
	if out, err := tryKeelson(t, nil, "verify", "--show", "1", a.Endpoint, b.Endpoint); err == nil || !strings.Contains(out, "revision: ") || !strings.Contains(out, "more") {
		t.Errorf("verify: %v\n%s", err, out)
	}
}
