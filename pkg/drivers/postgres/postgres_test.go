package postgres_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sirupsen/logrus"
	logrustest "github.com/sirupsen/logrus/hooks/test"

	"github.com/keelson-io/keelson/pkg/drivers/postgres"
	"github.com/keelson-io/keelson/pkg/drivers/postgres/pgtest"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/eventlog/logtest"
)

// server is the PostgreSQL that all tests of the package share, or nil: then
// absent says why.
var (
	server *pgtest.Server
	absent error
)

func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("rapid.checks").Value.String() == "100" {
		// Each makes a schema of its own. The default of 100 takes a minute.
		_ = flag.Set("rapid.checks", "25")
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	server, err = pgtest.New()
	if errors.Is(err, pgtest.ErrNotInstalled) {
		absent = err
		return m.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if err := server.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}()
	return m.Run()
}

// url returns the URL of the database with a schema that is name's own.
func url(t testing.TB, name string, params ...string) string {
	t.Helper()
	if server == nil {
		t.Skip(absent)
	}
	s := schema(name)
	if _, known := schemas.LoadOrStore(s, true); !known {
		t.Cleanup(func() {
			schemas.Delete(s)
			// A test that has failed may have left a transaction open.
			execSQL(t, "SET lock_timeout = '30s'; DROP SCHEMA IF EXISTS "+s+" CASCADE")
		})
	}
	return server.URL("postgres", append(params, "schema="+s)...)
}

// schemas are those in use: url was called first by the test that drops it.
var schemas sync.Map

func schema(name string) string { return fmt.Sprintf("t_%x", sha256.Sum256([]byte(name)))[:30] }

func quiet() *logrus.Entry {
	logger, _ := logrustest.NewNullLogger()
	return logrus.NewEntry(logger)
}

func openLog(t testing.TB, name string, params ...string) *postgres.Log {
	t.Helper()
	// The disk of the tests may be slow, for seconds.
	log, err := postgres.Open(context.Background(), postgres.Options{URL: url(t, name, params...), Logger: quiet(), Timeout: time.Minute})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return log
}

// execSQL runs SQL as a person with a shell would.
func execSQL(t testing.TB, sql string, args ...any) {
	t.Helper()
	c, err := pgx.Connect(context.Background(), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	if _, err := c.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func harness(params ...string) logtest.Harness {
	return logtest.Harness{
		Open: func(t testing.TB, dir string) eventlog.Log { return openLog(t, dir, params...) },
		FailAppend: func(_ testing.TB, log eventlog.Log, persisted bool) {
			log.(*postgres.Log).FailAppend(persisted)
		},
		Corrupt: func(t testing.TB, dir string, seq int64) {
			execSQL(t, "UPDATE "+schema(dir)+".log SET value = set_byte(value, 3, get_byte(value, 3) # 16) WHERE seq = $1", seq)
		},
		Shared: true,
	}
}

func TestLog(t *testing.T) { logtest.Run(t, harness()) }
