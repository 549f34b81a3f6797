package etcdfile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"os"

	"github.com/keelson-io/keelson/pkg/snapshot"
)

// boltFile is a bbolt database that is read, and trusted in nothing: bbolt itself
// panics, in goroutines of its own, where a page is not what it should be.
type boltFile struct {
	f        *os.File
	order    binary.ByteOrder
	pageSize int64
	meta     boltMeta
	buckets  map[string]boltBucket
	buf      []byte
	onRead   func(bytes int) error // is called for each page, unless nil
}

// boltMeta is what a meta page says.
type boltMeta struct {
	root        uint64 // page
	pages       uint64 // how many there are
	transaction uint64
}

// boltBucket is a bucket: a page, or a small one's only leaf.
type boltBucket struct {
	root   uint64
	inline []byte
}

// damaged is an ErrInvalid that says what is wrong with a database.
func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: the database is damaged: %s", snapshot.ErrInvalid, fmt.Sprintf(format, args...))
}

// metaSize is that of a meta page's content; the last 8 bytes are its checksum.
const metaSize = 4*4 + 5*8 + 8

// openBolt reads the meta pages and the names of the buckets of the database
// that size bytes of f are.
func openBolt(f *os.File, size int64) (*boltFile, error) {
	b := &boltFile{f: f, buckets: make(map[string]boltBucket)}
	if err := b.readMeta(size); err != nil {
		return nil, err
	}
	if want := b.pageSize * int64(b.meta.pages); size < want {
		return nil, fmt.Errorf("%w: it is cut off: it has %d bytes of %d", snapshot.ErrInvalid, size, want)
	}
	err := b.walk(boltBucket{root: b.meta.root}, func(flags uint32, name, value []byte) error {
		if flags&flagBucket == 0 || len(value) < bucketSize {
			return damaged("%q is no bucket", name)
		}
		bucket := boltBucket{root: b.order.Uint64(value)}
		if bucket.root == 0 {
			bucket.inline = bytes.Clone(value[bucketSize:])
		}
		b.buckets[string(name)] = bucket
		return nil
	})
	return b, err
}

// readMeta takes the meta page of the newest transaction that is whole. The
// second one is at the page size of the machine that made the file.
func (b *boltFile) readMeta(size int64) error {
	head := make([]byte, headerSize+metaSize)
	found := false
	read := func(offset int64) {
		if _, err := b.f.ReadAt(head, offset); err != nil {
			return
		}
		content := head[headerSize:]
		for _, order := range [...]binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
			h := fnv.New64a()
			h.Write(content[:metaSize-8])
			pageSize := int64(order.Uint32(content[8:]))
			transaction := order.Uint64(content[48:])
			whole := order.Uint32(content) == boltMagic && order.Uint32(content[4:]) == boltVersion && order.Uint64(content[56:]) == h.Sum64()
			sane := pageSize >= 512 && pageSize <= 1<<20 && pageSize&(pageSize-1) == 0 && order.Uint64(content[40:]) < 1<<40
			if whole && sane && (!found || transaction > b.meta.transaction) {
				found, b.order, b.pageSize = true, order, pageSize
				b.meta = boltMeta{root: order.Uint64(content[16:]), pages: order.Uint64(content[40:]), transaction: transaction}
			}
		}
	}
	read(0)
	if found {
		read(b.pageSize)
	}
	for offset := int64(512); !found && offset <= 1<<20 && offset < size; offset *= 2 {
		read(offset)
	}
	if !found {
		return damaged("neither of its meta pages is whole")
	}
	return nil
}

// walker is a walk through the pages of a bucket.
type walker struct {
	*boltFile
	seen map[uint64]uint64 // a bit for each page, 64 to an entry: a file may say that there are many
	last []byte            // key
	any  bool
	fn   func(flags uint32, key, value []byte) error
}

const (
	maxDepth = 32 // more levels than there can be

	// maxPage is more than a page has with what overflows from it: the largest
	// request that a server can be told to take is 1 GiB.
	maxPage = 1<<30 + 1<<20

	// growBytes are read of a page at first, and then as much as there is
	// already: what it says of itself is not believed in advance.
	growBytes = 1 << 20
)

// walk calls fn with every entry of a bucket, in order. What it is given is valid
// until it returns.
func (b *boltFile) walk(bucket boltBucket, fn func(flags uint32, key, value []byte) error) error {
	w := &walker{boltFile: b, fn: fn}
	if bucket.inline != nil {
		return w.leaf(bucket.inline, 0)
	}
	w.seen = make(map[uint64]uint64)
	return w.page(bucket.root, 0)
}

func (w *walker) page(id uint64, depth int) error {
	if depth > maxDepth {
		return damaged("page %d is too deep", id)
	}
	page, err := w.read(id)
	if err != nil {
		return err
	}
	switch flags := w.order.Uint16(page[8:]); flags {
	case flagLeaf:
		return w.leaf(page, id)
	case flagBranch:
		return w.branch(bytes.Clone(page), id, depth)
	default:
		return damaged("page %d has the flags %x", id, flags)
	}
}

// read reads a page with what overflows from it.
func (w *walker) read(id uint64) ([]byte, error) {
	size := int(w.pageSize)
	if len(w.buf) < size {
		w.buf = make([]byte, size)
	}
	if id < metaPages || id >= w.meta.pages {
		return nil, damaged("there is no page %d", id)
	}
	offset := int64(id) * w.pageSize
	if _, err := w.f.ReadAt(w.buf[:size], offset); err != nil {
		return nil, err
	}
	overflow := uint64(w.order.Uint32(w.buf[12:]))
	if stored := w.order.Uint64(w.buf); stored != id || id+overflow >= w.meta.pages || (overflow+1)*uint64(size) > maxPage {
		return nil, damaged("page %d says that it is page %d with %d more", id, stored, overflow)
	}
	for i := id; i <= id+overflow; i++ {
		if w.seen[i/64]&(1<<(i%64)) != 0 {
			return nil, damaged("page %d is there twice", i)
		}
		w.seen[i/64] |= 1 << (i % 64)
	}
	if w.onRead != nil {
		if err := w.onRead(int(overflow+1) * size); err != nil {
			return nil, err
		}
	}
	if overflow == 0 {
		return w.buf[:size], nil
	}
	whole := int(overflow+1) * size
	for at := size; at < whole; {
		end := min(whole, max(2*at, growBytes))
		if len(w.buf) < end {
			w.buf = append(make([]byte, 0, end), w.buf[:at]...)[:end]
		}
		if _, err := w.f.ReadAt(w.buf[at:end], offset+int64(at)); err != nil {
			return nil, err
		}
		at = end
	}
	return w.buf[:whole], nil
}

// leaf passes on what is on a leaf.
func (w *walker) leaf(page []byte, id uint64) error {
	if len(page) < headerSize {
		return damaged("a bucket has %d bytes", len(page))
	}
	count := int(w.order.Uint16(page[10:]))
	for i := range count {
		at := headerSize + i*elemSize
		if at+elemSize > len(page) {
			return damaged("page %d has %d entries", id, count)
		}
		e := page[at:]
		position, key, value := uint64(w.order.Uint32(e[4:])), uint64(w.order.Uint32(e[8:])), uint64(w.order.Uint32(e[12:]))
		if position+key+value > uint64(len(e)) {
			return damaged("entry %d of page %d is not on it", i, id)
		}
		name := e[position : position+key]
		if w.any && bytes.Compare(w.last, name) >= 0 {
			return damaged("entry %d of page %d is not in order", i, id)
		}
		w.last, w.any = append(w.last[:0], name...), true
		if err := w.fn(w.order.Uint32(e), name, e[position+key:position+key+value]); err != nil {
			return err
		}
	}
	return nil
}

// branch walks through the pages below a branch.
func (w *walker) branch(page []byte, id uint64, depth int) error {
	count := int(w.order.Uint16(page[10:]))
	for i := range count {
		at := headerSize + i*elemSize
		if at+elemSize > len(page) {
			return damaged("page %d has %d entries", id, count)
		}
		if err := w.page(w.order.Uint64(page[at+8:]), depth+1); err != nil {
			return err
		}
	}
	return nil
}

// all returns the entries of a small bucket, by name.
func (b *boltFile) all(bucket string) (map[string][]byte, error) {
	found, ok := b.buckets[bucket]
	if !ok {
		return nil, nil
	}
	entries := make(map[string][]byte)
	err := b.walk(found, func(_ uint32, name, value []byte) error {
		entries[string(name)] = bytes.Clone(value)
		return nil
	})
	return entries, err
}
