package embed_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logrustest "github.com/sirupsen/logrus/hooks/test"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/keelson-io/keelson/pkg/drivers/postgres/pgtest"
	"github.com/keelson-io/keelson/pkg/embed"
)

// instance is one of several servers on a database, and a client of it alone.
type instance struct {
	*embed.Server
	*clientv3.Client
	logs *logrustest.Hook
}

// startInstance starts a server on db. Its log must not show the password.
func startInstance(t *testing.T, db *pgtest.Server, name string) *instance {
	t.Helper()
	return startInstanceOn(t, db.URL("postgres"), name)
}

func startInstanceOn(t *testing.T, url, name string) *instance {
	t.Helper()
	logger, hook := logrustest.NewNullLogger()
	logger.SetLevel(logrus.DebugLevel)
	server, err := embed.Start(t.Context(), embed.Config{
		Name: name, DataDir: t.TempDir(), Datastore: url,
		ListenClientURLs: []string{"http://127.0.0.1:0"}, Logger: logrus.NewEntry(logger), DrainTimeout: time.Second,
	})
	if err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: server.Endpoints(), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	i := &instance{server, client, hook}
	t.Cleanup(func() {
		_ = i.Client.Close()
		if err := i.Server.Close(); err != nil {
			t.Errorf("close %s: %v", name, err)
		}
		for _, e := range hook.AllEntries() {
			line, err := e.String()
			if err != nil || strings.Contains(line, pgtest.Password) {
				t.Errorf("%s logs a password: %s, %v", name, line, err)
			}
			t.Logf("%s: %s", name, strings.TrimSpace(line))
		}
	})
	return i
}

// TestPostgresInstances: what is written through one instance is read through
// the other at once, and both increment one counter without losing any; a
// watch on each sees all of it, in order.
func TestPostgresInstances(t *testing.T) {
	t.Parallel()
	db := pgtest.ForTest(t)
	a, b := startInstance(t, db, "a"), startInstance(t, db, "b")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	watchA, watchB := a.Watch(ctx, "n", clientv3.WithRev(1)), b.Watch(ctx, "n", clientv3.WithRev(1))
	for n := range 20 {
		value := fmt.Sprint(n)
		if _, err := a.Put(ctx, "k", value); err != nil {
			t.Fatal(err)
		}
		got, err := b.Get(ctx, "k")
		if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != value {
			t.Fatalf("get through the other instance: %v, %v, want %s", got, err, value)
		}
	}

	const each, writers = 15, 2
	if _, err := a.Put(ctx, "n", "0"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, client := range []*instance{a, b} {
		for range writers {
			wg.Go(func() {
				for range each {
					if err := increment(ctx, client.Client, "n"); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	want := 2 * writers * each
	for name, watch := range map[string]clientv3.WatchChan{"a": watchA, "b": watchB} {
		for next := 0; next <= want; {
			resp, ok := <-watch
			if !ok || resp.Err() != nil {
				t.Fatalf("watch on %s: %v", name, resp.Err())
			}
			for _, event := range resp.Events {
				if got := string(event.Kv.Value); got != fmt.Sprint(next) {
					t.Fatalf("watch on %s: %s, want %d", name, got, next)
				}
				next++
			}
		}
	}
}

// increment adds one to key, in a transaction that it repeats until it wins.
func increment(ctx context.Context, c *clientv3.Client, key string) error {
	for {
		got, err := c.Get(ctx, key)
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(string(got.Kvs[0].Value))
		if err != nil {
			return err
		}
		resp, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", got.Kvs[0].ModRevision)).
			Then(clientv3.OpPut(key, fmt.Sprint(n+1))).Commit()
		if err != nil || resp.Succeeded {
			return err
		}
	}
}

// TestPostgresWatchIsFast: an event from another instance comes by
// notification, not when it is looked for.
func TestPostgresWatchIsFast(t *testing.T) {
	t.Parallel()
	db := pgtest.ForTest(t)
	a, b := startInstance(t, db, "a"), startInstance(t, db, "b")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	watch := b.Watch(ctx, "k", clientv3.WithRev(1))
	var all []time.Duration
	const n = 50
	for i := range n {
		start := time.Now()
		if _, err := a.Put(ctx, "k", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
		if resp := <-watch; len(resp.Events) != 1 || string(resp.Events[0].Kv.Value) != fmt.Sprint(i) {
			t.Fatalf("watch: %v", resp)
		}
		all = append(all, time.Since(start))
	}
	slices.Sort(all)
	t.Logf("from put to event: %v at least, %v in the middle, %v at most", all[0], all[n/2], all[n-1])
	if fast := all[n/4]; fast > 200*time.Millisecond { // a busy machine makes many slow; without notifications, all are
		t.Errorf("three of four events take more than %v", fast)
	}
}

// TestPostgresCompaction: compactions of the newest revisions through one
// instance, under writes, neither stop the other nor hide anything from its
// watchers.
func TestPostgresCompaction(t *testing.T) {
	t.Parallel()
	db := pgtest.ForTest(t)
	a, b := startInstance(t, db, "a"), startInstance(t, db, "b")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	watch := b.Watch(ctx, "k", clientv3.WithCreatedNotify())
	if created := <-watch; !created.Created {
		t.Fatalf("watch: %v", created)
	}
	const n = 60
	for i := range n {
		put, err := a.Put(ctx, "k", fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		if i%3 == 2 {
			if _, err := a.Compact(ctx, put.Header.Revision); err != nil {
				t.Fatal(err)
			}
		}
	}
	for next := 0; next < n; {
		resp := <-watch
		if resp.Err() != nil {
			t.Fatalf("watch: %v", resp.Err())
		}
		for _, event := range resp.Events {
			if got := string(event.Kv.Value); got != fmt.Sprint(next) {
				t.Fatalf("watch: %s, want %d", got, next)
			}
			next++
		}
	}
	last, err := b.Put(ctx, "k", "last")
	if err != nil {
		t.Fatal(err)
	}
	// Physically: all that others had to read is read.
	if _, err := b.Compact(ctx, last.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*instance{a, b} {
		if got, err := c.Get(ctx, "k"); err != nil || len(got.Kvs) != 1 || got.Kvs[0].Version != n+1 {
			t.Errorf("get: %v, %v", got, err)
		}
		if _, err := c.Get(ctx, "k", clientv3.WithRev(last.Header.Revision-1)); !errors.Is(err, rpctypes.ErrCompacted) {
			t.Errorf("get of a compacted revision: %v", err)
		}
	}
}

// TestPostgresLease: a lease lives as long as it is kept alive through any
// instance, and ends once for all of them, also when the instance that
// expired leases is gone.
func TestPostgresLease(t *testing.T) {
	t.Parallel()
	db := pgtest.ForTest(t)
	a, b := startInstance(t, db, "a"), startInstance(t, db, "b")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	const ttl = 4 // on a busy machine one of these requests may take long
	for _, tt := range []struct {
		name          string
		grant, renew  *instance
		reader, other *instance
	}{
		{"kept alive through b", a, b, a, b},
		{"granted by b", b, a, b, a},
	} {
		granted, err := tt.grant.Grant(ctx, ttl)
		if err != nil {
			t.Fatal(err)
		}
		// At once: the other instance may not have heard of the lease.
		if resp, err := tt.renew.KeepAliveOnce(ctx, granted.ID); err != nil || resp.TTL != ttl {
			t.Fatalf("%s: keep alive: %v, %v", tt.name, resp, err)
		}
		if _, err := tt.other.Put(ctx, "leased", tt.name, clientv3.WithLease(granted.ID)); err != nil {
			t.Fatal(err)
		}
		var last time.Time
		for range 2*ttl + 1 {
			time.Sleep(500 * time.Millisecond)
			last = time.Now()
			if resp, err := tt.renew.KeepAliveOnce(ctx, granted.ID); err != nil || resp.TTL != ttl {
				t.Fatalf("%s: keep alive: %v, %v", tt.name, resp, err)
			}
		}
		if got, err := tt.reader.Get(ctx, "leased"); err != nil || len(got.Kvs) != 1 {
			t.Fatalf("%s: %v, %v, want the key", tt.name, got, err)
		}
		waitDeleted(ctx, t, tt.reader, "leased")
		if took := time.Since(last); took < ttl*time.Second-200*time.Millisecond {
			t.Errorf("%s: the lease ended %v after it was renewed for %d s", tt.name, took, ttl)
		}
		if _, err := tt.renew.KeepAliveOnce(ctx, granted.ID); err == nil {
			t.Errorf("%s: a lease that has ended was kept alive", tt.name)
		}
	}

	granted, err := a.Grant(ctx, ttl)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Put(ctx, "leased", "", clientv3.WithLease(granted.ID)); err != nil {
		t.Fatal(err)
	}
	if err := a.Server.Close(); err != nil {
		t.Fatal(err)
	}
	waitDeleted(ctx, t, b, "leased")
}

// waitDeleted waits until key is gone for c.
func waitDeleted(ctx context.Context, t *testing.T, c *instance, key string) {
	t.Helper()
	got, err := c.Get(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Kvs) == 0 {
		return
	}
	for resp := range c.Watch(ctx, key, clientv3.WithRev(got.Header.Revision+1)) {
		for _, event := range resp.Events {
			if event.Type == clientv3.EventTypeDelete {
				return
			}
		}
	}
	t.Fatalf("%s is not deleted: %v", key, ctx.Err())
}

// TestPostgresTrouble: the database is killed and restarted under writes.
// Nothing acknowledged is lost, nothing happens twice, and no server has to
// be restarted.
func TestPostgresTrouble(t *testing.T) {
	t.Parallel()
	db := pgtest.ForTest(t)
	a, b := startInstance(t, db, "a"), startInstance(t, db, "b")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	stop := make(chan struct{})
	acked := make([]map[string]bool, 2)
	var wg sync.WaitGroup
	for i, client := range []*instance{a, b} {
		acked[i] = make(map[string]bool)
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprintf("%d/%d", i, n)
				putCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
				_, err := client.Put(putCtx, key, key)
				cancel()
				if err == nil {
					acked[i][key] = true
				}
			}
		})
	}
	for name, end := range map[string]func() error{"kill": db.Kill, "stop": db.Stop} {
		time.Sleep(300 * time.Millisecond) // of writes
		if err := end(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := db.Start(); err != nil {
			t.Fatalf("start after %s: %v", name, err)
		}
		start := time.Now()
		if _, err := a.Put(ctx, "after", name); err != nil {
			t.Fatalf("put after %s: %v", name, err)
		}
		t.Logf("%s: writes go on %v after the start", name, time.Since(start))
	}
	time.Sleep(300 * time.Millisecond)
	close(stop)
	wg.Wait()
	for _, client := range []*instance{a, b} {
		got, err := client.Get(ctx, "", clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		found := make(map[string]bool)
		for _, kv := range got.Kvs {
			found[string(kv.Key)] = true
			if key := string(kv.Key); key != "after" && kv.Version != 1 {
				t.Errorf("%s was put once and has version %d", key, kv.Version)
			}
		}
		for i := range acked {
			for key := range acked[i] {
				if !found[key] {
					t.Errorf("%s was acknowledged and is not there", key)
				}
			}
		}
		t.Logf("%d keys; %d and %d puts were acknowledged", len(found), len(acked[0]), len(acked[1]))
	}
}
