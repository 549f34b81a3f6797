package server

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
	"github.com/keelson-io/keelson/pkg/lease"
	"github.com/keelson-io/keelson/pkg/store"
)

// pair are two members of one cluster on one log, each of which may lead.
type pair [2]*pairMember

type pairMember struct {
	*member
	pair *pair
	at   int

	mu sync.Mutex
	// Guarded by mu.
	leader  int // index of it, -1 if there is none
	term    uint64
	changed chan struct{}
	onTTL   func() // called in TimeToLive, once
	mute    bool   // the answer to the next Txn is lost
}

func startPair(t *testing.T, config func(at int, opt *memberOptions)) *pair {
	t.Helper()
	disk := new(memlog.Disk)
	p := new(pair)
	for at := range p {
		m := &pairMember{pair: p, at: at, term: 2, changed: make(chan struct{})}
		opt := memberOptions{
			disk:   disk,
			wrap:   func(s Store) Store { return pairStore{s.(*store.Store), m} },
			lessor: func(l Lessor) Lessor { return pairLessor{l.(*lease.Lessor), m} },
			config: func(c *Config) {
				c.Cluster, c.Term, c.MemberID = m, m.Term, m.ID()
			},
		}
		if config != nil {
			config(at, &opt)
		}
		m.member = startMember(t, opt)
		p[at] = m
	}
	for _, m := range p {
		m.conn.Connect()
	}
	p.lead(0)
	return p
}

// lead makes member at the leader; it is nobody if that is -1.
func (p *pair) lead(at int) {
	for _, m := range p {
		m.mu.Lock()
		m.leader = at
		m.term++
		close(m.changed)
		m.changed = make(chan struct{})
		m.mu.Unlock()
	}
}

func (m *pairMember) ID() uint64 { return uint64(m.at) + 1 }

func (m *pairMember) leads() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leader == m.at
}

func (m *pairMember) Term() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.term
}

func (m *pairMember) Leader() (Leader, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leader < 0 {
		return Leader{}, m.changed
	}
	l := Leader{ID: uint64(m.leader) + 1, Here: m.leader == m.at}
	if !l.Here {
		l.Conn = m.pair[m.leader].conn
	}
	return l, m.changed
}

func (m *pairMember) Reach(ctx context.Context, revision int64) error {
	return m.store.Reach(ctx, revision)
}

func (m *pairMember) Progress() (committed, applied uint64)                { return 12, 11 }
func (m *pairMember) Learner() (learner, sure bool)                        { return false, true }
func (m *pairMember) RemoveMember(context.Context, uint64) error           { return nil }
func (m *pairMember) UpdateMember(context.Context, uint64, []string) error { return nil }
func (m *pairMember) PromoteMember(context.Context, uint64) error          { return nil }
func (m *pairMember) MoveLeader(context.Context, uint64) error             { return nil }
func (m *pairMember) Members() []*pb.Member                                { return nil }
func (m *pairMember) AddMember(context.Context, []string, bool) (*pb.Member, error) {
	return nil, store.ErrUnavailable
}

// pairStore is a member's store, which changes nothing where it does not lead.
type pairStore struct {
	*store.Store
	m *pairMember
}

func (s pairStore) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if !s.m.leads() {
		return nil, store.ErrUnavailable
	}
	resp, err := s.Store.Txn(ctx, r)
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.m.mute {
		s.m.mute = false
		return nil, status.Error(codes.Unavailable, "the connection is gone")
	}
	return resp, err
}

func (s pairStore) LeaseGrant(ctx context.Context, id, ttl int64) (store.Lease, error) {
	if !s.m.leads() {
		return store.Lease{}, store.ErrUnavailable
	}
	return s.Store.LeaseGrant(ctx, id, ttl)
}

func (s pairStore) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	if r.Action != pb.AlarmRequest_GET && !s.m.leads() {
		return nil, store.ErrUnavailable
	}
	return s.Store.Alarm(ctx, r)
}

// pairLessor tells the test when it is asked.
type pairLessor struct {
	*lease.Lessor
	m *pairMember
}

func (l pairLessor) TimeToLive(ctx context.Context, id int64) (lease.Lease, bool, error) {
	l.m.mu.Lock()
	hook := l.m.onTTL
	l.m.onTTL = nil
	l.m.mu.Unlock()
	found, ok, err := l.Lessor.TimeToLive(ctx, id)
	if hook != nil {
		hook()
		found.TTL = 7 // what an old leader knows
	}
	return found, ok, err
}

// TestForwardShows: what a node has answered, its clients find there, whether it
// has moved the revision or not.
func TestForwardShows(t *testing.T) {
	p := startPair(t, nil)
	ctx := short(t)
	through := p[1]
	for id := int64(1); id < 50; id++ {
		if _, err := through.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id, TTL: 100}); err != nil {
			t.Fatal(err)
		}
		list, err := through.lease.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
		if err != nil || len(list.Leases) != int(id) {
			t.Fatalf("%d leases, %v, after %d were granted", len(list.GetLeases()), err, id)
		}
	}
	put, err := through.kv.Put(ctx, &pb.PutRequest{Key: []byte("k")})
	if err != nil || put.Header.MemberId != through.ID() {
		t.Fatalf("put: %v, %v", put, err)
	}
	if _, err := through.kv.Compact(ctx, &pb.CompactionRequest{Revision: put.Header.Revision}); err != nil {
		t.Fatal(err)
	}
	_, err = through.kv.Range(ctx, &pb.RangeRequest{Key: []byte("k"), Revision: 1, Serializable: true})
	wantError(t, err, rpctypes.ErrGRPCCompacted)
}

// TestLockAfterLeader: who waits for a lock on a node waits on, whoever leads;
// and a node that has just been deposed lets the next leader do what it can not.
func TestLockAfterLeader(t *testing.T) {
	p := startPair(t, nil)
	ctx := short(t)
	locks := func(m *pairMember) v3lockpb.LockClient { return v3lockpb.NewLockClient(m.conn) }
	first, err := locks(p[1]).Lock(ctx, &v3lockpb.LockRequest{Name: []byte("l")})
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 2)
	for _, m := range p { // one waits where the leader was, one elsewhere
		go func() {
			_, err := locks(m).Lock(ctx, &v3lockpb.LockRequest{Name: []byte("l"), Lease: 0})
			second <- err
		}()
	}
	count := func(m *pairMember) int64 {
		resp, err := m.kv.Range(ctx, &pb.RangeRequest{Key: []byte("l/"), RangeEnd: []byte("l0"), CountOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Count
	}
	for count(p[0]) < 3 { // all have claimed it
	}
	p.lead(-1)
	campaigned := make(chan error, 1)
	go func() { // there is no leader: this one waits for it
		_, err := v3electionpb.NewElectionClient(p[0].conn).Campaign(ctx, &v3electionpb.CampaignRequest{Name: []byte("e")})
		campaigned <- err
	}()
	p.lead(1)
	if err := <-campaigned; err != nil {
		t.Errorf("Campaign: %v", err)
	}
	if _, err := locks(p[0]).Unlock(ctx, &v3lockpb.UnlockRequest{Key: first.Key}); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err != nil {
		t.Errorf("a Lock that waited: %v", err)
	}
	if n := count(p[0]); n != 2 {
		t.Errorf("%d claims are left, want one that holds the lock and one that waits", n)
	}
}

// TestClaimTwice: a claim whose answer is lost with the leader is made again.
func TestClaimTwice(t *testing.T) {
	p := startPair(t, nil)
	ctx := short(t)
	for _, name := range []string{"a", "b"} { // the connection is there for the second
		p[0].mu.Lock()
		p[0].mute = name == "b"
		p[0].mu.Unlock()
		resp, err := v3lockpb.NewLockClient(p[1].conn).Lock(ctx, &v3lockpb.LockRequest{Name: []byte(name)})
		if err != nil || !bytes.HasPrefix(resp.Key, []byte(name+"/")) {
			t.Errorf("Lock %s: %v, %v", name, resp, err)
		}
	}
	if p[0].mute {
		t.Error("no answer was lost")
	}
}

// TestLocksWithoutLeader: callers are told that they may come again.
func TestLocksWithoutLeader(t *testing.T) {
	p := startPair(t, func(at int, opt *memberOptions) {
		config := opt.config
		opt.config = func(c *Config) {
			config(c)
			c.RequestTimeout = 10 * time.Millisecond
		}
	})
	p.lead(-1)
	_, err := v3lockpb.NewLockClient(p[0].conn).Lock(short(t), &v3lockpb.LockRequest{Name: []byte("l")})
	wantError(t, err, rpctypes.ErrGRPCNoLeader)
	_, err = v3electionpb.NewElectionClient(p[0].conn).Campaign(short(t), &v3electionpb.CampaignRequest{Name: []byte("e"), Lease: 1})
	wantError(t, err, rpctypes.ErrGRPCNoLeader)
}

// TestTimeToLiveOfDeposed: what a node says of a lease counts only if it leads
// until then.
func TestTimeToLiveOfDeposed(t *testing.T) {
	p := startPair(t, nil)
	ctx := short(t)
	if _, err := p[0].lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 1, TTL: 100}); err != nil {
		t.Fatal(err)
	}
	p[0].mu.Lock()
	p[0].onTTL = func() { p.lead(1) }
	p[0].mu.Unlock()
	got, err := p[0].lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 1})
	if err != nil || got.GrantedTTL != 100 || got.Header.MemberId != p[0].ID() {
		t.Errorf("TimeToLive: %v, %v, want what the new leader has", got, err)
	}
}

// overQuota is a store that has used up its quota.
type overQuota struct{ Store }

func (overQuota) OverQuota() bool { return true }

// TestFollowerRaisesNoSpace: a node that has used up its quota raises the alarm,
// though the leader has not.
func TestFollowerRaisesNoSpace(t *testing.T) {
	p := startPair(t, func(at int, opt *memberOptions) {
		if wrap := opt.wrap; at == 1 {
			opt.wrap = func(s Store) Store { return overQuota{wrap(s)} }
		}
	})
	ctx := short(t)
	if _, err := p[0].kv.Put(ctx, &pb.PutRequest{Key: []byte("k")}); err != nil {
		t.Fatal(err)
	}
	if _, err := p[1].kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("k")}); err != nil {
		t.Fatal(err)
	}
	if alarms := p[1].store.Alarms(); len(alarms) != 0 {
		t.Fatalf("alarms before there was a put through the node: %v", alarms)
	}
	for range 2 {
		_, _ = p[1].kv.Put(ctx, &pb.PutRequest{Key: []byte("k")}) // the first is done, the second refused
	}
	alarms := p[0].store.Alarms()
	if !slices.ContainsFunc(alarms, func(a *pb.AlarmMember) bool {
		return a.Alarm == pb.AlarmType_NOSPACE && a.MemberID == p[1].ID()
	}) || len(alarms) != 1 {
		t.Errorf("alarms: %v", alarms)
	}
	_, err := p[0].kv.Put(ctx, &pb.PutRequest{Key: []byte("k")})
	wantError(t, err, rpctypes.ErrGRPCNoSpace)
}

// TestStatusInCluster shows the indices of Raft, and not the log's position.
func TestStatusInCluster(t *testing.T) {
	p := startPair(t, nil)
	for _, m := range p {
		got, err := m.maintenance.Status(short(t), &pb.StatusRequest{})
		if err != nil || got.RaftIndex != 12 || got.RaftAppliedIndex != 11 || got.RaftTerm != 3 || got.Leader != p[0].ID() || got.IsLearner {
			t.Errorf("Status: %v, %v", got, err)
		}
	}
}

// TestRetryHoldsNothing: a request that waits for a leader leaves the room that
// its response has taken to others.
func TestRetryHoldsNothing(t *testing.T) {
	budget := NewResponseBudget(1 << 20)
	p := startPair(t, func(at int, opt *memberOptions) {
		opt.responses = budget
		config := opt.config
		opt.config = func(c *Config) {
			config(c)
			c.RequestTimeout = time.Hour
		}
	})
	s := p[0].server
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	tried := make(chan struct{}, 100)
	handler := s.throughLeader(pb.KV_Txn_FullMethodName, func(ctx context.Context, _ any) (any, error) {
		if err := budget.Admit(ctx, store.Need{Bytes: 1 << 19}); err != nil {
			t.Error(err)
		}
		p.lead(-1)
		tried <- struct{}{}
		return nil, rpctypes.ErrGRPCNoLeader
	})
	req := &pb.TxnRequest{Success: []*pb.RequestOp{put([]byte("a"), nil, 0), put([]byte("b"), nil, 0)}}
	go func() {
		_, err := withHold(ctx, req, handler)
		done <- err
	}()
	<-tried
	if err := budget.pages.Acquire(short(t), budget.half); err != nil {
		t.Errorf("the room is not given back: %v", err)
	}
	cancel()
	wantStatus(t, <-done, codes.Canceled, "context canceled")
}

// stuck is a cluster whose leadership does not move.
type stuck struct{ Cluster }

func (stuck) Members() []*pb.Member { return []*pb.Member{{ID: 1}, {ID: 2}} }

func (stuck) MoveLeader(ctx context.Context, _ uint64) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestMoveLeaderTimeout: a transfer that takes too long is told as etcd tells it.
func TestMoveLeaderTimeout(t *testing.T) {
	p := startPair(t, func(_ int, opt *memberOptions) {
		config := opt.config
		opt.config = func(c *Config) {
			config(c)
			c.Cluster, c.RequestTimeout = stuck{c.Cluster}, 20*time.Millisecond
		}
	})
	_, err := p[0].maintenance.MoveLeader(t.Context(), &pb.MoveLeaderRequest{TargetID: p[1].ID()})
	if codeOf(err) != codes.Unknown || !strings.Contains(err.Error(), "etcdserver: request timed out, leader transfer took too long") {
		t.Errorf("MoveLeader: %v", err)
	}
}
