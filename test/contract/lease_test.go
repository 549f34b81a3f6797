package contract

import (
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
)

var leases = []statement{
	{name: "32_grant", run: leaseGrant},
	{name: "33_revoke", run: leaseRevoke},
	{name: "33_expiry", run: leaseExpiry},
	{name: "33_expiry_rate", run: expiryRate},
	{name: "34_keep_alive", run: leaseKeepAlive},
	{name: "35_time_to_live", run: leaseTimeToLive},
	{name: "35_attach_and_detach", run: leaseAttach},
	{name: "36_restart", run: leaseRestart},
}

func leaseGrant(e *env) {
	a, b := e.grant(0, 100), e.grant(0, 100)
	if a.ID <= 0 || b.ID <= 0 || a.ID == b.ID {
		e.Errorf("picked ids %d and %d", a.ID, b.ID)
	}
	equal(e, "ttl", a.TTL, 100)
	equal(e, "chosen id", e.grant(123, 100).ID, 123)
	grant := func(id, ttl int64) error {
		_, err := e.lease.LeaseGrant(e.ctx, &pb.LeaseGrantRequest{ID: id, TTL: ttl})
		return err
	}
	e.fails("an existing id", grant(123, 50), codes.FailedPrecondition, "etcdserver: lease already exists")
	e.fails("too large", grant(0, 9_000_000_001), codes.OutOfRange, "etcdserver: too large lease TTL")
	e.fails("too large, of an existing id", grant(123, 9_000_000_001), codes.OutOfRange, "etcdserver: too large lease TTL")
	equal(e, "the largest", e.grant(0, 9_000_000_000).TTL, 9_000_000_000)
	for _, ttl := range []int64{1, 0, -7} {
		equal(e, fmt.Sprintf("a TTL of %d", ttl), e.grant(0, ttl).TTL, 2)
	}
	equal(e, "a negative id", e.grant(-5, 100).ID, -5)
	equal(e, "revision", e.rev(), 1)
	equal(e, "revision of the answer", e.grant(0, 100).Header.Revision, 1)
}

func leaseRevoke(e *env) {
	revoke := func(id int64) error {
		_, err := e.lease.LeaseRevoke(e.ctx, &pb.LeaseRevokeRequest{ID: id})
		return err
	}
	e.fails("unknown", revoke(1), codes.NotFound, textNoLease)
	e.grant(1, 100)
	must(e, revoke(1))
	equal(e, "revoking a lease without keys adds no revision", e.rev(), 1)
	e.fails("again", revoke(1), codes.NotFound, textNoLease)

	e.grant(2, 100)
	for _, k := range []string{"c", "a", "b"} {
		e.attach(k, 2)
	}
	e.put("d", "stays")
	w := e.watch()
	w.create(all())
	resp, err := e.lease.LeaseRevoke(e.ctx, &pb.LeaseRevokeRequest{ID: 2})
	must(e, err)
	equal(e, "revision", resp.Header.Revision, 6)
	events := w.next().Events
	got := ""
	for _, ev := range events {
		got += fmt.Sprintf("%v %s@%d ", ev.Type, ev.Kv.Key, ev.Kv.ModRevision)
	}
	equal(e, "deleted in key order, in one revision", got, "DELETE a@6 DELETE b@6 DELETE c@6 ")
	equal(e, "what stays", keys(e.rng(&pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("z")}).Kvs), "d")
}

func leaseExpiry(e *env) {
	w := e.watch()
	w.create(all())
	began := time.Now()
	short := e.grant(0, 4)
	long := e.grant(0, 100)
	e.attach("b", short.ID)
	e.attach("a", short.ID)
	e.attach("c", long.ID)
	for range 3 {
		w.nextEvent()
	}
	got := ""
	for range 2 {
		ev := w.nextEvent()
		got += fmt.Sprintf("%v %s@%d ", ev.Type, ev.Kv.Key, ev.Kv.ModRevision)
	}
	if lived := time.Since(began); lived < 4*time.Second {
		e.Errorf("a TTL of 4 s expired after %v", lived)
	}
	equal(e, "deleted by expiry", got, "DELETE a@5 DELETE b@5 ")
	resp, err := e.lease.LeaseLeases(e.ctx, &pb.LeaseLeasesRequest{})
	must(e, err)
	equal(e, "leases left", len(resp.Leases), 1)
	equal(e, "the one left", resp.Leases[0].ID, long.ID)
}

func leaseKeepAlive(e *env) {
	e.grant(1, 100)
	e.grant(2, 200)
	stream, err := e.lease.LeaseKeepAlive(e.ctx)
	must(e, err)
	ids := []int64{1, 2, 404, 1, 1, 2}
	for _, id := range ids {
		must(e, stream.Send(&pb.LeaseKeepAliveRequest{ID: id}))
	}
	want := map[int64]int64{1: 100, 2: 200, 404: 0}
	for _, id := range ids {
		resp, err := stream.Recv()
		must(e, err)
		equal(e, "id", resp.ID, id)
		equal(e, fmt.Sprint("ttl of ", id), resp.TTL, want[id])
		equal(e, "revision", resp.Header.Revision, 1)
	}
	must(e, stream.CloseSend())

	// It really lives longer.
	began := time.Now()
	e.grant(3, 4)
	e.attach("k", 3)
	stream, err = e.lease.LeaseKeepAlive(e.ctx)
	must(e, err)
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for time.Since(began) < 9*time.Second {
		<-tick.C
		must(e, stream.Send(&pb.LeaseKeepAliveRequest{ID: 3}))
		resp, err := stream.Recv()
		must(e, err)
		equal(e, "renewed to", resp.TTL, 4)
	}
	equal(e, "its key after twice its TTL", e.get("k").Count, 1)
}

func leaseTimeToLive(e *env) {
	ttl := func(id int64, keys bool) *pb.LeaseTimeToLiveResponse {
		e.Helper()
		resp, err := e.lease.LeaseTimeToLive(e.ctx, &pb.LeaseTimeToLiveRequest{ID: id, Keys: keys})
		must(e, err)
		return resp
	}
	unknown := ttl(404, true)
	equal(e, "TTL of an unknown id", unknown.TTL, -1)
	equal(e, "id of an unknown id", unknown.ID, 404)
	equal(e, "granted TTL of an unknown id", unknown.GrantedTTL, 0)
	began := time.Now()
	e.grant(1, 300)
	e.grant(2, 100)
	e.grant(3, 200)
	for _, k := range []string{"c", "a", "b"} {
		e.attach(k, 1)
	}
	known := ttl(1, true)
	equal(e, "granted TTL", known.GrantedTTL, 300)
	if gone := int64(time.Since(began)/time.Second) + 1; known.TTL < 300-gone || known.TTL > 300 {
		e.Errorf("TTL of a new lease of 300 s is %d", known.TTL)
	}
	equal(e, "keys in the answer", len(known.Keys), 3)
	seen := map[string]bool{}
	for _, k := range known.Keys {
		seen[string(k)] = true
	}
	equal(e, "keys", fmt.Sprint(seen), "map[a:true b:true c:true]")
	equal(e, "keys not asked for", len(ttl(1, false).Keys), 0)
	equal(e, "revision", known.Header.Revision, 4)
	resp, err := e.lease.LeaseLeases(e.ctx, &pb.LeaseLeasesRequest{})
	must(e, err)
	order := ""
	for _, l := range resp.Leases {
		order += fmt.Sprint(l.ID, " ")
	}
	equal(e, "leases by expiry", order, "2 3 1 ")
}

func leaseAttach(e *env) {
	e.grant(1, 100)
	e.grant(2, 100)
	attached := func(id int64) int {
		e.Helper()
		resp, err := e.lease.LeaseTimeToLive(e.ctx, &pb.LeaseTimeToLiveRequest{ID: id, Keys: true})
		must(e, err)
		return len(resp.Keys)
	}
	e.attach("k", 1)
	equal(e, "attached", attached(1), 1)
	equal(e, "the key's lease", e.get("k").Kvs[0].Lease, 1)
	e.attach("k", 2)
	equal(e, "moved from", attached(1), 0)
	equal(e, "moved to", attached(2), 1)
	e.put("k", "v")
	equal(e, "detached by lease 0", attached(2), 0)
	e.attach("k", 1)
	e.del("k", "")
	equal(e, "detached by a delete", attached(1), 0)
	// A lease that has lost a key must not delete it.
	e.attach("k", 1)
	e.attach("k", 2)
	_, err := e.lease.LeaseRevoke(e.ctx, &pb.LeaseRevokeRequest{ID: 1})
	must(e, err)
	equal(e, "after revoking the old lease", e.get("k").Count, 1)
	_, err = e.lease.LeaseRevoke(e.ctx, &pb.LeaseRevokeRequest{ID: 2})
	must(e, err)
	equal(e, "after revoking the new one", e.get("k").Count, 0)
	// A txn that attaches and deletes.
	e.grant(3, 100)
	e.txn(&pb.TxnRequest{Success: []*pb.RequestOp{
		{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("t"), Lease: 3}}},
		opDel("u", ""),
	}})
	equal(e, "attached by a txn", attached(3), 1)
}

func leaseRestart(e *env) {
	granted := time.Now()
	e.grant(1, 100)
	e.attach("k", 1)
	e.grant(2, 5)
	e.attach("s", 2)
	e.grant(3, 100)
	_, err := e.lease.LeaseRevoke(e.ctx, &pb.LeaseRevokeRequest{ID: 3})
	must(e, err)
	restarted := time.Now()
	e.srv.Restart()
	resp, err := e.lease.LeaseTimeToLive(e.ctx, &pb.LeaseTimeToLiveRequest{ID: 1, Keys: true})
	must(e, err)
	equal(e, "granted TTL", resp.GrantedTTL, 100)
	since := restarted        // it starts again in full
	if len(e.srv.Nodes) > 1 { // unless it was not the leader
		since = granted
	}
	if gone := int64(time.Since(since)/time.Second) + 1; resp.TTL < 100-gone {
		e.Errorf("TTL %d after a restart, %d s after 100 s began", resp.TTL, gone)
	}
	equal(e, "keys", len(resp.Keys), 1)
	gone, err := e.lease.LeaseTimeToLive(e.ctx, &pb.LeaseTimeToLiveRequest{ID: 3})
	must(e, err)
	equal(e, "a revoked lease stays revoked", gone.TTL, -1)
	w := e.watch()
	w.create(&pb.WatchCreateRequest{Key: []byte("s"), StartRevision: 4})
	ev := w.nextEvent()
	equal(e, "expires after the restart", ev.Type, mvccpb.Event_DELETE)
}

// expiryRate lets many leases expire together: all of them start again at a
// restart. No more than 500 are revoked each half a second.
func expiryRate(e *env) {
	const n, ttl = 2500, 5
	began := time.Now()
	var writers sync.WaitGroup
	for w := range 50 {
		writers.Go(func() {
			for i := range n / 50 {
				if _, err := e.lease.LeaseGrant(e.ctx, &pb.LeaseGrantRequest{ID: int64(1 + w*n + i), TTL: ttl}); err != nil {
					e.Errorf("grant: %v", err)
				}
			}
		})
	}
	writers.Wait()
	if len(e.srv.Nodes) == 1 { // else they do only where it was the leader
		began = time.Now()
	}
	e.srv.Restart()
	left := func() int {
		e.Helper()
		resp, err := e.lease.LeaseLeases(e.ctx, &pb.LeaseLeasesRequest{})
		must(e, err)
		return len(resp.Leases)
	}
	there := left()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for left() > 0 {
		<-tick.C
	}
	took := time.Since(began) - ttl*time.Second
	if least := time.Duration(there/500-1) * 500 * time.Millisecond; took < least {
		e.Errorf("%d leases were revoked within %v, and not %v", there, took, least)
	}
}
