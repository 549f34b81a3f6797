// Package crash kills a server with SIGKILL, again and again, while clients
// write to it and watch it, and checks what they were told against what they
// find.
//
// KEELSON_CRASH_ROUNDS sets how often it is killed (default 10).
package crash

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-io/keelson/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

const (
	writers        = 6
	writesPerRound = 300
	patience       = 3 * time.Minute
)

func rounds(t *testing.T) int {
	t.Helper()
	env := os.Getenv("KEELSON_CRASH_ROUNDS")
	if env == "" {
		return 10
	}
	n, err := strconv.Atoi(env)
	if err != nil || n < 1 {
		t.Fatalf("KEELSON_CRASH_ROUNDS=%q: it is a number of rounds", env)
	}
	return n
}

func newClient(t *testing.T, s *harness.Server) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{s.Endpoint}, DialTimeout: 10 * time.Second,
		Logger: zap.NewNop(), // it warns of every request that a kill fails
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// write is one txn of a writer: two keys in one revision, each holding its
// number, so that half a txn shows.
type write struct {
	writer, number int
	revision       int64 // 0 if no answer came
}

func (w write) value() string { return fmt.Sprintf("%d-%d", w.writer, w.number) }

func pairKeys(writer, number int) (left, right string) {
	return fmt.Sprintf("left/%d-%08d", writer, number), fmt.Sprintf("right/%d-%08d", writer, number)
}

// load is what runs against the server over all rounds.
type load struct {
	t   *testing.T
	srv *harness.Server

	mu      sync.Mutex
	writes  []write // answered and unanswered; guarded by mu
	acked   atomic.Int64
	highest atomic.Int64 // the highest revision that any client was shown

	compacted atomic.Int64 // the highest acknowledged compaction
}

// saw notes a revision that a client was shown.
func (l *load) saw(rev int64) {
	for {
		old := l.highest.Load()
		if rev <= old || l.highest.CompareAndSwap(old, rev) {
			return
		}
	}
}

// write commits txns until ctx ends. An error leaves the fate of a txn open; a
// revision lower than one shown before the request began is a failure.
func (l *load) write(ctx context.Context, c *clientv3.Client, writer int) {
	for number := 0; ctx.Err() == nil; number++ {
		left, right := pairKeys(writer, number)
		w := write{writer: writer, number: number}
		before := l.highest.Load()
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		resp, err := c.Txn(try).Then(
			clientv3.OpPut(left, w.value()),
			clientv3.OpPut(fmt.Sprint("counter/", writer), w.value()),
			clientv3.OpPut(right, w.value()),
		).Commit()
		cancel()
		if err == nil {
			w.revision = resp.Header.Revision
			if w.revision <= before {
				l.t.Errorf("a write got revision %d when %d had been shown before", w.revision, before)
			}
			l.saw(w.revision)
			l.acked.Add(1)
		}
		l.mu.Lock()
		l.writes = append(l.writes, w)
		l.mu.Unlock()
	}
}

// compact compacts, until ctx ends, some way behind what the watch has seen.
func (l *load) compact(ctx context.Context, c *clientv3.Client, seen *history) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		rev := seen.at() - 100
		if rev <= l.compacted.Load() {
			continue
		}
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := c.Compact(try, rev)
		cancel()
		if err == nil {
			l.compacted.Store(rev)
		} else if errors.Is(err, rpctypes.ErrFutureRev) {
			l.t.Errorf("compacting at %d, which was watched: %v", rev, err)
		}
	}
}

// waitWrites waits for n more acknowledged writes.
func (l *load) waitWrites(n int64) {
	l.t.Helper()
	target := l.acked.Load() + n
	deadline := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for l.acked.Load() < target {
		select {
		case <-deadline:
			l.t.Fatalf("%d of %d writes within %v", l.acked.Load()-target+n, n, patience)
		case <-tick.C:
		}
	}
}

func TestKill(t *testing.T) {
	for _, backend := range harness.Backends(t) {
		t.Run(string(backend), func(t *testing.T) { kill(t, backend) })
	}
}

func kill(t *testing.T, backend harness.Backend) {
	srv := harness.StartServer(t, backend)
	l := &load{t: t, srv: srv}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running sync.WaitGroup
	for w := range writers {
		c := newClient(t, srv)
		running.Go(func() { l.write(ctx, c, w) })
	}
	seen := &history{t: t, byRevision: map[int64][]string{}}
	watching := newClient(t, srv)
	reader := newClient(t, srv)
	stop := make(chan struct{})
	var watchers sync.WaitGroup
	watchers.Go(func() { seen.follow(watching, stop) })

	compacting := newClient(t, srv)
	running.Go(func() { l.compact(ctx, compacting, seen) })

	n := rounds(t)
	for round := range n {
		l.waitWrites(writesPerRound)
		lease, err := reader.Grant(t.Context(), 1000)
		if err != nil {
			t.Fatal(err)
		}
		srv.Kill()
		shown, compacted := l.highest.Load(), l.compacted.Load()
		srv.Restart()
		resp, err := get(t, reader, "none")
		if err != nil {
			t.Fatal(err)
		}
		if resp.Header.Revision < shown {
			t.Fatalf("after a crash the revision is %d, a client had been shown %d", resp.Header.Revision, shown)
		}
		l.saw(resp.Header.Revision)
		if _, err := get(t, reader, "none", clientv3.WithRev(compacted-1)); compacted > 1 && !errors.Is(err, rpctypes.ErrCompacted) {
			t.Errorf("after a crash a read below the compacted revision %d gives %v", compacted, err)
		}
		left, err := reader.TimeToLive(t.Context(), lease.ID)
		if err != nil {
			t.Fatal(err)
		}
		if left.GrantedTTL != 1000 || left.TTL < 900 {
			t.Errorf("round %d: a lease that was granted is there with %d of %d s", round, left.TTL, left.GrantedTTL)
		}
	}
	l.waitWrites(writesPerRound)
	cancel()
	running.Wait()
	last, err := reader.Put(t.Context(), "last", "")
	if err != nil {
		t.Fatal(err)
	}
	seen.until(last.Header.Revision)
	close(stop)
	watchers.Wait()
	l.verify(reader, seen)
	t.Logf("%d rounds, %d writes, %d of them acknowledged, revision %d", n, len(l.writes), l.acked.Load(), last.Header.Revision)
}

// get retries while the client finds its way back to the server.
func get(t *testing.T, c *clientv3.Client, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		resp, err := c.Get(ctx, key, opts...)
		if err == nil || ctx.Err() != nil || status.Code(err) != codes.Unavailable {
			return resp, err
		}
	}
}

// verify compares what was acknowledged with what is there and with what was
// watched.
func (l *load) verify(c *clientv3.Client, seen *history) {
	t := l.t
	t.Helper()
	there := map[string]*mvccpb.KeyValue{}
	for _, prefix := range []string{"left/", "right/"} {
		resp, err := get(t, c, prefix, clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		for _, kv := range resp.Kvs {
			there[string(kv.Key)] = kv
		}
	}
	pairs := 0
	for _, w := range l.writes {
		leftKey, rightKey := pairKeys(w.writer, w.number)
		left, right := there[leftKey], there[rightKey]
		switch {
		case left == nil && right == nil:
			if w.revision != 0 {
				t.Errorf("write %s was acknowledged at %d and is missing", w.value(), w.revision)
			}
			continue
		case left == nil || right == nil || left.ModRevision != right.ModRevision:
			t.Errorf("write %s is there by half: %v, %v", w.value(), left, right)
			continue
		}
		pairs++
		if w.revision != 0 && left.ModRevision != w.revision {
			t.Errorf("write %s was acknowledged at %d and is there at %d", w.value(), w.revision, left.ModRevision)
		}
		if string(left.Value) != w.value() || string(right.Value) != w.value() || left.Version != 1 {
			t.Errorf("write %s is there as %v, %v", w.value(), left, right)
		}
		want := []string{leftKey, fmt.Sprint("counter/", w.writer), rightKey}
		if got := seen.byRevision[left.ModRevision]; !slices.Equal(got, want) {
			t.Errorf("revision %d was watched as %q, want %q", left.ModRevision, got, want)
		}
	}
	if 2*pairs != len(there) {
		t.Errorf("%d keys are there, %d were written", len(there), 2*pairs)
	}
	// Every revision is one write: none is missing, none was made of nothing.
	revisions := slices.Sorted(maps.Keys(seen.byRevision))
	if len(revisions) != pairs+1 || revisions[0] != 2 || revisions[pairs] != int64(pairs+2) {
		t.Errorf("%d writes are there; watched were %d revisions, from %d to %d",
			pairs, len(revisions), revisions[0], revisions[len(revisions)-1])
	}
}

// history is what one watch has seen over all crashes.
type history struct {
	t  *testing.T
	mu sync.Mutex

	byRevision map[int64][]string // keys in order; guarded by mu
	last       int64              // guarded by mu
}

// follow watches everything from the first revision on. clientv3 resumes the
// watch after each crash by itself, from the revision after the last it saw.
func (h *history) follow(c *clientv3.Client, stop <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	events := c.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(2), clientv3.WithPrevKV())
	for {
		select {
		case <-stop:
			return
		case resp, ok := <-events:
			if !ok || resp.Err() != nil {
				h.t.Errorf("the watch ended: %v", errors.Join(resp.Err(), ctx.Err()))
				return
			}
			h.add(resp.Events)
		}
	}
}

func (h *history) add(events []*clientv3.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, ev := range events {
		rev := ev.Kv.ModRevision
		if rev != h.last && rev != h.last+1 && h.last != 0 {
			h.t.Errorf("watched revision %d after %d", rev, h.last)
		}
		if ev.Kv.Version > 1 && (ev.PrevKv == nil || ev.PrevKv.Version != ev.Kv.Version-1) {
			h.t.Errorf("the previous version of %v is given as %v", ev.Kv, ev.PrevKv)
		}
		h.last = rev
		h.byRevision[rev] = append(h.byRevision[rev], string(ev.Kv.Key))
	}
}

// at is the last revision seen.
func (h *history) at() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last
}

// until waits for the watch to have seen a revision.
func (h *history) until(rev int64) {
	h.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		last := h.at()
		if last >= rev {
			return
		}
		select {
		case <-deadline:
			h.t.Fatalf("the watch is at %d and should be at %d", last, rev)
		case <-tick.C:
		}
	}
}
