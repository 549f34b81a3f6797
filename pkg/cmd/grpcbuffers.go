package cmd

import (
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/mem"
)

// init lets gRPC take buffers of less than twice what a message needs. Its own
// pool has none between 32 KiB and 1 MiB, each of which it clears as a whole,
// and most messages of a busy cluster's Raft log lie between.
func init() {
	pool, err := mem.NewBinaryTieredBufferPool(8, 12, 14, 15, 16, 17, 18, 19, 20)
	if err != nil {
		panic(err) // the sizes, as powers of 2, are too large for this machine
	}
	experimental.SetDefaultBufferPool(pool)
}
