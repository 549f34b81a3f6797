package contract

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/keelson-io/keelson/test/harness"
)

// clusters are statements about three nodes, whose clients are given.
var clusters = []struct {
	name string
	run  func(nodes []*env)
	own  bool // keelson's alone: etcd does not promise it
}{
	{name: "each_node_shows_what_it_answered", run: showsItsAnswers},
	{name: "leadership", run: leadership},
	{name: "a_lock_outlasts_its_leader", run: lockOutlastsLeader, own: true},
	{name: "without_a_leader", run: withoutLeader},
}

// TestCluster runs the statements about clusters, wherever keelson's data is.
func TestCluster(t *testing.T) {
	for _, backend := range harness.Backends(t) {
		t.Run(string(backend), func(t *testing.T) {
			for _, s := range clusters {
				if s.own && backend != harness.Keelson {
					continue
				}
				t.Run(s.name, func(t *testing.T) {
					t.Parallel()
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					var nodes []*env
					for _, srv := range harness.StartCluster(t, backend) {
						nodes = append(nodes, (&env{T: t, ctx: ctx}).on(srv))
					}
					s.run(nodes)
				})
			}
		})
	}
}

func (e *env) status() *pb.StatusResponse {
	e.Helper()
	st, err := e.maint.Status(e.ctx, &pb.StatusRequest{})
	must(e, err)
	return st
}

// leaderFirst waits until all know the leader, and returns it and the others.
func leaderFirst(nodes []*env) (leader *env, others []*env) {
	for {
		leader, others = nil, nil
		known := map[uint64]bool{}
		for _, e := range nodes {
			st := e.status()
			if known[st.Leader] = true; st.Leader == st.Header.MemberId {
				leader = e
			} else {
				others = append(others, e)
			}
		}
		if leader != nil && len(known) == 1 {
			return leader, others
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// showsItsAnswers reads from each node, as it is, what was written through it.
func showsItsAnswers(nodes []*env) {
	for i, e := range nodes {
		member := e.status().Header.MemberId
		for range 20 {
			put, err := e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte("k"), Value: []byte{byte(i)}})
			must(e, err)
			equal(e, "member that answers", put.Header.MemberId, member)
			got := e.rng(&pb.RangeRequest{Key: []byte("k"), Serializable: true})
			equal(e, "revision that is read", got.Kvs[0].ModRevision, put.Header.Revision)
			lease := e.grant(0, 100)
			list, err := e.lease.LeaseLeases(e.ctx, &pb.LeaseLeasesRequest{})
			must(e, err)
			granted := func(l *pb.LeaseStatus) bool { return l.ID == lease.ID }
			equal(e, "a lease is listed", slices.ContainsFunc(list.Leases, granted), true)
			_, err = e.lease.LeaseRevoke(e.ctx, &pb.LeaseRevokeRequest{ID: lease.ID})
			must(e, err)
			list, err = e.lease.LeaseLeases(e.ctx, &pb.LeaseLeasesRequest{})
			must(e, err)
			equal(e, "a revoked lease is listed", slices.ContainsFunc(list.Leases, granted), false)
		}
		rev := e.rev()
		_, err := e.kv.Compact(e.ctx, &pb.CompactionRequest{Revision: rev})
		must(e, err)
		_, err = e.kv.Range(e.ctx, &pb.RangeRequest{Key: []byte("k"), Revision: rev - 1, Serializable: true})
		e.fails("a read of what was compacted", err, codes.OutOfRange, textCompacted)
		for _, other := range nodes {
			equal(e, "revision on another node", other.rev(), rev)
		}
	}
}

// leadership: each node says who leads and since which term, and only the leader
// hands that over.
func leadership(nodes []*env) {
	leader, others := leaderFirst(nodes)
	was := leader.status()
	equal(leader, "members", len(leader.members()), 3)
	for _, e := range nodes {
		st := e.status()
		equal(e, "leader", st.Leader, was.Header.MemberId)
		equal(e, "term", st.RaftTerm, was.RaftTerm)
		equal(e, "term in the header", st.Header.RaftTerm, was.RaftTerm)
		equal(e, "cluster", st.Header.ClusterId, was.Header.ClusterId)
		equal(e, "learner", st.IsLearner, false)
		before := e.status().RaftIndex
		e.put("k", "1")
		st = e.status()
		if st.RaftIndex <= before || st.RaftAppliedIndex <= before || st.RaftAppliedIndex > st.RaftIndex {
			e.Errorf("index %d, applied %d after a write at %d", st.RaftIndex, st.RaftAppliedIndex, before)
		}
	}
	next := others[0].status().Header.MemberId
	_, err := others[0].maint.MoveLeader(others[0].ctx, &pb.MoveLeaderRequest{TargetID: next})
	others[0].fails("moved by another", err, codes.FailedPrecondition, "etcdserver: not leader")
	_, err = leader.maint.MoveLeader(leader.ctx, &pb.MoveLeaderRequest{TargetID: next})
	must(leader, err)
	leader, _ = leaderFirst(nodes)
	equal(leader, "leader after that", leader.status().Leader, next)
	if now := leader.status(); now.RaftTerm <= was.RaftTerm {
		leader.Errorf("term %d after %d", now.RaftTerm, was.RaftTerm)
	}
}

// lockOutlastsLeader: who waits for a lock on a node waits on when another one
// leads. (With etcd the wait ends: "leader changed".)
func lockOutlastsLeader(nodes []*env) {
	leader, others := leaderFirst(nodes)
	e, other := others[0], others[1]
	lease := func() string { return fmt.Sprint(e.grant(0, 60).ID) }
	lock := func(lease string) string {
		return e.post("/v3/lock/lock", `{"name":"bG9jaw==","lease":"`+lease+`"}`)
	}
	lock(lease())
	held := e.rng(&pb.RangeRequest{Key: []byte("lock/"), RangeEnd: []byte("lock0")}).Kvs
	if len(held) != 1 {
		e.Fatalf("the lock is held by %v", held)
	}
	second, waiting := make(chan string, 1), lease()
	go func() { second <- lock(waiting) }()
	for e.rng(&pb.RangeRequest{Key: []byte("lock/"), RangeEnd: []byte("lock0"), CountOnly: true}).Count < 2 {
		time.Sleep(time.Millisecond)
	}
	leader.srv.Kill()
	unlock := `{"key":"` + base64.StdEncoding.EncodeToString(held[0].Key) + `"}`
	for !strings.HasPrefix(other.post("/v3/lock/unlock", unlock), "200 ") { // there may be no leader yet
	}
	if got := <-second; !strings.HasPrefix(got, "200 ") {
		e.Errorf("the one that waited: %s", got)
	}
}

const textNoLeader = "etcdserver: no leader"

// withoutLeader is one node of three: who requires a leader is told at once
// that there is none, and streams end after three election timeouts.
func withoutLeader(nodes []*env) {
	leader, others := leaderFirst(nodes)
	e := others[0]
	e.put("k", "1")
	lease := e.grant(0, 100).ID
	required := metadata.AppendToOutgoingContext(e.ctx, "hasleader", "true")
	open := func(ctx context.Context) (pb.Watch_WatchClient, pb.Lease_LeaseKeepAliveClient) {
		e.Helper()
		w, err := e.watches.Watch(ctx)
		must(e, err)
		must(e, w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: all()}}))
		_, err = w.Recv()
		must(e, err)
		k, err := e.lease.LeaseKeepAlive(ctx)
		must(e, err)
		must(e, k.Send(&pb.LeaseKeepAliveRequest{ID: lease}))
		_, err = k.Recv()
		must(e, err)
		return w, k
	}
	watch, keepAlive := open(required)
	other, _ := open(e.ctx)
	leader.srv.Kill()
	others[1].srv.Kill()
	for e.status().Leader != 0 {
		time.Sleep(10 * time.Millisecond)
	}
	_, err := e.kv.Range(required, &pb.RangeRequest{Key: []byte("k"), Serializable: true})
	e.fails("a read that requires a leader", err, codes.Unavailable, textNoLeader)
	soon, cancel := context.WithTimeout(required, time.Minute)
	defer cancel()
	for range 20 { // those that are not refused at once take 7 seconds each
		_, err = e.kv.Put(soon, &pb.PutRequest{Key: []byte("k")})
		e.fails("a put that requires a leader", err, codes.Unavailable, textNoLeader)
	}
	_, err = e.maint.Status(required, &pb.StatusRequest{})
	e.fails("a status that requires a leader", err, codes.Unavailable, textNoLeader)
	equal(e, "a serializable read", e.rng(&pb.RangeRequest{Key: []byte("k"), Serializable: true}).Count, 1)
	st := e.status()
	equal(e, "errors in the status", strings.Join(st.Errors, ", "), textNoLeader)
	code, body, err := e.srv.Get(e.ctx, "/health")
	must(e, err)
	equal(e, "/health", code, http.StatusServiceUnavailable)
	equal(e, "/health", strings.TrimSpace(body), `{"health":"false","reason":"RAFT NO LEADER"}`)
	_, err = watch.Recv()
	e.fails("the watch", err, codes.Unavailable, textNoLeader)
	_, err = keepAlive.Recv()
	e.fails("the keepalives", err, codes.Unavailable, textNoLeader)
	refused, err := e.watches.Watch(required)
	must(e, err)
	_, err = refused.Recv() // streams that are there were ended before
	e.fails("a watch that requires a leader", err, codes.Unavailable, textNoLeader)
	// The other one is answered.
	must(e, other.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}))
	_, err = other.Recv()
	must(e, err)
}
