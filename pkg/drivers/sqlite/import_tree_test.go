package sqlite

import (
	"bytes"
	"errors"
	"math"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"testing"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// writeTree makes a database in a directory of its own whose rows a treeWriter
// writes, behind as many pages; 0 is those that are there anyway.
func writeTree(t *testing.T, rows []Stored, fanout int, pages int64) (dir string) {
	t.Helper()
	dir = t.TempDir()
	path := filepath.Join(dir, FileName)
	if err := createPart(path); err != nil {
		t.Fatal(err)
	}
	if pages > 0 {
		if err := os.Truncate(path, pages*pageSize); err != nil {
			t.Fatal(err)
		}
	}
	w, err := openTreeWriter(path)
	if err != nil {
		t.Fatal(err)
	}
	w.fanout = fanout
	for i := range rows {
		if err := w.add(&rows[i].Row, rows[i].Revision); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.finish(), w.close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// insertRows is writeTree by SQLite.
func insertRows(t *testing.T, rows []Stored) (dir string) {
	t.Helper()
	dir = t.TempDir()
	path := filepath.Join(dir, FileName)
	if err := createPart(path); err != nil {
		t.Fatal(err)
	}
	c, err := openConn(path, "BEGIN")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if err := c.exec(insertRecord, r.Seq, r.Revision, r.Batch, r.Header, r.Key, r.Value); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(c.exec("COMMIT"), c.close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// inspected returns what SQLite finds in the database in dir, and what is wrong
// with it.
func inspected(t *testing.T, dir string) (rows []Stored, wrong []string) {
	t.Helper()
	in, err := Inspect(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Integrity(t.Context(), math.MaxInt32, func(s string) { wrong = append(wrong, s) }); err != nil {
		t.Error(err)
	}
	if err := in.Rows(t.Context(), math.MinInt64, math.MaxInt, func(s *Stored) error { rows = append(rows, *s); return nil }); err != nil {
		t.Error(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	return rows, wrong
}

// sizedRow returns a row whose payload has so many bytes, if that can be.
func sizedRow(seq int64, size int) Stored {
	r := Stored{Row: Row{Seq: seq, Header: []byte("header"), Value: []byte{}}, Revision: seq}
	for range 3 { // the number of bytes takes bytes, too
		r.Value = bytes.Repeat([]byte{byte(seq)}, max(0, len(r.Value)+size-len(appendRow(nil, &r.Row, r.Revision))))
	}
	return r
}

// randomRow returns a row of any content: columns of all widths, with and
// without overflow pages.
func randomRow(random *mathrand.Rand, seq int64) Stored {
	column := func(most int) []byte {
		if random.IntN(4) == 0 {
			return nil
		}
		b := make([]byte, random.IntN(1+random.IntN(most)))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	r := Stored{Row: Row{Seq: seq, Header: []byte("header"), Batch: column(30), Key: column(300), Value: column(3000)}}
	if random.IntN(20) == 0 {
		r.Value = column(40_000)
	}
	r.Revision = int64(random.Uint64()) >> random.IntN(64)
	return r
}

// TestImportTree: what is written without SQLite is what SQLite would have
// written, as far as it can tell.
func TestImportTree(t *testing.T) {
	random := mathrand.New(mathrand.NewPCG(3, 4))
	tables := map[string][]Stored{
		"empty":                   {},
		"one row":                 {sizedRow(1, 100)},
		"one with overflow pages": {sizedRow(7, 2*mappedPages*overflowSize)},
	}
	var sizes []Stored
	for _, around := range []int{localMin, localMax, localMin + overflowSize, localMax + overflowSize, localMin + 2*overflowSize, 3 * overflowSize} {
		for size := around - 12; size <= around+12; size++ {
			sizes = append(sizes, sizedRow(int64(len(sizes)+1), size))
		}
	}
	tables["sizes"] = sizes
	for i, n := range []int{2, 10, 100, 1000, 3000} {
		var rows []Stored
		for seq := int64(0); len(rows) < n; {
			seq += 1 + random.Int64N(1<<(i*12))
			rows = append(rows, randomRow(random, seq))
		}
		tables[strconv.Itoa(n)] = rows
	}
	var far []Stored
	for i := range int64(2*maxChildren + 10) { // the largest cells of inner pages
		far = append(far, sizedRow(math.MaxInt64-10_000+i, localMax))
	}
	tables["large keys"] = far
	for name, rows := range tables {
		want, _ := inspected(t, insertRows(t, rows))
		for _, fanout := range []int{3, 5, maxChildren} {
			got, wrong := inspected(t, writeTree(t, rows, fanout, 0))
			if len(wrong) > 0 {
				t.Errorf("%s, %d children: %q", name, fanout, wrong[0])
			}
			if len(got) != len(rows) || !reflect.DeepEqual(got, want) {
				t.Errorf("%s, %d children: %d rows of %d, or others", name, fanout, len(got), len(want))
			}
		}
	}
}

// TestImportTreeLockPage: nothing is on the page that is for locks, whatever
// comes to its place.
func TestImportTreeLockPage(t *testing.T) {
	unused := regexp.MustCompile(`^Page (\d+): never used$`)
	for before := range int64(8) {
		var rows []Stored
		for seq := int64(1); seq <= 8; seq++ {
			rows = append(rows, sizedRow(seq, 100+int(seq%3)*3*overflowSize))
		}
		pages := lockPage - 1 - before
		dir := writeTree(t, rows, maxChildren, pages)
		got, wrong := inspected(t, dir)
		for _, what := range wrong {
			m := unused.FindStringSubmatch(what)
			if m == nil {
				t.Fatalf("%d pages before: %s", before, what)
			}
			if page, err := strconv.ParseInt(m[1], 10, 64); err != nil || page > pages {
				t.Fatalf("%d pages before: %s", before, what)
			}
		}
		if !reflect.DeepEqual(got, rows) {
			t.Errorf("%d pages before: the rows are others", before)
		}
	}
}

// TestImportTreeLater: what was imported can be written to, and made smaller:
// SQLite moves its pages.
func TestImportTreeLater(t *testing.T) {
	dir := t.TempDir()
	im, err := NewImporter(ImportOptions{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	const n = 3000
	id := eventlog.NewBatchID()
	var freed []int64
	for seq := int64(1); seq <= n; seq++ {
		r := &eventlog.Record{
			Seq: seq, Position: eventlog.Position(seq), Kind: eventlog.KindPut, Revision: eventlog.Revision{Main: seq + 1},
			Key: []byte("k"), Value: bytes.Repeat([]byte{byte(seq)}, int(seq*seq%9000)), CreateRevision: 2, Version: seq,
		}
		if err := im.Add(r, &id); err != nil {
			t.Fatal(err)
		}
		if seq < n/2 {
			freed = append(freed, seq)
		}
	}
	if err := im.Finish(eventlog.Head{Position: n, Seq: n, Revision: n + 1}); err != nil {
		t.Fatal(err)
	}
	l := mustOpen(t, dir)
	if _, err := l.Load(t.Context(), func(*eventlog.Record) error { return nil }); err != nil {
		t.Fatal(err)
	}
	want := rowsOf(t, l)[n/2-1:]
	l.writerDo(t, func() { l.markSeq = l.headSeq }) // as if it were one
	if err := l.Compact(t.Context(), freed); err != nil {
		t.Fatal(err)
	}
	if err := l.Defragment(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := rowsOf(t, l); !reflect.DeepEqual(got, want) {
		t.Errorf("%d rows, or others; want %d", len(got), len(want))
	}
	appendRandom(t, l, 500, 3000)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, FileName))
	if err != nil {
		t.Fatal(err)
	}
	if rows, wrong := inspected(t, dir); len(wrong) > 0 || len(rows) != n/2+1+500 || info.Size() > 12<<20 {
		t.Errorf("%d rows in %d bytes, %q", len(rows), info.Size(), wrong)
	}
}

// TestImportTooLarge: a row that SQLite could not read is refused.
func TestImportTooLarge(t *testing.T) {
	var w treeWriter
	quarter := make([]byte, maxRow/4+1)
	if err := w.add(&Row{Seq: 1, Batch: quarter, Header: quarter, Key: quarter, Value: quarter}, 1); err == nil {
		t.Error("it is taken")
	}
}

func TestAppendVarint(t *testing.T) {
	for shift := range 64 {
		for _, v := range []int64{1<<shift - 1, 1 << shift, -1 << shift} {
			b := appendVarint([]byte{0xff}, v)
			if got, n := varint(b[1:]); got != v || n != len(b)-1 || b[0] != 0xff {
				t.Errorf("%d is %x, which is %d", v, b, got)
			}
		}
	}
}
