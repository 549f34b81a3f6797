package sqlite

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
)

// The pages of a table can be written without SQLite, too, while nobody else has
// the file and rows come in the order of their keys: that takes a fraction of the
// time of INSERTs. tree.go says what is on the pages of a tree. They get their
// numbers as they are filled, so that the file is written from its beginning to
// its end, what a page refers to before itself:
//
//	… overflow overflow leaf leaf overflow leaf inner leaf …
//
// Other pages are between them. A pointer map says of each page from there to the
// next map what refers to it, since SQLite moves pages to make the file smaller:
//
//	map      kind(1) page(4) of each page …
//
// And on the lock page there is nothing: its bytes are those that processes lock.
const (
	firstMap     = 2
	pointerSize  = 5
	mappedPages  = pageSize / pointerSize
	lockPage     = 1<<30/pageSize + 1
	chainPointer = 3 // what refers to the page is the leaf with the row of which it has more
	nextPointer  = 4 // the overflow page before
	childPointer = 5 // the inner page

	// maxChildren are on an inner page, however large their keys are.
	maxChildren = (pageSize-innerHeader)/(2+4+9) + 1

	// maxRow is how large the columns of a row can be: SQLite takes 1,000,000,000
	// bytes with their header.
	maxRow = 1_000_000_000 - 32

	writeBytes    = 1 << 20         // are written at once
	importedBytes = 64 * writeBytes // are not on their way to the disk yet, at most
)

// treeWriter writes the rows of table log to a database that has none.
type treeWriter struct {
	file     *pacedFile
	out      *bufio.Writer // to the end of file
	root     int64         // is in the file already
	fanout   int           // how many children an inner page has
	pages    int64         // that were written, from the first one on
	pointers []byte        // of each of them; of pages that maps do not have, zeros

	leaf   pageWriter
	newest int64    // the key of its last row
	chains []int64  // the first overflow pages of its rows
	inner  [][]leaf // the children of the pages above that are not full, from the lowest level up

	row, cell []byte         // of add
	content   [pageSize]byte // of an overflow page
}

// nothing is on pages that are not filled yet, or never.
var nothing [pageSize]byte

// openTreeWriter opens the database at path, which createPart has made.
func openTreeWriter(path string) (*treeWriter, error) {
	c, err := openConn(path)
	if err != nil {
		return nil, err
	}
	root, err := c.int("SELECT rootpage FROM sqlite_schema WHERE name = 'log'")
	if err = errors.Join(err, c.close()); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	paced := &pacedFile{File: file, every: importedBytes}
	w := &treeWriter{file: paced, root: root, fanout: maxChildren, out: bufio.NewWriterSize(paced, writeBytes)}
	if err := w.begin(); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return w, nil
}

// begin finds out what there is.
func (w *treeWriter) begin() error {
	size, err := w.file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	w.pages = size / pageSize
	w.pointers = make([]byte, w.pages*pointerSize)
	_, err = w.file.ReadAt(w.pointers[firstMap*pointerSize:], (firstMap-1)*pageSize)
	w.leaf.clear(leafKind)
	return err
}

// add adds a row after those there are. It keeps nothing of it.
func (w *treeWriter) add(r *Row, revision int64) error {
	if size := len(r.Batch) + len(r.Header) + len(r.Key) + len(r.Value); size > maxRow {
		return fmt.Errorf("record %d has %d bytes, and SQLite takes %d", r.Seq, size, maxRow)
	}
	w.row = appendRow(w.row[:0], r, revision)
	size := len(w.row)
	local := localBytes(size)
	w.cell = appendVarint(appendVarint(w.cell[:0], int64(size)), r.Seq)
	w.cell = append(w.cell, w.row[:local]...)
	chain := w.next()
	if local < size {
		w.cell = binary.BigEndian.AppendUint32(w.cell, uint32(chain))
		if err := w.overflow(w.row[local:]); err != nil {
			return err
		}
	}
	if !w.leaf.fits(w.cell) {
		if err := w.endLeaf(); err != nil {
			return err
		}
	}
	if local < size {
		w.chains = append(w.chains, chain)
	}
	w.leaf.add(w.cell)
	w.newest = r.Seq
	return nil
}

// overflow writes what a leaf does not have of a row.
func (w *treeWriter) overflow(rest []byte) error {
	content := w.content[:]
	for before := int64(0); len(rest) > 0; {
		page := w.next()
		n := copy(content[4:], rest)
		rest = rest[n:]
		next := after(page)
		if len(rest) == 0 {
			next = 0
			clear(content[4+n:])
		}
		binary.BigEndian.PutUint32(content, uint32(next))
		if err := w.write(content); err != nil {
			return err
		}
		if before > 0 {
			w.point(nextPointer, before, page)
		}
		before = page
	}
	return nil
}

// endLeaf writes the leaf, and begins one.
func (w *treeWriter) endLeaf() error {
	page := w.next()
	if err := w.write(w.leaf.content[:]); err != nil {
		return err
	}
	w.point(chainPointer, page, w.chains...)
	w.chains = w.chains[:0]
	w.leaf.clear(leafKind)
	return w.addChild(0, leaf{page, w.newest})
}

// addChild adds a page to the one above, which is on this level of inner pages.
func (w *treeWriter) addChild(level int, child leaf) error {
	for ; ; level++ {
		if level == len(w.inner) {
			w.inner = append(w.inner, nil)
		}
		children := append(w.inner[level], child)
		w.inner[level] = children
		if len(children) <= w.fanout {
			return nil
		}
		// Two are left for the next page: SQLite refuses one that has a single child.
		full := children[:len(children)-2]
		page, err := w.writeInner(full)
		if err != nil {
			return err
		}
		child = leaf{page, full[len(full)-1].max}
		w.inner[level] = append(children[:0], children[len(full):]...)
	}
}

// writeInner writes the page above children, and returns its number.
func (w *treeWriter) writeInner(children []leaf) (int64, error) {
	page := w.next()
	content := w.innerPage(page, children)
	return page, w.write(content[:])
}

// innerPage returns the page above children, which is to have this number.
func (w *treeWriter) innerPage(page int64, children []leaf) *[pageSize]byte {
	var p pageWriter
	var cell [4 + 9]byte
	p.clear(innerKind)
	last := children[len(children)-1]
	for _, child := range children {
		w.point(childPointer, page, child.page)
		if child != last {
			p.add(appendVarint(binary.BigEndian.AppendUint32(cell[:0], uint32(child.page)), child.max))
		}
	}
	binary.BigEndian.PutUint32(p.content[8:], uint32(last.page))
	return &p.content
}

// finish writes what is left: the file is whole then, but not durable. Nothing
// may be added after that.
func (w *treeWriter) finish() error {
	root, err := w.top()
	if err != nil {
		return err
	}
	if err := w.out.Flush(); err != nil {
		return err
	}
	if _, err := w.file.WriteAt(root[:], (w.root-1)*pageSize); err != nil {
		return err
	}
	for page := int64(firstMap); page <= w.pages; page += mappedPages + 1 {
		entries := w.pointers[page*pointerSize:]
		if _, err := w.file.WriteAt(entries[:min(len(entries), mappedPages*pointerSize)], (page-1)*pageSize); err != nil {
			return err
		}
	}
	// Offset 28 of SQLite's file format.
	_, err = w.file.WriteAt(binary.BigEndian.AppendUint32(nil, uint32(w.pages)), 28)
	return err
}

// top writes the pages that are not full, and returns the one that they are all
// below.
func (w *treeWriter) top() (*[pageSize]byte, error) {
	if len(w.inner) == 0 {
		w.point(chainPointer, w.root, w.chains...)
		return &w.leaf.content, nil
	}
	if err := w.endLeaf(); err != nil {
		return nil, err
	}
	for level := 0; ; level++ {
		children := w.inner[level]
		if level == len(w.inner)-1 {
			return w.innerPage(w.root, children), nil
		}
		page, err := w.writeInner(children)
		if err == nil {
			err = w.addChild(level+1, leaf{page, children[len(children)-1].max})
		}
		if err != nil {
			return nil, err
		}
	}
}

func (w *treeWriter) close() error { return w.file.Close() }

// next returns the number of the page that is written next.
func (w *treeWriter) next() int64 { return after(w.pages) }

// after returns the number of the page of a tree that follows a page.
func after(page int64) int64 {
	for page++; page == lockPage || page%(mappedPages+1) == firstMap; page++ {
	}
	return page
}

// write writes the next page, and leaves room for those before that are not of
// the tree.
func (w *treeWriter) write(content []byte) error {
	for next := w.next(); w.pages < next; w.pages++ {
		p := nothing[:]
		if w.pages+1 == next {
			p = content
		}
		if _, err := w.out.Write(p); err != nil {
			return err
		}
		w.pointers = append(w.pointers, nothing[:pointerSize]...)
	}
	return nil
}

// point notes that the page from refers to pages.
func (w *treeWriter) point(kind byte, from int64, pages ...int64) {
	for _, page := range pages {
		p := w.pointers[(page-1)*pointerSize:]
		p[0] = kind
		binary.BigEndian.PutUint32(p[1:], uint32(from))
	}
}

// pageWriter makes a page of a tree.
type pageWriter struct {
	content [pageSize]byte
	offsets int // where the next cell's offset is put
	start   int // of the last cell
}

// clear begins a page.
func (p *pageWriter) clear(kind byte) {
	*p = pageWriter{offsets: leafHeader, start: pageSize}
	if kind == innerKind {
		p.offsets = innerHeader
	}
	p.content[0] = kind
	binary.BigEndian.PutUint16(p.content[5:], pageSize)
}

func (p *pageWriter) fits(cell []byte) bool { return p.offsets+2+len(cell) <= p.start }

// add adds a cell, which fits.
func (p *pageWriter) add(cell []byte) {
	p.start -= len(cell)
	copy(p.content[p.start:], cell)
	binary.BigEndian.PutUint16(p.content[p.offsets:], uint16(p.start))
	p.offsets += 2
	binary.BigEndian.PutUint16(p.content[3:], binary.BigEndian.Uint16(p.content[3:])+1)
	binary.BigEndian.PutUint16(p.content[5:], uint16(p.start))
}

// localBytes is how many bytes of a payload of this size are on the leaf.
func localBytes(size int) int {
	if size <= localMax {
		return size
	}
	if local := localMin + (size-localMin)%overflowSize; local <= localMax {
		return local
	}
	return localMin
}

// appendRow appends the payload of a row of table log to dst.
func appendRow(dst []byte, r *Row, revision int64) []byte {
	start := len(dst)
	dst = append(dst, 0, 0) // the size of the header; seq, which is the key of the row
	kind, width := integerKind(revision)
	dst = append(dst, kind)
	for _, column := range [...][]byte{r.Batch, r.Header, r.Key, r.Value} {
		if column == nil {
			dst = append(dst, 0)
		} else {
			dst = appendVarint(dst, 12+2*int64(len(column)))
		}
	}
	dst[start] = byte(len(dst) - start)
	for width--; width >= 0; width-- {
		dst = append(dst, byte(revision>>(8*width)))
	}
	dst = append(dst, r.Batch...)
	dst = append(dst, r.Header...)
	dst = append(dst, r.Key...)
	return append(dst, r.Value...)
}

// integerKind returns the type of a column with v, and how many bytes that takes.
func integerKind(v int64) (kind byte, width int) {
	if v == 0 || v == 1 {
		return 8 + byte(v), 0
	}
	widths := [...]int{1, 2, 3, 4, 6, 8}
	for i, width := range widths {
		if unused := 64 - 8*width; v<<unused>>unused == v {
			return byte(i + 1), width
		}
	}
	return 0, 0 // not reached: each v fits in the last one
}

// appendVarint appends what varint reads.
func appendVarint(dst []byte, v int64) []byte {
	u := uint64(v)
	if u>>56 != 0 {
		for shift := 57; shift >= 8; shift -= 7 {
			dst = append(dst, byte(u>>shift)|0x80)
		}
		return append(dst, byte(u))
	}
	for shift := (bits.Len64(u|1) - 1) / 7 * 7; shift > 0; shift -= 7 {
		dst = append(dst, byte(u>>shift)|0x80)
	}
	return append(dst, byte(u)&0x7f)
}
