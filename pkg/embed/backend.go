package embed

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sync/errgroup"

	"github.com/keelson-io/keelson/pkg/compactor"
	"github.com/keelson-io/keelson/pkg/drivers/postgres"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/raftlog"
	"github.com/keelson-io/keelson/pkg/server"
	"github.com/keelson-io/keelson/pkg/store"
)

// backend is everything behind the gRPC services for as long as the server
// lives: the data in its present generation, and the compactor.
//
// A database that is shared may go on with another past than this instance
// has seen, or without a part that it has not: then the generation ends, with
// all its watch streams, and another one is loaded. Requests wait for it for a
// while. SQLite has one generation; when that fails the server stops.
type backend struct {
	set      *settings
	log      *logrus.Entry
	memberID uint64

	cluster *cluster // nil: a single node

	// dataID is what backupID has found in a file before; empty before that.
	// It belongs to newBackups, then to the goroutine of the backups.
	dataID string

	commits   *commitMetrics
	responses *server.ResponseBudget
	reopened  atomic.Int64 // generations but the first

	now atomic.Pointer[moment]

	endKeeping, endWorkers context.CancelFunc
	keeping, workers       errgroup.Group
}

// moment is what the backend is at.
type moment struct {
	phase      phase
	generation *generation   // the newest that has loaded
	next       chan struct{} // closed when another moment has taken its place
}

type phase uint8

const (
	serving   phase = iota
	reopening       // the generation has failed, the next is not there yet
	ended           // and there will be none
)

// reopenPatience is how long a request waits while the data is opened again:
// as long as for a database that does not answer.
const reopenPatience = postgres.DefaultTimeout

// The pauses between the tries to open the data again. The first try is made
// at once, unless the generation before has not lasted for steadyTime.
const (
	firstReopenPause = 100 * time.Millisecond
	lastReopenPause  = 5 * time.Second
	steadyTime       = time.Minute
)

// openBackend opens the data; a SQLite database is locked from then on.
func openBackend(ctx context.Context, set *settings) (*backend, error) {
	b := &backend{
		set: set, log: set.Logger, memberID: identity("member", set.Name),
		commits: newCommitMetrics(), responses: server.NewResponseBudget(set.ResponseBytes),
	}
	if set.cluster != nil {
		var err error
		if b.cluster, err = openCluster(ctx, b); err != nil {
			return nil, err
		}
		b.memberID = b.cluster.id.Node
	}
	g, err := b.openData(ctx)
	if err != nil {
		if b.cluster != nil {
			err = errors.Join(err, b.cluster.close())
		}
		return nil, err
	}
	b.now.Store(&moment{phase: serving, generation: g, next: make(chan struct{})})
	return b, nil
}

// load builds the index from the data and whatever lives on it.
func (b *backend) load(ctx context.Context) error { return b.newest().load(ctx) }

// newest is the newest generation that has loaded, whether it serves or not.
func (b *backend) newest() *generation { return b.now.Load().generation }

// enter begins another moment. Only one goroutine at a time calls it.
func (b *backend) enter(p phase, g *generation) {
	old := b.now.Swap(&moment{phase: p, generation: g, next: make(chan struct{})})
	close(old.next)
}

// generation returns the one that serves, and waits for it if it is being
// loaded: an ErrUnavailable or ErrStopped of the store, or that of ctx.
func (b *backend) generation(ctx context.Context) (*generation, error) {
	if m := b.now.Load(); m.phase == serving {
		return m.generation, nil
	}
	limit := time.NewTimer(reopenPatience)
	defer limit.Stop()
	for {
		m := b.now.Load()
		switch m.phase {
		case serving:
			return m.generation, nil
		case ended:
			return nil, store.ErrStopped
		}
		select {
		case <-m.next:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-limit.C:
			return nil, errReopening
		}
	}
}

// run starts the goroutines. ready hears when the data begins or ceases to
// serve, failed of a failure that there is no way out of.
func (b *backend) run(ready func(bool), failed func(error)) {
	keeping, endKeeping := context.WithCancel(context.Background())
	workers, endWorkers := context.WithCancel(context.Background())
	b.endKeeping, b.endWorkers = endKeeping, endWorkers
	b.newest().run()
	b.keeping.Go(func() error {
		failed(b.keep(keeping, ready))
		return nil
	})
	b.workers.Go(func() error {
		return compactor.Run(workers, b.set.policy, b.compactTarget(), compactor.SystemClock{}, b.log)
	})
}

// keep replaces generations that have failed until ctx ends. The error is one
// that opening the data again would not cure.
func (b *backend) keep(ctx context.Context, ready func(bool)) error {
	var wait time.Duration // before the next try
	for {
		g, began := b.newest(), time.Now()
		var cause error
		select {
		case cause = <-g.failed:
		case <-ctx.Done():
			return nil
		}
		if !g.reopens(cause) {
			return cause
		}
		start := time.Now()
		if start.Sub(began) > steadyTime {
			wait = 0
		}
		b.enter(reopening, g)
		ready(false)
		b.logFailure(cause)
		next, err := b.reopen(ctx, g, &wait)
		if next == nil {
			b.enter(ended, g)
			return err
		}
		next.run()
		b.reopened.Add(1)
		b.enter(serving, next)
		ready(true)
		current, compacted := next.store.Revision()
		b.log.WithFields(logrus.Fields{
			"revision": current, "compacted": compacted, "took": time.Since(start).Round(time.Millisecond).String(),
		}).Info("the data is open again; requests are served, and watches begin anew")
	}
}

// reopens reports whether the data can be opened again after cause.
func (g *generation) reopens(cause error) bool {
	if g.raft != nil {
		return errors.Is(cause, raftlog.ErrReplaced)
	}
	return g.shared != nil && !errors.Is(cause, eventlog.ErrCorrupt)
}

// logFailure says what has happened and what there is to do.
func (b *backend) logFailure(cause error) {
	log := b.log.WithError(cause)
	if errors.Is(cause, raftlog.ErrReplaced) {
		log.Info("the data is opened again; requests wait meanwhile")
		return
	}
	if errors.Is(cause, postgres.ErrLost) {
		log.Error("the database has lost acknowledged writes, as after a failover to a standby that was behind: clients will list anew; compare with other sources what must not be lost, and use a synchronous standby to rule that out")
		return
	}
	log.Error("the data is opened again; requests wait meanwhile")
}

// reopen ends g and loads the generation after it, however long that takes;
// *wait is the pause before the next try. It returns none when ctx has ended,
// or with an error that will not go away.
func (b *backend) reopen(ctx context.Context, g *generation, wait *time.Duration) (*generation, error) {
	g.endWatches()
	_ = g.stop() // why it failed is known
	said := ""
	for {
		select {
		case <-time.After(*wait):
		case <-ctx.Done():
			return nil, nil
		}
		*wait = min(max(2**wait, firstReopenPause), lastReopenPause)
		next, err := b.openAgain(ctx, g)
		switch {
		case err == nil:
			return next, nil
		case errors.Is(err, eventlog.ErrCorrupt), errors.Is(err, postgres.ErrNewer):
			return nil, err
		}
		if err.Error() != said && ctx.Err() == nil {
			said = err.Error()
			b.log.WithError(err).Warn("the data cannot be opened again; trying on, clients get Unavailable")
		}
	}
}

// openAgain opens and loads the data that g had.
func (b *backend) openAgain(ctx context.Context, g *generation) (next *generation, err error) {
	if g.raft != nil {
		next, err = b.openLocal(ctx)
	} else if data, reopenErr := g.shared.Reopen(ctx); reopenErr == nil {
		next = b.newGeneration(data, data)
	} else {
		err = reopenErr
	}
	if err != nil {
		return nil, err
	}
	if err := next.load(ctx); err != nil {
		return nil, errors.Join(err, next.stop())
	}
	return next, nil
}

func (b *backend) compactTarget() compactor.Target {
	s := currentStore{b}
	return compactor.Target{
		Revision: func() int64 {
			current, _ := s.Revision()
			return current
		},
		Compact: func(ctx context.Context, revision int64) error {
			if g := b.newest(); g.raft != nil && !g.raft.Status().Leads {
				return nil // the leader does
			}
			_, err := s.Compact(ctx, &pb.CompactionRequest{Revision: revision})
			if errors.Is(err, store.ErrCompacted) {
				return nil // a client was faster
			}
			return err
		},
	}
}

// settle lets the present generation be the last one.
func (b *backend) settle() {
	b.endKeeping()
	_ = b.keeping.Wait() // never fails
}

// endWatches ends all watch streams.
func (b *backend) endWatches() { b.newest().endWatches() }

// stop stops what is left, after the last request was answered, and closes
// the data. The result is why the store failed, if it did.
func (b *backend) stop() error {
	var err error
	if b.endWorkers != nil {
		b.settle()
		b.endWorkers()
		err = b.workers.Wait()
	}
	if b.now.Load().phase != ended { // else the generation was stopped, and why is known
		b.handOver()
		err = errors.Join(err, b.newest().stop())
	}
	if b.cluster != nil {
		err = errors.Join(err, b.cluster.close())
	}
	return err
}

// handOver lets another node lead, so that nobody has to wait for an election.
func (b *backend) handOver() {
	g := b.newest()
	if g.raft == nil || !g.raft.Status().Leads {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), b.set.cluster.ElectionTimeout)
	defer cancel()
	if err := g.raft.HandOver(ctx); err != nil {
		b.log.WithError(err).Warn("the leadership was not handed over: the others elect a leader once they miss this one")
	}
}
