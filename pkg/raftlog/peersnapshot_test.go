package raftlog

import (
	"bytes"
	"io"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestPiece: a message that is decoded without copies has what was sent, in
// whatever parts it comes, and what is no such message is refused.
func TestPiece(t *testing.T) {
	split := func(data []byte, at int) mem.BufferSlice {
		return mem.BufferSlice{mem.SliceBuffer(data[:at]), mem.SliceBuffer(nil), mem.SliceBuffer(data[at:])}
	}
	for _, size := range []int{0, 1, 127, 128, 100_000} {
		want := bytes.Repeat([]byte{byte(size), 7}, size)[:size]
		data, err := proto.Marshal(wrapperspb.Bytes(want))
		if err != nil {
			t.Fatal(err)
		}
		for at := range min(len(data)+1, 10) {
			p := &piece{}
			if err := p.TakeBuffers(split(data, at)); err != nil {
				t.Fatalf("%d bytes, split at %d: %v", size, at, err)
			}
			if got, err := io.ReadAll(p.rest); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, split at %d: %d bytes, %v", size, at, len(got), err)
			}
		}
		if size == 0 {
			continue
		}
		for name, bad := range map[string][]byte{
			"another field": append([]byte{2<<3 | 2}, data[1:]...),
			"cut off":       data[:len(data)-1],
			"too long":      append(bytes.Clone(data), 0),
			"no length":     data[:1],
		} {
			if err := (&piece{}).TakeBuffers(split(bad, 1)); err == nil {
				t.Errorf("%d bytes, %s: taken", size, name)
			}
		}
	}
}
