package workload

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
)

// epoch is what the times in values count from.
var epoch = time.Now()

// stamped makes a value that says when it was sent.
func stamped(size int) string {
	return string(binary.BigEndian.AppendUint64(make([]byte, 0, size), uint64(time.Since(epoch)))) + value(size-8)
}

func age(value []byte) time.Duration {
	return time.Since(epoch) - time.Duration(binary.BigEndian.Uint64(value))
}

// fanOut is a number of watchers of the same keys.
type fanOut struct {
	seen     atomic.Int64      // events, by all watchers
	samples  [][]time.Duration // one slice for each watcher, its own until seen says that it is done
	failed   chan error
	expected int64
}

// watch starts n watchers on the prefix and waits until the server has all.
// They end with the clients of the Env. As kube-apiserver's they start at a
// revision; without one kine sends the keys that are there already.
func (e *Env) watch(ctx context.Context, n int, prefix string, opts ...clientv3.OpOption) (*fanOut, error) {
	head, err := e.client(0).Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithLimit(1))
	if err != nil {
		return nil, err
	}
	f := &fanOut{samples: make([][]time.Duration, n), failed: make(chan error, n)}
	created := make(chan error, n)
	opts = append([]clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithRev(head.Header.Revision + 1), clientv3.WithCreatedNotify()}, opts...)
	for i := range n {
		c := e.client(i)
		go f.receive(c.Watch(c.Ctx(), prefix, opts...), i, created)
	}
	for range n {
		if err := <-created; err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (f *fanOut) receive(events clientv3.WatchChan, i int, created chan<- error) {
	if first := <-events; !first.Created {
		created <- fmt.Errorf("a watch began with %d events: %w", len(first.Events), first.Err())
		return
	}
	created <- nil
	for resp := range events {
		if err := resp.Err(); err != nil {
			f.failed <- err
			return
		}
		for _, event := range resp.Events {
			if len(event.Kv.Value) >= 8 {
				f.samples[i] = append(f.samples[i], age(event.Kv.Value))
			}
		}
		f.seen.Add(int64(len(resp.Events)))
	}
}

// wait waits until every watcher has seen n events more, and returns how old
// each was.
func (f *fanOut) wait(ctx context.Context, n int) ([]time.Duration, error) {
	f.expected += int64(n * len(f.samples))
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for f.seen.Load() < f.expected {
		select {
		case <-tick.C:
		case err := <-f.failed:
			return nil, err
		case <-ctx.Done():
			return nil, fmt.Errorf("the watchers have seen %d of %d events", f.seen.Load(), f.expected)
		}
	}
	if seen := f.seen.Load(); seen > f.expected {
		return nil, fmt.Errorf("the watchers have seen %d events; there were %d", seen, f.expected)
	}
	samples := slices.Concat(f.samples...)
	for i := range f.samples {
		f.samples[i] = f.samples[i][:0]
	}
	return samples, nil
}

// openWatch creates keys, at a rate or as fast as the clients can, and
// measures from the moment when a create is sent to the moment when a watcher
// has its event. The operations are the events.
func openWatch(ctx context.Context, e *Env) (Runner, error) {
	if err := e.connect(e.Watchers); err != nil {
		return nil, err
	}
	f, err := e.watch(ctx, e.Watchers, newPrefix)
	if err != nil {
		return nil, err
	}
	var made atomic.Int64
	create := func(ctx context.Context, client int) error {
		name := fmt.Sprintf("%snamespace-000/workload-%09d", newPrefix, made.Add(1))
		_, err := succeeded(createTxn(ctx, e.client(client), name, stamped(e.Data.Size)))
		return err
	}
	return &runner{run: func(ctx context.Context, d time.Duration) (Measured, error) {
		var m Measured
		var err error
		if e.Rate > 0 {
			m, err = pacedLoop(ctx, e.Clients, e.Rate, d, create)
		} else {
			m, err = closedLoop(ctx, e.Clients, d, always(create))
		}
		if err != nil {
			return m, err
		}
		began := time.Now()
		creates := m.Ops
		m.Latencies, err = f.wait(ctx, creates)
		m.Ops = len(m.Latencies)
		m.Elapsed += time.Since(began)
		m.Extra = map[string]float64{"creates_s": float64(creates) / m.Elapsed.Seconds()}
		return m, err
	}}, nil
}

// each calls op for 0 to n-1, on the Env's clients.
func (e *Env) each(ctx context.Context, n int, op func(ctx context.Context, c *clientv3.Client, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(bulkLoaders)
	for i := range n {
		group.Go(func() error { return op(ctx, e.client(i), i) })
	}
	return group.Wait()
}
