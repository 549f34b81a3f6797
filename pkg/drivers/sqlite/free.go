package sqlite

import (
	"encoding/binary"
	"io"
	"sync/atomic"
)

// Pages that are free are in a list, and in the pointer maps (import_tree.go) of a
// database that has them:
//
//	page 1   … first trunk(4, at 32) pages in the list(4, at 36) … is vacuumed(4, at 52) …
//	trunk    next(4) n(4) n × page(4)
//
// One that is in use and in the list, too, would be overwritten some day.
const (
	freePointer = 2 // nothing refers to the page
	trunkPages  = pageSize/4 - 2
)

// pageMarks notes pages, each once. Several goroutines may use it. A nil one
// notes nothing.
type pageMarks struct {
	pages int64
	bits  []atomic.Uint64
}

func newPageMarks(pages int64) *pageMarks {
	return &pageMarks{pages: pages, bits: make([]atomic.Uint64, pages/64+1)}
}

// mark notes a page.
func (m *pageMarks) mark(page int64) error {
	switch {
	case m == nil:
		return nil
	case page < 1 || page > m.pages:
		return damaged(page, "is beyond the end of the file")
	}
	if bit := uint64(1) << (page % 64); m.bits[page/64].Or(bit)&bit != 0 {
		return damaged(page, "is used twice")
	}
	return nil
}

func (m *pageMarks) has(page int64) bool { return m.bits[page/64].Load()>>(page%64)&1 != 0 }

// verifyFree makes sure that no page of those used, to which it adds, is free, and
// that the list and the pointer maps say the same of what is.
func verifyFree(file io.ReaderAt, used *pageMarks) error {
	var header [100]byte
	if _, err := file.ReadAt(header[:], 0); err != nil {
		return atPage(1, err)
	}
	vacuumed := binary.BigEndian.Uint32(header[52:]) != 0
	for page := int64(firstMap); vacuumed && page <= used.pages; page += mappedPages + 1 {
		if err := used.mark(page); err != nil {
			return err
		}
	}
	listed := newPageMarks(used.pages)
	n, err := markFree(file, int64(binary.BigEndian.Uint32(header[32:])), used, listed)
	if err != nil {
		return err
	}
	if n != int64(binary.BigEndian.Uint32(header[36:])) {
		return damaged(1, "says how many pages are free, and the list has another number of them")
	}
	for page := int64(firstMap); vacuumed && page <= used.pages; page += mappedPages + 1 {
		if err := verifyMap(file, page, listed); err != nil {
			return err
		}
	}
	return nil
}

// markFree marks the pages of the list that begins on page trunk in each of marks,
// and returns how many there are.
func markFree(file io.ReaderAt, trunk int64, marks ...*pageMarks) (total int64, err error) {
	mark := func(page int64) error {
		total++
		for _, m := range marks {
			if err := m.mark(page); err != nil {
				return err
			}
		}
		return nil
	}
	for trunk != 0 {
		if err := mark(trunk); err != nil {
			return 0, err
		}
		content, err := readPage(file, trunk)
		if err != nil {
			return 0, err
		}
		n := int(binary.BigEndian.Uint32(content[4:]))
		if n > trunkPages {
			return 0, damaged(trunk, "has more of the list of free pages than fits")
		}
		for i := range n {
			if err := mark(int64(binary.BigEndian.Uint32(content[8+4*i:]))); err != nil {
				return 0, err
			}
		}
		trunk = int64(binary.BigEndian.Uint32(content))
	}
	return total, nil
}

// verifyMap makes sure that the pointer map on a page says that those listed are
// free, and no others.
func verifyMap(file io.ReaderAt, page int64, listed *pageMarks) error {
	content, err := readPage(file, page)
	if err != nil {
		return err
	}
	for i := range min(mappedPages, listed.pages-page) {
		mapped := page + 1 + i
		if (content[pointerSize*i] == freePointer) != listed.has(mapped) {
			return damaged(mapped, "is free in its pointer map or in the list of free pages, not in both")
		}
	}
	return nil
}
