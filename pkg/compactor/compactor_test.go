package compactor

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		mode, retention string
		want            Policy
		err             error
	}{
		{"periodic", "", Policy{}, nil},
		{"periodic", "0", Policy{}, nil},
		{"periodic", "1", Policy{Period: time.Hour}, nil},
		{"periodic", "5m", Policy{Period: 5 * time.Minute}, nil},
		{"periodic", "72h", Policy{Period: 72 * time.Hour}, nil},
		{"periodic", "1ms", Policy{}, ErrRetention},
		{"periodic", "-5m", Policy{}, ErrRetention},
		{"periodic", "-1", Policy{}, ErrRetention},
		{"periodic", "9223372036854775807", Policy{}, ErrRetention},
		{"periodic", "soon", Policy{}, ErrRetention},
		{"revision", "1000", Policy{Revisions: 1000}, nil},
		{"revision", "0", Policy{}, nil},
		{"revision", "5m", Policy{}, ErrRetention},
		{"", "1", Policy{}, ErrMode},
		{"hourly", "1", Policy{}, ErrMode},
	} {
		got, err := Parse(tt.mode, tt.retention)
		if got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%q %q: %+v, %v, want %+v, %v", tt.mode, tt.retention, got, err, tt.want, tt.err)
		}
	}
}

// fakeClock hands each wait to the test, which moves time by it.
type fakeClock struct {
	now   atomic.Int64
	waits chan wait
}

type wait struct {
	d    time.Duration
	fire chan time.Time
}

func newFakeClock() *fakeClock { return &fakeClock{waits: make(chan wait)} }

func (f *fakeClock) Now() time.Time { return time.Unix(0, f.now.Load()) }

func (f *fakeClock) After(d time.Duration) <-chan time.Time {
	w := wait{d, make(chan time.Time)}
	f.waits <- w
	return w.fire
}

// script runs a compactor; at tick i the newest revision is revs[i]. It
// returns what was compacted before each tick, 0 for nothing, and how far the
// ticks are apart.
func script(t *testing.T, policy Policy, revs []int64, fail map[int]error) (done []int64, tick time.Duration) {
	t.Helper()
	var (
		clock   = newFakeClock()
		i       atomic.Int64
		current atomic.Int64
		log     = logrus.New()
	)
	log.SetOutput(io.Discard)
	ctx, cancel := context.WithCancel(t.Context())
	end := make(chan error, 1)
	target := Target{
		Revision: func() int64 { return revs[min(int(i.Load()), len(revs)-1)] },
		Compact: func(_ context.Context, revision int64) error {
			if err := fail[int(i.Load())]; err != nil {
				return err
			}
			current.Store(revision)
			return nil
		},
	}
	go func() { end <- Run(ctx, policy, target, clock, logrus.NewEntry(log)) }()
	w := <-clock.waits
	for n := 1; n < len(revs); n++ {
		tick = w.d
		clock.now.Add(int64(w.d))
		i.Store(int64(n))
		w.fire <- clock.Now()
		w = <-clock.waits // the tick has been worked off
		done = append(done, current.Swap(0))
	}
	cancel()
	if err := <-end; err != nil {
		t.Fatal(err)
	}
	return done, tick
}

func count(n int) []int64 {
	revs := make([]int64, n)
	for i := range revs {
		revs[i] = int64(i + 1)
	}
	return revs
}

func TestPeriodic(t *testing.T) {
	// A revision each tick of 30 s: after 10 ticks the one of 5 minutes ago
	// goes, then each 10 ticks the one that was current 11 ticks ago.
	done, tick := script(t, Policy{Period: 5 * time.Minute}, count(31), nil)
	want := make([]int64, 30)
	want[9], want[19], want[29] = 1, 10, 20
	if tick != 30*time.Second || !slices.Equal(done, want) {
		t.Errorf("tick %v, compacted %v, want %v", tick, done, want)
	}
}

func TestPeriodicLongerThanAnHour(t *testing.T) {
	// 2 h: sampled each 6 min; first after 20 ticks, then hourly.
	done, tick := script(t, Policy{Period: 2 * time.Hour}, count(41), nil)
	want := make([]int64, 40)
	want[19], want[29], want[39] = 1, 10, 20
	if tick != 6*time.Minute || !slices.Equal(done, want) {
		t.Errorf("tick %v, compacted %v, want %v", tick, done, want)
	}
}

func TestPeriodicRetriesAndRests(t *testing.T) {
	// The first attempt fails and is made again a tick later; without new
	// revisions nothing is compacted twice.
	revs := append(count(5), slices.Repeat([]int64{5}, 40)...)
	done, _ := script(t, Policy{Period: 10 * time.Second}, revs, map[int]error{10: errors.New("no space")})
	var got []int64
	for _, r := range done {
		if r != 0 {
			got = append(got, r)
		}
	}
	if !slices.Equal(got, []int64{1, 5}) || done[9] != 0 || done[10] != 1 {
		t.Errorf("compacted %v", done)
	}
}

func TestRevision(t *testing.T) {
	done, tick := script(t, Policy{Revisions: 10}, []int64{1, 5, 10, 25, 25, 40, 41}, map[int]error{5: errors.New("busy")})
	if want := []int64{0, 0, 15, 0, 0, 31}; tick != 5*time.Minute || !slices.Equal(done, want) {
		t.Errorf("tick %v, compacted %v, want %v", tick, done, want)
	}
}

func TestOffAndStop(t *testing.T) {
	if err := Run(t.Context(), Policy{}, Target{}, SystemClock{}, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	target := Target{Revision: func() int64 { return 1 }}
	if err := Run(ctx, Policy{Period: time.Hour}, target, SystemClock{}, nil); err != nil {
		t.Fatal(err)
	}
}
