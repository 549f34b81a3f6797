package cmd

import (
	"testing"

	"google.golang.org/grpc/mem"
)

// TestGRPCBuffers: gRPC takes hardly more memory than a message has bytes.
func TestGRPCBuffers(t *testing.T) {
	for _, size := range []int{10 << 10, 20 << 10, 33 << 10, 100 << 10, 200 << 10, 300 << 10, 600 << 10, 1 << 20, 3 << 20} {
		if buf := mem.DefaultBufferPool().Get(size); len(*buf) != size || cap(*buf) > 2*size {
			t.Errorf("the buffer for %d bytes has %d and room for %d", size, len(*buf), cap(*buf))
		}
	}
}
