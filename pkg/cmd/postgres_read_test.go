package cmd

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // for database/sql

	"github.com/keelson-io/keelson/pkg/drivers/postgres/pgtest"
)

// TestPostgresIsOnlyRead: what reads data in PostgreSQL needs no right to write,
// makes nothing where there is none, and says so.
func TestPostgresIsOnlyRead(t *testing.T) {
	t.Parallel()
	server := pgtest.ForTest(t)
	url := server.URL("postgres")
	dir, keys := newData(t)
	work := t.TempDir()
	mustRun(t, "import", "--from", dir, "--to", url+"&schema=data")

	db, err := sql.Open("pgx", url)
	must(t, err)
	defer db.Close()
	for _, statement := range []string{
		"CREATE ROLE reader LOGIN PASSWORD '" + pgtest.Password + "'",
		"GRANT USAGE ON SCHEMA data TO reader", "GRANT SELECT ON ALL TABLES IN SCHEMA data TO reader",
		"ALTER ROLE reader SET default_transaction_read_only = on", "ALTER ROLE reader SET statement_timeout = '1min'",
	} {
		_, err := db.Exec(statement)
		must(t, err)
	}
	_, rest, _ := strings.Cut(url, "@")
	reader := "postgres://reader:" + pgtest.Password + "@" + rest + "&schema=data"
	file := filepath.Join(work, "a.db")
	environ := []string{"KEELSON_DATASTORE=" + reader, "KEELSON_FROM=" + reader}
	for _, args := range [][]string{
		{"snapshot", "save", file, "--offline"}, {"import", "--to", filepath.Join(work, "data")}, {"export", "--dry-run"}, {"verify", dir, reader},
	} {
		if out, errs, code := keelson(t, environ, args...); code != exitOK || !strings.Contains(out, fmt.Sprintf("%d keys", keys)) {
			t.Errorf("keelson %q as a reader: exit code %d, %s%s", args, code, out, errs)
		}
	}
	mustRun(t, "verify", dir, file)

	nothing := url + "&schema=nothing"
	environ = []string{"KEELSON_DATASTORE=" + nothing, "KEELSON_FROM=" + nothing}
	for _, args := range [][]string{
		{"snapshot", "save", file + "2", "--offline"}, {"import", "--to", filepath.Join(work, "data2")}, {"export", "--dry-run"}, {"verify", dir, nothing},
	} {
		if out, errs, code := keelson(t, environ, args...); code == exitOK || !strings.Contains(errs, "has no data of keelson's") {
			t.Errorf("keelson %q of nothing: exit code %d, %s%s", args, code, out, errs)
		}
	}
	var schemas int
	must(t, db.QueryRow("SELECT count(*) FROM pg_namespace WHERE nspname = 'nothing'").Scan(&schemas))
	if schemas != 0 {
		t.Error("a schema was made")
	}
}
