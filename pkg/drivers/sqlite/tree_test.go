package sqlite

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// TestTree reads what SQLite does: rows with and without overflow pages, around
// the sizes at which they get one more.
func TestTree(t *testing.T) {
	t.Parallel()
	l := mustOpen(t, t.TempDir())
	defer l.Close()
	for size := range 40 {
		appendRandom(t, l, 1, size)
	}
	for pages := range 3 {
		for size := 3960; size <= 4100; size++ {
			appendRandom(t, l, 1, size+pages*overflowSize)
		}
	}
	appendRandom(t, l, 3000, 10) // leaves enough for inner pages on two levels
	appendRandom(t, l, 1500, 3000)
	l.writerDo(t, func() { l.markSeq = l.headSeq }) // as if it were one
	if err := l.Compact(t.Context(), []int64{1, 2, 3, 30, 31, 32, 33, 2000, 4000}); err != nil {
		t.Fatal(err)
	}
	if err := l.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := rowsOf(t, l)
	tree, err := l.tree()
	if err != nil || tree == nil {
		t.Fatalf("%v, %v", tree, err)
	}
	newest := l.headSeq
	for _, width := range []int64{newest + 1, 97, 1000} {
		var got []Row
		for from := int64(0); from <= newest; from += width {
			err := tree.rows(from, from+width, func(s *Stored) error {
				r := Row{Seq: s.Seq}
				for to, column := range map[*[]byte][]byte{&r.Header: s.Header, &r.Key: s.Key, &r.Batch: s.Batch, &r.Value: s.Value} {
					if column != nil {
						*to = append([]byte{}, column...)
					}
				}
				got = append(got, r)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%d rows in ranges of %d; SQLite has others, %d", len(got), width, len(want))
		}
	}
}

// pagesRead is a file that counts what is read of it.
type pagesRead struct {
	io.ReaderAt
	n int
}

func (p *pagesRead) ReadAt(b []byte, at int64) (int, error) {
	p.n++
	return p.ReaderAt.ReadAt(b, at)
}

// TestLongRowDamage: a row that claims to be long is refused when the pages that
// it has come to an end, or lead back to each other; none of what it claims to
// need beyond them is read, or taken of memory.
func TestLongRowDamage(t *testing.T) {
	const pages = 1000
	for name, c := range map[string]struct {
		next func(page int) int // on an overflow page; the first one is 3
		size int
		want string
	}{
		"itself":     {func(page int) int { return page }, maxPayload, "lead back"},
		"a circle":   {func(page int) int { return 3 + (page-2)%(pages-2) }, maxPayload, "lead back"},
		"in the end": {func(page int) int { return min(page+1, pages) }, maxPayload, "lead back"},
		"ends":       {func(page int) int { return (page + 1) % (pages + 1) }, maxPayload, "page 0 of the database"},
		"too many":   {func(page int) int { return page + 1 }, pageSize, "more pages"},
		"too long":   {func(page int) int { return page + 1 }, maxPayload + 1, "beyond its end"},
		"negative":   {func(page int) int { return page + 1 }, -1, "beyond its end"},
	} {
		t.Run(name, func(t *testing.T) {
			content := make([]byte, pages*pageSize)
			leaf := content[pageSize : 2*pageSize]
			leaf[0], leaf[4] = leafKind, 1 // one cell
			const at = 1000
			binary.BigEndian.PutUint16(leaf[leafHeader:], at)
			cell := append(sqliteVarint(int64(c.size)), 1)
			copy(leaf[at:], cell)
			if size := c.size; size > localMax {
				local := localMin + (size-localMin)%overflowSize
				if local > localMax {
					local = localMin
				}
				binary.BigEndian.PutUint32(leaf[at+len(cell)+local:], 3)
			}
			for page := 3; page <= pages; page++ {
				binary.BigEndian.PutUint32(content[(page-1)*pageSize:], uint32(c.next(page)))
			}
			file := &pagesRead{ReaderAt: bytes.NewReader(content)}
			tree, err := openTree(file, 2)
			if err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err = tree.rows(0, 10, func(*Stored) error { return errors.New("it was taken for a row") })
			runtime.ReadMemStats(&after)
			if !errors.Is(err, eventlog.ErrCorrupt) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if took := after.TotalAlloc - before.TotalAlloc; file.n > 3*pages || took > 20*pages*pageSize {
				t.Errorf("%d reads and %d bytes of memory for %d pages", file.n, took, pages)
			}
		})
	}
}

// sqliteVarint is what varint decodes, in nine bytes.
func sqliteVarint(v int64) []byte {
	u := uint64(v)
	b := make([]byte, 9)
	b[8] = byte(u)
	u >>= 8
	for i := 7; i >= 0; i-- {
		b[i] = byte(u&0x7f) | 0x80
		u >>= 7
	}
	return b
}

// TestOtherPages: a file whose pages somebody has made anew is read by SQLite.
func TestOtherPages(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir)
	appendRandom(t, l, 100, 100)
	want := rowsOf(t, l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := openConn(filepath.Join(dir, FileName), "PRAGMA journal_mode=DELETE", "PRAGMA page_size=8192", "VACUUM", "PRAGMA journal_mode=WAL")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, dir)
	defer l.Close()
	if head, err := l.Load(t.Context(), func(*eventlog.Record) error { return nil }); err != nil || head.Seq != 100 || !reflect.DeepEqual(rowsOf(t, l), want) {
		t.Errorf("Load: %+v, %v", head, err)
	}
	if c, err := l.Copy(t.Context()); !errors.Is(err, ErrForeign) {
		t.Errorf("Copy: %v, %v", c, err)
	}
}

// TestVerifyDamage changes some byte of a database, again and again: what it has
// is refused, or the same as before.
func TestVerifyDamage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := mustOpen(t, dir)
	appendRandom(t, l, 200, 100)
	appendRandom(t, l, 200, 900)
	appendRandom(t, l, 5, 9000)
	l.writerDo(t, func() { l.markSeq = l.headSeq }) // as if it were one
	if err := l.Compact(t.Context(), []int64{5, 6, 7, 300}); err != nil {
		t.Fatal(err)
	}
	want := rowsOf(t, l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, FileName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	random, refused := mathrand.New(mathrand.NewPCG(1, 2)), 0
	for i := range 400 {
		at, bit := random.IntN(len(whole)), byte(1)<<random.IntN(8)
		if i%2 == 0 { // where a page says what is on it
			at = at/pageSize*pageSize + at%12
		}
		damaged := append([]byte{}, whole...)
		damaged[at] ^= bit
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := Open(t.Context(), Options{Dir: dir, Logger: silent()})
		if err == nil {
			var head eventlog.Head
			if head, err = l.verify(t.Context()); err == nil && (head.Seq != 405 || !reflect.DeepEqual(rowsOf(t, l), want)) {
				t.Errorf("bit %#x of byte %d (page %d, %d) was changed, and the rows differ", bit, at, at/pageSize+1, at%pageSize)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err != nil {
			refused++
			if !errors.Is(err, eventlog.ErrCorrupt) && !errors.Is(err, ErrForeign) && !errors.Is(err, ErrNewer) {
				t.Errorf("bit %#x of byte %d: %v", bit, at, err)
			}
		}
	}
	if refused < 100 {
		t.Errorf("only %d of 400 were refused", refused)
	}
}
