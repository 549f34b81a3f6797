package workload

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// closedLoop lets n clients call op, each one again as soon as it returns, for
// d or until op says that it has no more.
func closedLoop(ctx context.Context, n int, d time.Duration, op func(ctx context.Context, client int) (more bool, err error)) (Measured, error) {
	group, ctx := errgroup.WithContext(ctx)
	latencies := make([][]time.Duration, n)
	began := time.Now()
	for client := range n {
		group.Go(func() error {
			samples := make([]time.Duration, 0, 4096)
			defer func() { latencies[client] = samples }()
			for start := time.Now(); start.Sub(began) < d; {
				more, err := op(ctx, client)
				if err != nil {
					return err
				}
				if !more {
					return nil
				}
				now := time.Now()
				samples = append(samples, now.Sub(start))
				start = now
			}
			return nil
		})
	}
	err := group.Wait()
	m := Measured{Elapsed: time.Since(began), Latencies: slices.Concat(latencies...)}
	m.Ops = len(m.Latencies)
	return m, err
}

// always makes an op of closedLoop that never runs out.
func always(op func(ctx context.Context, client int) error) func(context.Context, int) (bool, error) {
	return func(ctx context.Context, client int) (bool, error) { return true, op(ctx, client) }
}

// pacedLoop starts op rate times a second for d, on n goroutines. If none was
// free when one was due its time counts from then; if one woke up late, that is
// not the server's doing and its time counts from there.
func pacedLoop(ctx context.Context, n, rate int, d time.Duration, op func(ctx context.Context, i int) error) (Measured, error) {
	group, ctx := errgroup.WithContext(ctx)
	total := int64(float64(rate) * d.Seconds())
	every := time.Second / time.Duration(rate)
	latencies := make([][]time.Duration, n)
	var next atomic.Int64
	began := time.Now()
	for worker := range n {
		group.Go(func() error {
			samples := make([]time.Duration, 0, 1024)
			defer func() { latencies[worker] = samples }()
			timer := time.NewTimer(0)
			defer timer.Stop()
			<-timer.C
			for {
				i := next.Add(1) - 1
				if i >= total {
					return nil
				}
				start := began.Add(time.Duration(i) * every)
				if wait := time.Until(start); wait > 0 {
					timer.Reset(wait)
					select {
					case <-timer.C:
					case <-ctx.Done():
						return ctx.Err()
					}
					start = time.Now()
				}
				if err := op(ctx, int(i)); err != nil {
					return err
				}
				samples = append(samples, time.Since(start))
			}
		})
	}
	err := group.Wait()
	m := Measured{Elapsed: max(time.Since(began), d), Latencies: slices.Concat(latencies...)}
	m.Ops = len(m.Latencies)
	return m, err
}
