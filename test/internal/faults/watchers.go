package faults

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// watcher notes what one watch of everything is told.
type watcher struct {
	name  string
	start int64

	mu sync.Mutex
	// Guarded by mu.
	events    []Event
	at        int64 // up to here everything was seen
	compacted bool  // the watch began below the compacted revision, which is no failure
	err       error
}

// Watchers are the watches of one test.
type Watchers struct {
	t       testing.TB
	running sync.WaitGroup
	cancel  context.CancelFunc
	ctx     context.Context //nolint:containedctx // ends all of them

	mu  sync.Mutex
	all []*watcher // guarded by mu
}

// NewWatchers returns none yet. They end with the test.
func NewWatchers(t testing.TB) *Watchers {
	w := &Watchers{t: t}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	t.Cleanup(func() {
		w.cancel()
		w.running.Wait()
	})
	return w
}

// Add starts a watch at a revision, which clientv3 resumes by itself after the
// last event that it saw.
func (w *Watchers) Add(name string, c *clientv3.Client, start int64) {
	one := w.add(name, start)
	w.running.Go(func() { one.follow(w.ctx, c) })
}

// AddWanderer starts a watch at a revision that goes on through another of the
// clients again and again, after the last event that it saw.
func (w *Watchers) AddWanderer(name string, clients []*clientv3.Client, start int64, rnd *rand.Rand) {
	one := w.add(name, start)
	seeds := [2]uint64{rnd.Uint64(), rnd.Uint64()}
	w.running.Go(func() { one.wander(w.ctx, clients, rand.New(rand.NewPCG(seeds[0], seeds[1]))) })
}

func (w *Watchers) add(name string, start int64) *watcher {
	one := &watcher{name: name, start: start, at: start - 1}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, one)
	return one
}

func (w *watcher) follow(ctx context.Context, c *clientv3.Client) {
	for resp := range c.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(w.start)) {
		w.take(ctx, resp)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if ctx.Err() == nil && !w.compacted && w.err == nil {
		w.err = errors.New("it ended")
	}
}

// wander stays with one client for up to a second. Events of one revision come
// in one response, so that the next watch begins after it.
func (w *watcher) wander(ctx context.Context, clients []*clientv3.Client, rnd *rand.Rand) {
	for ctx.Err() == nil {
		stay, cancel := context.WithTimeout(ctx, UpTo(rnd, time.Second))
		at, ended := w.seen()
		if ended != nil {
			cancel()
			return
		}
		watching := clientv3.WithRequireLeader(stay) // else it waits at a node that is cut off
		for resp := range clients[rnd.IntN(len(clients))].Watch(watching, "", clientv3.WithPrefix(), clientv3.WithRev(at+1)) {
			if errors.Is(resp.Err(), rpctypes.ErrNoLeader) {
				break
			}
			w.take(stay, resp)
		}
		cancel()
	}
}

func (w *watcher) take(ctx context.Context, resp clientv3.WatchResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := resp.Err(); err != nil {
		if ctx.Err() == nil {
			w.compacted = errors.Is(err, rpctypes.ErrCompacted) && len(w.events) == 0
			w.err = err
		}
		return
	}
	for _, ev := range resp.Events {
		w.events = append(w.events, EventOf(ev))
		w.at = ev.Kv.ModRevision
	}
}

func (w *watcher) seen() (at int64, ended error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.at, w.err
}

// Slowest is the revision that all have seen.
func (w *Watchers) Slowest() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	slowest := int64(-1)
	for _, one := range w.all {
		if at, ended := one.seen(); ended == nil && (slowest < 0 || at < slowest) {
			slowest = at
		}
	}
	return slowest
}

// Check waits until all have seen revision, ends them and compares each with
// the log. It returns how many events were compared.
func (w *Watchers) Check(log []Event, revision int64) (events int) {
	t := w.t
	t.Helper()
	for _, one := range w.all {
		Eventually(t, "the watch on "+one.name+" sees the last revision", func() bool {
			at, ended := one.seen()
			return at >= revision || ended != nil
		})
	}
	w.cancel()
	w.running.Wait()
	for _, one := range w.all {
		switch {
		case one.compacted:
			continue
		case one.err != nil:
			t.Errorf("the watch on %s from %d: %v", one.name, one.start, one.err)
		}
		sameEvents(t, "the watch on "+one.name, upTo(one.events, revision), From(log, one.start))
		events += len(one.events)
	}
	return events
}
