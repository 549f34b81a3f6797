package kine

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

const createTable = `CREATE TABLE kine (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, created INTEGER, deleted INTEGER,
	create_revision INTEGER, prev_revision INTEGER, lease INTEGER, value BLOB, old_value BLOB)`

// compactRow is what kine writes first.
const compactRow = `INSERT INTO kine VALUES (1, 'compact_rev_key', 1, 0, 0, 0, 0, '', NULL)`

// newFile makes a database of statements and returns its path; it is closed.
func newFile(t *testing.T, statements ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.db")
	db := openWriter(t, path)
	run(t, db, statements...)
	check(t, db.Close())
	return path
}

func openWriter(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	check(t, err)
	t.Cleanup(func() { _ = db.Close() })
	db.SetMaxOpenConns(1)
	run(t, db, "PRAGMA journal_mode=WAL")
	return db
}

func run(t *testing.T, db *sql.DB, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		if _, err := db.Exec(statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// read renders all that a source has.
func read(t *testing.T, src *Source) string {
	t.Helper()
	var b strings.Builder
	state := src.State()
	fmt.Fprintf(&b, "revision %d compacted %d records %d leases %v\n", state.Revision, state.Compacted, state.Records, state.Leases)
	check(t, src.Records(t.Context(), func(r *eventlog.Record) error {
		if r.Kind == eventlog.KindDelete {
			fmt.Fprintf(&b, "%v delete %s\n", r.Revision, r.Key)
			return nil
		}
		fmt.Fprintf(&b, "%v put %s=%s create %d version %d lease %d\n", r.Revision, r.Key, r.Value, r.CreateRevision, r.Version, r.Lease)
		return nil
	}))
	return b.String()
}

func open(t *testing.T, path string) *Source {
	t.Helper()
	src, err := OpenFile(t.Context(), path)
	check(t, err)
	t.Cleanup(func() { check(t, src.Close()) })
	return src
}

func expect(t *testing.T, path, want string) {
	t.Helper()
	src := open(t, path)
	want = strings.TrimPrefix(strings.ReplaceAll(want, "\t", ""), "\n")
	for range 2 { // it may be read again
		if got := read(t, src); got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	}
}

func TestHistory(t *testing.T) {
	expect(t, newFile(t, createTable, compactRow,
		`INSERT INTO kine VALUES (2, '/registry/health', 1, 0, 0, 0, 0, '{}', NULL)`,
		`INSERT INTO kine VALUES (3, 'a', 1, 0, 0, 0, 60, 'one', NULL)`,
		`INSERT INTO kine VALUES (4, 'a', 0, 0, 3, 3, 60, 'two', 'one')`,
		`INSERT INTO kine VALUES (5, 'gap-5', 0, 1, 0, 0, 0, NULL, NULL)`,
		`INSERT INTO kine VALUES (6, 'b', 1, 0, 0, 0, 60, NULL, NULL)`,
		`INSERT INTO kine VALUES (7, 'a', 0, 1, 0, 4, 0, NULL, 'two')`,
		`INSERT INTO kine VALUES (9, 'a', 1, 0, 0, 7, 5, 'again', NULL)`,
		`INSERT INTO kine VALUES (10, 'gap-9', 1, 0, 0, 0, 0, 'a key', NULL)`, // a client's
		`INSERT INTO kine VALUES (11, 'compact_rev_key_apiserver', 1, 0, 0, 0, 0, '1|3', NULL)`,
		`INSERT INTO kine VALUES (12, 'compact_rev_key_apiserver', 0, 0, 11, 11, 0, '7|9', '1|3')`,
		`INSERT INTO kine VALUES (13, 'b', 0, 1, 0, 6, 0, NULL, NULL)`,
		`INSERT INTO kine VALUES (14, 'gap-14', 0, 1, 0, 0, 0, NULL, NULL)`,
		`INSERT INTO kine VALUES (15, 'b', 0, 1, 0, 13, 0, NULL, NULL)`, // again: nothing
	), `
		revision 15 compacted 0 records 11 leases [{5 5 0}]
		2.0 put /registry/health={} create 2 version 1 lease 0
		3.0 put a=one create 3 version 1 lease 60
		4.0 put a=two create 3 version 2 lease 60
		6.0 put b= create 6 version 1 lease 60
		7.0 delete a
		9.0 put a=again create 9 version 1 lease 5
		10.0 put gap-9=a key create 10 version 1 lease 0
		11.0 put compact_rev_key=3 create 11 version 1 lease 0
		12.0 put compact_rev_key=9 create 11 version 7 lease 0
		13.0 delete b
	`)
}

// TestCompacted: of what is compacted each key has its newest version, even if
// kine has left more; and the newest revision may be among what is gone.
func TestCompacted(t *testing.T) {
	expect(t, newFile(t, createTable,
		`INSERT INTO kine VALUES (1, 'compact_rev_key', 1, 0, 0, 8, 0, '', NULL)`,
		`INSERT INTO kine VALUES (3, 'left', 0, 0, 2, 2, 0, 'superseded', NULL)`,
		`INSERT INTO kine VALUES (4, 'left', 0, 0, 2, 3, 0, 'newest', NULL)`,
		`INSERT INTO kine VALUES (5, 'gone', 0, 0, 2, 2, 0, 'deleted below', NULL)`,
		`INSERT INTO kine VALUES (6, 'gone', 0, 1, 0, 5, 0, NULL, NULL)`,
		`INSERT INTO kine VALUES (7, 'created', 1, 0, 0, 0, 0, 'v', NULL)`,
		`INSERT INTO kine VALUES (8, 'old', 0, 0, 0, 2, 9000000001, 'no create_revision', NULL)`,
		`INSERT INTO kine VALUES (9, 'left', 0, 0, 2, 4, 0, 'after', NULL)`,
		`INSERT INTO kine VALUES (10, 'created', 0, 1, 0, 7, 0, NULL, NULL)`,
	), `
		revision 10 compacted 8 records 5 leases [{9000000001 9000000000 0}]
		4.0 put left=newest create 2 version 2 lease 0
		7.0 put created=v create 7 version 1 lease 0
		8.0 put old=no create_revision create 8 version 2 lease 9000000001
		9.0 put left=after create 2 version 3 lease 0
		10.0 delete created
	`)
	expect(t, newFile(t, createTable,
		`INSERT INTO kine VALUES (1, 'compact_rev_key', 1, 0, 0, 20, 0, '', NULL)`,
		`INSERT INTO kine VALUES (12, 'a', 1, 0, 0, 0, 0, 'v', NULL)`,
	), `
		revision 20 compacted 20 records 1 leases []
		12.0 put a=v create 12 version 1 lease 0
	`)
	expect(t, newFile(t, createTable, compactRow), "revision 1 compacted 0 records 0 leases []\n")
}

// TestLog: what is only in the write-ahead log is read, as a kine that was
// killed leaves it; and nothing changes.
func TestLog(t *testing.T) {
	running := filepath.Join(t.TempDir(), "server", "db", "state.db")
	check(t, os.MkdirAll(filepath.Dir(running), 0o700))
	db := openWriter(t, running)
	run(t, db, createTable, compactRow, "PRAGMA wal_checkpoint(TRUNCATE)", `INSERT INTO kine VALUES (2, 'a', 1, 0, 0, 0, 0, 'in the log', NULL)`)

	k3s := t.TempDir()
	killed := filepath.Join(k3s, "server", "db")
	check(t, os.CopyFS(killed, os.DirFS(filepath.Dir(running))))
	before := contents(t, killed)
	if _, ok := before["state.db-wal"]; !ok {
		t.Fatalf("there is no log among %d files", len(before))
	}
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	path, err := FindFile(k3s)
	check(t, err)
	src, err := OpenFile(t.Context(), path)
	check(t, err)
	want := "revision 2 compacted 0 records 1 leases []\n2.0 put a=in the log create 2 version 1 lease 0\n"
	if got := read(t, src); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	check(t, src.Close())
	if after := contents(t, killed); !equalFiles(before, after) {
		t.Error("the files were changed")
	}
	if left := contents(t, temporary); len(left) != 0 {
		t.Errorf("%d files are left behind", len(left))
	}
	// Without the log, as after a clean stop, it is read in place.
	check(t, db.Close())
	before = contents(t, filepath.Dir(running))
	if len(before) != 1 {
		t.Fatalf("%d files after a clean stop", len(before))
	}
	expect(t, running, want)
	if !equalFiles(before, contents(t, filepath.Dir(running))) {
		t.Error("the file was changed")
	}
}

func contents(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	check(t, err)
	all := map[string][]byte{}
	for _, e := range entries {
		all[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name()))
		check(t, err)
	}
	return all
}

func equalFiles(a, b map[string][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for name, content := range a {
		if !bytes.Equal(content, b[name]) {
			return false
		}
	}
	return true
}

// TestRunning: a database that another process has open is refused.
func TestRunning(t *testing.T) {
	if path := os.Getenv("KEELSON_TEST_HOLD"); path != "" {
		hold(t, path)
		return
	}
	path := newFile(t, createTable, compactRow)
	cmd := exec.Command(os.Args[0], "-test.run=^TestRunning$")
	cmd.Env = append(os.Environ(), "KEELSON_TEST_HOLD="+path)
	stdin, err := cmd.StdinPipe()
	check(t, err)
	stdout, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	_, err = OpenFile(t.Context(), path)
	if want := fmt.Sprint("process ", cmd.Process.Pid); !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), want) {
		t.Errorf("opened while another process has it: %v", err)
	}
	check(t, stdin.Close())
	check(t, cmd.Wait())
	open(t, path)
}

// hold is another process, which has the database open until its input ends.
func hold(t *testing.T, path string) {
	db := openWriter(t, path)
	var n int
	check(t, db.QueryRow("SELECT COUNT(*) FROM kine").Scan(&n))
	_, _ = os.Stdout.Write([]byte{'\n'})
	_, _ = os.Stdin.Read(make([]byte, 1))
}

// TestChanged: a database that is written while it is read is no answer.
func TestChanged(t *testing.T) {
	path := newFile(t, createTable, compactRow)
	src := open(t, path)
	db := openWriter(t, path)
	run(t, db, `INSERT INTO kine VALUES (2, 'a', 1, 0, 0, 0, 0, 'v', NULL)`)
	if err := src.Records(t.Context(), func(*eventlog.Record) error { return nil }); !errors.Is(err, ErrRunning) {
		t.Errorf("read while it was written: %v", err)
	}
}

func TestRefuses(t *testing.T) {
	whole := func(t *testing.T) []byte {
		insert := `WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i+1 FROM n WHERE i < 2000)
			INSERT INTO kine SELECT i, 'key' || i, 1, 0, 0, 0, 0, randomblob(300), NULL FROM n`
		data, err := os.ReadFile(newFile(t, createTable, "CREATE INDEX names ON kine (name)", compactRow, insert))
		check(t, err)
		return data
	}
	file := func(t *testing.T, data []byte) string {
		path := filepath.Join(t.TempDir(), "state.db")
		check(t, os.WriteFile(path, data, 0o600))
		return path
	}
	for _, tt := range []struct {
		name string
		path func(t *testing.T) string
		want string
	}{
		{"empty", func(t *testing.T) string { return file(t, nil) }, "the file is empty"},
		{"foreign", func(t *testing.T) string { return file(t, []byte("BoltDB, or whatever this may be")) }, "not an SQLite database, or encrypted"},
		{"short", func(t *testing.T) string { return file(t, []byte("SQL")) }, "not an SQLite database"},
		{"encrypted", func(t *testing.T) string {
			data := whole(t)
			for i := range data {
				data[i] ^= 0x5a
			}
			return file(t, data)
		}, "encrypted"},
		{"format too new", func(t *testing.T) string { data := whole(t); data[18] = 3; return file(t, data) }, "file format 3 is too new"},
		{"truncated", func(t *testing.T) string { data := whole(t); return file(t, data[:len(data)/2]) }, "damaged"},
		{"flipped", func(t *testing.T) string {
			data := whole(t)
			for i := 8192; i < len(data); i += 4096 {
				data[i] ^= 0xff // the type of a page
			}
			return file(t, data)
		}, "damaged"},
		{"no table", func(t *testing.T) string { return newFile(t, "CREATE TABLE records (seq INTEGER)") }, "no such table: kine"},
		{"another table", func(t *testing.T) string { return newFile(t, "CREATE TABLE kine (id INTEGER, name TEXT)") },
			"it has no created, deleted, create_revision, prev_revision, lease, value, old_value"},
		{"too new", func(t *testing.T) string {
			return newFile(t, createTable, compactRow, "ALTER TABLE kine ADD COLUMN version INTEGER")
		},
			"too new: keelson does not know its version"},
		{"never used", func(t *testing.T) string { return newFile(t, createTable) }, "kine has never run"},
		{"no name", func(t *testing.T) string {
			return newFile(t, createTable, compactRow, "INSERT INTO kine VALUES (2, NULL, 1, 0, 0, 0, 0, 'v', NULL)")
		}, "id 2 of the table kine has no name"},
		{"text for a number", func(t *testing.T) string {
			return newFile(t, createTable, compactRow, "INSERT INTO kine VALUES (2, 'a', 1, 0, 'x', 0, 0, 'v', NULL)")
		}, "the row after id 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := tt.path(t)
			src, err := OpenFile(t.Context(), path)
			if src != nil || !errors.Is(err, snapshot.ErrInvalid) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want ErrInvalid with %q on one line", err, tt.want)
			}
			if left := slices.Collect(maps.Keys(contents(t, filepath.Dir(path)))); len(left) != 1 {
				t.Errorf("there is more than the file: %q", left)
			}
		})
	}
}

// TestURLs: what is wrong with a URL is said without repeating it.
func TestURLs(t *testing.T) {
	for _, raw := range []string{
		"state.db", "oracle://u:secret@h/d", "postgres://u:secret@h:port/d", "postgres://u:secret@h/d?sslmode=secret", "mysql://u:secret@h/d", "mysql://u:secret@tcp(h/d",
	} {
		if _, err := OpenURL(t.Context(), raw, Options{}); !errors.Is(err, ErrURL) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", raw, err)
		}
		if strings.Contains(Redact(raw), "secret") {
			t.Errorf("shown as %s", Redact(raw))
		}
	}
	path := newFile(t, createTable, compactRow)
	src, err := OpenURL(t.Context(), "sqlite://"+path+"?_journal_mode=WAL", Options{})
	check(t, err)
	check(t, src.Close())
}
