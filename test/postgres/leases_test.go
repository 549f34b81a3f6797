package postgres

import (
	"context"
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// takeover is the longest that nobody expires leases after the instance
	// that did is gone; then every lease starts in full.
	takeover = 15 * time.Second

	// ttl is shorter than takeover: whoever takes over has to give the leases
	// that are kept alive the time that they were promised.
	ttl = 5 * time.Second

	// slack is what everything may take longer on a busy machine.
	slack = 15 * time.Second
)

// lessor returns the instance that expires leases.
func (c *cluster) lessor() *instance {
	c.t.Helper()
	var found *instance
	eventually(c.t, "an instance expires leases", func() bool {
		for _, i := range c.instances {
			log := string(i.Log())
			if strings.LastIndex(log, `"this instance expires leases"`) > strings.LastIndex(log, `"this instance expires leases no more"`) {
				found = i
			}
		}
		return found != nil
	})
	return found
}

// renter keeps a lease alive through all instances in turn, until ctx ends.
type renter struct {
	t     *testing.T
	name  string
	every []*clientv3.Client
	id    clientv3.LeaseID

	mu       sync.Mutex
	promised time.Time // guarded by mu; the lease lives at least until then
}

func newRenter(t *testing.T, c *cluster, name string) *renter {
	t.Helper()
	r := &renter{t: t, name: name}
	for _, i := range c.instances {
		r.every = append(r.every, i.client(t))
	}
	through := newClient(t, c.endpoints()...)
	retry(t, "a lease", func(ctx context.Context) error {
		asked := time.Now()
		lease, err := through.Grant(ctx, int64(ttl/time.Second))
		if err != nil {
			return err
		}
		r.id, r.promised = lease.ID, asked.Add(ttl)
		_, err = through.Put(ctx, r.key(), "", clientv3.WithLease(r.id))
		return err
	})
	return r
}

func (r *renter) key() string { return "leased/" + r.name }

// renew renews the lease, through one instance after the other, until ctx ends
// or the lease is gone.
func (r *renter) renew(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		asked := time.Now()
		try, cancel := context.WithTimeout(ctx, time.Second)
		_, err := r.every[n%len(r.every)].KeepAliveOnce(try, r.id)
		cancel()
		switch {
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			return
		case err == nil:
			r.mu.Lock()
			r.promised = asked.Add(ttl)
			r.mu.Unlock()
		}
		time.Sleep(ttl / 20)
	}
}

func (r *renter) until() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.promised
}

// gone is when each key below leased/ was seen to go.
type gone struct {
	mu sync.Mutex
	at map[string]time.Time // guarded by mu
}

func (g *gone) follow(ctx context.Context, c *clientv3.Client) {
	for resp := range c.Watch(ctx, "leased/", clientv3.WithPrefix(), clientv3.WithFilterPut(), clientv3.WithRev(1)) {
		g.mu.Lock()
		for _, ev := range resp.Events {
			g.at[string(ev.Kv.Key)] = time.Now()
		}
		g.mu.Unlock()
	}
}

func (g *gone) when(r *renter) (time.Time, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	at, ok := g.at[r.key()]
	return at, ok
}

// expires waits for a lease to expire, which it does not before what was
// promised, nor later than within after that.
func (g *gone) expires(t *testing.T, r *renter, within time.Duration) {
	t.Helper()
	for {
		promised := r.until()
		at, ok := g.when(r)
		switch {
		case ok && at.Before(promised):
			t.Errorf("the lease %s expired %v early", r.name, promised.Sub(at))
			return
		case ok:
			t.Logf("the lease %s expired %v after it might have", r.name, at.Sub(promised).Round(time.Millisecond))
			return
		case time.Since(promised) > within:
			t.Errorf("the lease %s is there %v after it might have expired", r.name, time.Since(promised))
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestLessor harms the instance that expires leases: another takes over. No
// lease expires early, whichever instance it was renewed through, and those
// that are not renewed do expire, also when the first one comes back.
func TestLessor(t *testing.T) {
	for _, h := range []struct {
		name        string
		begin, over func(t *testing.T, lessor *instance)
	}{
		{
			"kill -9",
			func(_ *testing.T, lessor *instance) { lessor.Kill() },
			func(_ *testing.T, lessor *instance) { lessor.Restart() },
		},
		{
			"SIGSTOP",
			func(t *testing.T, lessor *instance) { signal(t, lessor, syscall.SIGSTOP) },
			func(t *testing.T, lessor *instance) { signal(t, lessor, syscall.SIGCONT) },
		},
		{
			"cut off",
			func(_ *testing.T, lessor *instance) { lessor.proxy.Cut() },
			func(_ *testing.T, lessor *instance) { lessor.proxy.Resume() },
		},
		{
			"no answers",
			func(_ *testing.T, lessor *instance) { lessor.proxy.Stall() },
			func(_ *testing.T, lessor *instance) { lessor.proxy.Resume() },
		},
	} {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel() // it waits, mostly
			testLessor(t, h.begin, h.over)
		})
	}
}

func testLessor(t *testing.T, begin, over func(*testing.T, *instance)) {
	c := startCluster(t, 3)
	first := c.lessor()
	var renewing, watching sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		renewing.Wait()
		watching.Wait()
	})
	g := &gone{at: map[string]time.Time{}}
	watcher := newClient(t, c.without(first)...)
	watching.Go(func() { g.follow(ctx, watcher) })

	renew := func(name string) (*renter, context.CancelFunc) {
		r := newRenter(t, c, name)
		ctx, cancel := context.WithCancel(ctx)
		renewing.Go(func() { r.renew(ctx) })
		return r, cancel
	}
	kept, endKept := renew("kept")
	dropped, endDropped := renew("dropped")
	defer endKept()
	time.Sleep(2 * ttl) // both live longer than their TTL by their renewals only
	begin(t, first)
	endDropped()
	g.expires(t, dropped, takeover+ttl+slack)
	second := c.lessor()
	while, endWhile := renew("while")
	over(t, first)
	t.Logf("%s expired leases, then %s", first.name, second.name)
	// The first one is back, with deadlines that are over.
	after, endAfter := renew("after")
	time.Sleep(2 * ttl)
	for _, r := range []*renter{kept, while, after} {
		if at, ok := g.when(r); ok {
			t.Errorf("the lease %s, which was renewed, expired %v before its time", r.name, r.until().Sub(at))
		}
	}
	endKept()
	endWhile()
	endAfter()
	g.expires(t, kept, takeover+ttl+slack)
	g.expires(t, while, takeover+ttl+slack)
	g.expires(t, after, takeover+ttl+slack)
}
