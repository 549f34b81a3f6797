package store

import (
	"context"
	"testing"
	"testing/synctest"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
)

// TestFenceAfterOnApply: whoever has waited for a revision finds leases and
// watchers at it, too: OnApply has returned.
func TestFenceAfterOnApply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var disk memlog.Disk
		hold, seen := make(chan struct{}), make(chan struct{})
		first := true
		s, err := Open(t.Context(), disk.Open(nil), Options{Logger: quiet(), OnApply: func(Applied) {
			if !first {
				close(seen)
				<-hold
			}
			first = false
		}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan error, 1)
		go func() { stopped <- s.Run(ctx) }()
		go func() { _, _ = s.Put(ctx, &pb.PutRequest{Key: []byte("k")}) }()
		<-seen
		if resp, err := s.Range(ctx, &pb.RangeRequest{Key: []byte("k"), Serializable: true}); err != nil || resp.Header.Revision != 2 {
			t.Fatalf("the state is not visible: %v, %v", resp, err)
		}
		returned := make(chan error, 2)
		go func() { returned <- s.Fence(ctx) }()
		go func() { returned <- s.Reach(ctx, 2) }()
		synctest.Wait()
		if n := len(returned); n > 0 {
			t.Errorf("%d of Fence and Reach have returned before OnApply", n)
		}
		close(hold)
		for range 2 {
			if err := <-returned; err != nil {
				t.Error(err)
			}
		}
		cancel()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
}
