package workload

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/keelson-io/keelson/bench/internal/report"
)

// p99us returns the 99th percentile in microseconds; it sorts.
func p99us(samples []time.Duration) float64 {
	if len(samples) == 0 {
		return 0
	}
	slices.Sort(samples)
	return float64(report.Percentile(samples, 99).Nanoseconds()) / 1e3
}

const (
	readers = 10
	writers = 200 // in get-busy
)

// background runs load while it runs f, and returns what both measured.
func background(ctx context.Context, load, f func(ctx context.Context) (Measured, error)) (loaded, m Measured, err error) {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		loaded, err = load(ctx)
		return err
	})
	group.Go(func() (err error) {
		m, err = f(ctx)
		return err
	})
	err = group.Wait()
	return loaded, m, err
}

// updater updates keys, each always by the same client.
type updater struct {
	env       *Env
	revisions []int64
}

func (e *Env) updater(ctx context.Context) (*updater, error) {
	revisions, err := e.revisions(ctx)
	return &updater{e, revisions}, err
}

func (u *updater) update(ctx context.Context, client int) error {
	i := u.env.own(client)
	revision, err := succeeded(updateTxn(ctx, u.env.client(client), key(i), value(u.env.Data.Size), u.revisions[i]))
	u.revisions[i] = revision
	return err
}

// openPacedGet measures gets at a fixed rate, with or without clients that
// update keys as fast as they can.
func openPacedGet(busy bool) func(context.Context, *Env) (Runner, error) {
	return func(ctx context.Context, e *Env) (Runner, error) {
		e.Clients = writers
		if err := e.connect(writers + readers); err != nil {
			return nil, err
		}
		u, err := e.updater(ctx)
		if err != nil {
			return nil, err
		}
		one := get()
		return &runner{run: func(ctx context.Context, d time.Duration) (Measured, error) {
			gets := func(ctx context.Context) (Measured, error) {
				return pacedLoop(ctx, readers, e.Rate, d, func(ctx context.Context, i int) error {
					return one(ctx, e, writers+i%readers)
				})
			}
			if !busy {
				return gets(ctx)
			}
			updates, m, err := background(ctx, func(ctx context.Context) (Measured, error) {
				return closedLoop(ctx, writers, d, always(u.update))
			}, gets)
			m.Extra = map[string]float64{"updates_s": float64(updates.Ops) / d.Seconds()}
			return m, err
		}}, nil
	}
}

// openStarted is for servers that just started: it reads a little, so that
// they show what memory they need.
func openStarted(_ context.Context, e *Env) (Runner, error) {
	if err := e.connect(e.Clients); err != nil {
		return nil, err
	}
	one := get()
	return &runner{run: func(ctx context.Context, d time.Duration) (Measured, error) {
		m, err := pacedLoop(ctx, e.Clients, e.Rate, d, func(ctx context.Context, i int) error { return one(ctx, e, i) })
		if err == nil {
			err = e.expectCount(ctx, prefix, e.Data.Keys)
		}
		return m, err
	}}, nil
}

// longestCompaction is when a compaction is called unfinished.
const longestCompaction = 4 * time.Minute

// openCompact updates keys, first alone and then while a compaction of all old
// revisions is under way.
func openCompact(ctx context.Context, e *Env) (Runner, error) {
	return e.besideUpdates(ctx, "compaction", func(ctx context.Context) error {
		head, err := e.client(0).Get(ctx, key(0))
		if err != nil {
			return err
		}
		compaction, stop := context.WithTimeout(ctx, longestCompaction)
		defer stop()
		_, err = e.client(0).Compact(compaction, head.Header.Revision, clientv3.WithCompactPhysical())
		if compaction.Err() != nil && ctx.Err() == nil {
			return fmt.Errorf("%w: it has not finished after %s", ErrGaveUp, longestCompaction)
		}
		return err
	})
}

// openSaveBeside updates keys, first alone and then while a snapshot is read.
func openSaveBeside(ctx context.Context, e *Env) (Runner, error) {
	return e.besideUpdates(ctx, "save", func(ctx context.Context) error { return save(ctx, e, 0) })
}

// save reads a snapshot, and looks at its size as etcdctl does: a hash is behind
// what are whole sectors.
func save(ctx context.Context, e *Env, client int) error {
	r, err := e.client(client).Snapshot(ctx)
	if err != nil {
		return err
	}
	size, err := io.Copy(io.Discard, r)
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	if least := int64(e.Data.Keys) * int64(e.Data.Size); size < least || size%512 != sha256.Size {
		return fmt.Errorf("a snapshot of %d bytes, at least %d of values", size, least)
	}
	return nil
}

// besideUpdates updates keys, first alone and then until work, whose name is for
// the figures, has ended.
func (e *Env) besideUpdates(ctx context.Context, name string, work func(context.Context) error) (Runner, error) {
	if err := e.connect(e.Clients); err != nil {
		return nil, err
	}
	u, err := e.updater(ctx)
	if err != nil {
		return nil, err
	}
	updates := func(ctx context.Context, d time.Duration) (Measured, error) {
		return closedLoop(ctx, e.Clients, d, always(u.update))
	}
	return &runner{run: func(ctx context.Context, d time.Duration) (Measured, error) {
		alone, err := updates(ctx, d)
		if err != nil {
			return alone, err
		}
		m := Measured{Extra: map[string]float64{"before_p99_us": p99us(alone.Latencies), "before_s": float64(alone.Ops) / alone.Elapsed.Seconds()}}
		done := make(chan error, 1)
		began := time.Now()
		go func() { done <- work(ctx) }()
		for finished := false; !finished; {
			part, err := updates(ctx, 250*time.Millisecond)
			if err != nil {
				return m, err
			}
			m.Latencies = append(m.Latencies, part.Latencies...)
			m.Ops += part.Ops
			m.Elapsed += part.Elapsed
			select {
			case err := <-done:
				if err != nil {
					return m, fmt.Errorf("%s: %w", name, err)
				}
				m.Extra[name+"_s"] = time.Since(began).Seconds()
				finished = true
			default:
			}
		}
		m.Extra["p99_ratio"] = p99us(m.Latencies) / m.Extra["before_p99_us"]
		return m, nil
	}}, nil
}
