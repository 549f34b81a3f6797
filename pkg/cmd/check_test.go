package cmd

import (
	"database/sql"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // for database/sql

	"github.com/keelson-io/keelson/pkg/check"
	"github.com/keelson-io/keelson/pkg/drivers/postgres"
	"github.com/keelson-io/keelson/pkg/drivers/postgres/pgtest"
	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	log, err := sqlite.Open(t.Context(), sqlite.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := log.Load(t.Context(), func(*eventlog.Record) error { return nil }); err != nil {
		t.Fatal(err)
	}
	r := eventlog.Record{Seq: 1, Position: 1, Kind: eventlog.KindPut, Revision: eventlog.Revision{Main: 2}, Key: []byte("k"), Value: []byte("value"), CreateRevision: 2, Version: 1}
	if err := log.Append(t.Context(), &eventlog.Batch{ID: eventlog.NewBatchID(), Records: []eventlog.Record{r}}); err != nil {
		t.Fatal(err)
	}
	if out, stderr, code := keelson(t, nil, "check", "--data-dir="+dir); code != exitFailed || out != "" || !strings.Contains(stderr, "stop that process") {
		t.Errorf("in use: %d, %s%s", code, out, stderr)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}

	out, stderr, code := keelson(t, []string{"KEELSON_DATA_DIR=" + dir}, "check")
	if want := dir + " (sqlite): 1 records, 1 keys, 0 leases, revision 2, compacted 0: all is well\n"; code != exitOK || out != want || stderr != "" {
		t.Errorf("%d, %s%s, want %s", code, out, stderr, want)
	}

	db, err := sql.Open("sqlite", filepath.Join(dir, sqlite.FileName))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), "UPDATE log SET value = x'00'"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	out, stderr, code = keelson(t, nil, "check", "--data-dir="+dir)
	if lines := strings.Split(out, "\n"); code != exitFailed || stderr != "" || len(lines) != 3 || !strings.HasPrefix(lines[0], "value: record 1: ") || !strings.HasSuffix(lines[1], ": 1 thing is wrong") {
		t.Errorf("%d, %s%s", code, out, stderr)
	}
	out, stderr, code = keelson(t, nil, "check", "--data-dir="+dir, "-w", "json")
	var decoded check.Report
	if err := json.Unmarshal([]byte(out), &decoded); err != nil || code != exitFailed || stderr != "" || len(decoded.Findings) != 1 || decoded.Findings[0].Kind != check.KindValue {
		t.Errorf("%d, %s%s, %v", code, out, stderr, err)
	}

	for _, args := range [][]string{{"-w", "xml"}, {"--nonsense"}, {"more"}, {"--datastore=mysql://x"}} {
		if out, stderr, code := keelson(t, nil, append([]string{"check"}, args...)...); code != exitUsage || out != "" || stderr == "" {
			t.Errorf("%q: %d, %s%s", args, code, out, stderr)
		}
	}
	empty := t.TempDir()
	if out, stderr, code := keelson(t, nil, "check", "--data-dir="+empty); code != exitFailed || out != "" || !strings.Contains(stderr, "is not a data directory") {
		t.Errorf("nothing there: %d, %s%s", code, out, stderr)
	}
	if entries, err := os.ReadDir(empty); err != nil || len(entries) > 0 {
		t.Errorf("something was made: %v, %v", entries, err)
	}
}

// TestCheckNotFinished: what was found before the check had to end is said.
func TestCheckNotFinished(t *testing.T) {
	db := pgtest.ForTest(t)
	url := db.URL("postgres")
	log, err := postgres.Open(t.Context(), postgres.Options{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	pool, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for _, statement := range []string{"DELETE FROM keelson.kept", "DROP TABLE keelson.log CASCADE"} {
		if _, err := pool.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	out, stderr, code := keelson(t, nil, "check", "--datastore="+url)
	if code != exitFailed || out != "" || !strings.Contains(stderr, "counters: head and kept: one of them has no row") || !strings.Contains(stderr, "does not exist") {
		t.Errorf("%d, %s%s", code, out, stderr)
	}
}
