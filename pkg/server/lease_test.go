package server

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
)

// manualClock stands still until the test moves it.
type manualClock struct {
	mu     sync.Mutex
	now    time.Duration // mu
	timers []manualTimer // mu
}

type manualTimer struct {
	at time.Duration
	c  chan time.Time
}

func (c *manualClock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *manualClock) After(d time.Duration) (<-chan time.Time, func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := manualTimer{at: c.now + min(d, 1<<60), c: make(chan time.Time, 1)}
	c.timers = append(c.timers, t)
	c.fire()
	return t.c, func() bool { return true }
}

// advance moves time on and fires what is due.
func (c *manualClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += d
	c.fire()
}

func (c *manualClock) fire() {
	c.timers = slices.DeleteFunc(c.timers, func(t manualTimer) bool {
		if t.at <= c.now {
			t.c <- time.Time{}
		}
		return t.at <= c.now
	})
}

func TestLeaseGrant(t *testing.T) {
	m := startMember(t, memberOptions{clock: new(manualClock)})
	ctx := short(t)
	grant := func(id, ttl int64) (*pb.LeaseGrantResponse, error) {
		return m.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id, TTL: ttl})
	}
	resp, err := grant(0, 60)
	if err != nil || resp.ID <= 0 || resp.TTL != 60 || resp.Header.GetRevision() != 1 || resp.Header.GetMemberId() != testMemberID || resp.Error != "" {
		t.Errorf("grant without id: %v, %v", resp, err)
	}
	for _, tc := range []struct{ id, ttl, want int64 }{
		{1, 0, 2}, {2, -5, 2}, {3, 1, 2}, {4, 2, 2}, {5, 3, 3}, {6, 9_000_000_000, 9_000_000_000},
	} {
		if resp, err := grant(tc.id, tc.ttl); err != nil || resp.ID != tc.id || resp.TTL != tc.want {
			t.Errorf("grant(%d, %d): %v, %v", tc.id, tc.ttl, resp, err)
		}
	}
	_, err = grant(1, 9_000_000_001)
	wantError(t, err, rpctypes.ErrGRPCLeaseTTLTooLarge)
	_, err = grant(1, 5)
	wantError(t, err, rpctypes.ErrGRPCLeaseExist)
	if current, _ := m.store.Revision(); current != 1 {
		t.Errorf("grants moved the revision to %d", current)
	}
}

func TestLeaseRevoke(t *testing.T) {
	m := startMember(t, memberOptions{clock: new(manualClock)})
	ctx := short(t)
	for id := range int64(2) {
		if _, err := m.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id + 1, TTL: 60}); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"c", "a", "b"} {
		if _, err := m.kv.Put(ctx, &pb.PutRequest{Key: []byte(key), Lease: 1}); err != nil {
			t.Fatal(err)
		}
	}
	events := m.client.Watch(ctx, "a", clientv3.WithPrefix(), clientv3.WithFromKey(), clientv3.WithRev(5))
	resp, err := m.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 1})
	if err != nil || resp.Header.GetRevision() != 5 {
		t.Fatalf("revoke: %v, %v; want revision 5", resp, err)
	}
	var gone []string
	for _, ev := range (<-events).Events {
		if ev.Type != clientv3.EventTypeDelete || ev.Kv.ModRevision != 5 {
			t.Errorf("event %v, want a delete at 5", ev)
		}
		gone = append(gone, string(ev.Kv.Key))
	}
	if want := []string{"a", "b", "c"}; !slices.Equal(gone, want) {
		t.Errorf("deleted %q, want %q in key order", gone, want)
	}
	if resp, err = m.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 2}); err != nil || resp.Header.GetRevision() != 5 {
		t.Errorf("revoke of a lease without keys: %v, %v; want no new revision", resp, err)
	}
	_, err = m.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 2})
	wantError(t, err, rpctypes.ErrGRPCLeaseNotFound)
}

func TestLeaseTimeToLive(t *testing.T) {
	clock := new(manualClock)
	m := startMember(t, memberOptions{clock: clock})
	ctx := short(t)
	if _, err := m.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 7, TTL: 60}); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"b", "a", "c"} {
		if _, err := m.kv.Put(ctx, &pb.PutRequest{Key: []byte(key), Lease: 7}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.kv.Put(ctx, &pb.PutRequest{Key: []byte("c")}); err != nil { // detached
		t.Fatal(err)
	}
	clock.advance(10*time.Second + 1)
	resp, err := m.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 7, Keys: true})
	if err != nil || resp.ID != 7 || resp.TTL != 49 || resp.GrantedTTL != 60 || resp.Header.GetRevision() != 5 {
		t.Errorf("time to live: %v, %v", resp, err)
	}
	if want := [][]byte{[]byte("a"), []byte("b")}; !slices.EqualFunc(resp.Keys, want, slices.Equal) {
		t.Errorf("keys %q, want %q", resp.Keys, want)
	}
	if resp, err = m.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 7}); err != nil || resp.Keys != nil {
		t.Errorf("keys that were not asked for: %v, %v", resp, err)
	}
	resp, err = m.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 8, Keys: true})
	if err != nil || resp.ID != 8 || resp.TTL != -1 || resp.GrantedTTL != 0 || resp.Header == nil {
		t.Errorf("an unknown lease: %v, %v; want TTL -1", resp, err)
	}
}

func TestLeaseLeases(t *testing.T) {
	m := startMember(t, memberOptions{clock: new(manualClock)})
	ctx := short(t)
	resp, err := m.lease.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	if err != nil || len(resp.Leases) != 0 || resp.Header.GetRevision() != 1 {
		t.Errorf("no leases: %v, %v", resp, err)
	}
	for _, l := range [][2]int64{{1, 50}, {2, 10}, {3, 30}} {
		if _, err := m.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: l[0], TTL: l[1]}); err != nil {
			t.Fatal(err)
		}
	}
	resp, err = m.lease.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var ids []int64
	for _, l := range resp.Leases {
		ids = append(ids, l.ID)
	}
	if want := []int64{2, 3, 1}; !slices.Equal(ids, want) {
		t.Errorf("leases %v, want %v: by expiry", ids, want)
	}
}

// One response for each request, in order, for known and unknown leases.
func TestLeaseKeepAlive(t *testing.T) {
	clock := new(manualClock)
	m := startMember(t, memberOptions{clock: clock})
	ctx := short(t)
	for _, id := range []int64{1, 2} {
		if _, err := m.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id, TTL: 10 * id}); err != nil {
			t.Fatal(err)
		}
	}
	clock.advance(9 * time.Second)
	stream, err := m.lease.LeaseKeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	asked := []int64{1, 99, 2, 1, 0}
	for _, id := range asked {
		if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	ttls := map[int64]int64{1: 10, 2: 20}
	for _, id := range asked {
		resp, err := stream.Recv()
		if err != nil || resp.ID != id || resp.TTL != ttls[id] || resp.Header.GetRevision() != 1 {
			t.Fatalf("keepalive of %d: %v, %v", id, resp, err)
		}
	}
	if got, _ := m.lessor.Remaining(1); got.Remaining != 10*time.Second {
		t.Errorf("the lease has %v left, want 10s", got.Remaining)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the client's end: %v, want EOF", err)
	}
}

// An expired lease takes its keys along; etcd's own client sees it go.
func TestLeaseExpiry(t *testing.T) {
	clock := new(manualClock)
	m := startMember(t, memberOptions{clock: clock})
	ctx := short(t)
	l, err := m.client.Grant(ctx, 10)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.client.Put(ctx, "k", "v", clientv3.WithLease(l.ID)); err != nil {
		t.Fatal(err)
	}
	events := m.client.Watch(ctx, "k", clientv3.WithRev(3))
	if resp, err := m.client.KeepAliveOnce(ctx, l.ID); err != nil || resp.TTL != 10 {
		t.Fatalf("keepalive: %v, %v", resp, err)
	}
	clock.advance(10 * time.Second)
	got := <-events
	if len(got.Events) != 1 || got.Events[0].Type != clientv3.EventTypeDelete {
		t.Fatalf("events %v, want the delete", got.Events)
	}
	_, err = m.client.KeepAliveOnce(ctx, l.ID)
	if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Errorf("keepalive of an expired lease: %v", err)
	}
	_, err = m.client.Put(ctx, "k", "v", clientv3.WithLease(l.ID))
	if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Errorf("put with an expired lease: %v", err)
	}
	ttl, err := m.client.TimeToLive(ctx, l.ID)
	if err != nil || ttl.TTL != -1 {
		t.Errorf("time to live of an expired lease: %v, %v", ttl, err)
	}
}

func TestLeaseKeepAliveCanceled(t *testing.T) {
	m := startMember(t, memberOptions{clock: new(manualClock)})
	ctx := short(t)
	canceled, cancel := context.WithCancel(ctx)
	stream, err := m.lease.LeaseKeepAlive(canceled)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := stream.Recv(); codeOf(err) != codes.Canceled {
		t.Errorf("got %v, want Canceled", err)
	}
}
