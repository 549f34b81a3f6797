// Package lease keeps the deadlines of leases and revokes those that pass
// them.
//
// The leases themselves are in the store's log; the store tells the lessor
// about every grant and revoke it applies. Deadlines are in memory only, on
// the one member that runs the lessor, and start again in full whenever that
// begins (a start, a change of leader), so that no lease ever lives shorter
// than its TTL.
//
//	store ── Granted ──▶ ┌────────┐ ◀── Renew, Remaining, List ── clients
//	      ── Revoked ──▶ │ Lessor │
//	store ◀── revoke ─── └────────┘  Run: the deadline has passed
//
// A lease ends only when the store says Revoked: until then it is listed, and
// a renewal that comes too late waits for the verdict.
package lease

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// The limits of a lease's TTL in seconds, etcd's.
const (
	// MinTTL is what a shorter TTL is raised to, unless nodes elect leaders by
	// other timing: one and a half election timeouts of etcd's default, rounded
	// up.
	MinTTL = 2
	// MaxTTL is the longest TTL that can be granted.
	MaxTTL = 9_000_000_000
)

const (
	// defaultRevokeRate bounds the revokes per second, so that a thousand
	// leases that expire together do not crowd out the clients' writes.
	defaultRevokeRate = 1000
	// revokeInterval is the time that Run leaves between two rounds; a round
	// revokes at most rate × revokeInterval leases, side by side.
	revokeInterval = 100 * time.Millisecond
	// noteInterval is the time between two notes of deadlines for others.
	noteInterval = 2 * time.Second
	// defaultRetryInterval passes before a failed revoke is tried again.
	defaultRetryInterval = time.Second
	// never is the deadline of a lease whose TTL ends beyond the clock.
	never = time.Duration(math.MaxInt64)
)

// Options adjusts a Lessor; the zero value is good.
type Options struct {
	Clock         Clock         // default SystemClock
	RevokeRate    int           // revokes per second, default 1000
	RetryInterval time.Duration // default one second
	Logger        *logrus.Entry

	// Shared is where several lessors of the same leases meet, of which one
	// runs; nil: there is no other.
	Shared Shared
}

// Lease is a granted lease as List shows it.
type Lease struct {
	ID  int64
	TTL int64 // seconds, as granted
	// Remaining is the time left; negative while an expired lease waits to be
	// revoked.
	Remaining time.Duration
}

// Stats counts since the lessor was made.
type Stats struct {
	Leases                             int // held now
	Granted, Revoked, Renewed, Expired int64
}

// Lessor keeps the deadlines. Its methods are safe for concurrent use and do
// not block, but for Renew and Run.
type Lessor struct {
	clock    Clock
	perRound int
	retry    time.Duration
	log      *logrus.Entry
	shared   Shared // may be nil

	// revoke revokes a lease in the store.
	revoke func(ctx context.Context, id int64) error

	// wake has one slot: the earliest due time may have moved.
	wake chan struct{}

	mu      sync.Mutex
	granted chan struct{}    // mu; closed by the next Granted
	primary bool             // mu; Run is running
	demoted chan struct{}    // mu; closed when the present Run ends
	leases  map[int64]*entry // mu
	due     dueHeap          // mu; every lease, while primary
	unnoted []*entry         // mu; whose deadline has changed; empty unless shared
	stats   Stats            // mu
}

// entry is a lease. All fields but the first three are the lessor's mu.
type entry struct {
	id      int64
	ttl     int64
	revoked chan struct{} // closed when the lease is gone

	deadline time.Duration
	// due is when Run must look at the lease: its deadline, or later when a
	// revoke is under way or has failed.
	due   time.Duration
	index int // in the heap, -1 when not there

	unnoted bool // in Lessor.unnoted
}

// New returns a lessor without leases. revoke must revoke a lease in the
// store, and return nil as well when the store does not know it any more.
func New(revoke func(ctx context.Context, id int64) error, opt Options) *Lessor {
	if opt.Clock == nil {
		opt.Clock = SystemClock()
	}
	if opt.RevokeRate == 0 {
		opt.RevokeRate = defaultRevokeRate
	}
	if opt.RetryInterval == 0 {
		opt.RetryInterval = defaultRetryInterval
	}
	if opt.Logger == nil {
		opt.Logger = logrus.NewEntry(logrus.StandardLogger())
	}
	return &Lessor{
		clock:    opt.Clock,
		perRound: max(1, opt.RevokeRate*int(revokeInterval/time.Millisecond)/1000),
		retry:    opt.RetryInterval,
		log:      opt.Logger,
		shared:   opt.Shared,
		revoke:   revoke,
		wake:     make(chan struct{}, 1),
		granted:  make(chan struct{}),
		leases:   make(map[int64]*entry),
	}
}

// Granted takes in a lease that the store has granted or loaded. Its deadline
// is a full TTL away.
func (l *Lessor) Granted(id, ttl int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(id)
	e := &entry{id: id, ttl: ttl, revoked: make(chan struct{}), index: -1}
	l.leases[id] = e
	l.stats.Granted++
	close(l.granted)
	l.granted = make(chan struct{})
	if l.primary {
		l.restart(e, l.clock.Now())
	}
}

// Revoked takes out a lease that the store has revoked. An unknown one is
// passed over.
func (l *Lessor) Revoked(id int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.drop(id) {
		l.stats.Revoked++
	}
}

// Renew starts a lease's TTL again and returns it in seconds. A lease whose
// deadline has passed cannot be renewed: Renew waits until it is revoked and
// gives ErrNotFound, since another answer might come before the revoke and
// contradict it. ErrNotPrimary: ask the member that runs the lessor.
func (l *Lessor) Renew(ctx context.Context, id int64) (int64, error) {
	for {
		l.mu.Lock()
		granted := l.granted
		l.mu.Unlock()
		ttl, err := l.renew(ctx, id)
		if l.shared == nil || err != nil && !errors.Is(err, ErrNotFound) {
			return ttl, err
		}
		// Another member may have granted or revoked it just now. Asked only
		// after the renewal: a revoke that knew of none is before the answer.
		exists, existsErr := l.shared.LeaseExists(ctx, id)
		switch {
		case existsErr != nil:
			return 0, existsErr
		case !exists:
			if err == nil { // it came after the note was dropped
				l.forget(ctx, id)
			}
			return 0, ErrNotFound
		case err == nil:
			return ttl, nil
		}
		select {
		case <-granted:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// renew is Renew with what this lessor knows of grants.
func (l *Lessor) renew(ctx context.Context, id int64) (int64, error) {
	for {
		l.mu.Lock()
		e, ok := l.leases[id]
		primary, demoted := l.primary, l.demoted
		switch now := l.clock.Now(); {
		case !primary && l.shared == nil:
			l.mu.Unlock()
			return 0, ErrNotPrimary
		case !ok:
			l.mu.Unlock()
			return 0, ErrNotFound
		case primary && now < e.deadline:
			l.restart(e, now)
			l.stats.Renewed++
			l.mu.Unlock()
			return e.ttl, nil
		}
		l.mu.Unlock()

		if !primary {
			if renewed, err := l.shared.RenewLease(ctx, id, ttlOf(e)); err != nil {
				return 0, err
			} else if renewed {
				return e.ttl, nil
			}
			demoted = nil
		}
		if err := l.verdict(ctx, e, demoted); err != nil {
			return 0, err
		}
	}
}

// verdict waits until e, which has expired, is revoked. Where there are other
// lessors it comes back with nil after a while: e may have been renewed by
// one of them, or the one that was to revoke it be gone.
func (l *Lessor) verdict(ctx context.Context, e *entry, demoted <-chan struct{}) error {
	var again <-chan time.Time
	if l.shared != nil {
		timer, stop := l.clock.After(l.retry)
		defer stop()
		again = timer
	}
	select {
	case <-e.revoked:
		return ErrNotFound
	case <-demoted:
		if l.shared == nil {
			return ErrNotPrimary
		}
		return nil
	case <-again:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Remaining returns a lease with the time it has left.
func (l *Lessor) Remaining(id int64) (Lease, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.leases[id]
	if !ok {
		return Lease{}, false
	}
	return l.view(e, l.clock.Now()), true
}

// TimeToLive returns a lease with the time it has left, if it exists. A lessor
// that is not the primary one asks what the others have noted; until they
// have, the lease shows its whole TTL.
func (l *Lessor) TimeToLive(ctx context.Context, id int64) (Lease, bool, error) {
	l.mu.Lock()
	primary := l.primary
	l.mu.Unlock()
	lease, ok := l.Remaining(id)
	if primary || l.shared == nil || !ok {
		return lease, ok, nil
	}
	left, noted, err := l.shared.LeaseLeft(ctx, id)
	if noted { // maybe of an older lease with that id
		lease.Remaining = min(left, lease.Remaining)
	}
	return lease, true, err
}

// List returns the leases, those that expire first first.
func (l *Lessor) List() []Lease {
	l.mu.Lock()
	list := make([]Lease, 0, len(l.leases))
	now := l.clock.Now()
	for _, e := range l.leases {
		list = append(list, l.view(e, now))
	}
	l.mu.Unlock()
	slices.SortFunc(list, func(a, b Lease) int {
		return cmp.Or(cmp.Compare(a.Remaining, b.Remaining), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// Stats returns the counters.
func (l *Lessor) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Leases = len(l.leases)
	return s
}

// Run makes the lessor the primary one until ctx ends: every lease starts in
// full, and those that pass their deadline are revoked. A revoke that fails
// is tried again. It returns nil, after the revokes under way have returned.
func (l *Lessor) Run(ctx context.Context) error {
	expired, ok := l.inherit(ctx)
	if !ok {
		return nil
	}
	l.promote(expired)
	defer l.demote()
	if l.shared != nil {
		var noting sync.WaitGroup
		defer noting.Wait()
		noting.Go(func() { l.keepNoting(ctx) })
	}
	for {
		expired, wait := l.takeExpired()
		if len(expired) > 0 {
			l.revokeAll(ctx, expired)
			wait = revokeInterval
		}
		if !l.pause(ctx, wait, len(expired) > 0) {
			return nil
		}
	}
}

// pause waits for d, or less when the earliest due time may have moved,
// unless whole. It returns false when ctx has ended.
func (l *Lessor) pause(ctx context.Context, d time.Duration, whole bool) bool {
	wake := l.wake
	if whole {
		wake = nil // this pause is what bounds the rate
	}
	timer, stop := l.clock.After(d)
	defer stop()
	select {
	case <-timer:
	case <-wake:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// promote makes l the primary lessor; expired is what inherit returned.
func (l *Lessor) promote(expired []int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.primary = true
	l.demoted = make(chan struct{})
	now := l.clock.Now()
	for _, e := range l.leases {
		l.restart(e, now)
	}
	for _, id := range expired {
		if e, ok := l.leases[id]; ok {
			e.deadline, e.due = now, now
			heap.Fix(&l.due, e.index)
		}
	}
}

func (l *Lessor) demote() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.primary = false
	close(l.demoted)
	for _, e := range l.due {
		e.index = -1
	}
	l.due = nil
}

// takeExpired returns leases to revoke now, as many as a round may have, and
// the time until the next one is due.
func (l *Lessor) takeExpired() ([]*entry, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Now()
	var expired []*entry
	for len(l.due) > 0 && l.due[0].due <= now && len(expired) < l.perRound {
		e := l.due[0]
		expired = append(expired, e)
		e.due = addSaturated(now, l.retry)
		heap.Fix(&l.due, 0)
	}
	if len(l.due) == 0 {
		return expired, never
	}
	return expired, max(0, l.due[0].due-now)
}

// revokeAll revokes leases side by side, for the store to commit together,
// and returns when all have their answer.
func (l *Lessor) revokeAll(ctx context.Context, expired []*entry) {
	if l.shared != nil {
		if expired = l.agree(ctx, expired); len(expired) == 0 {
			return
		}
		defer l.forgetRevoked(ctx, expired)
	}
	var wg sync.WaitGroup
	for _, e := range expired {
		wg.Go(func() {
			err := l.revoke(ctx, e.id)
			l.settle(ctx, e, err)
		})
	}
	wg.Wait()
}

// settle notes the outcome of a revoke.
func (l *Lessor) settle(ctx context.Context, e *entry, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		e.due = addSaturated(l.clock.Now(), l.retry)
		if e.index >= 0 {
			heap.Fix(&l.due, e.index)
		}
		if ctx.Err() == nil || !errors.Is(err, ctx.Err()) {
			l.log.WithError(err).Warnf("lease %016x has expired but could not be revoked; trying again in %v", e.id, l.retry)
		}
		return
	}
	l.stats.Expired++
	// The store has called Revoked already, unless it did not know the lease.
	// The id may have been granted anew since: that lease stays.
	if l.leases[e.id] == e {
		l.drop(e.id)
	}
}

// ttlOf returns e's TTL, or the longest there is.
func ttlOf(e *entry) time.Duration { return time.Duration(min(e.ttl, MaxTTL)) * time.Second }

// restart gives e a full TTL from now. mu is held and l is primary.
func (l *Lessor) restart(e *entry, now time.Duration) {
	if l.shared != nil && !e.unnoted {
		e.unnoted = true
		l.unnoted = append(l.unnoted, e)
	}
	e.deadline = never
	if e.ttl <= MaxTTL {
		e.deadline = addSaturated(now, ttlOf(e))
	}
	e.due = e.deadline
	if e.index >= 0 {
		heap.Fix(&l.due, e.index) // later than before: Run need not know
		return
	}
	heap.Push(&l.due, e)
	if e.index == 0 {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// drop forgets a lease and reports whether it was there. mu is held.
func (l *Lessor) drop(id int64) bool {
	e, ok := l.leases[id]
	if !ok {
		return false
	}
	delete(l.leases, id)
	if e.index >= 0 {
		heap.Remove(&l.due, e.index)
	}
	close(e.revoked)
	return true
}

// view returns e as seen at now. mu is held. Without a Run nothing expires:
// the TTL will start in full.
func (l *Lessor) view(e *entry, now time.Duration) Lease {
	remaining := ttlOf(e)
	if l.primary {
		remaining = e.deadline - now
	}
	return Lease{ID: e.id, TTL: e.ttl, Remaining: remaining}
}

// addSaturated returns a+b, or never when that is beyond the clock. Neither
// is negative.
func addSaturated(a, b time.Duration) time.Duration {
	if b > never-a {
		return never
	}
	return a + b
}

// dueHeap orders leases by due; it implements heap.Interface.
type dueHeap []*entry

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due < h[j].due }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *dueHeap) Push(x any) {
	e := x.(*entry)
	e.index = len(*h)
	*h = append(*h, e)
}

func (h *dueHeap) Pop() any {
	old := *h
	n := len(old) - 1
	e := old[n]
	old[n] = nil
	*h = old[:n]
	e.index = -1
	return e
}
