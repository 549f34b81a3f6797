package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
)

const ourID, otherID = "0123456789abcdef", "fedcba9876543210"

// fixture is Backups of a store that is made up, in a directory.
type fixture struct {
	opt      Options
	dir      string
	hook     *test.Hook
	registry *prometheus.Registry

	revision int64
	write    error // of the next writes
	verify   error
	takes    time.Duration
	mine     atomic.Bool
	written  int
}

func newFixture(t *testing.T, schedule, retention string) *fixture {
	t.Helper()
	logger, hook := test.NewNullLogger()
	logger.SetLevel(logrus.DebugLevel)
	f := &fixture{dir: t.TempDir(), hook: hook, registry: prometheus.NewRegistry(), revision: 10}
	f.mine.Store(true)
	s, err := ParseSchedule(schedule)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ParseRetention(retention)
	if err != nil {
		t.Fatal(err)
	}
	f.opt = Options{
		Schedule: s, Retention: r, Place: Directory(f.dir), ID: ourID, Temporary: filepath.Join(f.dir, ".partial"),
		Write: func(ctx context.Context, path string) (Contents, error) {
			f.written++
			if f.takes > 0 {
				select {
				case <-time.After(f.takes):
				case <-ctx.Done():
				}
			}
			if err := ctx.Err(); err != nil {
				return Contents{}, err
			}
			file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err != nil {
				return Contents{}, err
			}
			_, err = fmt.Fprint(file, f.revision)
			if err := errors.Join(err, file.Close()); err != nil {
				return Contents{}, err
			}
			f.revision++
			return Contents{Revision: f.revision - 1, Records: 3}, f.write
		},
		Verify: func(_ context.Context, path string) (Contents, error) {
			data, err := os.ReadFile(path)
			if err != nil {
				return Contents{}, err
			}
			c := Contents{Records: 3}
			_, err = fmt.Sscan(string(data), &c.Revision)
			return c, errors.Join(err, f.verify)
		},
		Size: func() int64 { return 1000 },
		Mine: f.mine.Load,

		Metrics: NewMetrics(f.registry), Log: logrus.NewEntry(logger),
	}
	return f
}

// run runs Backups for d.
func (f *fixture) run(t *testing.T, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := New(f.opt).Run(ctx); err != nil {
		t.Error(err)
	}
}

func (f *fixture) files(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (f *fixture) logged(text string) int {
	n := 0
	for _, e := range f.hook.AllEntries() {
		if line, err := e.String(); err == nil && strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func (f *fixture) metric(t *testing.T, name string) float64 {
	t.Helper()
	families, err := f.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == "keelson_backup_"+name {
			m := family.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func name(id string, revision int64, at time.Time) string {
	return backupName{id, revision, at.UTC()}.String()
}

func (f *fixture) put(t *testing.T, names ...string) {
	t.Helper()
	for _, n := range names {
		if err := os.WriteFile(filepath.Join(f.dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSchedule(t *testing.T) {
	for text, ok := range map[string]bool{
		"@every 1h": true, "@daily": true, "@hourly": true, "30 3 * * *": true, " */5 * * * 1-5 ": true, "CRON_TZ=UTC 0 0 * * *": true,
		"": false, "daily": false, "@every": false, "@every 1": false, "61 * * * *": false, "* * * *": false, "* * * * * *": false,
		"0 0 30 2 *": false, "TZ=0": false, "CRON_TZ=Nowhere/Land @daily": false, "@reboot": false, "\x00": false,
	} {
		s, err := ParseSchedule(text)
		if (err == nil) != ok || err != nil && (!errors.Is(err, ErrUsage) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%q: %v", text, err)
		}
		if err == nil && (!s.Next(time.Now()).After(time.Now()) || s.String() != text) {
			t.Errorf("%q: next is %v", text, s.Next(time.Now()))
		}
	}
}

func TestRetention(t *testing.T) {
	for text, want := range map[string]Retention{"7": {Count: 7}, "0": {}, "30d": {Age: 30 * day}, "72h": {Age: 72 * time.Hour}} {
		if r, err := ParseRetention(text); err != nil || r != want {
			t.Errorf("%q: %+v, %v", text, r, err)
		}
	}
	for _, text := range []string{"", "-1", "d", "0d", "-3d", "-1h", "7 d", "1y", "99999999999d"} {
		if r, err := ParseRetention(text); !errors.Is(err, ErrUsage) {
			t.Errorf("%q: %+v, %v", text, r, err)
		}
	}
}

func TestNames(t *testing.T) {
	at := time.Date(2026, 11, 21, 3, 30, 0, 0, time.UTC)
	good := []string{name(ourID, 9, at), name(ourID, 10, at), name(ourID, 3, at.Add(time.Second))}
	bad := []string{
		name(otherID, 9, at), good[0] + ".tmp", "x" + good[0], "keelson.db", "snapshot.db", "keelson-" + ourID + "-09-20261121T033000Z.db",
		"keelson-" + ourID + "-9-20261341T033000Z.db", "keelson-" + ourID + "-99999999999999999999-20261121T033000Z.db", "",
	}
	var got []string
	for _, n := range parseNames([]string{good[2], bad[0], bad[1], good[1], bad[2], bad[3], bad[4], bad[5], bad[6], bad[7], bad[8], good[0]}, ourID) {
		got = append(got, n.String())
	}
	if !slices.Equal(got, good) {
		t.Errorf("%q, want %q", got, good)
	}
}

func TestKeepsSoMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@every 1h", "2")
		start := time.Now()
		others := []string{name(otherID, 1, start.Add(-99*day)), "notes.txt", "keelson-" + ourID + "-x.db"}
		f.put(t, append(others, name(ourID, 1, start.Add(-3*time.Hour+time.Second)), name(ourID, 2, start.Add(-2*time.Hour+time.Second)))...)
		f.put(t, name(ourID, 3, start.Add(-time.Minute)))
		f.run(t, 3*time.Hour)
		// On from the newest there was, and not from the start.
		want := append(slices.Clone(others), name(ourID, 11, start.Add(2*time.Hour-time.Minute)), name(ourID, 12, start.Add(3*time.Hour-time.Minute)))
		slices.Sort(want)
		if got := f.files(t); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		if n := f.logged("backup done"); n != 3 || f.metric(t, "successes_total") != 3 || f.metric(t, "failures_total") != 0 {
			t.Errorf("%d are logged, %v counted", n, f.metric(t, "successes_total"))
		}
		if f.metric(t, "last_success_timestamp_seconds") != float64(start.Add(3*time.Hour-time.Minute).Unix()) ||
			f.metric(t, "last_size_bytes") != 2 || f.metric(t, "active") != 1 || f.metric(t, "age_seconds") != 60 ||
			f.metric(t, "next_timestamp_seconds") != float64(start.Add(4*time.Hour-time.Minute).Unix()) {
			t.Error("the metrics do not fit")
		}
		if f.logged("missed") != 0 {
			t.Error("one was missed")
		}
	})
}

func TestKeepsSoLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@daily", "2d")
		start := time.Now() // midnight
		f.run(t, 5*day+time.Hour)
		var want []string
		for i := 3; i <= 5; i++ { // the 3rd is two days old when the 5th is made
			want = append(want, name(ourID, int64(9+i), start.Add(time.Duration(i)*day)))
		}
		if got := f.files(t); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

// TestClockWasWrong: backups of the future do not make the new one go, nor keep
// it from being made.
func TestClockWasWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@every 1h", "2")
		start := time.Now()
		future := []string{name(ourID, 1, start.Add(1000*day)), name(ourID, 2, start.Add(1001*day))}
		f.put(t, future...)
		f.run(t, 2*time.Hour+time.Minute)
		want := []string{name(ourID, 11, start.Add(2*time.Hour)), future[1]}
		if got := f.files(t); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		if f.logged("backup of the future") != 2 {
			t.Error("nothing is said of it")
		}
	})
}

func TestMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@daily", "0")
		start := time.Now()
		f.put(t, name(ourID, 1, start.Add(-3*day)))
		f.takes = 30 * time.Hour
		f.run(t, 3*day+time.Hour)
		want := []string{name(ourID, 1, start.Add(-3*day)), name(ourID, 10, start.Add(day+30*time.Hour))}
		slices.Sort(want)
		if got := f.files(t); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		if f.logged("missed while this was not running") != 1 || f.logged("while the one before was under way") != 1 {
			t.Error("it is not logged")
		}
	})
}

// TestTriesAgain: with pauses that grow, and not beyond the next time.
func TestTriesAgain(t *testing.T) {
	for _, what := range []string{"write", "verify"} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, "@every 1m", "1")
			start := time.Now()
			f.put(t, name(ourID, 1, start.Add(-time.Second)))
			broken := errors.New("broken")
			if what == "write" {
				f.write = broken
			} else {
				f.verify = broken
			}
			f.run(t, time.Minute+58*time.Second) // from 0:59 to 1:59 at 0, 10 and 30 s
			if f.written != 3 || f.metric(t, "failures_total") != 3 || f.metric(t, "successes_total") != 0 {
				t.Errorf("%d tries", f.written)
			}
			if got := f.files(t); len(got) != 1 {
				t.Errorf("%q", got)
			}
			if f.logged("it is tried again") != 2 || f.logged("the next one is tried at its time") != 1 || f.logged("broken") != 3 {
				t.Error("not logged")
			}
			f.write, f.verify = nil, nil
			f.run(t, time.Minute+time.Second)
			if got := f.files(t); len(got) != 1 || got[0] == name(ourID, 1, start.Add(-time.Second)) {
				t.Errorf("then %q", got)
			}
		})
	}
}

func TestMismatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@every 1h", "1")
		verify := f.opt.Verify
		f.opt.Verify = func(ctx context.Context, path string) (Contents, error) {
			c, err := verify(ctx, path)
			c.Records--
			return c, err
		}
		f.run(t, time.Hour+time.Second)
		if got := f.files(t); len(got) != 0 || f.logged(ErrMismatch.Error()) != 1 {
			t.Errorf("%q", got)
		}
	})
}

// TestNotMine: who does not make them leaves everything alone.
func TestNotMine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@every 1h", "1")
		f.mine.Store(false)
		old := []string{name(ourID, 1, time.Now().Add(-3*day)), name(ourID, 2, time.Now().Add(-2*day))}
		f.put(t, old...)
		go func() {
			time.Sleep(2*time.Hour + time.Minute)
			f.mine.Store(true)
		}()
		f.run(t, 2*time.Hour+30*time.Second)
		if got := f.files(t); !slices.Equal(got, old) || f.written != 0 || f.metric(t, "active") != 0 {
			t.Errorf("%q, %d written", got, f.written)
		}
		time.Sleep(time.Minute)
		f.run(t, time.Hour+time.Second)
		if got := f.files(t); len(got) != 1 || f.metric(t, "active") != 1 {
			t.Errorf("then %q", got)
		}
	})
}

// TestStop: a stop waits for nothing, and leaves nothing behind.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@every 1h", "1")
		f.takes = 30 * time.Minute
		start := time.Now()
		f.run(t, time.Hour+time.Minute)
		if took := time.Since(start); took != time.Hour+time.Minute || f.written != 1 || len(f.files(t)) != 0 {
			t.Errorf("%v, %q", took, f.files(t))
		}
		if f.metric(t, "failures_total") != 0 || f.logged("given up, since the server stops") != 1 {
			t.Error("it counts as a failure")
		}
	})
}

// TestKilled: what was left by half is neither a backup nor in the way.
func TestKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@every 1h", "1")
		if err := os.MkdirAll(filepath.Join(f.opt.Temporary, "deeper"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(f.opt.Temporary, "snapshot.db"), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		f.run(t, time.Hour+time.Second)
		if got := f.files(t); len(got) != 1 || !strings.HasPrefix(got[0], namePrefix+ourID) {
			t.Errorf("%q", got)
		}
	})
}

// TestRoom: no backup begins that would fill the disk.
func TestRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@every 1h", "1")
		f.opt.Size = func() int64 { return 1 << 60 }
		f.run(t, time.Hour+time.Second)
		if f.written != 0 || f.logged(errRoom.Error()) != 1 || len(f.files(t)) != 0 {
			t.Errorf("%d written, %q", f.written, f.files(t))
		}
	})
}

// stubborn is a Place that does not remove.
type stubborn struct{ Directory }

func (stubborn) Remove(context.Context, string) error { return errors.New("not allowed") }

func TestRemovalRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@every 1h", "1")
		f.opt.Place = stubborn{Directory(f.dir)}
		f.run(t, 3*time.Hour+time.Second)
		if len(f.files(t)) != 3 || f.metric(t, "successes_total") != 3 || f.metric(t, "removal_failures_total") != 2 || f.logged("not allowed") != 2 {
			t.Errorf("%q, %v", f.files(t), f.metric(t, "removal_failures_total"))
		}
		f.opt.Place = Directory(f.dir)
		f.run(t, time.Hour+time.Second)
		if len(f.files(t)) != 1 {
			t.Errorf("then %q", f.files(t))
		}
	})
}

// TestDirectoryGone: a directory that cannot be written is a failure like any
// other.
func TestDirectoryGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@every 1h", "1")
		file := filepath.Join(f.dir, "file")
		f.put(t, "file")
		f.opt.Place, f.opt.Temporary = Directory(file), filepath.Join(file, ".partial")
		f.run(t, time.Hour+time.Second)
		if f.metric(t, "failures_total") != 1 || f.logged("not a directory") == 0 {
			t.Error("nothing is said")
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"@daily", "* * * * *", "CRON_TZ=UTC 1-5/2 * * JAN ?", "@every 5m", "7", "30d", "keelson-" + ourID + "-1-20261121T033000Z.db"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := ParseSchedule(text); err == nil && !s.Next(time.Unix(1, 0)).After(time.Unix(1, 0)) {
			t.Errorf("%q goes back", text)
		}
		_, _ = ParseRetention(text)
		for _, n := range parseNames([]string{text}, ourID) {
			if n.String() != text {
				t.Errorf("%q is taken for %q", text, n)
			}
		}
		_, _ = NewS3(S3Options{URL: text})
	})
}
