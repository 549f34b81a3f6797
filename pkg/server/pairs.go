package server

import (
	"slices"
	"sync"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/mem"

	"github.com/keelson-io/keelson/pkg/store"
)

// A large answer to a range is encoded while it is sent. Its message is made of
// parts that know which pairs they are and how long they will be; gRPC asks for
// the bytes of one when it comes to send it, and says when it has. So a list
// takes no memory but for the references to its keys and values, and the bytes
// are still in the processor's cache when they are copied into frames.
//
//	header │ pairs 0…29 │ pairs 30…59 │ … │ more, count

const (
	// partBytes is the size of a part, two frames of HTTP/2, unless a single
	// pair is larger.
	partBytes = 32 << 10

	// copiedPair is the average size of pairs up to which copying them is
	// cheaper than a message of pieces.
	copiedPair = 4 << 10
)

// encodePairs encodes resp, which has no pairs, with these, and returns its
// size, too.
func encodePairs(resp *pb.RangeResponse, pairs *store.Pairs) (data mem.BufferSlice, size int) {
	parts, size := cutPairs(pairs)
	if size/pairs.Len() > copiedPair {
		resp.Kvs = pairs.Messages()
		size = sizeRange(resp)
		return encode(resp, size), size
	}
	size += sizeRange(resp)
	if size <= copiedBytes {
		return encodeWhole(size, func(e *encoder) {
			e.header(resp.Header)
			e.pairs(pairs, 0, pairs.Len())
			e.rangeEnd(resp)
		}), size
	}
	data = make(mem.BufferSlice, 0, len(parts)+3) // one more for a holdBuffer
	head := encoder{buf: make([]byte, 0, sizeOfHeader(resp.Header))}
	head.header(resp.Header)
	data = append(data, mem.SliceBuffer(head.buf))
	for _, part := range parts {
		data = append(data, part)
	}
	end := encoder{}
	end.rangeEnd(resp)
	return append(data, mem.SliceBuffer(end.buf)), size
}

// cutPairs returns the parts of pairs and the size of all.
func cutPairs(pairs *store.Pairs) (parts []*pairsBuffer, size int) {
	var kv mvccpb.KeyValue
	var part *pairsBuffer
	for i := range pairs.Len() {
		pairs.Get(i, &kv)
		n := sizeNested(sizeKV(&kv))
		if part == nil || part.size+n > partBytes {
			part = &pairsBuffer{pairs: pairs, from: i}
			part.refs.Store(1)
			parts = append(parts, part)
		}
		part.to = i + 1
		part.size += n
		size += n
	}
	return parts, size
}

// pairs writes the pairs from a number to another as those of a RangeResponse.
func (e *encoder) pairs(pairs *store.Pairs, from, to int) {
	var kv mvccpb.KeyValue
	for i := from; i < to; i++ {
		pairs.Get(i, &kv)
		e.kv(2, &kv)
	}
}

// pairsBuffer is a part of a message.
type pairsBuffer struct {
	mem.SliceBuffer // nil: only for what gRPC keeps to itself
	pairs           *store.Pairs
	from, to        int
	size            int
	refs            atomic.Int32
	buf             *[]byte // nil until it is asked for
}

var partBuffers = sync.Pool{New: func() any {
	buf := make([]byte, 0, partBytes)
	return &buf
}}

// Len implements mem.Buffer.
func (b *pairsBuffer) Len() int { return b.size }

// ReadOnlyData implements mem.Buffer. gRPC calls it from one goroutine, that
// which sends.
func (b *pairsBuffer) ReadOnlyData() []byte {
	if b.buf == nil {
		if b.size <= partBytes {
			b.buf = partBuffers.Get().(*[]byte)
		} else {
			b.buf = &[]byte{}
			*b.buf = make([]byte, 0, b.size)
		}
		e := encoder{buf: (*b.buf)[:0]}
		e.pairs(b.pairs, b.from, b.to)
		*b.buf = e.buf
	}
	return *b.buf
}

// Slice implements mem.Buffer.
func (b *pairsBuffer) Slice(start, end int) mem.Buffer {
	return mem.SliceBuffer(slices.Clone(b.ReadOnlyData()[start:end]))
}

// Ref implements mem.Buffer.
func (b *pairsBuffer) Ref() { b.refs.Add(1) }

// Free implements mem.Buffer.
func (b *pairsBuffer) Free() {
	if b.refs.Add(-1) > 0 {
		return
	}
	if b.buf != nil && b.size <= partBytes {
		partBuffers.Put(b.buf)
	}
	b.buf, b.pairs = nil, nil
}
