package lease

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// meeting is a Shared in memory, and the store of both lessors that meet in
// it.
type meeting struct {
	lessors []*Lessor

	mu      sync.Mutex
	until   map[int64]time.Time // mu; renewals
	expired map[int64]bool      // mu
	exists  map[int64]bool      // mu
	noted   map[int64]time.Time // mu; deadlines
	revoked []int64             // mu; in order
	fail    error               // mu; of ExpireLeases
}

// newMeeting returns two lessors of the same leases.
func newMeeting() (m *meeting, a, b *Lessor) {
	m = &meeting{until: make(map[int64]time.Time), expired: make(map[int64]bool), exists: make(map[int64]bool), noted: make(map[int64]time.Time)}
	for range 2 {
		m.lessors = append(m.lessors, New(m.revoke, Options{Shared: m}))
	}
	return m, m.lessors[0], m.lessors[1]
}

func (m *meeting) grant(id, ttl int64) {
	m.set(func() { m.exists[id] = true })
	for _, l := range m.lessors {
		l.Granted(id, ttl)
	}
}

func (m *meeting) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

func (m *meeting) revoke(_ context.Context, id int64) error {
	m.set(func() { m.revoked, m.exists[id] = append(m.revoked, id), false })
	for _, l := range m.lessors {
		l.Revoked(id)
	}
	return nil
}

func (m *meeting) gone() []int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.revoked)
}

func (m *meeting) LeaseExists(_ context.Context, id int64) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.exists[id], nil
}

func (m *meeting) RenewLease(_ context.Context, id int64, ttl time.Duration) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.expired[id] {
		return false, nil
	}
	m.until[id] = time.Now().Add(ttl)
	return true, nil
}

func (m *meeting) ExpireLeases(_ context.Context, ids []int64) (map[int64]time.Duration, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	left := make(map[int64]time.Duration)
	for _, id := range ids {
		if d := time.Until(m.until[id]); d > 0 {
			left[id] = d
		} else if m.fail == nil {
			m.expired[id] = true
		}
	}
	return left, m.fail
}

func (m *meeting) ExpiredLeases(context.Context) ([]int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.expired)), nil
}

func (m *meeting) NoteLeases(_ context.Context, left map[int64]time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, d := range left {
		m.noted[id] = time.Now().Add(d)
	}
	return nil
}

func (m *meeting) LeaseLeft(_ context.Context, id int64) (time.Duration, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	until, ok := m.noted[id]
	return time.Until(until), ok, nil
}

func (m *meeting) ForgetLeases(_ context.Context, ids []int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		delete(m.until, id)
		delete(m.expired, id)
	}
	return nil
}

// TestSharedRenewal: a lease renewed by a lessor that is not the primary one
// is not revoked before that renewal ends.
func TestSharedRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, primary, other := newMeeting()
		defer run(t, primary)()
		m.grant(1, 5)
		m.grant(2, 5)
		for range 4 {
			pass(3 * time.Second)
			if ttl, err := other.Renew(t.Context(), 1); err != nil || ttl != 5 {
				t.Fatalf("Renew: %d, %v", ttl, err)
			}
		}
		if got := m.gone(); !slices.Equal(got, []int64{2}) {
			t.Fatalf("revoked: %v, want the one that was not renewed", got)
		}
		pass(5*time.Second - 1)
		if got := m.gone(); len(got) != 1 {
			t.Fatalf("revoked %v before its time", got)
		}
		pass(time.Second)
		if got := m.gone(); !slices.Equal(got, []int64{2, 1}) {
			t.Fatalf("revoked: %v, want both", got)
		}
		if _, err := other.Renew(t.Context(), 1); !errors.Is(err, ErrNotFound) {
			t.Errorf("Renew of a revoked lease: %v, want ErrNotFound", err)
		}
		if len(m.expired) != 0 {
			t.Errorf("notes are left on %v", m.expired)
		}
	})
}

// TestSharedExpiry: once the primary lessor has decided, no other one renews,
// unless the note is dropped.
func TestSharedExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, primary, other := newMeeting()
		defer run(t, primary)()
		m.grant(1, 5)
		m.set(func() { m.expired[1] = true })
		result := make(chan error, 1)
		go func() {
			_, err := other.Renew(t.Context(), 1)
			result <- err
		}()
		pass(5*time.Second - 1)
		select {
		case err := <-result:
			t.Fatalf("Renew, before the revoke: %v, want it to wait", err)
		default:
		}
		pass(time.Second)
		if err := <-result; !errors.Is(err, ErrNotFound) {
			t.Errorf("Renew: %v, want ErrNotFound", err)
		}

		m.grant(2, 5)
		m.set(func() { m.expired[2] = true })
		go func() {
			_, err := other.Renew(t.Context(), 2)
			result <- err
		}()
		pass(time.Second)
		m.set(func() { delete(m.expired, 2) })
		pass(time.Second)
		if err := <-result; err != nil {
			t.Errorf("Renew: %v", err)
		}
	})
}

// TestSharedTrouble: without an answer nothing is revoked, and later it is.
func TestSharedTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, primary, _ := newMeeting()
		defer run(t, primary)()
		m.grant(1, 5)
		m.set(func() { m.fail = errors.New("no answer") })
		pass(10 * time.Second)
		if got := m.gone(); len(got) != 0 {
			t.Fatalf("revoked %v without an answer", got)
		}
		m.set(func() { m.fail = nil })
		pass(2 * time.Second)
		if got := m.gone(); len(got) != 1 {
			t.Fatalf("revoked %v, want the lease", got)
		}
	})
}

// TestSharedGrant: a lease that another member has granted just now is waited
// for, and one that nobody knows is not.
func TestSharedGrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, primary, other := newMeeting()
		defer run(t, primary)()
		m.set(func() { m.exists[1] = true })
		for _, l := range []*Lessor{primary, other} {
			result := make(chan error, 1)
			go func() {
				_, err := l.Renew(t.Context(), 1)
				result <- err
			}()
			pass(time.Second)
			l.Granted(1, 5)
			if err := <-result; err != nil {
				t.Errorf("Renew: %v", err)
			}
			if _, err := l.Renew(t.Context(), 2); !errors.Is(err, ErrNotFound) {
				t.Errorf("Renew of a lease that nobody knows: %v, want ErrNotFound", err)
			}
		}
	})
}

// TestSharedRevoke: a lease that another member has revoked is not renewed by
// one that was not told yet, be it the primary or not.
func TestSharedRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, primary, other := newMeeting()
		defer run(t, primary)()
		m.grant(1, 5)
		m.set(func() { m.exists[1] = false })
		for _, l := range []*Lessor{primary, other} {
			if _, err := l.Renew(t.Context(), 1); !errors.Is(err, ErrNotFound) {
				t.Errorf("Renew: %v, want ErrNotFound", err)
			}
		}
	})
}

// TestSharedLag: a lessor that has not heard of a revoke does not renew.
func TestSharedLag(t *testing.T) {
	m, _, lagging := newMeeting()
	m.grant(1, 5)
	m.set(func() { m.exists[1] = false })
	if ttl, err := lagging.Renew(t.Context(), 1); !errors.Is(err, ErrNotFound) {
		t.Errorf("Renew: %d, %v, want ErrNotFound", ttl, err)
	}
	if len(m.until) != 0 {
		t.Errorf("the note is left behind: %v", m.until)
	}
}

// TestSharedInherit: what the primary lessor before has decided stands. It may
// not have lived to revoke the lease, or its revoke may still be under way.
func TestSharedInherit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, primary, other := newMeeting()
		m.grant(1, 60)
		m.grant(2, 60)
		m.set(func() { m.expired[1], m.expired[3] = true, true }) // 3 is gone already
		defer run(t, primary)()
		pass(time.Second)
		if got := m.gone(); !slices.Equal(got, []int64{1}) {
			t.Fatalf("revoked: %v, want the one that had expired", got)
		}
		for _, l := range []*Lessor{primary, other} {
			if _, err := l.Renew(t.Context(), 1); !errors.Is(err, ErrNotFound) {
				t.Errorf("Renew: %v, want ErrNotFound", err)
			}
			if _, err := l.Renew(t.Context(), 2); err != nil {
				t.Errorf("Renew of the other one: %v", err)
			}
		}
		if len(m.expired) != 0 {
			t.Errorf("notes are left on %v", m.expired)
		}
	})
}

// TestSharedTimeToLive: a lessor that is not the primary one shows what that
// one knows, a little later.
func TestSharedTimeToLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, primary, other := newMeeting()
		defer run(t, primary)()
		m.grant(1, 60)
		left := func(l *Lessor) time.Duration {
			t.Helper()
			got, ok, err := l.TimeToLive(t.Context(), 1)
			if err != nil || !ok || got.TTL != 60 {
				t.Fatalf("TimeToLive: %+v, %v, %v", got, ok, err)
			}
			return got.Remaining
		}
		if got := left(other); got != time.Minute {
			t.Errorf("%v left before anything was noted", got)
		}
		pass(10 * time.Second)
		for _, l := range []*Lessor{primary, other} {
			if got := left(l); got != 50*time.Second {
				t.Errorf("%v left, want 50 s", got)
			}
		}
		if _, err := primary.Renew(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		pass(noteInterval)
		if got := left(other); got != 58*time.Second {
			t.Errorf("%v left after a renewal, want 58 s", got)
		}
		if _, ok, err := other.TimeToLive(t.Context(), 2); ok || err != nil {
			t.Errorf("TimeToLive of an unknown lease: %v, %v", ok, err)
		}
	})
}
