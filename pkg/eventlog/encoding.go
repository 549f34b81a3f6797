package eventlog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// The encoding of records and batches, for drivers that store or send them as
// bytes. Integers are varints (encoding/binary) unless a width is given.
//
//	header  format(1 byte)=1 kind(1 byte) position main sub create version
//	        lease ttl member alarm valueLen valueCRC(4) headerCRC(4)
//	record  headerLen header keyLen key value
//	batch   format(1 byte)=1 id(16) base firstSeq count batchCRC(4) record…
//
// CRCs are CRC-32 (Castagnoli), big-endian. headerCRC covers seq (8 bytes,
// big-endian), the header before it and the key, so that neither a key nor a
// header can be taken for another record's; valueCRC covers the value, which
// may then be read or left alone separately; batchCRC covers the batch's
// fields before it. Headers of every format end with headerCRC, so that a
// newer format is told from damage.

// formatVersion is the first byte of every header and batch. A reader refuses
// what it does not know.
const formatVersion = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

func headerCRC(seq int64, header, key []byte) uint32 {
	var s [8]byte
	binary.BigEndian.PutUint64(s[:], uint64(seq))
	crc := crc32.Update(0, castagnoli, s[:])
	crc = crc32.Update(crc, castagnoli, header)
	return crc32.Update(crc, castagnoli, key)
}

// AppendHeader appends to dst the encoding of all of r but Seq, Key and
// Value, with checksums that cover those three as well.
func AppendHeader(dst []byte, r *Record) []byte {
	start := len(dst)
	dst = append(dst, formatVersion, byte(r.Kind))
	for _, v := range [...]int64{
		int64(r.Position), r.Revision.Main, r.Revision.Sub, r.CreateRevision, r.Version, r.Lease, r.TTL,
	} {
		dst = binary.AppendVarint(dst, v)
	}
	dst = binary.AppendUvarint(dst, r.Member)
	dst = binary.AppendVarint(dst, int64(r.Alarm))
	dst = binary.AppendUvarint(dst, uint64(len(r.Value)))
	dst = binary.BigEndian.AppendUint32(dst, checksum(r.Value))
	return binary.BigEndian.AppendUint32(dst, headerCRC(r.Seq, dst[start:], r.Key))
}

// Header is a decoded header: what it says of the value is kept, so that the
// value can be verified when it is read.
type Header struct {
	valueLen uint64
	valueCRC uint32
}

// ValueBytes returns the length of the record's value.
func (h Header) ValueBytes() int { return int(h.valueLen) }

// VerifyValue returns ErrCorrupt if value is not the one that was written.
func (h Header) VerifyValue(value []byte) error {
	if uint64(len(value)) != h.valueLen {
		return fmt.Errorf("%w: value has %d bytes, %d were written", ErrCorrupt, len(value), h.valueLen)
	}
	if checksum(value) != h.valueCRC {
		return fmt.Errorf("%w: checksum of the value does not match", ErrCorrupt)
	}
	return nil
}

// DecodeHeader fills r, whose Seq and Key the caller has set, from header. It
// verifies the checksum over all three; the error is ErrCorrupt, or one that
// names an unknown format. r.Value is not touched.
func DecodeHeader(header []byte, r *Record) (Header, error) {
	if len(header) < 1+4 {
		return Header{}, fmt.Errorf("%w: header of record %d has %d bytes", ErrCorrupt, r.Seq, len(header))
	}
	covered, crc := header[:len(header)-4], binary.BigEndian.Uint32(header[len(header)-4:])
	if crc != headerCRC(r.Seq, covered, r.Key) {
		return Header{}, fmt.Errorf("%w: checksum of record %d does not match", ErrCorrupt, r.Seq)
	}
	d := decoder{buf: covered}
	if version := d.byte(); version != formatVersion {
		return Header{}, fmt.Errorf("record %d has format %d; this keelson reads format %d: use a newer keelson", r.Seq, version, formatVersion)
	}
	r.Kind = Kind(d.byte())
	r.Position = Position(d.varint())
	r.Revision.Main = d.varint()
	r.Revision.Sub = d.varint()
	r.CreateRevision = d.varint()
	r.Version = d.varint()
	r.Lease = d.varint()
	r.TTL = d.varint()
	r.Member = d.uvarint()
	alarm := d.varint()
	h := Header{valueLen: d.uvarint(), valueCRC: d.uint32()}
	switch {
	case d.err != nil || len(d.buf) != 0 || alarm < 0 || alarm > math.MaxInt32:
		return Header{}, fmt.Errorf("%w: header of record %d cannot be decoded", ErrCorrupt, r.Seq)
	case r.Kind < KindPut || r.Kind > KindAlarmDisarm:
		return Header{}, fmt.Errorf("%w: record %d has the unknown kind %d", ErrCorrupt, r.Seq, r.Kind)
	}
	r.Alarm = int32(alarm)
	return h, nil
}

// EncodeBatchID returns what a driver with a row for each record keeps in that
// of a batch's first one, seq: the batch's id, with a checksum over both.
func EncodeBatchID(seq int64, id BatchID) []byte {
	out := binary.BigEndian.AppendUint64(append(make([]byte, 0, len(id)+8), id[:]...), uint64(seq))
	return binary.BigEndian.AppendUint32(out[:len(id)], checksum(out))
}

// AppendBatch appends the encoding of b to dst.
func AppendBatch(dst []byte, b *Batch) []byte {
	start := len(dst)
	dst = append(dst, formatVersion)
	dst = append(dst, b.ID[:]...)
	dst = binary.AppendVarint(dst, int64(b.Base))
	dst = binary.AppendVarint(dst, b.Records[0].Seq)
	dst = binary.AppendUvarint(dst, uint64(len(b.Records)))
	dst = binary.BigEndian.AppendUint32(dst, checksum(dst[start:]))
	var header []byte
	for i := range b.Records {
		r := &b.Records[i]
		header = AppendHeader(header[:0], r)
		dst = binary.AppendUvarint(dst, uint64(len(header)))
		dst = append(dst, header...)
		dst = binary.AppendUvarint(dst, uint64(len(r.Key)))
		dst = append(dst, r.Key...)
		dst = append(dst, r.Value...)
	}
	return dst
}

// PeekBatchID returns the id of a batch that AppendBatch made. It verifies
// nothing else.
func PeekBatchID(src []byte) (BatchID, error) {
	var id BatchID
	if len(src) < 1+len(id) {
		return id, fmt.Errorf("%w: batch has %d bytes", ErrCorrupt, len(src))
	}
	if src[0] != formatVersion {
		return id, fmt.Errorf("batch has format %d; this keelson reads format %d: use a newer keelson", src[0], formatVersion)
	}
	copy(id[:], src[1:])
	return id, nil
}

// DecodeBatch decodes what AppendBatch made, verifying every checksum and
// that seqs and positions are the batch's. Keys and values alias src.
func DecodeBatch(src []byte) (*Batch, error) {
	d := decoder{buf: src}
	if version := d.byte(); version != formatVersion && d.err == nil {
		return nil, fmt.Errorf("batch has format %d; this keelson reads format %d: use a newer keelson", version, formatVersion)
	}
	b := &Batch{}
	copy(b.ID[:], d.bytes(uint64(len(b.ID))))
	b.Base = Position(d.varint())
	seq := d.varint()
	count := d.uvarint()
	fields := src[:len(src)-len(d.buf)]
	if crc := d.uint32(); d.err == nil && crc != checksum(fields) {
		return nil, fmt.Errorf("%w: checksum of the batch does not match", ErrCorrupt)
	}
	// A record takes more than 16 bytes: a count beyond that is a lie, and
	// must not be allocated for.
	if d.err != nil || count == 0 || count > uint64(len(d.buf))/16 {
		return nil, fmt.Errorf("%w: batch cannot be decoded", ErrCorrupt)
	}
	b.Records = make([]Record, count)
	for i := range b.Records {
		r := &b.Records[i]
		r.Seq = seq + int64(i)
		header := d.bytes(d.uvarint())
		r.Key = d.bytes(d.uvarint())
		if d.err != nil {
			return nil, fmt.Errorf("%w: batch ends within record %d", ErrCorrupt, r.Seq)
		}
		h, err := DecodeHeader(header, r)
		if err != nil {
			return nil, err
		}
		value := d.bytes(h.valueLen)
		if d.err != nil {
			return nil, fmt.Errorf("%w: batch ends within record %d", ErrCorrupt, r.Seq)
		}
		if err := h.VerifyValue(value); err != nil {
			return nil, fmt.Errorf("record %d: %w", r.Seq, err)
		}
		if r.Position != b.Position() {
			return nil, fmt.Errorf("%w: record %d is of position %d in a batch of position %d", ErrCorrupt, r.Seq, r.Position, b.Position())
		}
		if r.Kind == KindPut {
			r.Value = value
		}
		if len(r.Key) == 0 {
			r.Key = nil
		}
	}
	if len(d.buf) != 0 {
		return nil, fmt.Errorf("%w: %d bytes after the batch", ErrCorrupt, len(d.buf))
	}
	return b, nil
}

// decoder reads from buf until something does not fit; then err is set and
// everything reads as zero.
type decoder struct {
	buf []byte
	err error
}

func (d *decoder) fail() { d.buf, d.err = nil, ErrCorrupt }

func (d *decoder) bytes(n uint64) []byte {
	if n > uint64(len(d.buf)) {
		d.fail()
		return nil
	}
	b := d.buf[:n:n]
	d.buf = d.buf[n:]
	return b
}

func (d *decoder) byte() byte {
	if b := d.bytes(1); len(b) == 1 {
		return b[0]
	}
	return 0
}

func (d *decoder) uint32() uint32 {
	if b := d.bytes(4); len(b) == 4 {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.buf)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.buf = d.buf[n:]
	return v
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.buf)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.buf = d.buf[n:]
	return v
}
