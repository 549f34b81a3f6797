package embed_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/pkg/drivers/postgres/pgtest"
)

// execSQL runs SQL as a person with a shell would.
func execSQL(t *testing.T, db *pgtest.Server, sql string) {
	t.Helper()
	c, err := pgx.Connect(context.Background(), db.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	if _, err := c.Exec(context.Background(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// startModest starts an instance whose role has only the rights that it needs
// and may lose them.
func startModest(t *testing.T, db *pgtest.Server, name string) *instance {
	t.Helper()
	execSQL(t, db, fmt.Sprintf(`CREATE ROLE modest LOGIN PASSWORD '%s'; GRANT USAGE ON SCHEMA keelson TO modest;
		GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA keelson TO modest`, pgtest.Password))
	return startInstanceOn(t, strings.Replace(db.URL("postgres"), pgtest.User+":", "modest:", 1), name)
}

// fallBack lets the database forget the newest batches, of one record each, as
// a failover to a standby that was behind does; puts are how many of them have
// a revision.
func fallBack(t *testing.T, db *pgtest.Server, batches, puts int) {
	t.Helper()
	execSQL(t, db, fmt.Sprintf(`BEGIN; SELECT FROM keelson.head FOR UPDATE;
		DELETE FROM keelson.log WHERE position > (SELECT position FROM keelson.head) - %[1]d;
		UPDATE keelson.head SET position = position - %[1]d, seq = seq - %[1]d, revision = revision - %[2]d,
			batch = (SELECT substr(batch, 1, 16) FROM keelson.log WHERE position = head.position - %[1]d); COMMIT`, batches, puts))
}

// httpGet returns the status and body of a page of i.
func httpGet(t *testing.T, i *instance, path string) (code int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, i.Endpoint()+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(page)
}

// metric returns the line of a metric without labels.
func metric(t *testing.T, i *instance, name string) string {
	t.Helper()
	_, body := httpGet(t, i, "/metrics")
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("there is no metric %s", name)
	return ""
}

// waitLog waits until i has logged text.
func waitLog(ctx context.Context, t *testing.T, i *instance, text string) {
	t.Helper()
	for {
		for _, e := range i.logs.AllEntries() {
			if strings.Contains(e.Message, text) {
				return
			}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%q was not logged", text)
		}
	}
}

const logOpenAgain = "the data is open again"

// checkShows reads a watch until it has shown the keys, in their order.
func checkShows(t *testing.T, name string, watch clientv3.WatchChan, keys ...string) {
	t.Helper()
	for len(keys) > 0 {
		resp, ok := <-watch
		if !ok || resp.Canceled {
			t.Fatalf("%s: the watch ends with %v and did not show %q", name, resp.Err(), keys)
		}
		for _, event := range resp.Events {
			if len(keys) == 0 || string(event.Kv.Key) != keys[0] {
				t.Fatalf("%s: the watch shows %s, want %q", name, event.Kv, keys)
			}
			keys = keys[1:]
		}
	}
}

// checkCompacted reads a watch, which must end since what it needs is
// compacted, and must not show anything before.
func checkCompacted(t *testing.T, name string, watch clientv3.WatchChan, seen int64) {
	t.Helper()
	for resp := range watch {
		if len(resp.Events) > 0 {
			t.Fatalf("%s: the watch shows %v", name, resp.Events)
		}
		if resp.Canceled {
			if !errors.Is(resp.Err(), rpctypes.ErrCompacted) || resp.CompactRevision <= seen {
				t.Fatalf("%s: the watch ends with %v, compacted at %d; want a compaction after %d", name, resp.Err(), resp.CompactRevision, seen)
			}
			return
		}
	}
	t.Fatalf("%s: the watch ended without a reason", name)
}

// TestPostgresLostCommits: after a failover that lost acknowledged writes all
// instances go on without a restart, at a revision beyond all that clients
// have seen; watches end with the reason that makes clients list anew.
func TestPostgresLostCommits(t *testing.T) {
	t.Parallel()
	db := pgtest.ForTest(t)
	a, b := startInstance(t, db, "a"), startInstance(t, db, "b")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	watchA, watchB := a.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(1)), b.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(1))
	idle := b.Watch(ctx, "idle", clientv3.WithRev(1_000)) // of the future
	var keys []string
	var seen int64
	for i := range 10 {
		keys = append(keys, fmt.Sprint(i))
		put, err := a.Put(ctx, keys[i], "v")
		if err != nil {
			t.Fatal(err)
		}
		seen = put.Header.Revision
	}
	lease, err := a.Grant(ctx, 60)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := a.KeepAlive(ctx, lease.ID)
	if err != nil {
		t.Fatal(err)
	}
	<-kept
	checkShows(t, "a", watchA, keys...)
	checkShows(t, "b", watchB, keys...)
	fallBack(t, db, 4, 3) // the grant is a batch as well

	waitLog(ctx, t, a, logOpenAgain)
	waitLog(ctx, t, b, logOpenAgain)
	checkCompacted(t, "a", watchA, seen)
	checkCompacted(t, "b", watchB, seen)
	checkCompacted(t, "of the future", idle, seen)
	for _, i := range []*instance{a, b} {
		got, err := i.Get(ctx, "", clientv3.WithPrefix())
		if err != nil || len(got.Kvs) != 7 || got.Header.Revision < seen+1000 {
			t.Fatalf("Get: %v, %v; want 7 keys at a revision far beyond %d", got, err, seen)
		}
		if code, body := httpGet(t, i, "/readyz"); code != http.StatusOK {
			t.Errorf("/readyz: %d, %s", code, body)
		}
		if n := metric(t, i, "keelson_reopens_total"); n != "1" {
			t.Errorf("keelson_reopens_total is %s", n)
		}
		if err := i.Err(); err != nil {
			t.Error(err)
		}
	}
	// The instances go on with each other.
	after := b.Watch(ctx, "", clientv3.WithPrefix())
	put, err := a.Put(ctx, "after", "v")
	if err != nil {
		t.Fatal(err)
	}
	if resp := <-after; len(resp.Events) != 1 || resp.Events[0].Kv.ModRevision != put.Header.Revision {
		t.Errorf("watch after it: %v", resp)
	}
	if _, err := b.KeepAliveOnce(ctx, lease.ID); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Errorf("a lease that was lost is kept alive: %v", err)
	}
	if granted, err := b.Grant(ctx, 60); err != nil {
		t.Error(err)
	} else if _, err := a.KeepAliveOnce(ctx, granted.ID); err != nil {
		t.Errorf("a new lease: %v", err)
	}
}

// TestPostgresOvertaken: an instance that was cut off while others compacted
// what it had not read goes on without a restart, and its watches end rather
// than go on with a gap.
func TestPostgresOvertaken(t *testing.T) {
	t.Parallel()
	db := pgtest.ForTest(t)
	a := startInstance(t, db, "a")
	b := startModest(t, db, "b")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if _, err := a.Put(ctx, "k", "0"); err != nil {
		t.Fatal(err)
	}
	watch := b.Watch(ctx, "k", clientv3.WithRev(1))
	if resp := <-watch; len(resp.Events) != 1 {
		t.Fatalf("watch: %v", resp)
	}
	execSQL(t, db, "REVOKE USAGE ON SCHEMA keelson FROM modest")
	var last int64
	for i := range 5 {
		put, err := a.Put(ctx, "k", fmt.Sprint(i+1))
		if err != nil {
			t.Fatal(err)
		}
		last = put.Header.Revision
	}
	// As if b had been silent for long enough.
	execSQL(t, db, "UPDATE keelson.reader SET at = now() - interval '1 minute' WHERE seq = (SELECT min(seq) FROM keelson.reader)")
	if _, err := a.Compact(ctx, last, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	execSQL(t, db, "GRANT USAGE ON SCHEMA keelson TO modest")
	waitLog(ctx, t, b, logOpenAgain)
	checkCompacted(t, "b", watch, last-1)
	if got, err := b.Get(ctx, "k"); err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "5" || got.Header.Revision != last {
		t.Errorf("Get: %v, %v, want 5 at revision %d", got, err, last)
	}
	if n := metric(t, a, "keelson_reopens_total"); n != "0" {
		t.Errorf("keelson_reopens_total of the other instance is %s", n)
	}
}

// TestPostgresReopening: while the data cannot be opened again requests get
// Unavailable after a bounded time, and the server says that it is not ready;
// later it goes on by itself.
func TestPostgresReopening(t *testing.T) {
	t.Parallel()
	db := pgtest.ForTest(t)
	a := startInstance(t, db, "a")
	b := startModest(t, db, "b")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for range 2 {
		if _, err := a.Put(ctx, "k", ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Get(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	execSQL(t, db, "REVOKE SELECT ON keelson.version FROM modest")
	fallBack(t, db, 1, 1)
	waitLog(ctx, t, b, "the data cannot be opened again")

	start := time.Now()
	failed := make(chan error)
	for _, call := range []func() error{
		func() error { _, err := b.Put(ctx, "k", ""); return err },
		func() error { _, err := b.Txn(ctx).Then(clientv3.OpDelete("k")).Commit(); return err },
		func() error { _, err := b.KeepAliveOnce(ctx, 7); return err },
	} {
		go func() { failed <- call() }()
	}
	if code, body := httpGet(t, b, "/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("/readyz: %d, %s", code, body)
	}
	if code, body := httpGet(t, b, "/health"); code != http.StatusServiceUnavailable {
		t.Errorf("/health: %d, %s", code, body)
	}
	for range 3 {
		if err := <-failed; !errors.Is(err, rpctypes.ErrNoLeader) {
			t.Errorf("a request: %v, want Unavailable: no leader", err)
		}
	}
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("that took %v", took)
	}
	waiting := make(chan error)
	go func() { _, err := b.Put(ctx, "waiting", ""); waiting <- err }()
	execSQL(t, db, "GRANT SELECT ON keelson.version TO modest")
	if err := <-waiting; err != nil && !errors.Is(err, rpctypes.ErrNoLeader) {
		t.Errorf("a request that waits: %v", err)
	}
	waitLog(ctx, t, b, logOpenAgain)
	if _, err := b.Put(ctx, "k", ""); err != nil {
		t.Error(err)
	}
	if code, body := httpGet(t, b, "/readyz"); code != http.StatusOK {
		t.Errorf("/readyz: %d, %s", code, body)
	}
}

// TestPostgresStopReopening: a server whose data cannot be opened again can be
// stopped.
func TestPostgresStopReopening(t *testing.T) {
	t.Parallel()
	db := pgtest.ForTest(t)
	a := startInstance(t, db, "a")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for range 2 {
		if _, err := a.Put(ctx, "k", ""); err != nil {
			t.Fatal(err)
		}
	}
	execSQL(t, db, "ALTER TABLE keelson.version RENAME TO elsewhere")
	fallBack(t, db, 1, 1)
	waitLog(ctx, t, a, "the data cannot be opened again")
	start := time.Now()
	if err := a.Server.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the stop took %v", took)
	}
}

// TestPostgresLeaderLost: a watch that requires a leader does not stay silent
// while the database does not answer: its client is told to go elsewhere.
func TestPostgresLeaderLost(t *testing.T) {
	t.Parallel()
	db := pgtest.ForTest(t)
	a := startInstance(t, db, "a")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if n := metric(t, a, "etcd_server_has_leader"); n != "1" {
		t.Errorf("etcd_server_has_leader is %s", n)
	}
	required, plain := a.Watch(clientv3.WithRequireLeader(ctx), "k", clientv3.WithCreatedNotify()), a.Watch(ctx, "k", clientv3.WithCreatedNotify())
	<-required
	<-plain
	if err := db.Kill(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	resp := <-required
	if !resp.Canceled || !errors.Is(resp.Err(), rpctypes.ErrNoLeader) {
		t.Errorf("the watch ends with %v, want no leader", resp.Err())
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("that took %v", took)
	}
	if n := metric(t, a, "etcd_server_has_leader"); n != "0" {
		t.Errorf("etcd_server_has_leader is %s", n)
	}
	if got, err := a.Status(ctx, a.Endpoint()); err != nil || got.Leader != 0 || len(got.Errors) != 1 {
		t.Errorf("Status: %v, %v, want no leader", got, err)
	}
	if resp := <-a.Watch(clientv3.WithRequireLeader(ctx), "k"); !errors.Is(resp.Err(), rpctypes.ErrNoLeader) {
		t.Errorf("another watch ends with %v, want no leader", resp.Err())
	}
	if err := db.Start(); err != nil {
		t.Fatal(err)
	}
	waitLog(ctx, t, a, "the database answers again")
	required = a.Watch(clientv3.WithRequireLeader(ctx), "k", clientv3.WithCreatedNotify())
	<-required
	if _, err := a.Put(ctx, "k", ""); err != nil {
		t.Fatal(err)
	}
	for name, watch := range map[string]clientv3.WatchChan{"without": plain, "with": required} {
		if resp := <-watch; len(resp.Events) != 1 {
			t.Errorf("the watch %s a leader: %v, %v", name, resp.Events, resp.Err())
		}
	}
}

// TestPostgresReadOnly: while the primary is read-only requests get Unavailable
// after a bounded time, the log says why, and it ends by itself.
func TestPostgresReadOnly(t *testing.T) {
	t.Parallel()
	db := pgtest.ForTest(t)
	a := startInstance(t, db, "a")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	execSQL(t, db, "ALTER DATABASE postgres SET default_transaction_read_only = on")
	execSQL(t, db, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'keelson'")
	start := time.Now()
	if _, err := a.Put(ctx, "k", ""); !errors.Is(err, rpctypes.ErrNoLeader) && !errors.Is(err, rpctypes.ErrTimeout) {
		t.Errorf("Put: %v, want Unavailable", err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("that took %v", took)
	}
	waitLog(ctx, t, a, "the database does not answer")
	said := false
	for _, e := range a.logs.AllEntries() {
		if err, ok := e.Data["error"].(error); ok && strings.Contains(strings.ReplaceAll(err.Error(), "-", " "), "read only") {
			said = true
		}
	}
	if !said {
		t.Error("the log does not say that the database is read-only")
	}
	execSQL(t, db, "BEGIN READ WRITE; ALTER DATABASE postgres RESET default_transaction_read_only; COMMIT")
	waitLog(ctx, t, a, "the database answers again")
	if _, err := a.Put(ctx, "k", ""); err != nil {
		t.Error(err)
	}
}

// TestPostgresRestore: a backup that is restored under a running instance is a
// loss that it notices.
func TestPostgresRestore(t *testing.T) {
	t.Parallel()
	db := pgtest.ForTest(t)
	a := startInstance(t, db, "a")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	watch := a.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(1))
	if _, err := a.Put(ctx, "before", ""); err != nil {
		t.Fatal(err)
	}
	dump := filepath.Join(db.Dir(), "dump")
	run := func(program string, args ...string) {
		if out, err := db.Command(db.Program(program), args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", program, err, out)
		}
	}
	run("pg_dump", "--format=custom", "--schema=keelson", "--file="+dump, db.URL("postgres"))
	after, err := a.Put(ctx, "after", "")
	if err != nil {
		t.Fatal(err)
	}
	checkShows(t, "a", watch, "before", "after")
	run("pg_restore", "--clean", "--single-transaction", "--dbname="+db.URL("postgres"), dump)
	waitLog(ctx, t, a, logOpenAgain)
	checkCompacted(t, "a", watch, after.Header.Revision)
	got, err := a.Get(ctx, "", clientv3.WithPrefix())
	if err != nil || len(got.Kvs) != 1 || got.Header.Revision < after.Header.Revision+1000 {
		t.Errorf("Get: %v, %v, want what was there before", got, err)
	}
}
