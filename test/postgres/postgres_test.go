// Package postgres runs several keelsons on one PostgreSQL, harms them, the
// database and what is between them, and checks what clients were told against
// each other and against the log.
//
// What is random follows from a seed, which a failing test ends with:
// KEELSON_SEED repeats it. KEELSON_CRASH_ROUNDS sets how often each kind of
// harm is done (default 1).
package postgres

import (
	"strconv"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/test/harness"
	"github.com/keelson-io/keelson/test/internal/faults"
)

const schema = "keelson"

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
	return faults.NewClient(t, i.Endpoint)
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
func readLog(t *testing.T, db *harness.Postgres) []faults.Event {
	t.Helper()
	var log []faults.Event
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
		log = append(log, faults.Event{Revision: revision, Kind: column[1], Key: column[2], Value: column[3]})
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
