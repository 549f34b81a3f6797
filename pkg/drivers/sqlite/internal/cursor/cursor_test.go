package cursor

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	_ "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

const query = "SELECT a, b FROM t WHERE a >= ? AND a <= ? ORDER BY a"

// newFile makes a database in WAL mode, which stays open, so that the rows are
// in the WAL.
func newFile(t *testing.T) (uri string, db *sql.DB) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f.db")
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	for _, statement := range []string{
		"PRAGMA journal_mode=WAL", "CREATE TABLE t (a INTEGER PRIMARY KEY, b)",
		"INSERT INTO t VALUES (1, x'00ff'), (2, x''), (3, NULL), (4, 'text'), (5, 7), (6, zeroblob(3000000))",
	} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	return "file:" + path + "?mode=ro", db
}

func open(t *testing.T, uri string) *Cursor {
	t.Helper()
	c, err := Open(uri, query, "PRAGMA cache_size=-100")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestRows(t *testing.T) {
	uri, db := newFile(t)
	c := open(t, uri)
	want := map[int64][]byte{1: {0, 0xff}, 2: {}, 3: nil, 4: nil, 5: nil, 6: make([]byte, 3_000_000)}
	for range 3 {
		next := int64(1)
		if err := c.Each(func() (bool, error) {
			got := c.Blob(1)
			if c.Int(0) != next || !bytes.Equal(got, want[next]) || (got == nil) != (want[next] == nil) {
				t.Errorf("row %d is %d with %d bytes, nil: %v", next, c.Int(0), len(got), got == nil)
			}
			next++
			return true, nil
		}, 1, 6); err != nil || next != 7 {
			t.Fatalf("Each: %v, up to row %d", err, next)
		}
	}

	var got []int64
	add := func(most int) func() (bool, error) {
		return func() (bool, error) {
			got = append(got, c.Int(0))
			return len(got) < most, nil
		}
	}
	if err := c.Each(add(2), 2, 5); err != nil || fmt.Sprint(got) != "[2 3]" {
		t.Errorf("two rows: %v, %v", got, err)
	}
	refused := errors.New("refused")
	if err := c.Each(func() (bool, error) { return true, refused }, 1, 6); !errors.Is(err, refused) {
		t.Errorf("a row that is refused: %v", err)
	}
	// It holds nothing between the calls: what is written since is seen, and
	// the WAL can be started over.
	if _, err := db.Exec("INSERT INTO t VALUES (7, x'07')"); err != nil {
		t.Fatal(err)
	}
	var busy, frames, copied int
	if err := db.QueryRow("PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &frames, &copied); err != nil || busy != 0 {
		t.Errorf("checkpoint: busy %d, %v", busy, err)
	}
	got = nil
	if err := c.Each(add(10), 7, 9); err != nil || fmt.Sprint(got) != "[7]" {
		t.Errorf("the new row: %v, %v", got, err)
	}
}

func TestErrors(t *testing.T) {
	uri, db := newFile(t)
	code := func(err error) int {
		var e *Error
		if !errors.As(err, &e) {
			t.Fatalf("%v is not an Error", err)
		}
		return e.Code() & 0xff
	}
	if _, err := Open("file:"+filepath.Join(t.TempDir(), "none")+"?mode=ro", query); code(err) != sqlite3.SQLITE_CANTOPEN {
		t.Errorf("no file: %v", err)
	}
	if _, err := Open(uri, "SELECT c FROM t"); code(err) != sqlite3.SQLITE_ERROR || err.Error() != "SQL logic error: no such column: c (1)" {
		t.Errorf("a wrong query: %v", err)
	}
	if _, err := Open(uri, query, "INSERT INTO t VALUES (8, 8)"); code(err) != sqlite3.SQLITE_READONLY {
		t.Errorf("a write: %v", err)
	}
	c := open(t, uri)
	if err := c.Each(nil, 1, 2, 3); code(err) != sqlite3.SQLITE_RANGE {
		t.Errorf("too many arguments: %v", err)
	}
	if _, err := db.Exec("DROP TABLE t"); err != nil {
		t.Fatal(err)
	}
	if err := c.Each(nil, 1, 2); code(err) != sqlite3.SQLITE_ERROR {
		t.Errorf("the table is gone: %v", err)
	}
}
