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
	nobody   atomic.Bool // can make backups
	doubt    string
	id       atomic.Value // string
	written  int
}

func newFixture(t *testing.T, schedule, retention string) *fixture {
	t.Helper()
	logger, hook := test.NewNullLogger()
	logger.SetLevel(logrus.DebugLevel)
	f := &fixture{dir: t.TempDir(), hook: hook, registry: prometheus.NewRegistry(), revision: 10}
	f.id.Store(ourID)
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
		Schedule: s, Retention: r, Place: Directory(f.dir), Dir: f.dir,
		ID: func(context.Context) (string, error) { return f.id.Load().(string), nil },
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
		Mine: func() (bool, error) {
			if f.nobody.Load() {
				return false, errors.New("no leader")
			}
			return f.mine.Load(), nil
		},
		Doubt: func() string { return f.doubt },

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
	good := []string{name(ourID, 3, at.Add(time.Second)), name(ourID, 9, at), name(ourID, 10, at)}
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
			want = append(want, name(ourID, int64(10+i), start.Add(time.Duration(i)*day)))
		}
		if got := f.files(t); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

// TestClockWasWrong: backups of the future do not keep a new one from being
// made, nor take the place of one.
func TestClockWasWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, retention := range []string{"2", "90m"} {
			f := newFixture(t, "@every 1h", retention)
			start := time.Now()
			f.put(t, name(ourID, 1, start.Add(1000*day)), name(ourID, 2, start.Add(1001*day)))
			f.run(t, 4*time.Minute)
			if f.metric(t, "future") != 2 || f.logged("backups of the future") == 0 || f.metric(t, "age_seconds") != 3*60 {
				t.Error("they are not known as such")
			}
			f.run(t, 5*time.Hour)
			for _, got := range f.files(t) {
				if strings.Contains(got, "-1-") || strings.Contains(got, "-2-") {
					t.Errorf("%s: %q is there", retention, got)
				}
			}
		}
	})
}

// TestClockAhead: when for a while every backup is old, some stay.
func TestClockAhead(t *testing.T) {
	now := time.Date(2026, 1, 30, 0, 0, 0, 0, time.UTC)
	var found []backupName
	for i := range 30 {
		found = append(found, backupName{ourID, int64(i), now.Add(time.Duration(i-29) * day)})
	}
	newest := backupName{ourID, 30, now.Add(1000 * day)}
	old, ahead := Retention{Age: 30 * day}.expired(append(found, newest), newest, newest.at)
	if len(old) != 28 || len(ahead) != 0 {
		t.Errorf("%d of 31 are removed, %d are ahead", len(old), len(ahead))
	}
}

// TestAnotherPast: backups of later revisions than the data has are never
// removed, whatever retention says.
func TestAnotherPast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, retention := range []string{"3", "1h"} {
			f := newFixture(t, "@every 1h", retention)
			start := time.Now()
			good := []string{name(ourID, 100, start.Add(-3*day)), name(ourID, 101, start.Add(-2*day)), name(ourID, 101, start.Add(-1*day))}
			f.put(t, good...)
			f.run(t, 9*time.Hour)
			got := f.files(t)
			for _, n := range good {
				if !slices.Contains(got, n) {
					t.Errorf("%s: %s is gone", retention, n)
				}
			}
			if len(got) != len(good)+3 || f.metric(t, "ahead") != 3 || f.logged("backups of later revisions than the data has") == 0 {
				t.Errorf("%s: %q, %v ahead", retention, got, f.metric(t, "ahead"))
			}
		}
	})
}

// TestRestoredMeanwhile: when the data gets another name, what was there before
// is left alone.
func TestRestoredMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@every 1h", "1")
		go func() {
			time.Sleep(90 * time.Minute)
			f.id.Store(otherID)
		}()
		f.run(t, 3*time.Hour+time.Minute)
		got := f.files(t)
		if len(got) != 2 || !strings.Contains(got[0], ourID) || !strings.Contains(got[1], otherID) || f.logged("the data is another than before") != 1 {
			t.Errorf("%q", got)
		}
	})
}

// TestDoubt: nothing is removed while the data may be damaged.
func TestDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@every 1h", "1")
		f.doubt = "the alarm CORRUPT is raised"
		f.run(t, 2*time.Hour+time.Minute)
		if len(f.files(t)) != 3 || f.logged("old backups are not removed: the alarm CORRUPT is raised") != 3 {
			t.Errorf("%q", f.files(t))
		}
		f.doubt = ""
		f.run(t, time.Hour+time.Minute)
		if len(f.files(t)) != 1 {
			t.Errorf("then %q", f.files(t))
		}
	})
}

// TestOverdue: short lives make backups too, and not more than were due.
func TestOverdue(t *testing.T) {
	for _, schedule := range []string{"@every 6h", "CRON_TZ=UTC 0 */6 * * *"} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, schedule, "0")
			for range 24 { // two days of 20 minutes each 2 hours
				f.run(t, 20*time.Minute)
				time.Sleep(100 * time.Minute)
			}
			if n := len(f.files(t)); n < 7 || n > 9 {
				t.Errorf("%s: %d backups in two days: %q", schedule, n, f.files(t))
			}
		})
	}
}

// TestRecallsLater: a place that could not be listed at the start is asked again.
func TestRecallsLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@daily", "0")
		time.Sleep(2 * time.Hour) // after midnight
		f.put(t, name(ourID, 1, time.Now().Add(-time.Hour)))
		f.opt.Place = &unlisted{Directory: Directory(f.dir), until: time.Now().Add(10 * time.Minute)}
		f.run(t, 20*time.Minute)
		if age := f.metric(t, "age_seconds"); age != 80*60 || f.logged("not known yet") != 1 || f.written != 0 {
			t.Errorf("%v old, %d written", age, f.written)
		}
	})
}

// unlisted is a Place that cannot be listed until some time.
type unlisted struct {
	Directory
	until time.Time
}

func (u *unlisted) List(ctx context.Context, prefix string) ([]string, error) {
	if time.Now().Before(u.until) {
		return nil, errors.New("not reachable")
	}
	return u.Directory.List(ctx, prefix)
}

// TestSlowWrite: a snapshot that does not get done is a failure, which is tried
// again.
func TestSlowWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@daily", "0")
		f.takes = time.Hour
		f.run(t, 15*time.Minute)
		if f.metric(t, "failures_total") != 1 || f.logged(errSlow.Error()) != 1 || f.written != 2 {
			t.Errorf("%v failures, %d tries", f.metric(t, "failures_total"), f.written)
		}
	})
}

// TestMissed: one that is overdue is made at once, one that was due while the one
// before was under way is not.
func TestMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@daily", "0")
		start := time.Now()
		f.put(t, name(ourID, 1, start.Add(-3*day)))
		f.opt.Size = func() int64 { return 60 * 3600 << 20 } // may take so long
		f.opt.Reserve = -1 << 60
		f.takes = 30 * time.Hour
		f.run(t, 3*day+time.Hour)
		want := []string{name(ourID, 1, start.Add(-3*day)), name(ourID, 10, start.Add(30*time.Hour+time.Minute))}
		slices.Sort(want)
		if got := f.files(t); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		if f.logged("a backup is overdue") != 1 || f.logged("while the one before was under way") != 1 {
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
			f.run(t, 2*time.Minute)
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
			c.Leases--
			return c, err
		}
		f.run(t, time.Minute+time.Second)
		if got := f.files(t); len(got) != 0 || f.logged(ErrMismatch.Error()) != 1 {
			t.Errorf("%q", got)
		}
	})
}

// TestNotMine: who does not make them leaves everything alone, until it is the
// one that does; then it makes what the other has not.
func TestNotMine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, made := range []bool{false, true} {
			f := newFixture(t, "@every 1h", "1")
			f.mine.Store(false)
			start := time.Now()
			old := []string{name(ourID, 1, start.Add(-40*time.Minute)), name(ourID, 2, start.Add(-30*time.Minute))}
			f.put(t, old...)
			go func() {
				time.Sleep(31 * time.Minute)
				if got := f.files(t); !slices.Equal(got, old) || f.written != 0 || f.metric(t, "active") != 0 {
					t.Errorf("%q, %d written", got, f.written)
				}
				if made {
					f.put(t, name(ourID, 3, time.Now()))
				}
				time.Sleep(4*time.Minute + time.Second)
				f.mine.Store(true)
			}()
			f.run(t, 50*time.Minute)
			got := f.files(t)
			want := []string{name(ourID, 10, start.Add(36*time.Minute))}
			if made {
				want = append(slices.Clone(old), name(ourID, 3, start.Add(31*time.Minute)))
			}
			if !slices.Equal(got, want) || f.metric(t, "active") != 1 {
				t.Errorf("then %q, want %q", got, want)
			}
		}
	})
}

// TestNobody: that no server can make a backup is a failure, which is tried
// again.
func TestNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@daily", "0")
		f.nobody.Store(true)
		go func() {
			time.Sleep(2 * time.Minute)
			f.nobody.Store(false)
		}()
		f.run(t, 10*time.Minute)
		if f.metric(t, "failures_total") == 0 || len(f.files(t)) != 1 || f.logged("no leader") == 0 {
			t.Errorf("%v failures, %q", f.metric(t, "failures_total"), f.files(t))
		}
	})
}

// TestStop: a stop waits for nothing, and leaves nothing behind.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@every 1h", "1")
		f.takes = 8 * time.Minute
		start := time.Now()
		f.run(t, 5*time.Minute)
		if took := time.Since(start); took != 5*time.Minute || f.written != 1 || len(f.files(t)) != 0 {
			t.Errorf("%v, %q", took, f.files(t))
		}
		if f.metric(t, "failures_total") != 0 || f.logged("given up, since the server stops") != 1 {
			t.Error("it counts as a failure")
		}
	})
}

// TestKilled: what was left by half is removed at the start, also of other
// names, and what another process works on is not.
func TestKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@every 1h", "1")
		for _, left := range []string{".keelson-0123.partial", ".keelson-fedcba9876543210-0000000000000001.partial"} {
			if err := os.MkdirAll(filepath.Join(f.dir, left, "deeper"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(f.dir, left, "snapshot.db"), []byte("half"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		other, err := newWork(f.dir)
		if err != nil {
			t.Fatal(err)
		}
		f.run(t, time.Second)
		if got := f.files(t); len(got) != 1 || got[0] != filepath.Base(other.dir) {
			t.Errorf("%q", got)
		}
		f.run(t, 2*time.Minute)
		if got := f.files(t); len(got) != 2 || got[0] != filepath.Base(other.dir) || !strings.HasPrefix(got[1], namePrefix+ourID) {
			t.Errorf("then %q", got)
		}
		if err := other.remove(); err != nil {
			t.Error(err)
		}
	})
}

// TestRoom: no backup begins that would fill the disk.
func TestRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "@every 1h", "1")
		f.opt.Size = func() int64 { return 1 << 60 }
		f.run(t, time.Minute+time.Second)
		if f.written != 0 || f.logged(errRoom.Error()) != 1 || len(f.files(t)) != 0 {
			t.Errorf("%d written, %q", f.written, f.files(t))
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
