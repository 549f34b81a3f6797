package server

import (
	"context"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/pkg/lease"
)

// TestRemainingNotNegative: an expired lease that is not revoked yet has no
// time left; less than none would say that it is unknown.
func TestRemainingNotNegative(t *testing.T) {
	clock := new(manualClock)
	revoking := make(chan struct{}, 1)
	lessor := lease.New(func(ctx context.Context, _ int64) error {
		revoking <- struct{}{}
		<-ctx.Done() // the log does not answer
		return ctx.Err()
	}, lease.Options{Clock: clock, Logger: quietLogger()})
	m := startMember(t, memberOptions{config: func(c *Config) { c.Lessor = lessor }})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- lessor.Run(ctx) }()
	defer func() { // before the member is stopped
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the end of the lessor: %v", err)
		}
	}()
	lessor.Granted(7, 10)
	for expired := false; !expired; {
		clock.advance(25 * time.Second) // the lease may have begun only now
		select {
		case <-revoking:
			expired = true
		case <-time.After(time.Millisecond):
		}
	}
	clock.advance(25 * time.Second)
	if l, ok := lessor.Remaining(7); !ok || l.Remaining >= 0 {
		t.Fatalf("the lease has not expired: %v, %v", l, ok)
	}
	resp, err := m.lease.LeaseTimeToLive(short(t), &pb.LeaseTimeToLiveRequest{ID: 7})
	if err != nil || resp.TTL != 0 || resp.GrantedTTL != 10 {
		t.Errorf("got %v, %v; want a TTL of 0", resp, err)
	}
}
