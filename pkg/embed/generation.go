package embed

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keelson-io/keelson/pkg/drivers/postgres"
	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/lease"
	"github.com/keelson-io/keelson/pkg/raftlog"
	"github.com/keelson-io/keelson/pkg/server"
	"github.com/keelson-io/keelson/pkg/store"
	"github.com/keelson-io/keelson/pkg/watch"
)

// generation is the data opened once, and what lives on it: the store, the
// watch hub, the lessor and their goroutines. It is never repaired: where the
// data can be opened again, another generation takes its place.
type generation struct {
	backend *backend

	data   datastore
	shared *postgres.Log // data, if other instances have it, too; else nil
	raft   *raftlog.Log  // data, if this is a node of a cluster; else nil
	store  *store.Store
	lessor *lease.Lessor
	hub    atomic.Pointer[watch.Hub] // nil until the store has loaded

	failed chan error // why it cannot go on; has room for one

	// Each context ends one step of the stop.
	endHub, endWorkers, endStore context.CancelFunc

	hubDone, workersDone, storeDone errgroup.Group

	stopOnce sync.Once
	stopErr  error
}

// datastore is a log that says when it has failed between two calls.
type datastore interface {
	eventlog.Log
	Failed() <-chan struct{}
	Err() error
}

// openData opens the data for the first time; a SQLite database is locked from
// then on.
func (b *backend) openData(ctx context.Context) (*generation, error) {
	if b.set.postgres != "" {
		data, err := postgres.Open(ctx, postgres.Options{URL: b.set.postgres, Logger: b.log})
		if err != nil {
			return nil, err
		}
		return b.newGeneration(data, data), nil
	}
	g, err := b.openLocal(ctx)
	if errors.Is(err, sqlite.ErrLocked) {
		return nil, fmt.Errorf("%w: stop that process or choose another --data-dir", err)
	}
	return g, err
}

// openLocal opens SQLite, replicated or not.
func (b *backend) openLocal(ctx context.Context) (*generation, error) {
	if b.cluster != nil {
		data, err := b.cluster.openLog(ctx)
		if err != nil {
			return nil, err
		}
		g := b.newGeneration(data, nil)
		g.raft = data
		return g, nil
	}
	data, err := sqlite.Open(ctx, sqlite.Options{Dir: b.set.sqliteDir, Logger: b.log})
	if err != nil {
		return nil, err
	}
	return b.newGeneration(data, nil), nil
}

func (b *backend) newGeneration(data datastore, shared *postgres.Log) *generation {
	return &generation{backend: b, data: data, shared: shared, failed: make(chan error, 1)}
}

// load builds the index from the data and whatever lives on it.
func (g *generation) load(ctx context.Context) error {
	start := time.Now()
	b := g.backend
	leases := lease.Options{Logger: b.log}
	if g.shared != nil {
		leases.Shared = sharedLeases{g.shared, g}
	}
	g.lessor = lease.New(g.revoke, leases)
	// The server lives longer than the context it is started with: stopping
	// has its own order.
	s, err := store.Open(ctx, g.data, store.Options{
		Logger:         b.log,
		CacheBytes:     b.set.CacheBytes,
		QuotaBytes:     b.set.QuotaBackendBytes,
		RequestTimeout: server.DefaultRequestTimeout,
		MemberID:       b.memberID,
		OnApply:        g.applied,
		WantsPrev:      g.wantsPrev,
		Admit:          b.responses.Admit,
		OnCommit:       b.commits.observe,
	})
	if err != nil {
		return fmt.Errorf("load the data: %w", err)
	}
	g.store = s
	g.hub.Store(watch.New(s, watch.Options{Logger: b.log}))
	current, compacted := s.Revision()
	b.log.WithFields(map[string]any{
		"revision": current, "compacted": compacted, "bytes": s.Size().Total, "took": time.Since(start).Round(time.Millisecond).String(),
	}).Info("loaded the data")
	return nil
}

// applied passes a change on to the lessor and the watchers. It is called in
// the order of the log, by one goroutine at a time, and does not block.
func (g *generation) applied(a store.Applied) {
	for _, l := range a.Granted {
		g.lessor.Granted(l.ID, l.TTL)
	}
	for _, id := range a.Revoked {
		g.lessor.Revoked(id)
	}
	if hub := g.hub.Load(); hub != nil {
		hub.Publish(a.Revision, a.Events, a.NoPrev)
	}
}

// wantsPrev says whether there is a watcher that wants to know what a key was
// before.
func (g *generation) wantsPrev() bool {
	hub := g.hub.Load()
	return hub != nil && hub.WantsPrev()
}

// revoke is what the lessor does with a lease that has expired.
func (g *generation) revoke(ctx context.Context, id int64) error {
	err := g.store.LeaseExpire(ctx, id)
	if errors.Is(err, store.ErrLeaseNotFound) {
		return nil
	}
	return err
}

// sharedLeases is how the lessors of several instances work together.
type sharedLeases struct {
	*postgres.Log
	generation *generation
}

// LeaseExists implements lease.Shared.
func (s sharedLeases) LeaseExists(ctx context.Context, id int64) (bool, error) {
	if err := s.generation.store.Fence(ctx); err != nil {
		return false, err
	}
	_, ok := s.generation.store.Lease(id)
	return ok, nil
}

// fail notes why the generation cannot go on, if it is the first reason.
func (g *generation) fail(err error) {
	if err == nil {
		return
	}
	select {
	case g.failed <- err:
	default:
	}
}

// run starts the goroutines.
func (g *generation) run() {
	storeCtx, endStore := context.WithCancel(context.Background())
	hubCtx, endHub := context.WithCancel(context.Background())
	workers, endWorkers := context.WithCancel(context.Background())
	g.endStore, g.endHub, g.endWorkers = endStore, endHub, endWorkers
	g.storeDone.Go(func() error {
		err := g.store.Run(storeCtx)
		g.fail(err)
		return err
	})
	g.workersDone.Go(func() error {
		// The store hears of it at its next write, which may be far.
		select {
		case <-g.data.Failed():
			err := g.data.Err()
			g.fail(err)
			if g.raft != nil && !g.reopens(err) { // who waits here for what the leader has done would wait in vain
				endStore()
			}
		case <-workers.Done():
		}
		return nil
	})
	g.hubDone.Go(func() error { return g.hub.Load().Run(hubCtx) })
	if g.raft != nil {
		g.workersDone.Go(func() error { return g.leadLeases(workers) })
		g.workersDone.Go(func() error {
			err := g.raft.Follow(workers, g.store.Notify)
			g.fail(err)
			return err
		})
		return
	}
	if g.shared == nil {
		g.workersDone.Go(func() error { return g.lessor.Run(workers) })
		return
	}
	g.workersDone.Go(func() error { return g.shared.Lead(workers, g.lessor.Run) })
	g.workersDone.Go(func() error {
		err := g.shared.Follow(workers, g.store.Notify)
		g.fail(err)
		return err
	})
}

// endWatches ends all watch streams, if any were served.
func (g *generation) endWatches() {
	if g.endHub != nil {
		g.endHub()
	}
}

// stop stops what is left and closes the data. The result is why the store
// failed, if it did.
func (g *generation) stop() error {
	g.stopOnce.Do(func() {
		var errs []error
		if g.endStore != nil {
			g.endHub()
			g.endWorkers()
			errs = append(errs, g.hubDone.Wait(), g.workersDone.Wait())
			g.endStore()
			if g.raft != nil { // a write may wait for a majority that does not come
				patience := time.AfterFunc(2*g.backend.set.cluster.ElectionTimeout, g.raft.Interrupt)
				defer patience.Stop()
			}
			err := g.storeDone.Wait()
			if errors.Is(err, raftlog.ErrInterrupted) {
				g.backend.log.Warn("stopped while a write waited for a majority of the nodes: its outcome is not known")
				err = nil
			}
			errs = append(errs, err)
		}
		g.stopErr = errors.Join(append(errs, g.data.Close())...)
	})
	return g.stopErr
}
