package sqlite

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// A table is a tree of pages, which can be read without SQLite while nothing
// changes them: that takes a fraction of the time where all of it is wanted. SQLite's
// file format, with big-endian numbers:
//
//	inner     5 firstFree(2) cells(2) start(2) fragments(1) last child(4) offset of each cell(2) …
//	leaf     13 firstFree(2) cells(2) start(2) fragments(1) offset of each cell(2) …
//	  of inner   child(4) key(varint): the child has keys up to that, the last child those above all
//	  of a leaf  size of payload(varint) key(varint) payload [first overflow page(4)]
//	overflow     next(4) payload
//	payload      size of header(varint) type of each column(varint) … columns …
//
// Of a payload beyond localMax bytes so much is in the leaf that the overflow
// pages are full if that is not above localMax, else localMin.
const (
	innerKind, leafKind     = 5, 13
	innerHeader, leafHeader = 12, 8

	localMax     = pageSize - 35
	localMin     = (pageSize-12)*32/255 - 23
	overflowSize = pageSize - 4

	maxDepth   = 20
	maxPayload = 1 << 31

	// windowPages are read at once where leaves follow each other in the file.
	windowPages = 64
)

// tree is a table whose pages do not change.
type tree struct {
	file    io.ReaderAt
	used    *pageMarks // all its pages, once they are read; nil if nobody wants to know
	leaves  []leaf     // in order
	readers sync.Pool  // of *leafReader
}

// leaf is a page with rows whose keys are at most max, and above those of the one
// before.
type leaf struct{ page, max int64 }

// openTree finds the leaves of the table with this root.
func openTree(file io.ReaderAt, root int64) (*tree, error) { return openMarked(file, root, nil) }

// openMarked is openTree, with used for the tree's.
func openMarked(file io.ReaderAt, root int64, used *pageMarks) (*tree, error) {
	t := &tree{file: file, used: used}
	t.readers.New = func() any { return &leafReader{file: file, used: used} }
	depth, err := t.depth(root)
	if err == nil {
		err = t.descend(root, math.MaxInt64, depth)
	}
	return t, err
}

func damaged(page int64, what string) error {
	return fmt.Errorf("%w: page %d of the database %s", eventlog.ErrCorrupt, page, what)
}

// depth is how far below the root the leaves are, all of them.
func (t *tree) depth(page int64) (int, error) {
	for depth := range maxDepth {
		content, err := readPage(t.file, page)
		if err != nil {
			return 0, err
		}
		if content[0] == leafKind {
			return depth, nil
		}
		in, err := innerCells(page, content)
		if err != nil {
			return 0, err
		}
		page = in[0].page
	}
	return 0, damaged(page, "is part of a tree without an end")
}

// descend adds the leaves so far below a page, whose keys are at most highest.
func (t *tree) descend(page, highest int64, depth int) error {
	if err := t.used.mark(page); err != nil {
		return err
	}
	if depth == 0 {
		if n := len(t.leaves); n > 0 && t.leaves[n-1].max >= highest {
			return damaged(page, "is not in order")
		}
		t.leaves = append(t.leaves, leaf{page, highest})
		return nil
	}
	content, err := readPage(t.file, page)
	if err != nil {
		return err
	}
	children, err := innerCells(page, content)
	if err != nil {
		return err
	}
	children[len(children)-1].max = highest
	for _, child := range children {
		if child.max > highest {
			return damaged(page, "is not in order")
		}
		if err := t.descend(child.page, child.max, depth-1); err != nil {
			return err
		}
	}
	return nil
}

// innerCells returns the children of a page; the last one's max is not known.
func innerCells(page int64, content []byte) ([]leaf, error) {
	if content[0] != innerKind {
		return nil, damaged(page, "is no part of the table")
	}
	cells, err := cellOffsets(page, content, innerHeader)
	if err != nil {
		return nil, err
	}
	children := make([]leaf, 0, len(cells)/2+1)
	for ; len(cells) > 0; cells = cells[2:] {
		at := int(binary.BigEndian.Uint16(cells))
		if at+4 > pageSize {
			return nil, damaged(page, "has a cell beyond its end")
		}
		key, n := varint(content[at+4:])
		if n == 0 {
			return nil, damaged(page, "has a cell beyond its end")
		}
		children = append(children, leaf{int64(binary.BigEndian.Uint32(content[at:])), key})
	}
	return append(children, leaf{page: int64(binary.BigEndian.Uint32(content[8:]))}), nil
}

// cellOffsets returns the part of a page that says where its cells are.
func cellOffsets(page int64, content []byte, header int) ([]byte, error) {
	n := int(binary.BigEndian.Uint16(content[3:]))
	if header+2*n > pageSize {
		return nil, damaged(page, "has too many cells")
	}
	return content[header : header+2*n], nil
}

func readPage(file io.ReaderAt, page int64) ([]byte, error) {
	content := make([]byte, pageSize)
	if page < 2 { // the first one is not of this table, 0 is none
		return nil, damaged(page, "is no part of the table")
	}
	if _, err := file.ReadAt(content, (page-1)*pageSize); err != nil {
		return nil, atPage(page, err)
	}
	return content, nil
}

// atPage is an error of reading it.
func atPage(page int64, err error) error {
	if errors.Is(err, io.EOF) {
		return damaged(page, "is beyond the end of the file")
	}
	return err
}

// rows calls fn with the rows whose keys are in [from, to), in order. It keeps
// nothing of them.
func (t *tree) rows(from, to int64, fn func(*Stored) error) error {
	r, _ := t.readers.Get().(*leafReader)
	defer t.readers.Put(r)
	first, _ := slices.BinarySearchFunc(t.leaves, from, func(l leaf, key int64) int { return cmp.Compare(l.max, key) })
	above := int64(math.MinInt64)
	if first > 0 {
		above = t.leaves[first-1].max
	}
	for _, l := range t.leaves[first:] {
		if above >= to-1 {
			break
		}
		if err := r.rows(l, above, from, to, fn); err != nil {
			return err
		}
		above = l.max
	}
	return nil
}

// leafReader reads leaves, for one goroutine.
type leafReader struct {
	file    io.ReaderAt
	used    *pageMarks
	first   int64  // page of buf
	buf     []byte // some pages
	next    int64  // the page after the one that was read last
	payload []byte // of a row with overflow pages
	row     Stored
}

// rows calls fn with the rows of l whose keys are in [from, to); those of the
// leaf before are at most above.
func (r *leafReader) rows(l leaf, above, from, to int64, fn func(*Stored) error) error {
	content, err := r.read(l.page)
	if err != nil {
		return err
	}
	if content[0] != leafKind {
		return damaged(l.page, "is no part of the table")
	}
	cells, err := cellOffsets(l.page, content, leafHeader)
	if err != nil {
		return err
	}
	for ; len(cells) > 0; cells = cells[2:] {
		at := int(binary.BigEndian.Uint16(cells))
		if at >= pageSize {
			return damaged(l.page, "has a cell beyond its end")
		}
		size, n := varint(content[at:])
		key, m := varint(content[at+n:])
		if n == 0 || m == 0 || size < 0 || size > maxPayload {
			return damaged(l.page, "has a cell beyond its end")
		}
		if key <= above || key > l.max {
			return damaged(l.page, "is not in order")
		}
		above = key
		if key < from || key >= to {
			continue
		}
		payload, err := r.whole(l.page, content[at+n+m:], int(size))
		if err != nil {
			return err
		}
		r.row = Stored{Row: Row{Seq: key}}
		if !r.row.decode(payload) {
			return damaged(l.page, fmt.Sprintf("has row %d, which cannot be decoded", key))
		}
		if err := fn(&r.row); err != nil {
			return err
		}
	}
	return nil
}

// read returns the content of a page, until it is called again.
func (r *leafReader) read(page int64) ([]byte, error) {
	pages := int64(1)
	if page == r.next {
		pages = windowPages
	}
	r.next = page + 1
	if page < r.first || page >= r.first+int64(len(r.buf)/pageSize) {
		if page < 2 {
			return nil, damaged(page, "is no part of the table")
		}
		r.buf = slices.Grow(r.buf[:0], int(pages)*pageSize)[:pages*pageSize]
		n, err := r.file.ReadAt(r.buf, (page-1)*pageSize)
		if r.first, r.buf = page, r.buf[:n-n%pageSize]; n < pageSize {
			return nil, atPage(page, err)
		}
	}
	at := (page - r.first) * pageSize
	return r.buf[at : at+pageSize], nil
}

// whole returns a payload of so many bytes, of which cell has the beginning.
func (r *leafReader) whole(page int64, cell []byte, size int) ([]byte, error) {
	local := size
	if size > localMax {
		if local = localMin + (size-localMin)%overflowSize; local > localMax {
			local = localMin
		}
		if local+4 > len(cell) {
			return nil, damaged(page, "has a cell beyond its end")
		}
		return r.overflow(page, cell[:local], int64(binary.BigEndian.Uint32(cell[local:])), size)
	}
	if local > len(cell) {
		return nil, damaged(page, "has a cell beyond its end")
	}
	return cell[:local], nil
}

// overflow returns a payload of so many bytes, of which the rest begins on page
// next. Memory is taken for what was read only, and a chain that leads back to a
// page of itself is noticed before it has been read three times (Brent): nothing
// damaged takes more than the file has.
func (r *leafReader) overflow(page int64, local []byte, next int64, size int) ([]byte, error) {
	r.payload = append(r.payload[:0], local...)
	passed, again := int64(-1), 1 // a page of the chain, and where another takes its place
	for n := 1; len(r.payload) < size; n++ {
		if next == passed {
			return nil, damaged(page, "has a long row whose pages lead back to each other")
		}
		if n == again {
			passed, again = next, 2*again
		}
		content, err := readPage(r.file, next)
		if err == nil {
			err = r.used.mark(next)
		}
		if err != nil {
			return nil, fmt.Errorf("a long row of page %d: %w", page, err)
		}
		next = int64(binary.BigEndian.Uint32(content))
		r.payload = append(r.payload, content[4:4+min(size-len(r.payload), overflowSize)]...)
	}
	if next != 0 {
		return nil, damaged(page, "has a long row with more pages than it needs")
	}
	return r.payload, nil
}

// decode fills s from the payload of its row, whose columns are those of table
// log.
func (s *Stored) decode(payload []byte) bool {
	size, n := varint(payload)
	if n == 0 || size < int64(n) || size > int64(len(payload)) {
		return false
	}
	types, columns := payload[n:size], payload[size:]
	for _, column := range [...]*[]byte{nil, nil, &s.Batch, &s.Header, &s.Key, &s.Value} {
		kind, n := varint(types)
		width := columnWidth(kind)
		if n == 0 || width < 0 || width > int64(len(columns)) {
			return false
		}
		types = types[n:]
		content := columns[:width:width]
		columns = columns[width:]
		switch {
		case column != nil && kind >= 12:
			*column = content
		case column == nil && kind != 0: // seq, the key of the row, is NULL
			s.Revision = integer(kind, content)
		case column != nil && kind != 0:
			return false
		}
	}
	return len(types) == 0 && len(columns) == 0
}

// columnWidth is how many bytes a column of this type takes; less than 0 if it
// is not one that table log has.
func columnWidth(kind int64) int64 {
	switch {
	case kind >= 0 && kind < 10:
		return [...]int64{0, 1, 2, 3, 4, 6, 8, -1, 0, 0}[kind] // NULL, integers, a float, the integers 0 and 1
	case kind >= 12 && kind%2 == 0:
		return (kind - 12) / 2
	}
	return -1
}

// integer is a column of an integer type.
func integer(kind int64, content []byte) int64 {
	if len(content) == 0 {
		return kind - 8
	}
	n := int64(int8(content[0]))
	for _, b := range content[1:] {
		n = n<<8 | int64(b)
	}
	return n
}

// varint is SQLite's: seven bits a byte, the highest first, and all eight of the
// ninth. n is 0 if it is not whole.
func varint(b []byte) (v int64, n int) {
	for i, c := range b[:min(len(b), 9)] {
		if i == 8 {
			return v<<8 | int64(c), 9
		}
		v = v<<7 | int64(c&0x7f)
		if c < 0x80 {
			return v, i + 1
		}
	}
	return 0, 0
}
