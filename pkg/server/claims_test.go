package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc/codes"
)

// claimants is a member with leases 1 to 3 and clients of both services.
type claimants struct {
	*member
	ctx      context.Context
	lock     v3lockpb.LockClient
	election v3electionpb.ElectionClient
	changes  clientv3.WatchChan // of all keys
}

func newClaimants(t *testing.T, opt memberOptions) *claimants {
	t.Helper()
	m := startMember(t, opt)
	c := &claimants{member: m, ctx: short(t), lock: v3lockpb.NewLockClient(m.conn), election: v3electionpb.NewElectionClient(m.conn)}
	for id := range int64(3) {
		if _, err := m.lease.LeaseGrant(c.ctx, &pb.LeaseGrantRequest{ID: id + 1, TTL: 60}); err != nil {
			t.Fatal(err)
		}
	}
	c.changes = m.client.Watch(c.ctx, "", clientv3.WithPrefix(), clientv3.WithRev(1))
	return c
}

// see waits for the next changes, each written as "+key" or "-key".
func (c *claimants) see(t *testing.T, want ...string) {
	t.Helper()
	for len(want) > 0 {
		resp, ok := <-c.changes
		if !ok || resp.Err() != nil {
			t.Fatalf("the watch ended before %v: %v", want, resp.Err())
		}
		for _, ev := range resp.Events {
			got := "+" + string(ev.Kv.Key)
			if ev.Type == mvccpb.Event_DELETE {
				got = "-" + string(ev.Kv.Key)
			}
			if len(want) == 0 || got != want[0] {
				t.Fatalf("%s at revision %d, want %v", got, ev.Kv.ModRevision, want)
			}
			want = want[1:]
		}
	}
}

// locked is the outcome of a Lock.
type locked struct {
	resp *v3lockpb.LockResponse
	err  error
}

// lockLater locks "l" for lease in the background.
func (c *claimants) lockLater(ctx context.Context, lease int64) <-chan locked {
	done := make(chan locked, 1)
	go func() {
		resp, err := c.lock.Lock(ctx, &v3lockpb.LockRequest{Name: []byte("l"), Lease: lease})
		done <- locked{resp, err}
	}()
	return done
}

func (l locked) want(t *testing.T, key string, revision int64) {
	t.Helper()
	if l.err != nil || string(l.resp.Key) != key || l.resp.Header.Revision != revision || l.resp.Header.MemberId != testMemberID {
		t.Errorf("got %v, %v; want %s at revision %d", l.resp, l.err, key, revision)
	}
}

func stillWaiting[T any](t *testing.T, c <-chan T) {
	t.Helper()
	select {
	case got := <-c:
		t.Errorf("did not wait: %v", got)
	default:
	}
}

func (c *claimants) unlock(t *testing.T, key string) {
	t.Helper()
	if _, err := c.lock.Unlock(c.ctx, &v3lockpb.UnlockRequest{Key: []byte(key)}); err != nil {
		t.Errorf("unlock: %v", err)
	}
}

// A lock goes from claim to claim in the order they were made in, whether it
// is unlocked or the lease of its holder ends.
func TestLockOrder(t *testing.T) {
	c := newClaimants(t, memberOptions{})
	(<-c.lockLater(c.ctx, 3)).want(t, "l/3", 2)
	c.see(t, "+l/3")
	second := c.lockLater(c.ctx, 1)
	c.see(t, "+l/1")
	third := c.lockLater(c.ctx, 2)
	c.see(t, "+l/2")
	(<-c.lockLater(c.ctx, 3)).want(t, "l/3", 4) // again: nothing changes
	stillWaiting(t, second)

	c.unlock(t, "l/3")
	(<-second).want(t, "l/1", 5)
	stillWaiting(t, third)
	if _, err := c.lease.LeaseRevoke(c.ctx, &pb.LeaseRevokeRequest{ID: 1}); err != nil {
		t.Fatal(err)
	}
	(<-third).want(t, "l/2", 6)
	c.see(t, "-l/3", "-l/1")
}

// Who goes away while it waits leaves no key behind.
func TestLockWaiterGoes(t *testing.T) {
	c := newClaimants(t, memberOptions{})
	(<-c.lockLater(c.ctx, 1)).want(t, "l/1", 2)
	ctx, cancel := context.WithCancel(c.ctx)
	second := c.lockLater(ctx, 2)
	c.see(t, "+l/1", "+l/2")
	third := c.lockLater(c.ctx, 3)
	c.see(t, "+l/3")
	cancel()
	wantStatus(t, (<-second).err, codes.Canceled, "context canceled")
	c.see(t, "-l/2")
	stillWaiting(t, third)
	c.unlock(t, "l/1")
	(<-third).want(t, "l/3", 6)
}

// A caller that is gone when its claim is made does not hold the lock.
func TestLockCallerIsGone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := newClaimants(t, memberOptions{wrap: func(s Store) Store { return &afterTxn{Store: s, then: cancel} }})
	s := &lockServer{claims: newClaims(c.server)}
	_, err := s.Lock(ctx, &v3lockpb.LockRequest{Name: []byte("l"), Lease: 1})
	wantStatus(t, err, codes.Canceled, "context canceled")
	c.see(t, "+l/1", "-l/1")
}

// afterTxn does something after each transaction.
type afterTxn struct {
	Store
	then func()
}

func (s *afterTxn) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	defer s.then()
	return s.Store.Txn(ctx, r)
}

func TestLockLeaseEnds(t *testing.T) {
	c := newClaimants(t, memberOptions{})
	(<-c.lockLater(c.ctx, 1)).want(t, "l/1", 2)
	second := c.lockLater(c.ctx, 2)
	c.see(t, "+l/1", "+l/2")
	if _, err := c.lease.LeaseRevoke(c.ctx, &pb.LeaseRevokeRequest{ID: 2}); err != nil {
		t.Fatal(err)
	}
	c.unlock(t, "l/1")
	wantStatus(t, (<-second).err, codes.Unknown, "mutex: session is expired")
}

// Without a lease the server makes one.
func TestLockMakesLease(t *testing.T) {
	c := newClaimants(t, memberOptions{})
	resp, err := c.lock.Lock(c.ctx, &v3lockpb.LockRequest{Name: []byte("l")})
	if err != nil {
		t.Fatal(err)
	}
	id, err := strconv.ParseInt(string(bytes.TrimPrefix(resp.Key, []byte("l/"))), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	ttl, err := c.lease.LeaseTimeToLive(c.ctx, &pb.LeaseTimeToLiveRequest{ID: id, Keys: true})
	if err != nil || ttl.GrantedTTL != 60 || len(ttl.Keys) != 1 || !bytes.Equal(ttl.Keys[0], resp.Key) {
		t.Errorf("its lease: %v, %v", ttl, err)
	}
}

// A server that stops sends the waiting away, and their claims with them.
func TestClaimsEndWithServer(t *testing.T) {
	c := newClaimants(t, memberOptions{})
	(<-c.lockLater(c.ctx, 1)).want(t, "l/1", 2)
	second := c.lockLater(c.ctx, 2)
	c.see(t, "+l/1", "+l/2")
	observe, err := c.election.Observe(c.ctx, &v3electionpb.LeaderRequest{Name: []byte("e")})
	if err != nil {
		t.Fatal(err)
	}
	c.server.Stop()
	wantStatus(t, (<-second).err, codes.Unavailable, "etcdserver: server stopped")
	c.see(t, "-l/2")
	_, err = observe.Recv()
	wantStatus(t, err, codes.Unavailable, "etcdserver: server stopped")
}

// A wait begins anew when what it should go on from was compacted.
func TestWaitOverCompaction(t *testing.T) {
	c := newClaimants(t, memberOptions{wrap: func(s Store) Store { return &compacting{Store: s} }})
	(<-c.lockLater(c.ctx, 1)).want(t, "l/1", 2)
	second := c.lockLater(c.ctx, 2)
	c.see(t, "+l/1", "+l/2", "+x", "+x")
	c.unlock(t, "l/1")
	if got := <-second; got.err != nil {
		t.Error(got.err)
	}
}

// compacting compacts once, between finding a claim and following it.
type compacting struct {
	Store
	once sync.Once
}

func (s *compacting) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	resp, err := s.Store.Range(ctx, r)
	if err == nil && r.MaxCreateRevision > 0 {
		s.once.Do(func() {
			for range 2 {
				if _, err = s.Put(ctx, &pb.PutRequest{Key: []byte("x")}); err != nil {
					return
				}
			}
			_, err = s.Compact(ctx, &pb.CompactionRequest{Revision: resp.Header.Revision + 2})
		})
	}
	return resp, err
}

// A wait is no slow request.
func TestWaitIsNotLogged(t *testing.T) {
	var out bytes.Buffer
	logger := logrus.New()
	logger.SetOutput(&out)
	c := newClaimants(t, memberOptions{config: func(cfg *Config) {
		cfg.SlowRequest = time.Nanosecond
		cfg.Logger = logrus.NewEntry(logger)
	}})
	(<-c.lockLater(c.ctx, 1)).want(t, "l/1", 2)
	c.unlock(t, "l/1")
	if got := out.String(); bytes.Contains(out.Bytes(), []byte("method=Lock")) || !bytes.Contains(out.Bytes(), []byte("method=Unlock")) {
		t.Errorf("logged: %s", got)
	}
}

// The texts are those of etcd's client, without a code.
func TestClaimErrors(t *testing.T) {
	c := newClaimants(t, memberOptions{})
	name := []byte("e")
	nobody := &v3electionpb.LeaderKey{Name: name, Key: []byte("e/1"), Rev: 5, Lease: 1}
	for _, tt := range []struct {
		call func() error
		text string
	}{
		{func() error { return (<-c.lockLater(c.ctx, 77)).err }, "etcdserver: requested lease not found"},
		{func() error { _, err := c.lock.Unlock(c.ctx, &v3lockpb.UnlockRequest{}); return err }, "etcdserver: key is not provided"},
		{func() error {
			_, err := c.election.Campaign(c.ctx, &v3electionpb.CampaignRequest{Name: name, Lease: 77})
			return err
		}, "etcdserver: requested lease not found"},
		{func() error {
			_, err := c.election.Proclaim(c.ctx, &v3electionpb.ProclaimRequest{})
			return err
		}, `"leader" field must be provided`},
		{func() error {
			_, err := c.election.Proclaim(c.ctx, &v3electionpb.ProclaimRequest{Leader: nobody})
			return err
		}, "election: not leader"},
		{func() error { _, err := c.election.Resign(c.ctx, &v3electionpb.ResignRequest{}); return err }, `"leader" field must be provided`},
		{func() error {
			_, err := c.election.Resign(c.ctx, &v3electionpb.ResignRequest{Leader: &v3electionpb.LeaderKey{Lease: 1}})
			return err
		}, "etcdserver: key is not provided"},
		{func() error {
			_, err := c.election.Leader(c.ctx, &v3electionpb.LeaderRequest{Name: name})
			return err
		}, "election: no leader"},
	} {
		wantStatus(t, tt.call(), codes.Unknown, tt.text)
	}
	if _, err := c.election.Resign(c.ctx, &v3electionpb.ResignRequest{Leader: nobody}); err != nil {
		t.Errorf("to resign what is lost already: %v", err)
	}
}

// An election from the first campaign to the last, as an observer sees it.
func TestElection(t *testing.T) {
	c := newClaimants(t, memberOptions{})
	name := []byte("e")
	observe, err := c.election.Observe(c.ctx, &v3electionpb.LeaderRequest{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	observed := func(key, value string, revision int64) {
		t.Helper()
		resp, err := observe.Recv()
		if err != nil || string(resp.Kv.Key) != key || string(resp.Kv.Value) != value || resp.Header.Revision != revision || resp.Header.ClusterId != testClusterID {
			t.Fatalf("observed %v, %v; want %s=%s at %d", resp, err, key, value, revision)
		}
	}
	campaign := func(lease int64, value string) (*v3electionpb.CampaignResponse, error) {
		return c.election.Campaign(c.ctx, &v3electionpb.CampaignRequest{Name: name, Lease: lease, Value: []byte(value)})
	}
	first, err := campaign(1, "one")
	if err != nil || string(first.Leader.Key) != "e/1" || string(first.Leader.Name) != "e" || first.Leader.Rev != 2 || first.Leader.Lease != 1 || first.Header.Revision != 2 {
		t.Fatalf("campaign: %v, %v", first, err)
	}
	observed("e/1", "one", 2)
	type outcome struct {
		resp *v3electionpb.CampaignResponse
		err  error
	}
	second := make(chan outcome, 1)
	go func() {
		resp, err := campaign(2, "two")
		second <- outcome{resp, err}
	}()
	c.see(t, "+e/1", "+e/2")
	if _, err := c.election.Proclaim(c.ctx, &v3electionpb.ProclaimRequest{Leader: first.Leader, Value: []byte("uno")}); err != nil {
		t.Fatal(err)
	}
	observed("e/1", "uno", 4)
	// A campaign of the leader itself proclaims its value.
	again, err := campaign(1, "eins")
	if err != nil || again.Leader.Rev != 2 || again.Header.Revision != 4 {
		t.Errorf("campaign again: %v, %v", again, err)
	}
	observed("e/1", "eins", 5)
	stillWaiting(t, second)
	if _, err := c.election.Resign(c.ctx, &v3electionpb.ResignRequest{Leader: first.Leader}); err != nil {
		t.Fatal(err)
	}
	if got := <-second; got.err != nil || got.resp.Leader.Rev != 3 || got.resp.Header.Revision != 3 {
		t.Errorf("the second campaign: %v, %v", got.resp, got.err)
	}
	observed("e/2", "two", 6)
	leader, err := c.election.Leader(c.ctx, &v3electionpb.LeaderRequest{Name: name})
	if err != nil || string(leader.Kv.Value) != "two" || leader.Header.Revision != 6 {
		t.Errorf("leader: %v, %v", leader, err)
	}
	if _, err := c.lease.LeaseRevoke(c.ctx, &pb.LeaseRevokeRequest{ID: 2}); err != nil {
		t.Fatal(err)
	}
	c.see(t, "+e/1", "+e/1", "-e/1", "-e/2")
	if _, err := campaign(3, "three"); err != nil {
		t.Fatal(err)
	}
	observed("e/3", "three", 8)
}

func TestCampaignerGoes(t *testing.T) {
	c := newClaimants(t, memberOptions{})
	if _, err := c.election.Campaign(c.ctx, &v3electionpb.CampaignRequest{Name: []byte("e"), Lease: 1}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(c.ctx)
	gone := make(chan error, 1)
	go func() {
		_, err := c.election.Campaign(ctx, &v3electionpb.CampaignRequest{Name: []byte("e"), Lease: 2})
		gone <- err
	}()
	c.see(t, "+e/1", "+e/2")
	cancel()
	wantStatus(t, <-gone, codes.Canceled, "context canceled")
	c.see(t, "-e/2")
}

// etcd's own package and the Lock service take turns on one lock, and a
// counter without any other protection shows that they exclude each other.
func TestMutexAndLockService(t *testing.T) {
	m := startMember(t, memberOptions{})
	ctx := short(t)
	const workers, turns = 4, 5
	counter := 0 // guarded by the lock that is tested
	var wg sync.WaitGroup
	for i := range workers {
		session, err := concurrency.NewSession(m.client, concurrency.WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		lock, unlock := func() error { return nil }, func() error { return nil }
		if i%2 == 0 {
			mutex := concurrency.NewMutex(session, "counter")
			lock, unlock = func() error { return mutex.Lock(ctx) }, func() error { return mutex.Unlock(ctx) }
		} else {
			service := v3lockpb.NewLockClient(m.conn)
			var key []byte
			lock = func() error {
				resp, err := service.Lock(ctx, &v3lockpb.LockRequest{Name: []byte("counter"), Lease: int64(session.Lease())})
				key = resp.GetKey()
				return err
			}
			unlock = func() error { _, err := service.Unlock(ctx, &v3lockpb.UnlockRequest{Key: key}); return err }
		}
		wg.Go(func() {
			for range turns {
				if err := lock(); err != nil {
					t.Errorf("lock: %v", err)
					return
				}
				counter++
				if err := unlock(); err != nil {
					t.Errorf("unlock: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	if counter != workers*turns {
		t.Errorf("counted to %d, want %d", counter, workers*turns)
	}
}

// Software transactional memory: concurrent increments, none of them lost.
func TestSTM(t *testing.T) {
	m := startMember(t, memberOptions{})
	ctx := short(t)
	const workers, turns = 4, 10
	var wg sync.WaitGroup
	for i := range workers {
		isolation := []concurrency.Isolation{concurrency.SerializableSnapshot, concurrency.Serializable, concurrency.RepeatableReads}[i%3]
		wg.Go(func() {
			for range turns {
				_, err := concurrency.NewSTM(m.client, func(stm concurrency.STM) error {
					n, _ := strconv.Atoi(stm.Get("n"))
					stm.Put("n", fmt.Sprint(n+1))
					return nil
				}, concurrency.WithIsolation(isolation), concurrency.WithAbortContext(ctx))
				if err != nil {
					t.Errorf("increment: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	resp, err := m.client.Get(ctx, "n")
	if err != nil || string(resp.Kvs[0].Value) != fmt.Sprint(workers*turns) {
		t.Errorf("%v, %v; want %d", resp, err, workers*turns)
	}
}

// A session whose lease expires frees what it holds, and ends.
func TestSessionExpires(t *testing.T) {
	clock := new(manualClock)
	m := startMember(t, memberOptions{clock: clock})
	ctx := short(t)
	lost, err := concurrency.NewSession(m.client, concurrency.WithTTL(60), concurrency.WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	held := concurrency.NewMutex(lost, "m")
	if err := held.Lock(ctx); err != nil {
		t.Fatal(err)
	}
	lost.Orphan()            // no keepalives from here on
	waitFor(t, func() bool { // one may be on its way still
		clock.advance(61 * time.Second)
		lease, err := m.client.TimeToLive(ctx, lost.Lease())
		return err == nil && lease.TTL == -1
	})
	next, err := concurrency.NewSession(m.client, concurrency.WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	taken := concurrency.NewMutex(next, "m")
	if err := taken.Lock(ctx); err != nil {
		t.Fatal(err)
	}
	resp, err := m.client.Txn(ctx).If(held.IsOwner()).Commit()
	if err != nil || resp.Succeeded {
		t.Errorf("the lost session still owns the lock: %v, %v", resp, err)
	}
	if err := concurrency.NewMutex(lost, "m").TryLock(ctx); err == nil || errors.Is(err, concurrency.ErrLocked) {
		t.Errorf("a lost session locks: %v", err)
	}
}
