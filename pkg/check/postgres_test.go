package check

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib" // for database/sql

	"github.com/keelson-io/keelson/pkg/drivers/postgres"
	"github.com/keelson-io/keelson/pkg/drivers/postgres/pgtest"
)

func inSchema(url, schema string) string { return url + "&schema=" + schema }

func makePostgres(t *testing.T, url string, seed uint64, steps int) {
	t.Helper()
	log, err := postgres.Open(t.Context(), postgres.Options{URL: url, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	history(t, log, seed, steps)
}

func checkPostgres(t *testing.T, url string) *Report {
	t.Helper()
	r, err := Postgres(t.Context(), url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var postgresDamages = []damage{
	{"position", "UPDATE log SET position = position + 1000 WHERE seq = {N}", KindColumn},
	{"head position", "UPDATE head SET position = position + 1", KindCounters},
	{"head seq", "UPDATE head SET seq = seq + 1", KindCounters},
	{"head seq lower", "UPDATE head SET seq = seq - 1", KindCounters},
	{"head revision", "UPDATE head SET revision = revision - 1", KindCounters},
	{"head batch", "UPDATE head SET batch = FLIP(batch)", KindCounters},
	{"head batch cut", "UPDATE head SET batch = substr(batch, 1, 5)", KindCounters},
	{"head bytes", "UPDATE head SET bytes = bytes + 1", KindCounters},
	{"freed", "UPDATE kept SET freed = freed + 1", KindCounters},
	{"epoch", "UPDATE head SET epoch = 0", KindCounters},
	{"no head", "DELETE FROM head", KindCounters},
	{"newest row deleted", "DELETE FROM log WHERE seq = {M}", KindCounters},
	{"all rows deleted", "DELETE FROM log", KindCounters},
}

func TestPostgres(t *testing.T) {
	server := pgtest.ForTest(t)
	url := server.URL("postgres")
	for seed := range uint64(4) {
		place := inSchema(url, fmt.Sprintf("clean%d", seed))
		makePostgres(t, place, seed, int(100*seed))
		if r := checkPostgres(t, place); !r.Clean() || seed == 3 && (r.Records == 0 || r.Compacted == 0) {
			t.Errorf("seed %d: %+v", seed, r)
		}
	}
	db, err := sql.Open("pgx", url+"&default_query_exec_mode=simple_protocol")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for i, tt := range append(append([]damage{}, damages...), postgresDamages...) {
		t.Run(tt.name, func(t *testing.T) {
			schema := fmt.Sprintf("damaged%d", i)
			copySchema(t, db, "clean3", schema)
			statement := places(t, db, schema+".").Replace(tt.sql)
			for _, table := range []string{"log", "kept", "head"} {
				for _, verb := range []string{"UPDATE ", "FROM "} {
					statement = strings.ReplaceAll(statement, verb+table, verb+schema+"."+table)
				}
			}
			for _, column := range []string{"header", "key", "value", "batch"} {
				statement = strings.ReplaceAll(statement, "FLIP("+column+")", "set_byte("+column+", 1, 255 - get_byte("+column+", 1))")
			}
			if _, err := db.ExecContext(t.Context(), statement); err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
			if r := checkPostgres(t, inSchema(url, schema)); !has(r, tt.want) {
				t.Errorf("%s: %+v", statement, r.Findings)
			}
		})
	}
	for place, want := range map[string]error{inSchema(url, "none"): postgres.ErrNoSchema, "postgres://h/d?schema=a.b": postgres.ErrURL} {
		if _, err := Postgres(t.Context(), place, nil); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	if _, err := Postgres(t.Context(), strings.Replace(url, pgtest.Password, "wrong", 1), nil); err == nil || strings.Contains(err.Error(), "wrong@") {
		t.Errorf("a wrong password: %v", err)
	}
}

// copySchema copies the tables that a check reads, without their constraints.
func copySchema(t *testing.T, db *sql.DB, from, to string) {
	t.Helper()
	statements := []string{"CREATE SCHEMA " + to}
	for _, table := range []string{"log", "head", "kept", "version"} {
		statements = append(statements, fmt.Sprintf("CREATE TABLE %s.%s AS SELECT * FROM %s.%[2]s", to, table, from))
	}
	for _, s := range statements {
		if _, err := db.ExecContext(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDamagedPostgresFile overwrites a page of the table: what is readable is
// checked, beside an instance that runs.
func TestDamagedPostgresFile(t *testing.T) {
	server := pgtest.ForTest(t)
	url := server.URL("postgres")
	makePostgres(t, url, 3, 400)
	whole := checkPostgres(t, url)
	var path string
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.QueryRow(t.Context(), "SELECT pg_relation_filepath('keelson.log')").Scan(&path); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close(t.Context())
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(server.Dir(), "data", path), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	junk := make([]byte, 100)
	for i := range junk {
		junk[i] = 0xa5
	}
	_, err = f.WriteAt(junk, 2*8192)
	if err = errors.Join(err, f.Close(), server.Start()); err != nil {
		t.Fatal(err)
	}
	r := checkPostgres(t, url)
	if !has(r, KindRead) || r.Records >= whole.Records || r.Records < whole.Records/2 {
		t.Errorf("%d of %d records: %+v", r.Records, whole.Records, r.Findings)
	}
}
