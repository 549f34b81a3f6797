package store

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
)

// heldApply opens a store whose OnApply waits, from the first batch on, until
// hold is closed; seen is closed when it does.
func heldApply(t *testing.T) (s *Store, seen, hold chan struct{}) {
	t.Helper()
	hold, seen = make(chan struct{}), make(chan struct{})
	batches := -1 // Open calls it, too
	s, err := Open(t.Context(), new(memlog.Disk).Open(nil), Options{Logger: quiet(), OnApply: func(Applied) {
		if batches++; batches == 1 {
			close(seen)
			<-hold
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	return s, seen, hold
}

// TestFenceAfterOnApply: whoever has waited for a revision finds leases and
// watchers at it, too: OnApply has returned.
func TestFenceAfterOnApply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, seen, hold := heldApply(t)
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

// TestLeaseExpire: a lessor that is not the one that counts any more revokes
// nothing, though it was when it began.
func TestLeaseExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, seen, hold := heldApply(t)
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan error, 1)
		go func() { stopped <- s.Run(ctx) }()
		go func() { _, _ = s.LeaseGrant(ctx, 1, 60) }()
		<-seen // the committer is busy: what comes now is queued
		counts, end := context.WithCancel(ctx)
		revoked := make(chan error, 1)
		go func() { revoked <- s.LeaseExpire(counts, 1) }()
		synctest.Wait()
		end()
		if err := <-revoked; !errors.Is(err, context.Canceled) {
			t.Errorf("LeaseExpire: %v", err)
		}
		close(hold)
		if _, err := s.Put(ctx, &pb.PutRequest{Key: []byte("k"), Lease: 1}); err != nil {
			t.Errorf("the lease was revoked: %v", err)
		}
		if err := s.LeaseExpire(ctx, 1); err != nil {
			t.Errorf("LeaseExpire: %v", err)
		}
		if _, ok := s.Lease(1); ok {
			t.Error("the lease was not revoked")
		}
		cancel()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
}
