package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/test/harness"
	"github.com/keelson-io/keelson/test/internal/faults"
)

type kv = mvccpb.KeyValue

// etcdWithHistory starts an etcd, fills it, and saves a snapshot with etcdctl.
func etcdWithHistory(t *testing.T) (srv *harness.Server, h history, file string) {
	t.Helper()
	srv = harness.StartServer(t, harness.Etcd)
	h = fill(t, connect(t, srv))
	file = filepath.Join(t.TempDir(), "etcd.db")
	run(t, harness.Tool(t, "etcdctl"), "--endpoints", srv.Endpoint, "snapshot", "save", file)
	return srv, h, file
}

// dataDir is where a keelson that is yet to be started has its data.
func dataDir(srv *harness.Server) string { return filepath.Join(srv.Dir, "data") }

func newKeelson(t *testing.T, args ...string) *harness.Server {
	t.Helper()
	return harness.NewServer(t, harness.Keelson, harness.KeelsonBinary(t), args...)
}

func TestSQLite(t *testing.T) {
	t.Parallel()
	_, h, file := etcdWithHistory(t)
	out := keelson(t, "snapshot", "restore", file, "--dry-run", "--data-dir", t.TempDir())
	if want := fmt.Sprintf("revision %d, compacted %d", h.current, h.compacted); !strings.Contains(out, want) {
		t.Errorf("%s; want %q", out, want)
	}
	srv := newKeelson(t, onSQLite...)
	out = keelson(t, "snapshot", "restore", file, "--data-dir", dataDir(srv))
	got, err := h.client.Get(t.Context(), "", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("revision %d, compacted %d, %d keys", h.current, h.compacted, got.Count); !strings.Contains(out, want) {
		t.Errorf("%s; want %q", out, want)
	}
	srv.Restart()
	h.same(t, srv)

	// Back into a file of keelson's, with the put that came after it.
	h.client, h.current = connect(t, srv), h.current+1
	if err := srv.Stop(); err != nil {
		t.Fatal(err)
	}
	saved := filepath.Join(t.TempDir(), "keelson.db")
	keelson(t, "snapshot", "save", saved, "--data-dir", dataDir(srv))
	again := newKeelson(t, onSQLite...)
	keelson(t, "snapshot", "restore", saved, "--data-dir", dataDir(again))
	again.Restart()
	srv.Restart()
	h.same(t, again)
}

// TestDatabaseFile restores the file that etcd has in its data directory, once
// it has ended.
func TestDatabaseFile(t *testing.T) {
	t.Parallel()
	etcd, h, _ := etcdWithHistory(t)
	if err := etcd.Stop(); err != nil {
		t.Fatal(err)
	}
	db := filepath.Join(dataDir(etcd), "member", "snap", "db")
	out, err := try(t, nil, harness.KeelsonBinary(t), "snapshot", "restore", db, "--dry-run")
	if err == nil || !strings.Contains(out, "--skip-hash-check") {
		t.Errorf("without a checksum: %v, %s", err, out)
	}
	srv := newKeelson(t, onSQLite...)
	keelson(t, "snapshot", "restore", db, "--skip-hash-check", "--data-dir", dataDir(srv))
	srv.Restart()
	etcd.Restart()
	h.same(t, srv)
}

func TestPostgres(t *testing.T) {
	t.Parallel()
	_, h, file := etcdWithHistory(t)
	db := harness.StartPostgres(t)
	url := db.URL("restored")
	if out, err := try(t, []string{"KEELSON_DATASTORE=" + url}, harness.KeelsonBinary(t), "snapshot", "restore", file); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	srv := newKeelson(t, "--datastore", url)
	srv.Restart()
	h.same(t, srv)
	out, err := try(t, nil, harness.KeelsonBinary(t), "snapshot", "restore", file, "--datastore", url)
	if err == nil || !strings.Contains(out, "has data already") {
		t.Errorf("over data: %v, %s", err, out)
	}

	// Under a server that runs: it goes on with what was restored, and the
	// revisions that its clients have seen are compacted.
	c := connect(t, srv)
	before, err := c.Put(t.Context(), "/later", "v")
	if err != nil {
		t.Fatal(err)
	}
	keelson(t, "snapshot", "restore", file, "--datastore", url, "--force")
	got, err := c.Get(t.Context(), "/later")
	if err != nil || len(got.Kvs) != 0 || got.Header.Revision <= before.Header.Revision {
		t.Errorf("a key that was replaced: %v, %v", got, err)
	}
	watch := c.Watch(t.Context(), "", clientv3.WithPrefix(), clientv3.WithRev(before.Header.Revision))
	if resp := <-watch; !errors.Is(resp.Err(), rpctypes.ErrCompacted) {
		t.Errorf("a watch of what was replaced: %v", resp)
	}
}

// cluster starts a node for each directory, with flags that make them a cluster
// if they are new.
func cluster(t *testing.T, names ...string) []*harness.Server {
	t.Helper()
	var nodes []*harness.Server
	for _, name := range names {
		nodes = append(nodes, newKeelson(t, append(onSQLite, clusterFlags(t, name, names)...)...))
	}
	return nodes
}

var peers = map[string]string{}

func clusterFlags(t *testing.T, name string, names []string) []string {
	t.Helper()
	var initial []string
	for _, n := range names {
		if peers[t.Name()+n] == "" {
			peers[t.Name()+n] = "unix://" + filepath.Join(harness.TempDir(t), n+".sock")
		}
		initial = append(initial, n+"="+peers[t.Name()+n])
	}
	return []string{"--name", name, "--initial-cluster", strings.Join(initial, ",")}
}

// TestFirstNode makes a restored directory the first node of a cluster.
func TestFirstNode(t *testing.T) {
	_, h, file := etcdWithHistory(t)
	nodes := cluster(t, "a")
	keelson(t, "snapshot", "restore", file, "--data-dir", dataDir(nodes[0]))
	nodes[0].Restart()
	c := connect(t, nodes[0])
	flags := clusterFlags(t, "b", []string{"a", "b"})
	added, err := c.MemberAddAsLearner(t.Context(), []string{peers[t.Name()+"b"]})
	if err != nil {
		t.Fatal(err)
	}
	second := newKeelson(t, append(append(onSQLite, flags...), "--initial-cluster-state", "existing")...)
	second.Restart()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	for {
		_, err := c.MemberPromote(ctx, added.Member.ID)
		if err == nil {
			break
		}
		if !errors.Is(err, rpctypes.ErrMemberLearnerNotReady) {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	h.same(t, second)
}

// TestThreeNodes restores the same snapshot on each node of a new cluster.
func TestThreeNodes(t *testing.T) {
	_, h, file := etcdWithHistory(t)
	names := []string{"a", "b", "c"}
	nodes := cluster(t, names...)
	for i, name := range names {
		keelson(t, append([]string{"snapshot", "restore", file, "--data-dir", dataDir(nodes[i])}, clusterFlags(t, name, names)...)...)
	}
	startAll(t, nodes)
	h.same(t, nodes[1])
	c := faults.NewClient(t, nodes[0].Endpoint)
	var put *clientv3.PutResponse
	faults.Retry(t, "a write", func(ctx context.Context) (err error) {
		put, err = c.Put(ctx, "/later", "v")
		return err
	})
	nodes[0].Kill()
	got, err := connect(t, nodes[2]).Get(t.Context(), "/later")
	if err != nil || len(got.Kvs) != 1 || got.Header.Revision != put.Header.Revision {
		t.Errorf("without one of them: %v, %v", got, err)
	}

	// A node with other data is a stranger to them.
	other := filepath.Join(t.TempDir(), "other.db")
	run(t, harness.Tool(t, "etcdctl"), "--endpoints", h.client.Endpoints()[0], "put", "/one", "more")
	run(t, harness.Tool(t, "etcdctl"), "--endpoints", h.client.Endpoints()[0], "snapshot", "save", other)
	keelson(t, append([]string{"snapshot", "restore", other, "--force", "--data-dir", dataDir(nodes[0])}, clusterFlags(t, "a", names)...)...)
	stranger := harness.StartProcess(t, t.TempDir(), "stranger", harness.KeelsonBinary(t), append([]string{
		"--data-dir", dataDir(nodes[0]), "--listen-client-urls", nodes[0].Endpoint}, clusterFlags(t, "a", names)...)...)
	const refusal = "this node belongs to cluster"
	err = stranger.WaitReady(timeout, func(context.Context) error {
		if !strings.Contains(string(stranger.Log())+string(nodes[1].Log())+string(nodes[2].Log()), refusal) {
			return errors.New("nobody has said that the node is a stranger")
		}
		return nil
	})
	if err != nil {
		t.Errorf("%v:\n%s", err, stranger.Log())
	}
}

func startAll(t *testing.T, nodes []*harness.Server) {
	t.Helper()
	errs := make(chan error)
	for _, n := range nodes {
		go func() { errs <- n.TryRestart() }()
	}
	for range nodes {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
}

// TestBump compares the effect of --bump-revision and --mark-compacted with
// that of etcdutl. HashKV is another one: etcd's is also of the key without a name
// that etcdutl leaves at the raised revision.
func TestBump(t *testing.T) {
	t.Parallel()
	_, h, file := etcdWithHistory(t)
	want, err := h.client.Get(t.Context(), "", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	flags := []string{"--bump-revision", "1000000", "--mark-compacted"}
	ours := newKeelson(t, onSQLite...)
	keelson(t, append([]string{"snapshot", "restore", file, "--data-dir", dataDir(ours)}, flags...)...)
	theirs := harness.NewServer(t, harness.Etcd, harness.Tool(t, "etcd"))
	peer := "unix://" + filepath.Join(theirs.Dir, "peer.sock")
	run(t, harness.Tool(t, "etcdutl"), append([]string{"snapshot", "restore", file, "--data-dir", dataDir(theirs),
		"--initial-advertise-peer-urls", peer, "--initial-cluster", "default=" + peer}, flags...)...)
	for _, srv := range []*harness.Server{theirs, ours} {
		srv.Restart()
		c := connect(t, srv)
		got, err := c.Get(t.Context(), "", clientv3.WithPrefix())
		if err != nil || got.Header.Revision != h.current+1_000_000 || len(got.Kvs) != len(want.Kvs) {
			t.Errorf("%s: %d keys of revision %d, %v; want %d of %d", srv.Backend, len(got.Kvs), got.Header.Revision, err, len(want.Kvs), h.current+1_000_000)
		}
		if !slices.EqualFunc(want.Kvs, got.Kvs, func(a, b *kv) bool { return proto.Equal(a, b) }) {
			t.Errorf("%s has %v\nwant %v", srv.Backend, got.Kvs, want.Kvs)
		}
		if got, want := leases(t.Context(), t, c), leases(t.Context(), t, h.client); got != want {
			t.Errorf("%s has the leases %s, want %s", srv.Backend, got, want)
		}
		_, err = c.Get(t.Context(), "x", clientv3.WithRev(h.current+999_999))
		if !errors.Is(err, rpctypes.ErrCompacted) {
			t.Errorf("%s: keys before the raised revision: %v", srv.Backend, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		resp := <-c.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(h.current+1))
		if !errors.Is(resp.Err(), rpctypes.ErrCompacted) || resp.CompactRevision != h.current+1_000_000 {
			t.Errorf("%s: watch: %v, compact revision %d, want %d", srv.Backend, resp.Err(), resp.CompactRevision, h.current+1_000_000)
		}
		cancel()
		put, err := c.Put(t.Context(), "/next", "v")
		if err != nil || put.Header.Revision != h.current+1_000_001 {
			t.Errorf("%s: the next put: %v, %v", srv.Backend, put, err)
		}
	}

	// What etcd has written there is restored as well.
	again := filepath.Join(t.TempDir(), "again.db")
	run(t, harness.Tool(t, "etcdctl"), "--endpoints", theirs.Endpoint, "snapshot", "save", again)
	second := newKeelson(t, onSQLite...)
	keelson(t, "snapshot", "restore", again, "--data-dir", dataDir(second))
	second.Restart()
	got, err := connect(t, second).Get(t.Context(), "", clientv3.WithPrefix())
	if err != nil || got.Header.Revision != h.current+1_000_001 || len(got.Kvs) != len(want.Kvs)+1 {
		t.Errorf("restored from etcd with a raised revision: %d keys of revision %d, %v", len(got.Kvs), got.Header.Revision, err)
	}
	_ = os.Remove(again)
}

// TestStatus: etcdutl and keelson say the same of a file.
func TestStatus(t *testing.T) {
	t.Parallel()
	_, _, file := etcdWithHistory(t)
	for _, format := range []string{"simple", "fields", "json"} {
		want := strings.TrimSpace(run(t, harness.Tool(t, "etcdutl"), "snapshot", "status", file, "-w", format))
		got := keelson(t, "snapshot", "status", file, "-w", format)
		if format == "json" {
			want = strings.TrimSuffix(want, "}")
		}
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s:\n%s\nwant it to begin with\n%s", format, got, want)
		}
	}
}
