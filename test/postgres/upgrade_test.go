package postgres

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/test/harness"
	"github.com/keelson-io/keelson/test/internal/faults"
)

// TestSchemas opens what each earlier version of the schema has left: all of
// these did the same.
func TestSchemas(t *testing.T) {
	dumps, err := filepath.Glob("testdata/schema-*.sql")
	if err != nil || len(dumps) == 0 {
		t.Fatalf("%d dumps: %v", len(dumps), err)
	}
	for _, dump := range dumps {
		t.Run(filepath.Base(dump), func(t *testing.T) {
			t.Parallel()
			sql, err := os.ReadFile(dump)
			if err != nil {
				t.Fatal(err)
			}
			db := harness.StartPostgres(t)
			query(t, db, string(sql))
			srv := startInstance(t, "a", db.URL(schema))
			testSchema(t, faults.NewClient(t, srv.Endpoint))
			srv.Restart() // what it has migrated to, it opens
			if got := show(t, faults.NewClient(t, srv.Endpoint), ""); !strings.Contains(got, "after=new 18") {
				t.Errorf("after a restart: %s", got)
			}
		})
	}
}

func testSchema(t *testing.T, c *clientv3.Client) {
	t.Helper()
	const want = `key/0=newest 17; key/1=value 3 12; leased= 14; pair/left=` + "\x00\xff" + ` 15; pair/right= 15`
	if got := show(t, c, ""); got != want {
		t.Errorf("it is opened as\n%q, want\n%q", got, want)
	}
	if got, want := show(t, c, "key/", clientv3.WithRev(10)), "key/0=value 2 8; key/1=value 2 9; key/2=value 2 10"; got != want {
		t.Errorf("at revision 10 it is %q, want %q", got, want)
	}
	if _, err := c.Get(t.Context(), "key/0", clientv3.WithRev(9)); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Errorf("a read below the compacted revision: %v", err)
	}
	lease, err := c.TimeToLive(t.Context(), 7, clientv3.WithAttachedKeys())
	if err != nil || lease.GrantedTTL != 3600 || len(lease.Keys) != 1 {
		t.Errorf("the lease is %+v, %v", lease, err)
	}
	resp, err := c.Put(t.Context(), "after", "new")
	if err != nil || resp.Header.Revision != 18 {
		t.Fatalf("a put: %v, %v", resp, err)
	}
	var revisions []int64
	for resp := range c.Watch(t.Context(), "", clientv3.WithPrefix(), clientv3.WithRev(11)) {
		for _, ev := range resp.Events {
			revisions = append(revisions, ev.Kv.ModRevision)
		}
		if n := len(revisions); n == 0 || revisions[n-1] == 18 {
			break
		}
	}
	if got := fmt.Sprint(revisions); got != "[11 12 13 14 15 15 16 17 18]" {
		t.Errorf("a watch from revision 11 sees %s", got)
	}
}

// show renders keys, values and revisions.
func show(t *testing.T, c *clientv3.Client, prefix string, opts ...clientv3.OpOption) string {
	t.Helper()
	resp, err := c.Get(t.Context(), prefix, append(opts, clientv3.WithPrefix())...)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, kv := range resp.Kvs {
		all = append(all, fmt.Sprintf("%s=%s %d", kv.Key, kv.Value, kv.ModRevision))
	}
	return strings.Join(all, "; ")
}

// TestNewerSchema: a schema that this version does not know is refused, with
// the reason, and is left as it is.
func TestNewerSchema(t *testing.T) {
	t.Parallel()
	db := harness.StartPostgres(t)
	srv := startInstance(t, "a", db.URL(schema))
	srv.Kill()
	query(t, db, "UPDATE keelson.version SET version = 1000")
	if err := srv.TryRestart(); err == nil || !strings.Contains(err.Error(), "newer keelson") {
		t.Errorf("it starts, or says: %v", err)
	}
	if got := query(t, db, "SELECT version FROM keelson.version"); got[0] != "1000" {
		t.Errorf("the version is now %v", got)
	}
}

// TestRollingUpgrade replaces one instance after the other while clients write,
// read and watch through whichever there is. KEELSON_PREVIOUS names the
// program that the instances are to begin with; without it they are replaced
// by the same.
func TestRollingUpgrade(t *testing.T) {
	t.Parallel()
	previous := os.Getenv("KEELSON_PREVIOUS")
	if previous == "" {
		previous = harness.KeelsonBinary(t)
	}
	c := &cluster{t: t, db: harness.StartPostgres(t)}
	for _, name := range []string{"a", "b"} {
		c.instances = append(c.instances, &instance{name: name, Server: harness.StartProgram(t, harness.Keelson, previous,
			"--name", name, "--datastore", c.db.URL(schema))})
	}
	keepLog(t, c.db)
	load := faults.StartLoad(t, faults.NewRandom(t))
	load.Add("either", c.endpoints()...)
	load.Add("the other", c.endpoints()...)
	progress := func() { load.Flows("by instances of two versions") }
	progress()
	for _, i := range c.instances {
		if err := i.Stop(); err != nil {
			t.Errorf("%s: %v", i.name, err)
		}
		progress() // the other one has it all
		i.Program = harness.KeelsonBinary(t)
		i.Restart()
		progress() // two versions are there, the first time
	}
	load.End()
	last, err := faults.NewClient(t, c.endpoints()...).Put(t.Context(), "last", "")
	if err != nil {
		t.Fatal(err)
	}
	load.Check(readLog(t, c.db), last.Header.Revision)
}
