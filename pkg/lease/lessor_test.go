package lease

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeStore revokes leases as the store does: Revoked comes before the answer.
type fakeStore struct {
	lessor *Lessor
	start  time.Time

	mu      sync.Mutex
	fail    error         // mu
	hold    chan struct{} // mu; a revoke waits for it to close
	calls   []int64       // mu; ids in order of the calls
	revoked []revocation  // mu
}

type revocation struct {
	id int64
	at time.Duration
}

func (s *fakeStore) revoke(ctx context.Context, id int64) error {
	s.mu.Lock()
	s.calls = append(s.calls, id)
	fail, hold := s.fail, s.hold
	s.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if fail != nil {
		return fail
	}
	s.lessor.Revoked(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revoked = append(s.revoked, revocation{id, time.Since(s.start)})
	return nil
}

func (s *fakeStore) set(fail error, hold chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail, s.hold = fail, hold
}

func (s *fakeStore) gone() []revocation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.revoked)
}

func (s *fakeStore) callCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls)
}

// newFake returns a lessor over a fake store. Tests call it in a synctest
// bubble, where time passes only when everything waits.
func newFake(opt Options) (*Lessor, *fakeStore) {
	s := &fakeStore{start: time.Now()}
	s.lessor = New(s.revoke, opt)
	return s.lessor, s
}

// run runs l until the test or the returned function ends it.
func run(t *testing.T, l *Lessor) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	synctest.Wait()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

// pass lets d go by and everything that it sets off settle.
func pass(d time.Duration) {
	time.Sleep(d) // the bubble's clock: takes no time
	synctest.Wait()
}

func ids(list []Lease) []int64 {
	out := []int64{}
	for _, l := range list {
		out = append(out, l.ID)
	}
	return out
}

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := newFake(Options{})
		l.Granted(1, 10)
		l.Granted(2, 5)
		defer run(t, l)()
		l.Granted(3, 2) // earlier than all: Run must wake for it

		pass(2*time.Second - 1)
		if got := s.gone(); len(got) != 0 {
			t.Fatalf("revoked before the deadline: %v", got)
		}
		pass(1)
		if want := []revocation{{3, 2 * time.Second}}; !slices.Equal(s.gone(), want) {
			t.Fatalf("revoked %v, want %v", s.gone(), want)
		}
		pass(10 * time.Second)
		want := []revocation{{3, 2 * time.Second}, {2, 5 * time.Second}, {1, 10 * time.Second}}
		if !slices.Equal(s.gone(), want) {
			t.Fatalf("revoked %v, want %v", s.gone(), want)
		}
		if got := l.Stats(); got != (Stats{Granted: 3, Revoked: 3, Expired: 3}) {
			t.Errorf("stats %+v", got)
		}
	})
}

func TestRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := newFake(Options{})
		l.Granted(1, 5)
		defer run(t, l)()
		for range 4 {
			pass(4 * time.Second)
			if ttl, err := l.Renew(t.Context(), 1); ttl != 5 || err != nil {
				t.Fatalf("Renew = %d, %v; want 5", ttl, err)
			}
		}
		if _, err := l.Renew(t.Context(), 2); !errors.Is(err, ErrNotFound) {
			t.Errorf("Renew of an unknown lease: %v, want ErrNotFound", err)
		}
		if got, _ := l.Remaining(1); got != (Lease{1, 5, 5 * time.Second}) {
			t.Errorf("Remaining after a renewal: %+v", got)
		}
		pass(5 * time.Second)
		if want := []revocation{{1, 21 * time.Second}}; !slices.Equal(s.gone(), want) {
			t.Errorf("revoked %v, want %v", s.gone(), want)
		}
		if _, err := l.Renew(t.Context(), 1); !errors.Is(err, ErrNotFound) {
			t.Errorf("Renew of a revoked lease: %v, want ErrNotFound", err)
		}
	})
}

// A renewal that comes after the deadline waits for the revoke.
func TestRenewWaitsForRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := newFake(Options{})
		hold := make(chan struct{})
		s.set(nil, hold)
		l.Granted(1, 5)
		defer run(t, l)()
		pass(6 * time.Second)

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := l.Renew(ctx, 1); !errors.Is(err, context.Canceled) {
			t.Fatalf("Renew with an ended context: %v", err)
		}
		result := make(chan error, 1)
		go func() {
			_, err := l.Renew(t.Context(), 1)
			result <- err
		}()
		synctest.Wait()
		select {
		case err := <-result:
			t.Fatalf("Renew answered %v while the revoke was under way", err)
		default:
		}
		if got, ok := l.Remaining(1); !ok || got.Remaining != -time.Second {
			t.Errorf("an expired lease must stay listed until it is revoked: %+v, %t", got, ok)
		}
		close(hold)
		if err := <-result; !errors.Is(err, ErrNotFound) {
			t.Errorf("Renew after the revoke: %v, want ErrNotFound", err)
		}
	})
}

func TestRevokeIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := newFake(Options{RetryInterval: 3 * time.Second})
		s.set(errors.New("no leader"), nil)
		l.Granted(1, 5)
		defer run(t, l)()
		pass(5*time.Second + 1)
		if got := s.callCount(); got != 1 {
			t.Fatalf("%d revokes, want 1", got)
		}
		pass(3*time.Second - 2)
		if got := s.callCount(); got != 1 {
			t.Fatalf("%d revokes before the retry interval, want 1", got)
		}
		s.set(nil, nil)
		pass(time.Second)
		if got := s.gone(); len(got) != 1 || s.callCount() != 2 {
			t.Fatalf("revoked %v after %d calls", got, s.callCount())
		}
		if got := l.List(); len(got) != 0 {
			t.Errorf("still listed: %v", got)
		}
	})
}

// A slow revoke is not issued a second time beside itself.
func TestOneRevokeAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := newFake(Options{})
		hold := make(chan struct{})
		s.set(nil, hold)
		l.Granted(1, 2)
		defer run(t, l)()
		pass(time.Minute)
		if got := s.callCount(); got != 1 {
			t.Errorf("%d revokes of one lease under way, want 1", got)
		}
		close(hold)
		synctest.Wait()
		if got := s.gone(); len(got) != 1 {
			t.Errorf("revoked %v", got)
		}
	})
}

func TestRevokeRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := newFake(Options{})
		const n = 3500
		for id := range int64(n) {
			l.Granted(id+1, 10)
		}
		defer run(t, l)()
		pass(30 * time.Second)
		gone := s.gone()
		if len(gone) != n {
			t.Fatalf("%d of %d leases revoked", len(gone), n)
		}
		slices.SortFunc(gone, func(a, b revocation) int { return int(a.at - b.at) })
		for i := range gone {
			if i+1000 < n && gone[i+1000].at-gone[i].at < time.Second {
				t.Fatalf("more than 1000 revokes in the second after %v", gone[i].at)
			}
		}
		if last := gone[n-1].at; last > 14*time.Second {
			t.Errorf("the last lease was revoked at %v: too slow", last)
		}
	})
}

// The store answers nil when it does not know the lease; the lessor forgets it.
func TestRevokeOfLeaseUnknownToStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(func(context.Context, int64) error { return nil }, Options{})
		l.Granted(1, 2)
		defer run(t, l)()
		pass(3 * time.Second)
		if _, ok := l.Remaining(1); ok {
			t.Error("the lease is still there")
		}
	})
}

// An id may be granted again as soon as the store revoked it: the new lease
// must not fall with the old one.
func TestGrantAgainBeforeRevokeReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l *Lessor
		l = New(func(_ context.Context, id int64) error {
			l.Revoked(id)
			l.Granted(id, 60)
			return nil
		}, Options{})
		l.Granted(1, 2)
		defer run(t, l)()
		pass(3 * time.Second)
		if got, ok := l.Remaining(1); !ok || got != (Lease{1, 60, 59 * time.Second}) {
			t.Errorf("the new lease: %+v, %t", got, ok)
		}
	})
}

func TestListByExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := newFake(Options{})
		defer run(t, l)()
		for id, ttl := range map[int64]int64{1: 100, 2: 10, 3: 50, 5: 10} {
			l.Granted(id, ttl)
		}
		if got, want := ids(l.List()), []int64{2, 5, 3, 1}; !slices.Equal(got, want) {
			t.Errorf("List = %v, want %v", got, want)
		}
		pass(5 * time.Second)
		for _, id := range []int64{2, 3} {
			if _, err := l.Renew(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		l.Revoked(1)
		l.Revoked(77)
		if got, want := ids(l.List()), []int64{5, 2, 3}; !slices.Equal(got, want) {
			t.Errorf("List = %v, want %v", got, want)
		}
	})
}

// Without a Run nothing expires and nothing is renewed; the next Run starts
// every lease in full.
func TestRunStartsLeasesInFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := newFake(Options{})
		l.Granted(1, 10)
		if _, err := l.Renew(t.Context(), 1); !errors.Is(err, ErrNotPrimary) {
			t.Errorf("Renew before Run: %v, want ErrNotPrimary", err)
		}
		pass(time.Minute) // a load that takes long
		stop := run(t, l)
		pass(9 * time.Second)
		stop()
		pass(time.Hour)
		if got, _ := l.Remaining(1); got != (Lease{1, 10, 10 * time.Second}) {
			t.Errorf("between two Runs: %+v", got)
		}
		l.Granted(2, 20)
		stop = run(t, l)
		defer stop()
		pass(9 * time.Second)
		if got := s.gone(); len(got) != 0 {
			t.Fatalf("revoked %v although the leases started in full", got)
		}
		pass(time.Second)
		if got, want := ids(l.List()), []int64{2}; !slices.Equal(got, want) || len(s.gone()) != 1 {
			t.Errorf("left %v, want %v", got, want)
		}
	})
}

// The end of Run lets waiting renewals go, so that they ask the next primary.
func TestEndOfRunAnswersRenewals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := newFake(Options{})
		s.set(errors.New("no leader"), nil)
		l.Granted(1, 2)
		stop := run(t, l)
		pass(3 * time.Second)
		result := make(chan error, 1)
		go func() {
			_, err := l.Renew(t.Context(), 1)
			result <- err
		}()
		synctest.Wait()
		stop()
		if err := <-result; !errors.Is(err, ErrNotPrimary) {
			t.Errorf("Renew: %v, want ErrNotPrimary", err)
		}
	})
}

// The end of Run cuts off a revoke that does not return by itself.
func TestEndOfRunEndsRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := newFake(Options{})
		s.set(nil, make(chan struct{}))
		l.Granted(1, 2)
		stop := run(t, l)
		pass(3 * time.Second)
		stop()
		if _, ok := l.Remaining(1); !ok || s.callCount() != 1 {
			t.Errorf("the lease must stay: its revoke did not succeed")
		}
	})
}

func TestLongestTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := newFake(Options{})
		defer run(t, l)()
		l.Granted(1, MaxTTL)
		pass(100 * 365 * 24 * time.Hour)
		if got, ok := l.Remaining(1); !ok || got.Remaining <= 0 || len(s.gone()) != 0 {
			t.Errorf("after 100 years: %+v, %t", got, ok)
		}
	})
}

// steppedClock is a clock whose time the test sets.
type steppedClock struct {
	mu  sync.Mutex
	now time.Duration // mu
}

func (c *steppedClock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *steppedClock) After(d time.Duration) (<-chan time.Time, func() bool) {
	t := time.NewTimer(d)
	return t.C, t.Stop
}

// Only the lessor's clock counts: whatever time the timers think it is (the
// wall clock was set, the machine slept), nothing expires early.
func TestOnlyTheClockExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock := &steppedClock{now: time.Hour}
		l, s := newFake(Options{Clock: clock})
		defer run(t, l)()
		l.Granted(1, 60)
		clock.mu.Lock()
		clock.now += 59 * time.Second
		clock.mu.Unlock()
		for range 10 {
			pass(time.Minute) // timers fire as often as they like
		}
		if got := s.callCount(); got != 0 {
			t.Fatalf("%d revokes before the clock reached the deadline", got)
		}
		clock.mu.Lock()
		clock.now += time.Second
		clock.mu.Unlock()
		pass(time.Minute)
		if got := s.gone(); len(got) != 1 || got[0].id != 1 {
			t.Errorf("revoked %v, want lease 1", got)
		}
	})
}

// A clock that leaps, since the process was stopped or its machine slept, takes
// no time away that a lease has left, and gives none: what is over cannot be
// renewed before it is revoked.
func TestClockLeaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock := &steppedClock{}
		l, s := newFake(Options{Clock: clock})
		defer run(t, l)()
		for id, ttl := range map[int64]int64{1: 10, 2: 20, 3: 3600} {
			l.Granted(id, ttl)
		}
		clock.mu.Lock()
		clock.now = time.Minute
		clock.mu.Unlock()
		renewed := make(chan error, 1)
		go func() {
			_, err := l.Renew(t.Context(), 1)
			renewed <- err
		}()
		synctest.Wait()
		if _, err := l.Renew(t.Context(), 3); err != nil {
			t.Errorf("renewal of a lease that has time left: %v", err)
		}
		if left, _ := l.Remaining(3); left.Remaining != time.Hour {
			t.Errorf("%v are left of the lease just renewed", left.Remaining)
		}
		pass(20 * time.Second) // the timer, set before the leap, fires
		if err := <-renewed; !errors.Is(err, ErrNotFound) {
			t.Errorf("renewal of a lease whose time is over: %v", err)
		}
		if got := ids(l.List()); !slices.Equal(got, []int64{3}) || len(s.gone()) != 2 {
			t.Errorf("leases %v are left, revoked are %v", got, s.gone())
		}
	})
}

// The system clock is Go's monotonic one.
func TestSystemClock(t *testing.T) {
	c := SystemClock().(systemClock)
	if !strings.Contains(c.start.String(), " m=") {
		t.Error("the start has no monotonic reading: Now would follow the wall clock")
	}
	a := c.Now()
	if b := c.Now(); b < a {
		t.Errorf("time went from %v to %v", a, b)
	}
}

func TestConcurrentUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := newFake(Options{})
		stop := run(t, l)
		var wg sync.WaitGroup
		for g := range int64(8) {
			wg.Go(func() {
				for i := range int64(200) {
					id := g*1000 + i
					l.Granted(id, 1+i%5)
					_, _ = l.Renew(t.Context(), id-g)
					l.List()
					time.Sleep(10 * time.Millisecond)
					if i%3 == 0 {
						l.Revoked(id)
					}
				}
			})
		}
		wg.Wait()
		pass(time.Minute)
		stop()
		if got := l.Stats(); got.Leases != 0 || got.Granted != 1600 || got.Revoked < 1600-67*8 {
			t.Errorf("stats %+v after %d revokes", got, len(s.gone()))
		}
	})
}
