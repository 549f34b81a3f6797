package postgres

import (
	"context"
	"errors"
	"sync"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// watcher notes what one watch of everything is told. clientv3 resumes it by
// itself, after the last event that it saw.
type watcher struct {
	name  string
	start int64

	mu sync.Mutex
	// Guarded by mu.
	events    []event
	at        int64 // up to here everything was seen
	compacted bool  // the watch began below the compacted revision, which is no failure
	err       error
}

// watchers are those of one test.
type watchers struct {
	t       *testing.T
	running sync.WaitGroup
	cancel  context.CancelFunc
	ctx     context.Context //nolint:containedctx // ends all of them

	mu  sync.Mutex
	all []*watcher // guarded by mu
}

func newWatchers(t *testing.T) *watchers {
	w := &watchers{t: t}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	t.Cleanup(func() {
		w.cancel()
		w.running.Wait()
	})
	return w
}

// add starts a watch at a revision.
func (w *watchers) add(name string, c *clientv3.Client, start int64) *watcher {
	one := &watcher{name: name, start: start, at: start - 1}
	w.mu.Lock()
	w.all = append(w.all, one)
	w.mu.Unlock()
	w.running.Go(func() { one.follow(w.ctx, c) })
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

func (w *watcher) take(ctx context.Context, resp clientv3.WatchResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := resp.Err(); err != nil && ctx.Err() == nil {
		w.compacted = errors.Is(err, rpctypes.ErrCompacted) && len(w.events) == 0
		w.err = err
		return
	}
	for _, ev := range resp.Events {
		w.events = append(w.events, eventOf(ev))
		w.at = ev.Kv.ModRevision
	}
}

func (w *watcher) seen() (at int64, ended error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.at, w.err
}

// slowest is the revision that all have seen.
func (w *watchers) slowest() int64 {
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

// check waits until all have seen revision, ends them and compares each with
// the log. It returns how many events were compared.
func (w *watchers) check(log []event, revision int64) (events int) {
	t := w.t
	t.Helper()
	for _, one := range w.all {
		eventually(t, "the watch on "+one.name+" sees the last revision", func() bool {
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
		sameEvents(t, "the watch on "+one.name, one.events, from(log, one.start))
		events += len(one.events)
	}
	return events
}
