package check

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/keelson-io/keelson/pkg/drivers/postgres"
	"github.com/keelson-io/keelson/pkg/drivers/postgres/pgtest"
	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
	"github.com/keelson-io/keelson/pkg/snapshot/datalog"
	"github.com/keelson-io/keelson/pkg/store"
)

// TestRestored: nothing is wrong with a log that was made of a snapshot, nor
// with what happens on it.
func TestRestored(t *testing.T) {
	for seed := range uint64(3) {
		from, to := makeSQLite(t, seed, int(150*seed)), t.TempDir()
		opt := datalog.Options{Logger: quiet()}
		if seed == 2 {
			opt.BumpRevision = 1000
		}
		move(t, from, datalog.SQLite(to, opt))
		before := checkSQLite(t, from)
		r := checkSQLite(t, to)
		if !r.Clean() || r.Keys != before.Keys || r.Leases != before.Leases || len(r.Notes) != 0 {
			t.Errorf("seed %d: %+v, was %+v", seed, r, before)
		}
		log, err := sqlite.Open(t.Context(), sqlite.Options{Dir: to, Logger: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		history(t, log, seed, 100)
		if r := checkSQLite(t, to); !r.Clean() || len(r.Notes) != 0 {
			t.Errorf("seed %d: then %+v", seed, r)
		}
	}
}

// move copies the data in directory from.
func move(t *testing.T, from string, to snapshot.Sink) {
	t.Helper()
	log, err := sqlite.Open(t.Context(), sqlite.Options{Dir: from, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), log, store.Options{Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	src, err := s.Export(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = snapshot.Copy(t.Context(), to, src, nil)
	if err := errors.Join(err, src.Close(), log.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestRestoredPostgresNeverCompacted: no mark of a compaction is missing where
// there was none, also over data that there was.
func TestRestoredPostgresNeverCompacted(t *testing.T) {
	url := pgtest.ForTest(t).URL("postgres")
	from := crafted(t, []eventlog.Record{grant(1, 60), put("a", 2, 0, 2, 1, 1), put("b", 3, 0, 3, 1, 0), put("a", 4, 0, 2, 2, 0)})
	for range 3 {
		move(t, from, datalog.Postgres(url, datalog.Options{Replace: true, Logger: quiet()}))
		if r := checkPostgres(t, url); !r.Clean() || len(r.Notes) != 0 {
			t.Errorf("%+v", r)
		}
	}
}

// ahead is data whose newest revisions have left nothing, as in a table of kine's.
type ahead struct{ snapshot.Source }

func (ahead) State() snapshot.State { return snapshot.State{Revision: 9} }

func (ahead) Records(_ context.Context, fn func(*eventlog.Record) error) error {
	r := put("a", 4, 0, 4, 1, 0)
	return fn(&r)
}

// TestRestoredAhead: that is no damage.
func TestRestoredAhead(t *testing.T) {
	dir := t.TempDir()
	if _, err := snapshot.Copy(t.Context(), datalog.SQLite(dir, datalog.Options{Logger: quiet()}), ahead{}, nil); err != nil {
		t.Fatal(err)
	}
	if r := checkSQLite(t, dir); !r.Clean() || r.Revision != 9 || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "the newest revision is 9, and the newest record's is 4") {
		t.Errorf("%+v", r)
	}
}

// TestRestoredPostgres: the same, and once more over data that there is, and
// while a server writes.
func TestRestoredPostgres(t *testing.T) {
	url := pgtest.ForTest(t).URL("postgres")
	from := makeSQLite(t, 3, 300)
	for range 2 {
		move(t, from, datalog.Postgres(url, datalog.Options{Replace: true, Logger: quiet()}))
		if r := checkPostgres(t, url); !r.Clean() || len(r.Notes) != 0 {
			t.Errorf("%+v", r)
		}
	}
	log, err := postgres.Open(t.Context(), postgres.Options{URL: url, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan int)
	go func() {
		n := 0
		for ctx.Err() == nil {
			r, err := Postgres(t.Context(), url, nil)
			if err != nil || !r.Clean() {
				t.Errorf("%+v, %v", r, err)
			}
			n++
		}
		done <- n
	}()
	history(t, log, 5, 300)
	stop()
	if n := <-done; n == 0 {
		t.Errorf("%d checks while a server wrote", n)
	}
}
