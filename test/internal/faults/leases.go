package faults

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Tenant has leases, a key on each, and sends each request about them through
// another of its clients.
type Tenant struct {
	t       testing.TB
	name    string
	clients []*clientv3.Client
	leases  atomic.Int64
}

// NewTenant returns one that has no lease yet.
func NewTenant(t testing.TB, name string, clients []*clientv3.Client) *Tenant {
	x := &Tenant{t: t, name: name, clients: clients}
	t.Cleanup(func() { t.Logf("%d leases came and went through %s", x.leases.Load(), name) })
	return x
}

// Run has one lease after the other until ctx ends, with a pause before each.
func (x *Tenant) Run(ctx context.Context, pause time.Duration) {
	for n := 0; ctx.Err() == nil; n++ {
		time.Sleep(pause)
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		if x.once(try, n) == nil {
			x.leases.Add(1)
		}
		cancel()
	}
}

// once is the life of one lease. An error says that a request was not
// answered: then nothing is known of the lease.
func (x *Tenant) once(ctx context.Context, n int) error {
	next := func() *clientv3.Client { n++; return x.clients[n%len(x.clients)] }
	lease, err := next().Grant(ctx, 600)
	if err != nil {
		return err
	}
	key := fmt.Sprintf("tenant/%s/%d", x.name, n)
	if _, err := next().Put(ctx, key, "", clientv3.WithLease(lease.ID)); err != nil {
		return x.unexpected(err, "a put with a lease that was granted")
	}
	if _, err := next().KeepAliveOnce(ctx, lease.ID); err != nil {
		return x.unexpected(err, "a renewal")
	}
	if _, err := next().Revoke(ctx, lease.ID); err != nil {
		return err // it may have been done when the client tried again
	}
	resp, err := next().Get(ctx, key)
	if err != nil {
		return err
	}
	if len(resp.Kvs) != 0 {
		x.t.Errorf("%s is there at revision %d after its lease was revoked", key, resp.Header.Revision)
	}
	if _, err := next().KeepAliveOnce(ctx, lease.ID); err == nil {
		x.t.Errorf("a lease of %s was renewed after it was revoked", x.name)
	} else if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return err
	}
	return nil
}

// unexpected: until a lease is revoked it is known to all.
func (x *Tenant) unexpected(err error, what string) error {
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		x.t.Errorf("%s: %v", what, err)
	}
	return err
}

// leased is what the keys of all Renters begin with.
const leased = "leased/"

// Renter keeps a lease, with a key on it, alive through all its clients in
// turn.
type Renter struct {
	name  string
	every []*clientv3.Client
	ttl   time.Duration
	id    clientv3.LeaseID

	mu       sync.Mutex
	promised time.Time // guarded by mu; the lease lives at least until then
}

// NewRenter returns one with a new lease.
func NewRenter(t testing.TB, name string, every []*clientv3.Client, ttl time.Duration) *Renter {
	t.Helper()
	r := &Renter{name: name, every: every, ttl: ttl}
	Retry(t, "a lease", func(ctx context.Context) error {
		asked := time.Now()
		lease, err := every[0].Grant(ctx, int64(ttl/time.Second))
		if err != nil {
			return err
		}
		r.id, r.promised = lease.ID, asked.Add(ttl)
		_, err = every[0].Put(ctx, r.key(), "", clientv3.WithLease(r.id))
		return err
	})
	return r
}

func (r *Renter) key() string { return leased + r.name }

// Renew renews the lease, through one client after the other, until ctx ends or
// the lease is gone.
func (r *Renter) Renew(ctx context.Context) {
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
			r.promised = asked.Add(r.ttl)
			r.mu.Unlock()
		}
		time.Sleep(r.ttl / 20)
	}
}

func (r *Renter) until() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.promised
}

// Gone is when the key of each Renter was seen to go.
type Gone struct {
	mu    sync.Mutex
	at    map[string]time.Time // guarded by mu
	twice []string             // guarded by mu
}

// NewGone returns what has seen none go.
func NewGone() *Gone { return &Gone{at: map[string]time.Time{}} }

// Follow watches until ctx ends.
func (g *Gone) Follow(ctx context.Context, c *clientv3.Client) {
	for resp := range c.Watch(ctx, leased, clientv3.WithPrefix(), clientv3.WithFilterPut(), clientv3.WithRev(1)) {
		g.mu.Lock()
		for _, ev := range resp.Events {
			key := string(ev.Kv.Key)
			if _, before := g.at[key]; before {
				g.twice = append(g.twice, key)
			}
			g.at[key] = time.Now()
		}
		g.mu.Unlock()
	}
}

func (g *Gone) when(r *Renter) (at time.Time, ok bool, twice []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	at, ok = g.at[r.key()]
	return at, ok, g.twice
}

// Lives makes sure that the lease of each of the renters is there, as far as it
// was promised: a slow machine may not renew it in time.
func (g *Gone) Lives(t testing.TB, renters ...*Renter) {
	t.Helper()
	for _, r := range renters {
		at, ok, _ := g.when(r)
		switch promised := r.until(); {
		case ok && at.Before(promised):
			t.Errorf("the lease %s, which was renewed, expired %v before its time", r.name, promised.Sub(at))
		case ok:
			t.Logf("the lease %s was not renewed in time: it expired %v after it might have", r.name, at.Sub(promised))
		}
	}
}

// Expires waits for a lease to expire, which it does not before what was
// promised, nor later than within after that, and once.
func (g *Gone) Expires(t testing.TB, r *Renter, within time.Duration) {
	t.Helper()
	for {
		promised := r.until()
		at, ok, twice := g.when(r)
		switch {
		case len(twice) > 0:
			t.Errorf("of these leases the keys were deleted twice: %q", twice)
			return
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

// Lessor is a test of who expires leases.
type Lessor struct {
	Clients  []*clientv3.Client // one of each server
	Watching *clientv3.Client   // is served while the harm goes on
	TTL      time.Duration      // of the leases
	Within   time.Duration      // the latest that one expires after it might have

	// Begin harms who expires leases, and returns before another does. Over
	// ends that.
	Begin, Over func()
}

// Test makes sure that no lease expires early, whichever server it was renewed
// through, and that those that are not renewed do expire, while who expires
// them is harmed, and after it has come back with deadlines that are over.
func (x Lessor) Test(t testing.TB) {
	t.Helper()
	var renewing, watching sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		renewing.Wait()
		watching.Wait()
	})
	g := NewGone()
	watching.Go(func() { g.Follow(ctx, x.Watching) })
	every := append([]*clientv3.Client{x.Watching}, x.Clients...)
	renew := func(name string) (*Renter, context.CancelFunc) {
		r := NewRenter(t, name, every, x.TTL)
		ctx, cancel := context.WithCancel(ctx)
		renewing.Go(func() { r.Renew(ctx) })
		return r, cancel
	}
	kept, endKept := renew("kept")
	dropped, endDropped := renew("dropped")
	defer endKept()
	time.Sleep(2 * x.TTL) // both live longer than their TTL by their renewals only
	x.Begin()
	endDropped()
	g.Expires(t, dropped, x.Within)
	while, endWhile := renew("while")
	x.Over()
	after, endAfter := renew("after")
	time.Sleep(2 * x.TTL)
	g.Lives(t, kept, while, after)
	endKept()
	endWhile()
	endAfter()
	for _, r := range []*Renter{kept, while, after} {
		g.Expires(t, r, x.Within)
	}
}
