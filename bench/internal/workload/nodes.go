package workload

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	failovers   = 5 // in a window
	writeEvery  = 5 * time.Millisecond
	steadyFor   = time.Second // how long writes are looked at after a failover
	joinWriters = 10
	joinRate    = 100 // writes a second while a node joins

	catchUpKeys = 1_000_000
	// The keys are loaded many to a transaction. As many single writes follow as
	// make both systems give up the entries of their Raft logs with the load in
	// them: the node gets a snapshot.
	afterLoad = 25_000
)

// leader returns the number of the node that leads.
func (e *Env) leader(ctx context.Context) (int, error) {
	for i := range e.Nodes.Processes() {
		status, err := e.status(ctx, i)
		if err != nil {
			return 0, err
		}
		if status.Leader == status.Header.MemberId {
			return i, nil
		}
	}
	return 0, errors.New("no node leads")
}

func (e *Env) status(ctx context.Context, i int) (*clientv3.StatusResponse, error) {
	c, err := e.Nodes.NodeClient(i)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	url, _ := e.Nodes.NodeURLs(i)
	return c.Status(ctx, url)
}

// acknowledged notes when writes were.
type acknowledged struct {
	mu    sync.Mutex
	times []time.Time // mu; in order
}

func (a *acknowledged) add() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.times = append(a.times, time.Now())
}

// since returns how many there were since at, and the longest time without one
// that ended later.
func (a *acknowledged) since(at time.Time) (n int, longest time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, t := range a.times {
		if t.Before(at) {
			continue
		}
		n++
		if i > 0 {
			longest = max(longest, t.Sub(a.times[i-1]))
		}
	}
	return n, longest
}

// openFailover kills the leader again and again. A write begins every few
// milliseconds whatever has become of those before, so that none that was lost
// with the leader holds up the others.
func openFailover(_ context.Context, e *Env) (Runner, error) {
	var made, kept atomic.Int64
	return &runner{
		run: func(ctx context.Context, _ time.Duration) (Measured, error) {
			m := Measured{Ops: failovers, Extra: map[string]float64{}} // no time: it has no throughput
			for range failovers {
				gap, failed, err := e.failover(ctx, &made, &kept)
				if err != nil {
					return m, err
				}
				m.Latencies = append(m.Latencies, gap)
				m.Extra["failed_writes"] += float64(failed) / failovers
			}
			return m, nil
		},
		check: func(ctx context.Context) error {
			n, err := e.count(ctx, newPrefix)
			if err == nil && int64(n) < kept.Load() {
				err = fmt.Errorf("%d of the keys written are there; %d were acknowledged", n, kept.Load())
			}
			return err
		},
	}, e.connect(1)
}

// failover kills the leader once and starts it again.
func (e *Env) failover(ctx context.Context, made, kept *atomic.Int64) (gap time.Duration, failed int64, err error) {
	leader, err := e.leader(ctx)
	if err != nil {
		return 0, 0, err
	}
	c, err := e.Dial() // a new one: it does not wait to connect to the leader of before
	if err != nil {
		return 0, 0, err
	}
	var (
		acks    acknowledged
		errs    atomic.Int64
		writing sync.WaitGroup
	)
	writes, stop := context.WithCancel(ctx)
	defer func() {
		stop()
		writing.Wait()
		_ = c.Close()
	}()
	writing.Go(func() {
		tick := time.NewTicker(writeEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-writes.Done():
				return
			}
			writing.Go(func() {
				_, err := c.Put(writes, fmt.Sprintf("%sfailover-%09d", newPrefix, made.Add(1)), value(e.Data.Size))
				switch {
				case err == nil:
					acks.add()
					kept.Add(1)
				case writes.Err() == nil:
					errs.Add(1)
				}
			})
		}
	})
	if err := e.steady(ctx, &acks); err != nil {
		return 0, 0, err
	}
	errs.Store(0)
	killed := time.Now()
	if err := e.Nodes.KillNode(leader); err != nil {
		return 0, 0, err
	}
	if err := e.steady(ctx, &acks); err != nil {
		return 0, 0, err
	}
	_, gap = acks.since(killed)
	failed = errs.Load()
	return gap, failed, e.Nodes.StartNode(ctx, leader)
}

// steady waits until writes have gone on for a second.
func (e *Env) steady(ctx context.Context, acks *acknowledged) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; {
		select {
		case now := <-tick.C:
			if now.Sub(began) < steadyFor {
				continue
			}
			if n, longest := acks.since(now.Add(-steadyFor)); n >= int(steadyFor/writeEvery)/2 && longest < steadyFor/4 {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// openCatchUp replaces followers by nodes with nothing.
func openCatchUp(ctx context.Context, e *Env) (Runner, error) {
	if err := e.connect(bulkWriters); err != nil {
		return nil, err
	}
	e.Data = keys(catchUpKeys)
	if err := loadBulk(ctx, e, e.Data); err != nil {
		return nil, err
	}
	put := func(ctx context.Context, client, i int) error {
		_, err := e.client(client).Put(ctx, key(i), value(e.Data.Size))
		return err
	}
	if _, err := closedLoop(ctx, bulkWriters, time.Hour, counted(afterLoad, put)); err != nil {
		return nil, err
	}
	next := 0
	return &runner{
		run: func(ctx context.Context, d time.Duration) (Measured, error) {
			leader, err := e.leader(ctx)
			if err != nil {
				return Measured{}, err
			}
			if next%e.Nodes.Processes() == leader {
				next++
			}
			joining := next % e.Nodes.Processes()
			next++
			return e.join(ctx, leader, joining, d)
		},
		check: func(ctx context.Context) error { return e.expectCount(ctx, prefix, e.Data.Keys) },
	}, nil
}

// join replaces node number joining by a new one with no data.
func (e *Env) join(ctx context.Context, leader, joining int, d time.Duration) (Measured, error) {
	m := Measured{Ops: 1, Extra: map[string]float64{}}
	var others []int
	for i := range e.Nodes.Processes() {
		if i != joining {
			others = append(others, i)
		}
	}
	c, err := e.Nodes.NodeClient(others...)
	if err != nil {
		return m, err
	}
	defer func() { _ = c.Close() }()
	old, err := e.status(ctx, joining)
	if err != nil {
		return m, err
	}
	if err := errors.Join(e.Nodes.KillNode(joining), e.Nodes.EmptyNode(joining)); err != nil {
		return m, err
	}
	if _, err := c.MemberRemove(ctx, old.Header.MemberId); err != nil {
		return m, err
	}
	_, peer := e.Nodes.NodeURLs(joining)
	if err := e.addMember(ctx, c, peer); err != nil {
		return m, err
	}
	writes := func(ctx context.Context, d time.Duration) (Measured, error) {
		return pacedLoop(ctx, joinWriters, joinRate, d, func(ctx context.Context, i int) error {
			_, err := c.Put(ctx, key(i), value(e.Data.Size))
			return err
		})
	}
	before, err := writes(ctx, d)
	if err != nil {
		return m, err
	}
	joined, ready := context.WithCancel(ctx)
	written, _, err := background(ctx, func(ctx context.Context) (all Measured, err error) {
		for joined.Err() == nil && err == nil {
			var part Measured
			part, err = writes(ctx, 250*time.Millisecond)
			all.Latencies = append(all.Latencies, part.Latencies...)
		}
		return all, err
	}, func(ctx context.Context) (Measured, error) {
		defer ready()
		began := time.Now()
		err := e.Nodes.StartNode(ctx, joining)
		m.Latencies = append(m.Latencies, time.Since(began))
		return m, err
	})
	if err != nil {
		return m, err
	}
	m.Extra["writes_before_p99_us"], m.Extra["writes_p99_us"] = p99us(before.Latencies), p99us(written.Latencies)
	return m, e.sameData(ctx, leader, joining)
}

// addMember adds one. For a while after another was removed etcd refuses, until
// it is sure of the rest.
func (e *Env) addMember(ctx context.Context, c *clientv3.Client, peer string) error {
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if _, err = c.MemberAdd(ctx, []string{peer}); err == nil {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fmt.Errorf("add a member: %w", err)
}

// sameData compares the hashes of two nodes' data at one revision.
func (e *Env) sameData(ctx context.Context, nodes ...int) error {
	var revision int64
	var first uint32
	for i, n := range nodes {
		c, err := e.Nodes.NodeClient(n)
		if err != nil {
			return err
		}
		url, _ := e.Nodes.NodeURLs(n)
		hash, err := c.HashKV(ctx, url, revision)
		_ = c.Close()
		switch {
		case err != nil:
			return fmt.Errorf("hash of node %d: %w", n, err)
		case i == 0:
			first, revision = hash.Hash, hash.Header.Revision
		case hash.Hash != first:
			return fmt.Errorf("the data of nodes %v at revision %d have different hashes", nodes, revision)
		}
	}
	return nil
}
