package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"

	"github.com/keelson-io/keelson/test/harness"
)

// TestConcurrency runs etcd's concurrency package, as programs use it.
func TestConcurrency(t *testing.T) {
	for _, backend := range harness.Backends(t) {
		t.Run(string(backend), func(t *testing.T) {
			srv := harness.StartServer(t, backend)
			for name, run := range map[string]func(*participants){
				"mutex": mutex, "try lock": tryLock, "stm": stm, "election": election, "session": session,
			} {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
					t.Cleanup(cancel)
					run(&participants{T: t, ctx: ctx, srv: srv})
				})
			}
		})
	}
}

// participants are clients of one server.
type participants struct {
	*testing.T
	ctx context.Context
	srv *harness.Server
}

func (p *participants) client() *clientv3.Client {
	p.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{p.srv.Endpoint}, Logger: zap.NewNop()})
	p.must(err)
	p.Cleanup(func() { _ = c.Close() })
	return c
}

// session returns a session of a client of its own.
func (p *participants) session(opts ...concurrency.SessionOption) *concurrency.Session {
	p.Helper()
	s, err := concurrency.NewSession(p.client(), append(opts, concurrency.WithContext(p.ctx))...)
	p.must(err)
	return s
}

func (p *participants) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

// mutex counts with nothing but the lock to keep the counters apart.
func mutex(p *participants) {
	const workers, turns = 8, 10
	counter := 0
	var wg sync.WaitGroup
	for range workers {
		m := concurrency.NewMutex(p.session(), "mutex")
		wg.Go(func() {
			for range turns {
				if err := m.Lock(p.ctx); err != nil {
					p.Errorf("lock: %v", err)
					return
				}
				counter++
				if err := m.Unlock(p.ctx); err != nil {
					p.Errorf("unlock: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	if counter != workers*turns {
		p.Errorf("counted to %d, want %d", counter, workers*turns)
	}
}

func tryLock(p *participants) {
	holder, other := concurrency.NewMutex(p.session(), "try"), concurrency.NewMutex(p.session(), "try")
	p.must(holder.TryLock(p.ctx))
	if err := other.TryLock(p.ctx); !errors.Is(err, concurrency.ErrLocked) {
		p.Errorf("a second holder: %v", err)
	}
	p.must(holder.Unlock(p.ctx))
	if err := holder.Unlock(p.ctx); !errors.Is(err, concurrency.ErrLockReleased) {
		p.Errorf("unlocked twice: %v", err)
	}
	p.must(other.TryLock(p.ctx))
}

// stm moves sums between accounts; none is lost or made.
func stm(p *participants) {
	const accounts, workers, turns, sum = 5, 5, 20, 100
	account := func(i int) string { return "account/" + strconv.Itoa(i%accounts) }
	c := p.client()
	for i := range accounts {
		_, err := c.Put(p.ctx, account(i), strconv.Itoa(sum))
		p.must(err)
	}
	var wg sync.WaitGroup
	for w := range workers {
		isolation := []concurrency.Isolation{concurrency.SerializableSnapshot, concurrency.Serializable}[w%2]
		wg.Go(func() {
			for i := range turns {
				from, to := account(w+i), account(w+2*i+1)
				_, err := concurrency.NewSTM(c, func(s concurrency.STM) error {
					if from == to {
						return nil
					}
					a, _ := strconv.Atoi(s.Get(from))
					b, _ := strconv.Atoi(s.Get(to))
					s.Put(from, strconv.Itoa(a-1))
					s.Put(to, strconv.Itoa(b+1))
					return nil
				}, concurrency.WithIsolation(isolation), concurrency.WithAbortContext(p.ctx))
				if err != nil {
					p.Errorf("transfer: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	resp, err := c.Get(p.ctx, "account/", clientv3.WithPrefix())
	p.must(err)
	total := 0
	for _, kv := range resp.Kvs {
		n, err := strconv.Atoi(string(kv.Value))
		p.must(err)
		total += n
	}
	if total != accounts*sum {
		p.Errorf("the accounts hold %d, want %d", total, accounts*sum)
	}
}

// election has each candidate lead once, in the order they came in, and an
// observer see all of them.
func election(p *participants) {
	const candidates = 3
	queue := p.client().Watch(p.ctx, "election/", clientv3.WithPrefix())
	observed := concurrency.NewElection(p.session(), "election").Observe(p.ctx)
	queued := make(chan struct{}) // closed when all candidates have come in
	var led []string              // by who leads
	var wg sync.WaitGroup
	for i := range candidates {
		name := fmt.Sprintf("candidate %d", i)
		e := concurrency.NewElection(p.session(), "election")
		wg.Go(func() {
			if err := e.Campaign(p.ctx, name); err != nil {
				p.Errorf("%s: %v", name, err)
				return
			}
			<-queued
			led = append(led, name)
			observe := func() {
				if resp, ok := <-observed; !ok || string(resp.Kvs[0].Value) != name {
					p.Errorf("observed %v while %s leads", resp, name)
				}
			}
			observe()
			if err := e.Proclaim(p.ctx, name); err != nil {
				p.Errorf("%s proclaims: %v", name, err)
			}
			observe()
			if err := e.Resign(p.ctx); err != nil {
				p.Errorf("%s resigns: %v", name, err)
			}
		})
		if resp, ok := <-queue; !ok || resp.Err() != nil {
			p.Fatalf("the watch ended: %v", resp.Err())
		}
	}
	close(queued)
	wg.Wait()
	if !slices.IsSorted(led) || len(led) != candidates {
		p.Errorf("led: %q", led)
	}
	if _, err := concurrency.NewElection(p.session(), "election").Leader(p.ctx); !errors.Is(err, concurrency.ErrElectionNoLeader) {
		p.Errorf("after the last one: %v", err)
	}
}

// session ends when its lease does, and what it held goes to the next.
func session(p *participants) {
	lost := p.session(concurrency.WithTTL(2))
	held := concurrency.NewMutex(lost, "session")
	p.must(held.Lock(p.ctx))
	next := concurrency.NewMutex(p.session(), "session")
	locked := make(chan error, 1)
	go func() { locked <- next.Lock(p.ctx) }()
	lost.Orphan() // as if the process had died
	p.must(<-locked)
	resp, err := p.client().Txn(p.ctx).If(held.IsOwner()).Commit()
	p.must(err)
	if resp.Succeeded {
		p.Error("the lost session still owns the lock")
	}
}
