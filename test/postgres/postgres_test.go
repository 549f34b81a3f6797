// Package postgres runs several keelsons on one PostgreSQL, harms them, the
// database and what is between them, and checks what clients were told against
// each other and against the log.
//
// What is random follows from a seed, which a failing test ends with:
// KEELSON_SEED repeats it. KEELSON_CRASH_ROUNDS sets how often each kind of
// harm is done (default 1).
package postgres

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/keelson-io/keelson/test/harness"
)

// patience bounds every wait; nothing here takes it when all is well.
const patience = time.Minute

const schema = "keelson"

func number(t *testing.T, variable string, otherwise uint64) uint64 {
	t.Helper()
	env := os.Getenv(variable)
	if env == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(env, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q: it is a number", variable, env)
	}
	return n
}

// newRandom returns a source whose seed is said if the test fails.
func newRandom(t *testing.T, otherwise uint64) *rand.Rand {
	t.Helper()
	seed := number(t, "KEELSON_SEED", otherwise)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("KEELSON_SEED=%d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

// cluster is a database and the instances on it, each behind a proxy of its
// own.
type cluster struct {
	t         *testing.T
	db        *harness.Postgres
	instances []*instance
}

// instance is one keelson.
type instance struct {
	*harness.Server
	name  string
	proxy *harness.Proxy
}

func startCluster(t *testing.T, instances int) *cluster {
	t.Helper()
	db := harness.StartPostgres(t)
	return newCluster(t, db, instances, db.Dir)
}

// startPooled starts a cluster whose instances reach the database through
// PgBouncer.
func startPooled(t *testing.T, instances int) *cluster {
	t.Helper()
	db := harness.StartPostgres(t)
	// The one of Debian 12 keeps no prepared statements.
	return newCluster(t, db, instances, db.StartPgBouncer(t), "default_query_exec_mode=exec")
}

// newCluster starts instances that find db, or what is before it, in dir.
func newCluster(t *testing.T, db *harness.Postgres, instances int, dir string, params ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, db: db}
	for n := range instances {
		i := &instance{name: string(rune('a' + n)), proxy: harness.StartProxy(t, dir)}
		i.Server = startInstance(t, i.name, harness.PostgresURL(i.proxy.Dir, schema, params...))
		c.instances = append(c.instances, i)
		if n == 0 {
			keepLog(t, c.db)
		}
	}
	return c
}

func startInstance(t *testing.T, name, url string) *harness.Server {
	t.Helper()
	return harness.StartServer(t, harness.Keelson, "--name", name, "--datastore", url)
}

func (c *cluster) endpoints() []string { return c.without(nil) }

func (c *cluster) without(one *instance) []string {
	var all []string
	for _, i := range c.instances {
		if i != one {
			all = append(all, i.Endpoint)
		}
	}
	return all
}

// client returns a client of one instance alone, which gives up a connection
// on which nothing is answered for 2 seconds.
func (i *instance) client(t *testing.T) *clientv3.Client {
	t.Helper()
	return newClient(t, i.Endpoint)
}

func newClient(t *testing.T, endpoints ...string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: endpoints, DialTimeout: patience,
		DialKeepAliveTime: time.Second, DialKeepAliveTimeout: time.Second,
		Logger: zap.NewNop(), // it warns of every request that fails
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// retry calls f until it succeeds, and returns how long that took.
func retry(t *testing.T, what string, f func(context.Context) error) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		err := f(ctx)
		cancel()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > patience {
			t.Fatalf("%s does not succeed within %v: %v", what, patience, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// eventually polls what nothing announces.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// event is one change of one key.
type event struct {
	revision int64
	kind     string // put or delete
	key      string
	value    string
}

func eventOf(ev *clientv3.Event) event {
	e := event{ev.Kv.ModRevision, "put", string(ev.Kv.Key), string(ev.Kv.Value)}
	if ev.Type == mvccpb.Event_DELETE {
		e.kind = "delete"
	}
	return e
}

// keepLog lets the database keep a copy of the log that nothing compacts: what
// everybody is compared with.
func keepLog(t *testing.T, db *harness.Postgres) {
	t.Helper()
	query(t, db, `CREATE SCHEMA kept;
		CREATE TABLE kept.log AS SELECT seq, revision, key, value FROM keelson.log;
		CREATE FUNCTION kept.keep() RETURNS trigger LANGUAGE plpgsql AS
			'BEGIN INSERT INTO kept.log VALUES (NEW.seq, NEW.revision, NEW.key, NEW.value); RETURN NULL; END';
		CREATE TRIGGER keep AFTER INSERT ON keelson.log FOR EACH ROW EXECUTE FUNCTION kept.keep();`)
}

// readLog returns every event that was ever committed, in order.
func readLog(t *testing.T, db *harness.Postgres) []event {
	t.Helper()
	var log []event
	for _, row := range query(t, db, `SELECT revision, CASE WHEN value IS NULL THEN 'delete' ELSE 'put' END,
		convert_from(key, 'UTF8'), convert_from(value, 'UTF8') FROM kept.log WHERE key IS NOT NULL ORDER BY seq`) {
		column := strings.Split(row, "\t")
		if len(column) != 4 {
			t.Fatalf("a row of the log: %q", row)
		}
		revision, err := strconv.ParseInt(column[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		log = append(log, event{revision, column[1], column[2], column[3]})
	}
	return log
}

func query(t *testing.T, db *harness.Postgres, sql string) []string {
	t.Helper()
	rows, err := db.Query(sql)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// from returns the events of a revision and those after it.
func from(log []event, revision int64) []event {
	at, _ := slices.BinarySearchFunc(log, revision, func(e event, revision int64) int {
		return int(e.revision - revision)
	})
	return log[at:]
}

// sameEvents compares what somebody was told with the log.
func sameEvents(t *testing.T, who string, got, want []event) {
	t.Helper()
	for n := range max(len(got), len(want)) {
		if n < len(got) && n < len(want) && got[n] == want[n] {
			continue
		}
		show := func(events []event) string {
			return fmt.Sprintf("%v", events[min(n, len(events)):min(n+5, len(events))])
		}
		t.Errorf("%s was told of %d events, the log has %d; from number %d on:\n%s\nthe log:\n%s", who, len(got), len(want), n, show(got), show(want))
		return
	}
}
