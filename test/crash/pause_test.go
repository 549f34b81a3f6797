package crash

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/keelson-io/keelson/test/harness"
)

// stopTime is longer than the shortest lease and than the clients wait for a
// sign of life, twice.
const stopTime = 4 * time.Second

// newImpatientClient returns one that gives up a connection on which nothing
// is answered for 2 seconds.
func newImpatientClient(t *testing.T, s *harness.Server) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{s.Endpoint}, DialTimeout: time.Minute,
		DialKeepAliveTime: time.Second, DialKeepAliveTimeout: time.Second,
		Logger: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// pause stops the process with SIGSTOP, as the host does with a virtual machine,
// and lets it go on after stopTime.
func pause(t *testing.T, srv *harness.Server) {
	t.Helper()
	if err := syscall.Kill(srv.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	select {
	case <-time.After(stopTime):
	case <-srv.Done():
		t.Fatal("the server has ended")
	}
	if err := syscall.Kill(srv.PID(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// TestPause pauses a server under load: its clients find back, and nothing is
// lost.
func TestPause(t *testing.T) {
	for _, backend := range harness.Backends(t) {
		t.Run(string(backend), func(t *testing.T) {
			t.Parallel() // it waits, mostly
			srv := harness.StartServer(t, backend)
			l := &load{t: t, srv: srv}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var running, watching sync.WaitGroup
			for w := range writers {
				c := newImpatientClient(t, srv)
				running.Go(func() { l.write(ctx, c, w) })
			}
			seen := &history{t: t, byRevision: map[int64][]string{}}
			watcher := newImpatientClient(t, srv)
			ended := make(chan struct{})
			watching.Go(func() { seen.follow(watcher, ended) })

			for range 2 {
				l.waitWrites(writesPerRound)
				pause(t, srv)
			}
			l.waitWrites(writesPerRound)
			cancel()
			running.Wait()
			reader := newClient(t, srv)
			last, err := reader.Put(t.Context(), "last", "")
			if err != nil {
				t.Fatal(err)
			}
			seen.until(last.Header.Revision)
			close(ended)
			watching.Wait()
			l.verify(reader, seen)
			t.Logf("%d writes, %d of them acknowledged", len(l.writes), l.acked.Load())
		})
	}
}

// TestPauseLeases: the time of a pause counts for leases. Those whose TTL is
// over expire when the server goes on, also if their owner renews them at once;
// the others have what is left of it, and none expires before.
func TestPauseLeases(t *testing.T) {
	for _, backend := range harness.Backends(t) {
		t.Run(string(backend), func(t *testing.T) {
			t.Parallel()
			srv := harness.StartServer(t, backend)
			c := newImpatientClient(t, srv)
			gone := c.Watch(t.Context(), "leased/", clientv3.WithPrefix(), clientv3.WithFilterPut())
			// The TTLs: over in the pause, over after it, never over.
			long := grant(t, c, int64(stopTime/time.Second)+4)
			endless := grant(t, c, 1000)
			short := grant(t, c, 2)
			renewed := grant(t, c, 2)
			renewals, err := c.KeepAlive(t.Context(), renewed.id)
			if err != nil {
				t.Fatal(err)
			}
			if first, ok := <-renewals; !ok || first.TTL != 2 {
				t.Fatalf("the first renewal: %v, %t", first, ok)
			}

			pause(t, srv)
			waitGone(t, gone, short, renewed, long)
			for range renewals { // until the client is told that the lease is gone
			}
			most := 1000 - int64(time.Since(endless.after)/time.Second)
			left, err := c.TimeToLive(t.Context(), endless.id)
			if err != nil {
				t.Fatal(err)
			}
			if least := 999 - int64(time.Since(endless.before)/time.Second); left.TTL > most || left.TTL < least {
				t.Errorf("%d of 1000 s are left, not %d to %d", left.TTL, least, most)
			}
		})
	}
}

// granted is a lease with a key, leased/<id>.
type granted struct {
	id            clientv3.LeaseID
	ttl           time.Duration
	before, after time.Time // the request
}

func (g granted) key() string { return fmt.Sprintf("leased/%x", g.id) }

func grant(t *testing.T, c *clientv3.Client, ttl int64) granted {
	t.Helper()
	g := granted{before: time.Now(), ttl: time.Duration(ttl) * time.Second}
	resp, err := c.Grant(t.Context(), ttl)
	if err != nil {
		t.Fatal(err)
	}
	g.id, g.after = resp.ID, time.Now()
	if _, err := c.Put(t.Context(), g.key(), "", clientv3.WithLease(g.id)); err != nil {
		t.Fatal(err)
	}
	return g
}

// waitGone waits for the keys of these leases, and no others, to go, none before
// its time.
func waitGone(t *testing.T, gone clientv3.WatchChan, leases ...granted) {
	t.Helper()
	missing := map[string]granted{}
	for _, g := range leases {
		missing[g.key()] = g
	}
	limit := time.After(patience)
	for len(missing) > 0 {
		select {
		case resp, ok := <-gone:
			if !ok || resp.Err() != nil {
				t.Fatalf("the watch ended: %v", resp.Err())
			}
			for _, ev := range resp.Events {
				g, waited := missing[string(ev.Kv.Key)]
				if !waited {
					t.Fatalf("%s is gone; waiting for %v", ev.Kv.Key, missing)
				}
				if lived := time.Since(g.before); lived < g.ttl {
					t.Errorf("a lease of %v has expired after %v", g.ttl, lived)
				}
				delete(missing, string(ev.Kv.Key))
			}
		case <-limit:
			t.Fatalf("after %v still there: %v", patience, missing)
		}
	}
}
