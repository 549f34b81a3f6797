package snapshot

import (
	"encoding/binary"
	"hash/crc32"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// AppendRevision appends the name under which etcd stores a version: main and
// sub revision, 8 bytes each, with '_' between, and 't' after a tombstone's.
func AppendRevision(dst []byte, r eventlog.Revision, tombstone bool) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Main))
	dst = append(dst, '_')
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Sub))
	if tombstone {
		dst = append(dst, 't')
	}
	return dst
}

// SizeRevision returns how many bytes AppendRevision appends.
func SizeRevision(tombstone bool) int {
	if tombstone {
		return 2*8 + 2
	}
	return 2*8 + 1
}

// The fields of mvccpb.KeyValue.
const (
	fieldKey     = 1
	fieldCreate  = 2
	fieldMod     = 3
	fieldVersion = 4
	fieldValue   = 5
	fieldLease   = 6
)

// AppendKeyValue appends what etcd stores of a version, byte by byte: an
// mvccpb.KeyValue, of which a tombstone has the key only.
func AppendKeyValue(dst []byte, r *eventlog.Record) []byte {
	dst = appendBytes(dst, fieldKey, r.Key)
	if r.Kind == eventlog.KindDelete {
		return dst
	}
	dst = appendInt(dst, fieldCreate, r.CreateRevision)
	dst = appendInt(dst, fieldMod, r.Revision.Main)
	dst = appendInt(dst, fieldVersion, r.Version)
	dst = appendBytes(dst, fieldValue, r.Value)
	return appendInt(dst, fieldLease, r.Lease)
}

func appendBytes(dst []byte, field protowire.Number, b []byte) []byte {
	if len(b) == 0 {
		return dst
	}
	return protowire.AppendBytes(protowire.AppendTag(dst, field, protowire.BytesType), b)
}

func appendInt(dst []byte, field protowire.Number, v int64) []byte {
	if v == 0 {
		return dst
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, field, protowire.VarintType), uint64(v))
}

// SizeKeyValue returns how many bytes AppendKeyValue appends for a value of that
// size.
func SizeKeyValue(r *eventlog.Record, valueSize int) int {
	size := sizeBytes(len(r.Key))
	if r.Kind == eventlog.KindDelete {
		return size
	}
	return size + sizeInt(r.CreateRevision) + sizeInt(r.Revision.Main) + sizeInt(r.Version) + sizeBytes(valueSize) + sizeInt(r.Lease)
}

// The tag of a field below 16 takes one byte.
func sizeBytes(n int) int {
	if n == 0 {
		return 0
	}
	return 1 + protowire.SizeBytes(n)
}

func sizeInt(v int64) int {
	if v == 0 {
		return 0
	}
	return 1 + protowire.SizeVarint(uint64(v))
}

// ParseKeyValue sets what an mvccpb.KeyValue says of r, but for the modification
// revision, which it returns. Key and Value are parts of src.
func ParseKeyValue(src []byte, r *eventlog.Record) (mod int64, ok bool) {
	for len(src) > 0 {
		field, kind, n := protowire.ConsumeTag(src)
		if n < 0 {
			return 0, false
		}
		src = src[n:]
		var b []byte
		var v uint64
		switch kind {
		case protowire.BytesType:
			b, n = protowire.ConsumeBytes(src)
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(src)
		default:
			n = protowire.ConsumeFieldValue(field, kind, src)
		}
		if n < 0 || (field == fieldKey || field == fieldValue) != (kind == protowire.BytesType) && field <= fieldLease {
			return 0, false
		}
		src = src[n:]
		switch field {
		case fieldKey:
			r.Key = b
		case fieldCreate:
			r.CreateRevision = int64(v)
		case fieldMod:
			mod = int64(v)
		case fieldVersion:
			r.Version = int64(v)
		case fieldValue:
			r.Value = b
		case fieldLease:
			r.Lease = int64(v)
		}
	}
	return mod, true
}

// Hasher makes the hash that etcd's HashKV gives, of versions in order.
//
// Source: etcd's kvHasher: CRC-32C over "key" and, for every revision in
// order, its 17-byte name (18 with a tombstone's "t") and marshalled KeyValue.
type Hasher struct {
	crc uint32
	buf []byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// NewHasher returns a Hasher of no versions.
func NewHasher() *Hasher { return &Hasher{crc: crc32.Checksum([]byte("key"), castagnoli)} }

// Add takes in the next version.
func (h *Hasher) Add(r *eventlog.Record) {
	h.buf = AppendRevision(h.buf[:0], r.Revision, r.Kind == eventlog.KindDelete)
	h.buf = AppendKeyValue(h.buf, r)
	h.crc = crc32.Update(h.crc, castagnoli, h.buf)
}

// Sum returns the hash.
func (h *Hasher) Sum() uint32 { return h.crc }
