package faultvfs

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// openDB opens a database in WAL mode on a Disk below a new directory.
func openDB(t *testing.T) (*Disk, *sql.DB) {
	t.Helper()
	t.Cleanup(Install())
	dir := t.TempDir()
	d := New(dir)
	t.Cleanup(d.Remove)
	db, err := sql.Open("sqlite", filepath.Join(dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { _ = db.Close() })
	for _, stmt := range []string{"PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "CREATE TABLE t (v BLOB)", "INSERT INTO t VALUES (randomblob(10000))"} {
		if _, err := db.ExecContext(context.Background(), stmt); err != nil {
			t.Fatalf("%s: %v", stmt, err)
		}
	}
	return d, db
}

func update(db *sql.DB) error {
	_, err := db.ExecContext(context.Background(), "UPDATE t SET v = randomblob(10000)")
	return err
}

// TestTrace: the Disk knows what SQLite has done to the files.
func TestTrace(t *testing.T) {
	d, db := openDB(t)
	if err := errors.Join(update(db), d.Check()); err != nil {
		t.Fatal(err)
	}
	kinds := map[Kind]int{}
	for _, op := range d.Ops() {
		kinds[op.Kind]++
	}
	if kinds[Write] == 0 || kinds[Sync] == 0 || kinds[Create] == 0 || d.Reads() == 0 {
		t.Errorf("operations %v, %d reads", kinds, d.Reads())
	}
	if last := d.Ops()[d.Len()-1]; last.Kind != Sync || last.Name != "db-wal" {
		t.Errorf("a commit ends with %v", last)
	}
	replay := NewReplay(d.Ops())
	for replay.Next() {
	}
	dir := t.TempDir()
	if err := replay.Kill(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"db", "db-wal"} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		want, wantErr := os.ReadFile(filepath.Join(d.dir, name))
		if err != nil || wantErr != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is replayed to %d bytes, want %d (%v)", name, len(got), len(want), errors.Join(err, wantErr))
		}
	}
}

// TestFail: each fault is the error that it should be, and happens once or
// for good.
func TestFail(t *testing.T) {
	for _, tt := range []struct {
		kind  Kind
		fault Fault
		want  int
	}{
		{Write, Refused, sqlite3.SQLITE_IOERR_WRITE},
		{Write, Full, sqlite3.SQLITE_FULL},
		{Write, Short, sqlite3.SQLITE_IOERR_WRITE},
		{Write, Unanswered, sqlite3.SQLITE_IOERR_WRITE},
		{Sync, Refused, sqlite3.SQLITE_IOERR_FSYNC},
		{Sync, Unanswered, sqlite3.SQLITE_IOERR_FSYNC},
		{Sync, Dropped, sqlite3.SQLITE_IOERR_FSYNC},
		{Sync, Stale, sqlite3.SQLITE_IOERR_FSYNC},
	} {
		for _, lasting := range []bool{false, true} {
			d, db := openDB(t)
			before := d.Len()
			if err := update(db); err != nil {
				t.Fatal(err)
			}
			n := slices.IndexFunc(d.Ops()[before:], func(op Op) bool { return op.Kind == tt.kind })
			d.Fail(d.Len()+n, tt.fault, lasting)
			err := update(db)
			var e *sqlite.Error
			if !errors.As(err, &e) || e.Code() != tt.want || !d.Fired() {
				t.Errorf("%v of %v: %v, want code %d", tt.fault, tt.kind, err, tt.want)
			}
			if err := update(db); (err != nil) != lasting {
				t.Errorf("after %v of %v, lasting %t: %v", tt.fault, tt.kind, lasting, err)
			}
			if err := d.Check(); err != nil && tt.fault != Dropped {
				t.Errorf("after %v of %v: %v", tt.fault, tt.kind, err)
			}
		}
	}
}

// TestPowerCut: what was synced is there, what was not is there in every
// combination.
func TestPowerCut(t *testing.T) {
	const size = 4 * sectorSize
	s := newState()
	s.apply(Op{Kind: Create, Name: "f"})
	s.apply(Op{Kind: Write, Name: "f", data: bytes.Repeat([]byte{1}, size)})
	s.apply(Op{Kind: Sync, Name: "f", dir: true})
	s.apply(Op{Kind: Write, Name: "f", offset: 100, data: bytes.Repeat([]byte{2}, size)})
	s.apply(Op{Kind: Delete, Name: "f"})
	s.apply(Op{Kind: Create, Name: "f"})
	s.apply(Op{Kind: Write, Name: "f", data: []byte{3}})
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	seen := map[string]bool{}
	for i := range 2000 {
		_ = os.Remove(path)
		if err := s.PowerCut(dir, rand.New(rand.NewPCG(uint64(i), 0))); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			seen["gone"] = true
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		what := ""
		for at := 0; at < len(content); at += sectorSize {
			what += string('0' + rune(content[min(at+sectorSize, len(content))-1]))
		}
		if len(content) >= size && !bytes.Equal(content[:100], bytes.Repeat([]byte{1}, 100)) {
			t.Fatalf("bytes that were synced have changed: %v", content[:100])
		}
		seen[what] = true
	}
	for _, want := range []string{"gone", "", "3", "1111", "22222", "1112", "2111", "1212", "22220", "11110", "11112"} {
		if !seen[want] {
			t.Errorf("never left: %q", want)
		}
	}
	for what := range seen {
		if len(what) > 1 && what != "gone" && (len(what) < 4 || what[0] == '0') {
			t.Errorf("left: %q", what)
		}
	}
}

// TestStale: what a failed sync leaves stays as it is on the disk until it is
// written again, whatever is synced.
func TestStale(t *testing.T) {
	for seed := range uint64(50) {
		s := newState()
		s.apply(Op{Kind: Create, Name: "f"})
		s.apply(Op{Kind: Sync, Name: "f", dir: true})
		s.apply(Op{Kind: Write, Name: "f", data: bytes.Repeat([]byte{1}, 4*sectorSize)})
		s.apply(Op{Kind: Sync, Name: "f", fault: Stale, seed: seed})
		before := bytes.Clone(s.names["f"].durable)
		s.apply(Op{Kind: Sync, Name: "f"})
		if f := s.names["f"]; !bytes.Equal(f.durable, before) || len(f.seen) != 4*sectorSize {
			t.Fatalf("after another sync %v are on the disk, were %v", f.durable, before)
		}
		s.apply(Op{Kind: Write, Name: "f", data: bytes.Repeat([]byte{1}, 4*sectorSize)})
		s.apply(Op{Kind: Sync, Name: "f"})
		if f := s.names["f"]; !bytes.Equal(f.durable, f.seen) {
			t.Fatal("written again and synced, it is not on the disk")
		}
	}
}
