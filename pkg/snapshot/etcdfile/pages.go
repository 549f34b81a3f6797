package etcdfile

import (
	"encoding/binary"
	"hash/fnv"
	"io"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

// The pages of a bbolt database, written one after another: what bbolt itself
// would need a file for, and look for a place of each entry in, although they
// come in order. Two pages with the meta data, then those of each bucket:
//
//	page    id(8) flags(2) count(2) overflow(4), then so many elements, and what these refer to
//	leaf    element  flags(4) position(4) key size(4) value size(4); key and value
//	branch  element  position(4) key size(4) page(8); the first key below that page
//	meta    magic version page size flags (4 each) root(16) freelist high water transaction checksum (8 each)
//	bucket  root page(8) sequence(8): the value of an element with flags=1; of
//	        a small one the only leaf follows, and the page is 0
//
// Positions count from the element. A page with more than 4096 bytes overflows
// into those behind it. bbolt makes one of several entries only where they are
// large; here all are nodeBytes long, so that little of them is left empty.
//
// Source: bbolt's internal/common (page.go, meta.go, bucket.go, inode.go).
const (
	pageSize   = 4096
	headerSize = 16
	elemSize   = 16 // of leaves and branches
	bucketSize = 16
	nodeBytes  = 16 * pageSize
	inlineSize = pageSize / 4 // the largest leaf within its bucket
	metaPages  = 2

	flagBranch = 1
	flagLeaf   = 2
	flagMeta   = 4
	flagBucket = 1 // of an element

	boltVersion = 2
	noFreelist  = ^uint64(0) // bbolt makes it anew when it opens the file
)

// native is the order of bytes of this machine, in which bbolt writes.
var native = binary.NativeEndian

// pager numbers pages and writes them.
type pager struct {
	w    io.Writer // nil: they are only counted
	next uint64    // page
	buf  []byte
}

// put writes data, which is padded to whole pages, as the next page, and returns
// its number.
func (p *pager) put(n *node, flags uint16) (uint64, error) {
	id := p.next
	size := n.size()
	pages := uint64(size+pageSize-1) / pageSize
	p.next += pages
	if p.w == nil {
		return id, nil
	}
	p.buf = n.append(p.buf[:0], id, flags, uint32(pages-1))
	if _, err := p.w.Write(p.buf); err != nil {
		return id, err
	}
	if _, err := p.w.Write(n.data); err != nil {
		return id, err
	}
	_, err := p.w.Write(zeros[:pages*pageSize-uint64(size)])
	return id, err
}

var zeros [pageSize]byte

// element is an entry of a node.
type element struct {
	flags      uint32
	key, value uint32 // size
	page       uint64 // a branch has it instead of a value
}

// node is a leaf or a branch that is being filled.
type node struct {
	elements []element
	bytes    int    // of keys and values
	data     []byte // these, unless pages are only counted
	first    string // key
}

func (n *node) size() int { return headerSize + elemSize*len(n.elements) + n.bytes }

// add adds an entry, of which key and value are kept unless it is only counted.
func (n *node) add(e element, key, value []byte, counted bool) {
	if len(n.elements) == 0 {
		n.first = string(key)
	}
	n.elements = append(n.elements, e)
	n.bytes += int(e.key + e.value)
	if !counted {
		n.data = append(append(n.data, key...), value...)
	}
}

// full reports whether an entry of that size would make the node too large.
func (n *node) full(size int) bool {
	return len(n.elements) > 0 && n.size()+elemSize+size > nodeBytes
}

func (n *node) reset() { n.elements, n.bytes, n.data = n.elements[:0], 0, n.data[:0] }

// append appends the header and the elements.
func (n *node) append(dst []byte, id uint64, flags uint16, overflow uint32) []byte {
	dst = native.AppendUint64(dst, id)
	dst = native.AppendUint16(dst, flags)
	dst = native.AppendUint16(dst, uint16(len(n.elements)))
	dst = native.AppendUint32(dst, overflow)
	at := 0
	for i, e := range n.elements {
		position := uint32(elemSize*(len(n.elements)-i) + at)
		if flags == flagBranch {
			dst = native.AppendUint32(dst, position)
			dst = native.AppendUint32(dst, e.key)
			dst = native.AppendUint64(dst, e.page)
			at += int(e.key)
			continue
		}
		dst = native.AppendUint32(dst, e.flags)
		dst = native.AppendUint32(dst, position)
		dst = native.AppendUint32(dst, e.key)
		dst = native.AppendUint32(dst, e.value)
		at += int(e.key + e.value)
	}
	return dst
}

// tree writes the pages of a bucket whose entries come in order.
type tree struct {
	p    *pager
	leaf node
	up   []child // of the leaves
}

// child is a page and the first key below it.
type child struct {
	key  string
	page uint64
}

// add adds an entry.
func (t *tree) add(flags uint32, key, value []byte) error {
	return t.addSized(element{flags: flags, key: uint32(len(key)), value: uint32(len(value))}, key, value)
}

// count adds an entry of these sizes to pages that are only counted.
func (t *tree) count(keySize, valueSize int) error {
	return t.addSized(element{key: uint32(keySize), value: uint32(valueSize)}, zeros[:keySize], nil)
}

func (t *tree) addSized(e element, key, value []byte) error {
	if t.leaf.full(int(e.key + e.value)) {
		if err := t.putLeaf(); err != nil {
			return err
		}
	}
	t.leaf.add(e, key, value, t.p.w == nil)
	return nil
}

func (t *tree) putLeaf() error {
	id, err := t.p.put(&t.leaf, flagLeaf)
	t.up = append(t.up, child{t.leaf.first, id})
	t.leaf.reset()
	return err
}

// finish writes what is left and returns the bucket: what stands for it in the
// tree of all buckets.
func (t *tree) finish() ([]byte, error) {
	if len(t.up) == 0 && t.leaf.size() <= inlineSize {
		if t.p.w == nil {
			return zeros[:bucketSize+t.leaf.size()], nil
		}
		b := make([]byte, bucketSize, bucketSize+t.leaf.size())
		return append(t.leaf.append(b, 0, flagLeaf, 0), t.leaf.data...), nil
	}
	root, err := t.root()
	return native.AppendUint64(native.AppendUint64(nil, root), 0), err
}

// root writes what is left and returns the number of the topmost page.
func (t *tree) root() (uint64, error) {
	if err := t.putLeaf(); err != nil {
		return 0, err
	}
	level := t.up
	for len(level) > 1 {
		var next []child
		var branch node
		put := func() error {
			id, err := t.p.put(&branch, flagBranch)
			next = append(next, child{branch.first, id})
			branch.reset()
			return err
		}
		for _, c := range level {
			if branch.full(len(c.key)) {
				if err := put(); err != nil {
					return 0, err
				}
			}
			branch.add(element{key: uint32(len(c.key)), page: c.page}, []byte(c.key), nil, t.p.w == nil)
		}
		if err := put(); err != nil {
			return 0, err
		}
		level = next
	}
	return level[0].page, nil
}

// layout is how large a database is and where its buckets are.
type layout struct{ root, pages uint64 }

// size is that of the database in bytes.
func (l layout) size() int64 { return int64(l.pages) * pageSize }

// meta returns the first pages. bbolt takes the second of them, of the later
// transaction.
func (l layout) meta() []byte {
	out := make([]byte, 0, metaPages*pageSize)
	for id := range uint64(metaPages) {
		start := len(out)
		out = native.AppendUint64(out, id)
		out = native.AppendUint16(out, flagMeta)
		out = append(out, make([]byte, headerSize-10)...)
		body := len(out)
		for _, v := range [...]uint32{boltMagic, boltVersion, pageSize, 0} {
			out = native.AppendUint32(out, v)
		}
		for _, v := range [...]uint64{l.root, 0, noFreelist, l.pages, id} {
			out = native.AppendUint64(out, v)
		}
		h := fnv.New64a()
		h.Write(out[body:])
		out = native.AppendUint64(out, h.Sum64())
		out = append(out, make([]byte, pageSize-(len(out)-start))...)
	}
	return out
}

// database writes everything behind the first pages: the keys as they come, and
// the other buckets in the end.
type database struct {
	pager
	state snapshot.State
	opt   Options
	keys  tree
	last  int64  // main revision
	buf   []byte // of a record
}

// newDatabase makes one that is written to w, or only counted if that is nil.
func newDatabase(w io.Writer, state snapshot.State, opt Options) *database {
	d := &database{pager: pager{w: w, next: metaPages}, state: state, opt: opt}
	d.keys.p = &d.pager
	return d
}

// add adds the next record.
func (d *database) add(r *eventlog.Record) error {
	d.last = r.Revision.Main
	d.buf = snapshot.AppendRevision(d.buf[:0], r.Revision, r.Kind == eventlog.KindDelete)
	name := len(d.buf)
	d.buf = snapshot.AppendKeyValue(d.buf, r)
	return d.keys.add(0, d.buf[:name], d.buf[name:])
}

// mark lets a record without a key stand for the newest revision where no other
// has it any more: etcd takes the newest one that there is for its own, unless
// the compact revision is after it.
func (d *database) mark() error {
	if d.last >= d.state.Revision || d.state.Compacted >= d.state.Revision || d.state.Revision == 1 {
		return nil
	}
	return d.keys.add(0, snapshot.AppendRevision(nil, eventlog.Revision{Main: d.state.Revision}, false), nil)
}

// finish writes what comes after the keys.
func (d *database) finish() (layout, error) {
	if err := d.mark(); err != nil {
		return layout{}, err
	}
	entries, err := entriesOf(d.state, d.opt)
	if err != nil {
		return layout{}, err
	}
	root := tree{p: &d.pager} // ten buckets are one leaf
	for _, name := range buckets {
		t := &d.keys
		if name != bucketKey {
			t = &tree{p: &d.pager}
		}
		for _, e := range entries[name] {
			if err := t.add(0, e.key, e.value); err != nil {
				return layout{}, err
			}
		}
		bucket, err := t.finish()
		if err != nil {
			return layout{}, err
		}
		if err := root.add(flagBucket, []byte(name), bucket); err != nil {
			return layout{}, err
		}
	}
	page, err := root.root()
	return layout{root: page, pages: d.next}, err
}
