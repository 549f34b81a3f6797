package server

import (
	"google.golang.org/protobuf/encoding/protowire"
)

// The wire format of protobuf, for fields with numbers below 16, whose tags
// are one byte. The sizes are those of fields, tag included; 0 for one that is
// left out.

const (
	varintType = byte(protowire.VarintType)
	bytesType  = byte(protowire.BytesType)
)

func sizeUint(v uint64) int {
	if v == 0 {
		return 0
	}
	return 1 + protowire.SizeVarint(v)
}

func sizeInt(v int64) int { return sizeUint(uint64(v)) }

func sizeBool(v bool) int {
	if v {
		return 2
	}
	return 0
}

func sizeBytes(n int) int {
	if n == 0 {
		return 0
	}
	return sizeNested(n)
}

// sizeNested is the size of a field that is a message of n bytes.
func sizeNested(n int) int { return 1 + protowire.SizeBytes(n) }

func (e *encoder) uint(field byte, v uint64) {
	if v != 0 {
		e.buf = protowire.AppendVarint(append(e.buf, field<<3|varintType), v)
	}
}

func (e *encoder) int(field byte, v int64) { e.uint(field, uint64(v)) }

func (e *encoder) bool(field byte, v bool) {
	if v {
		e.buf = append(e.buf, field<<3|varintType, 1)
	}
}

// open begins a field that is a message of n bytes.
func (e *encoder) open(field byte, n int) {
	e.room(messageRoom)
	e.buf = protowire.AppendVarint(append(e.buf, field<<3|bytesType), uint64(n))
}

// bytes writes v or, if it is large enough, refers to it.
func (e *encoder) bytes(field byte, v []byte) {
	if len(v) == 0 {
		return
	}
	shared := e.share && len(v) >= sharedBytes
	if !shared {
		e.room(len(v) + messageRoom)
	}
	e.buf = protowire.AppendVarint(append(e.buf, field<<3|bytesType), uint64(len(v)))
	if shared {
		e.cut()
		e.parts = append(e.parts, v)
		return
	}
	e.buf = append(e.buf, v...)
}

func (e *encoder) string(field byte, v string) {
	if v != "" {
		e.buf = append(protowire.AppendVarint(append(e.buf, field<<3|bytesType), uint64(len(v))), v...)
	}
}

// messageRoom is what a message may have beside its byte strings: six numbers
// at most, and two lengths.
const messageRoom = 8 * (1 + 10)
