package server

import (
	"math"
	"unicode/utf8"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// codec is the server's: gRPC's own, but for the responses that carry keys and
// values, which are encoded here. A large one refers to its values instead of
// copying them; they are the store's and do not change. The answer to a range is
// encoded while it is sent (pairs.go). The bytes are those that proto.Marshal
// makes.
//
// It also counts the bytes. (A stats handler would do it too, at several
// allocations for every message.)
type codec struct {
	encoding.CodecV2
	traffic   *traffic
	maxTxnOps int // see skipTxn
}

func newCodec(t *traffic) codec {
	return codec{encoding.GetCodecV2(proto.Name), t, math.MaxInt}
}

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (data mem.BufferSlice, err error) {
	if e, ok := v.(encodedMessage); ok {
		data = mem.BufferSlice(e)
		c.traffic.sent.Add(int64(data.Len()))
		return data, nil
	}
	held, isHeld := v.(*heldResponse)
	if isHeld {
		v = held.resp
	}
	size := sizeOf(v)
	switch resp, isRange := v.(*pb.RangeResponse); {
	case isRange && isHeld && held.hold.pairs.Len() > 0:
		data, size = encodePairs(resp, &held.hold.pairs)
	case size < 0:
		data, err = c.CodecV2.Marshal(v)
		size = data.Len()
	default:
		data = encode(v, size)
	}
	c.traffic.sent.Add(int64(size))
	switch {
	case isHeld && err != nil:
		held.hold.release()
	case isHeld:
		data = append(data, newHoldBuffer(held.hold))
	}
	return data, err
}

// bufferTaker is a message that decodes itself: a piece of a node's data, or
// forwarded requests.
type bufferTaker interface {
	TakeBuffers(data mem.BufferSlice) error
}

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	c.traffic.received.Add(int64(data.Len()))
	if m, ok := v.(bufferTaker); ok {
		return m.TakeBuffers(data)
	}
	if skipTxn(data, v, c.maxTxnOps) {
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

const (
	// copiedBytes is the size up to which a message is encoded into one
	// buffer, values and all: a frame of HTTP/2.
	copiedBytes = 16 << 10

	// sharedBytes is the size from which a larger message refers to a value.
	sharedBytes = 512

	// What lies between the values is written to buffers from firstChunk
	// bytes on, each twice as large as the one before up to chunkBytes.
	firstChunk = 512
	chunkBytes = 32 << 10
)

// sizeOf returns the size of v, or -1 if it is not encoded here.
func sizeOf(v any) int {
	switch m := v.(type) {
	case *pb.RangeResponse:
		return sizeRange(m)
	case *pb.RangeStreamResponse:
		return sizeRangeStream(m)
	case *pb.PutResponse:
		return sizePut(m)
	case *pb.DeleteRangeResponse:
		return sizeDelete(m)
	case *pb.TxnResponse:
		return sizeTxn(m)
	case *pb.WatchResponse:
		if !utf8.ValidString(m.GetCancelReason()) {
			return -1 // not valid in protobuf: for the error
		}
		return sizeWatch(m)
	}
	return -1
}

// encode encodes v, for which sizeOf has returned size.
func encode(v any, size int) mem.BufferSlice {
	if size > copiedBytes {
		e := encoder{share: true, parts: make([]mem.SliceBuffer, 0, 2*(size/(2*sharedBytes)+1))}
		e.message(v)
		e.cut()
		data := make(mem.BufferSlice, len(e.parts), len(e.parts)+1) // one more for a holdBuffer
		for i := range e.parts {
			data[i] = &e.parts[i] // a pointer is an interface's value without a further allocation
		}
		return data
	}
	return encodeWhole(size, func(e *encoder) { e.message(v) })
}

// encodeWhole encodes a message of that size into one buffer.
func encodeWhole(size int, write func(*encoder)) mem.BufferSlice {
	if mem.IsBelowBufferPoolingThreshold(size) {
		e := encoder{buf: make([]byte, 0, size)}
		write(&e)
		return mem.BufferSlice{mem.SliceBuffer(e.buf)}
	}
	pool := mem.DefaultBufferPool()
	buf := pool.Get(size)
	e := encoder{buf: (*buf)[:0]}
	write(&e)
	return mem.BufferSlice{mem.NewBuffer(buf, pool)}
}

// encoder writes messages: one piece after another into buf, which is cut into
// parts where a value that is shared comes between.
type encoder struct {
	share bool
	buf   []byte
	chunk int // the size of the newest buffer
	parts []mem.SliceBuffer
}

// cut makes what is in buf a part.
func (e *encoder) cut() {
	if len(e.buf) > 0 {
		e.parts = append(e.parts, e.buf)
		e.buf = e.buf[len(e.buf):]
	}
}

// room sees to it that n more bytes fit into buf.
func (e *encoder) room(n int) {
	if e.share && cap(e.buf)-len(e.buf) < n {
		e.cut()
		e.chunk = min(max(2*e.chunk, firstChunk), chunkBytes)
		e.buf = make([]byte, 0, max(n, e.chunk))
	}
}

// The fields, by their numbers in the .proto files. A field that has its zero
// value is left out, as in all of proto3; a message is left out if it is nil,
// but not within a list.

func (e *encoder) message(v any) {
	switch m := v.(type) {
	case *pb.RangeResponse:
		e.rangeResponse(m)
	case *pb.RangeStreamResponse:
		e.rangeStream(m)
	case *pb.PutResponse:
		e.put(m)
	case *pb.DeleteRangeResponse:
		e.deleteRange(m)
	case *pb.TxnResponse:
		e.txn(m)
	case *pb.WatchResponse:
		e.watch(m)
	}
}

func sizeHeader(h *pb.ResponseHeader) int {
	return sizeUint(h.GetClusterId()) + sizeUint(h.GetMemberId()) + sizeInt(h.GetRevision()) + sizeUint(h.GetRaftTerm())
}

func (e *encoder) header(h *pb.ResponseHeader) {
	if h == nil {
		return
	}
	e.open(1, sizeHeader(h))
	e.uint(1, h.ClusterId)
	e.uint(2, h.MemberId)
	e.int(3, h.Revision)
	e.uint(4, h.RaftTerm)
}

func sizeOfHeader(h *pb.ResponseHeader) int {
	if h == nil {
		return 0
	}
	return sizeNested(sizeHeader(h))
}

func sizeKV(kv *mvccpb.KeyValue) int {
	if kv == nil {
		return 0
	}
	return sizeBytes(len(kv.Key)) + sizeInt(kv.CreateRevision) + sizeInt(kv.ModRevision) + sizeInt(kv.Version) +
		sizeBytes(len(kv.Value)) + sizeInt(kv.Lease)
}

func (e *encoder) kv(field byte, kv *mvccpb.KeyValue) {
	e.open(field, sizeKV(kv))
	if kv == nil {
		return
	}
	e.bytes(1, kv.Key)
	e.int(2, kv.CreateRevision)
	e.int(3, kv.ModRevision)
	e.int(4, kv.Version)
	e.bytes(5, kv.Value)
	e.int(6, kv.Lease)
}

func sizeKVs(kvs []*mvccpb.KeyValue) int {
	n := 0
	for _, kv := range kvs {
		n += sizeNested(sizeKV(kv))
	}
	return n
}

func (e *encoder) kvs(field byte, kvs []*mvccpb.KeyValue) {
	for _, kv := range kvs {
		e.kv(field, kv)
	}
}

func sizeRange(r *pb.RangeResponse) int {
	if r == nil {
		return 0
	}
	return sizeOfHeader(r.Header) + sizeKVs(r.Kvs) + sizeBool(r.More) + sizeInt(r.Count)
}

func (e *encoder) rangeResponse(r *pb.RangeResponse) {
	if r == nil {
		return
	}
	e.header(r.Header)
	e.kvs(2, r.Kvs)
	e.rangeEnd(r)
}

// rangeEnd writes what follows the pairs.
func (e *encoder) rangeEnd(r *pb.RangeResponse) {
	e.bool(3, r.More)
	e.int(4, r.Count)
}

func sizeRangeStream(r *pb.RangeStreamResponse) int {
	if r.GetRangeResponse() == nil {
		return 0
	}
	return sizeNested(sizeRange(r.RangeResponse))
}

func (e *encoder) rangeStream(r *pb.RangeStreamResponse) {
	if r.GetRangeResponse() == nil {
		return
	}
	e.open(1, sizeRange(r.RangeResponse))
	e.rangeResponse(r.RangeResponse)
}

func sizePut(r *pb.PutResponse) int {
	n := sizeOfHeader(r.GetHeader())
	if r.GetPrevKv() != nil {
		n += sizeNested(sizeKV(r.PrevKv))
	}
	return n
}

func (e *encoder) put(r *pb.PutResponse) {
	e.header(r.GetHeader())
	if r.GetPrevKv() != nil {
		e.kv(2, r.PrevKv)
	}
}

func sizeDelete(r *pb.DeleteRangeResponse) int {
	return sizeOfHeader(r.GetHeader()) + sizeInt(r.GetDeleted()) + sizeKVs(r.GetPrevKvs())
}

func (e *encoder) deleteRange(r *pb.DeleteRangeResponse) {
	e.header(r.GetHeader())
	e.int(2, r.GetDeleted())
	e.kvs(3, r.GetPrevKvs())
}

func sizeTxn(r *pb.TxnResponse) int {
	n := sizeOfHeader(r.GetHeader()) + sizeBool(r.GetSucceeded())
	for _, op := range r.GetResponses() {
		n += sizeNested(sizeOp(op))
	}
	return n
}

func (e *encoder) txn(r *pb.TxnResponse) {
	e.header(r.GetHeader())
	e.bool(2, r.GetSucceeded())
	for _, op := range r.GetResponses() {
		e.open(3, sizeOp(op))
		field, m := operation(op)
		if field == 0 {
			continue
		}
		e.open(field, sizeOf(m))
		e.message(m)
	}
}

func sizeOp(op *pb.ResponseOp) int {
	field, m := operation(op)
	if field == 0 {
		return 0
	}
	return sizeNested(sizeOf(m))
}

// operation returns the response in op and its field, 0 if there is none.
func operation(op *pb.ResponseOp) (field byte, m any) {
	switch r := op.GetResponse().(type) {
	case *pb.ResponseOp_ResponseRange:
		return 1, r.ResponseRange
	case *pb.ResponseOp_ResponsePut:
		return 2, r.ResponsePut
	case *pb.ResponseOp_ResponseDeleteRange:
		return 3, r.ResponseDeleteRange
	case *pb.ResponseOp_ResponseTxn:
		return 4, r.ResponseTxn
	}
	return 0, nil
}

func sizeWatch(r *pb.WatchResponse) int {
	if r == nil {
		return 0
	}
	n := sizeOfHeader(r.Header) + sizeInt(r.WatchId) + sizeBool(r.Created) + sizeBool(r.Canceled) +
		sizeInt(r.CompactRevision) + sizeBytes(len(r.CancelReason)) + sizeBool(r.Fragment)
	for _, ev := range r.Events {
		n += sizeNested(sizeEvent(ev))
	}
	return n
}

func (e *encoder) watch(r *pb.WatchResponse) {
	if r == nil {
		return
	}
	e.header(r.Header)
	e.int(2, r.WatchId)
	e.bool(3, r.Created)
	e.bool(4, r.Canceled)
	e.int(5, r.CompactRevision)
	e.string(6, r.CancelReason)
	e.bool(7, r.Fragment)
	for _, ev := range r.Events {
		e.event(11, ev)
	}
}

func sizeEvent(ev *mvccpb.Event) int {
	n := sizeInt(int64(ev.GetType()))
	if ev.GetKv() != nil {
		n += sizeNested(sizeKV(ev.Kv))
	}
	if ev.GetPrevKv() != nil {
		n += sizeNested(sizeKV(ev.PrevKv))
	}
	return n
}

func (e *encoder) event(field byte, ev *mvccpb.Event) {
	e.open(field, sizeEvent(ev))
	e.int(1, int64(ev.GetType()))
	if ev.GetKv() != nil {
		e.kv(2, ev.Kv)
	}
	if ev.GetPrevKv() != nil {
		e.kv(3, ev.PrevKv)
	}
}
