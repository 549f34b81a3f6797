package embed

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sync/errgroup"

	"github.com/keelson-io/keelson/pkg/compactor"
	"github.com/keelson-io/keelson/pkg/drivers/postgres"
	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/lease"
	"github.com/keelson-io/keelson/pkg/server"
	"github.com/keelson-io/keelson/pkg/store"
	"github.com/keelson-io/keelson/pkg/watch"
)

// backend is everything behind the gRPC services: the log, the store, the
// watch hub, the lessor and the compactor, and their goroutines.
type backend struct {
	set      *settings
	log      *logrus.Entry
	memberID uint64

	data   datastore
	shared *postgres.Log // data, if other instances have it, too; else nil
	store  *store.Store
	lessor *lease.Lessor
	hub    atomic.Pointer[watch.Hub] // nil until the store has loaded

	commits   *commitMetrics
	responses *server.ResponseBudget

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

// openBackend opens the data; a SQLite database is locked from then on.
func openBackend(ctx context.Context, set *settings) (*backend, error) {
	b := &backend{set: set, log: set.Logger, memberID: identity("member", set.Name), commits: newCommitMetrics(), responses: server.NewResponseBudget(set.ResponseBytes)}
	if set.postgres != "" {
		data, err := postgres.Open(ctx, postgres.Options{URL: set.postgres, Logger: set.Logger})
		if err != nil {
			return nil, err
		}
		b.data, b.shared = data, data
		return b, nil
	}
	data, err := sqlite.Open(ctx, sqlite.Options{Dir: set.sqliteDir, Logger: set.Logger})
	if errors.Is(err, sqlite.ErrLocked) {
		return nil, fmt.Errorf("%w: stop that process or choose another --data-dir", err)
	}
	if err != nil {
		return nil, err
	}
	b.data = data
	return b, nil
}

// load builds the index from the data and whatever lives on it.
func (b *backend) load(ctx context.Context) error {
	start := time.Now()
	leases := lease.Options{Logger: b.log}
	if b.shared != nil {
		leases.Shared = sharedLeases{b.shared, b}
	}
	b.lessor = lease.New(b.revoke, leases)
	// The server lives longer than the context it is started with: stopping
	// has its own order.
	s, err := store.Open(ctx, b.data, store.Options{
		Logger:         b.log,
		CacheBytes:     b.set.CacheBytes,
		QuotaBytes:     b.set.QuotaBackendBytes,
		RequestTimeout: server.DefaultRequestTimeout,
		MemberID:       b.memberID,
		OnApply:        b.applied,
		Admit:          b.responses.Admit,
		OnCommit:       b.commits.observe,
	})
	if err != nil {
		return fmt.Errorf("load the data: %w", err)
	}
	b.store = s
	b.hub.Store(watch.New(s, watch.Options{Logger: b.log}))
	current, compacted := s.Revision()
	b.log.WithFields(logrus.Fields{
		"revision": current, "compacted": compacted, "bytes": s.Size().Total, "took": time.Since(start).Round(time.Millisecond).String(),
	}).Info("loaded the data")
	return nil
}

// applied passes a change on to the lessor and the watchers. It is called in
// the order of the log, by one goroutine at a time, and does not block.
func (b *backend) applied(a store.Applied) {
	for _, l := range a.Granted {
		b.lessor.Granted(l.ID, l.TTL)
	}
	for _, id := range a.Revoked {
		b.lessor.Revoked(id)
	}
	if hub := b.hub.Load(); hub != nil {
		hub.Publish(a.Revision, a.Events)
	}
}

// revoke is what the lessor does with a lease that has expired.
func (b *backend) revoke(ctx context.Context, id int64) error {
	err := b.store.LeaseRevoke(ctx, id)
	if errors.Is(err, store.ErrLeaseNotFound) {
		return nil
	}
	return err
}

// sharedLeases is how the lessors of several instances work together.
type sharedLeases struct {
	*postgres.Log
	backend *backend
}

// LeaseExists implements lease.Shared.
func (s sharedLeases) LeaseExists(ctx context.Context, id int64) (bool, error) {
	if err := s.backend.store.Fence(ctx); err != nil {
		return false, err
	}
	_, ok := s.backend.store.Lease(id)
	return ok, nil
}

// run starts the goroutines; failed hears of a store that cannot go on.
func (b *backend) run(failed func(error)) {
	storeCtx, endStore := context.WithCancel(context.Background())
	hubCtx, endHub := context.WithCancel(context.Background())
	workers, endWorkers := context.WithCancel(context.Background())
	b.endStore, b.endHub, b.endWorkers = endStore, endHub, endWorkers
	b.storeDone.Go(func() error {
		err := b.store.Run(storeCtx)
		failed(err)
		return err
	})
	b.workersDone.Go(func() error {
		// The store hears of it at its next write, which may be far.
		select {
		case <-b.data.Failed():
			failed(b.data.Err())
		case <-workers.Done():
		}
		return nil
	})
	b.hubDone.Go(func() error { return b.hub.Load().Run(hubCtx) })
	if b.shared == nil {
		b.workersDone.Go(func() error { return b.lessor.Run(workers) })
	} else {
		b.workersDone.Go(func() error { return b.shared.Lead(workers, b.lessor.Run) })
		b.workersDone.Go(func() error {
			err := b.shared.Follow(workers, b.store.Notify)
			failed(err)
			return err
		})
	}
	b.workersDone.Go(func() error {
		return compactor.Run(workers, b.set.policy, b.compactTarget(), compactor.SystemClock{}, b.log)
	})
}

func (b *backend) compactTarget() compactor.Target {
	return compactor.Target{
		Revision: func() int64 {
			current, _ := b.store.Revision()
			return current
		},
		Compact: func(ctx context.Context, revision int64) error {
			_, err := b.store.Compact(ctx, &pb.CompactionRequest{Revision: revision})
			if errors.Is(err, store.ErrCompacted) {
				return nil // a client was faster
			}
			return err
		},
	}
}

// endWatches ends all watch streams.
func (b *backend) endWatches() { b.endHub() }

// stop stops what is left, after the last request was answered, and closes
// the data. The result is why the store failed, if it did.
func (b *backend) stop() error {
	b.stopOnce.Do(func() {
		var errs []error
		if b.endStore != nil {
			b.endHub()
			b.endWorkers()
			errs = append(errs, b.hubDone.Wait(), b.workersDone.Wait())
			b.endStore()
			errs = append(errs, b.storeDone.Wait())
		}
		b.stopErr = errors.Join(append(errs, b.data.Close())...)
	})
	return b.stopErr
}
