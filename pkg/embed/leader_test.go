package embed

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// TestLeaderIsMissed: on a node without a majority, clients that require a
// leader get no answer at once, and their streams end after three election
// timeouts, though the node votes again and again.
func TestLeaderIsMissed(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, shortDir(t))
	leader, left := leaderAmong(t, nodes)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	lease, err := leader.client.Grant(ctx, 100)
	if err != nil {
		t.Fatal(err)
	}
	required := clientv3.WithRequireLeader(ctx)
	watched, others := left.client.Watch(required, "k", clientv3.WithCreatedNotify()), left.client.Watch(ctx, "k", clientv3.WithCreatedNotify())
	<-watched
	<-others
	kept, err := left.client.KeepAlive(required, lease.ID)
	if err != nil {
		t.Fatal(err)
	}
	<-kept
	closed, led := make(chan struct{}), make(chan time.Time, 1)
	go func() { led <- lastLed(left, closed) }()
	for _, n := range nodes {
		if n.Server != left.Server {
			_ = n.Close() // the last of them cannot hand over
		}
	}
	close(closed)
	missed := <-led
	began := time.Now()
	conn, err := grpc.NewClient(left.Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials())) // clientv3 tries again
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := pb.NewKVClient(conn).Put(required, &pb.PutRequest{Key: []byte("k")}); !errors.Is(err, rpctypes.ErrGRPCNoLeader) || time.Since(began) > 5*time.Second { // others wait for 7
		t.Errorf("Put that requires a leader: %v after %v", err, time.Since(began))
	}
	if _, err := left.client.Get(ctx, "k", clientv3.WithSerializable()); err != nil {
		t.Errorf("Get: %v", err)
	}
	resp := <-watched
	patience := left.backend.set.cluster.ElectionTimeout * noLeaderElections
	if took := time.Since(missed); !errors.Is(resp.Err(), rpctypes.ErrNoLeader) || took < patience {
		t.Errorf("the watch ended after %v with %v, want no leader after %v", took, resp.Err(), patience)
	}
	for range kept { // ends without a leader
	}
	select {
	case resp := <-others:
		t.Errorf("a watch that does not require a leader got %v", resp)
	default:
	}
}

// lastLed returns when n had a leader for the last time, once it has none after
// closed.
func lastLed(n clusterNode, closed <-chan struct{}) (last time.Time) {
	for over := false; ; time.Sleep(time.Millisecond) {
		select {
		case <-closed:
			over = true
		default:
		}
		now := time.Now() // it is lost after this, if there is one
		if n.backend.cluster.newest().Status().Leader != 0 {
			last = now
		} else if over {
			return last
		}
	}
}

// TestClusterMetrics: a node says what goes on between it and the others, and
// how far it is.
func TestClusterMetrics(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, shortDir(t))
	leader, follower := leaderAmong(t, nodes)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	before := nodeMetrics(t, follower)
	value := strings.Repeat("x", 100_000)
	for range 10 {
		if _, err := follower.client.Put(ctx, "k", value); err != nil {
			t.Fatal(err)
		}
	}
	peer := func(m map[string]float64, name, label string, of clusterNode) float64 {
		t.Helper()
		v, ok := m[fmt.Sprintf("etcd_network_peer_%s{%s=\"%x\"}", name, label, of.backend.memberID)]
		if !ok {
			t.Fatalf("there is no %s of node %x", name, of.backend.memberID)
		}
		return v
	}
	after, ofLeader := nodeMetrics(t, follower), nodeMetrics(t, leader)
	if got := peer(after, "received_bytes_total", "From", leader) - peer(before, "received_bytes_total", "From", leader); got < 1e6 || got > 3e6 {
		t.Errorf("%v bytes received from the leader, want a million and a bit", got)
	}
	if got := peer(ofLeader, "sent_bytes_total", "To", follower); got < 1e6 {
		t.Errorf("%v bytes sent to the follower", got)
	}
	peer(after, "sent_failures_total", "To", leader)
	for name, want := range map[string][2]float64{ // on the leader and on the follower
		"etcd_server_has_leader": {1, 1}, "etcd_server_is_leader": {1, 0}, "etcd_server_is_learner": {0, 0},
		"etcd_server_proposals_pending": {0, 0}, "etcd_server_proposals_failed_total": {0, 0},
	} {
		if ofLeader[name] != want[0] || after[name] != want[1] {
			t.Errorf("%s: %v and %v, want %v", name, ofLeader[name], after[name], want)
		}
	}
	status, err := follower.client.Status(ctx, follower.Endpoint())
	if err != nil {
		t.Fatal(err)
	}
	committed, applied := after["etcd_server_proposals_committed_total"], after["etcd_server_proposals_applied_total"]
	if committed-before["etcd_server_proposals_committed_total"] < 10 || applied > committed || float64(status.RaftIndex) < committed {
		t.Errorf("committed %v, applied %v after ten writes; before: %v; status %v", committed, applied, before["etcd_server_proposals_committed_total"], status)
	}
	trips := fmt.Sprintf("etcd_network_peer_round_trip_time_seconds_count{To=\"%x\"}", leader.backend.memberID)
	for nodeMetrics(t, follower)[trips] == 0 { // there is none before the first
		if ctx.Err() != nil {
			t.Fatal("no round trip within two minutes")
		}
	}
}

// nodeMetrics are the numbers in what /metrics of a node shows, by name and
// labels.
func nodeMetrics(t *testing.T, n clusterNode) map[string]float64 {
	t.Helper()
	m := make(map[string]float64)
	for _, found := range regexp.MustCompile(`(?m)^([^# ]\S*) (\S+)$`).FindAllStringSubmatch(metricsOf(t, n.Server), -1) {
		v, err := strconv.ParseFloat(found[2], 64)
		if err != nil {
			t.Fatal(err)
		}
		m[found[1]] = v
	}
	return m
}
