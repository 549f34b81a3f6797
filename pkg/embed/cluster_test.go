package embed

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus/hooks/test"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/credentials"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/listen/certtest"
	"github.com/keelson-io/keelson/pkg/raftlog"
)

// clusterNode is a node of a cluster in a test; all of its sockets are in dir.
type clusterNode struct {
	*Server
	client *clientv3.Client
}

// nodeConfig is that of node number i of those whose numbers are in initial.
func nodeConfig(dir string, i int, state string, initial ...int) Config {
	var nodes []string
	for _, n := range initial {
		nodes = append(nodes, fmt.Sprintf("n%d=unix://%s/p%d", n, dir, n))
	}
	return Config{
		Name: fmt.Sprint("n", i), DataDir: filepath.Join(dir, fmt.Sprint("n", i)),
		ListenClientURLs: []string{fmt.Sprintf("unix://%s/c%d", dir, i)},
		Cluster: ClusterConfig{
			InitialCluster: strings.Join(nodes, ","), InitialClusterState: state,
			HeartbeatInterval: 20 * time.Millisecond, ElectionTimeout: 500 * time.Millisecond,
		},
	}
}

func startNode(t *testing.T, cfg Config) clusterNode {
	t.Helper()
	s, _ := start(t, cfg)
	return clusterNode{s, clientOf(t, s)}
}

// startNodes starts a new cluster of three.
func startNodes(t *testing.T, dir string) []clusterNode {
	t.Helper()
	var all []clusterNode
	for i := 1; i <= 3; i++ {
		all = append(all, startNode(t, nodeConfig(dir, i, ClusterStateNew, 1, 2, 3)))
	}
	return all
}

// leaderAmong waits for a leader that all know and returns it and one that is not.
func leaderAmong(t *testing.T, nodes []clusterNode) (leader, follower clusterNode) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		known := 0 // nodes that know of the same leader
		for i, n := range nodes {
			status := n.backend.cluster.newest().Status()
			if status.Leads {
				leader, follower = n, nodes[(i+1)%len(nodes)]
			}
			if first := nodes[0].backend.cluster.newest().Status(); status.Leader != 0 && status.Leader == first.Leader {
				known++
			}
		}
		if known == len(nodes) && leader.Server != nil && leader.backend.cluster.newest().Status().Leads {
			return leader, follower
		}
	}
	t.Fatal("no leader within a minute")
	return
}

// TestCluster: every node takes every request, and shows at once what it has
// answered; watches and leases are everybody's.
func TestCluster(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, shortDir(t))
	leader, follower := leaderAmong(t, nodes)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	watched := follower.client.Watch(clientv3.WithRequireLeader(ctx), "k", clientv3.WithPrefix(), clientv3.WithPrevKV())
	var last int64
	for i := range 12 {
		n := nodes[i%3]
		put, err := n.client.Put(ctx, "k", fmt.Sprint(i))
		if err != nil {
			t.Fatalf("Put %d: %v", i, err)
		}
		if put.Header.Revision <= last || put.Header.MemberId != n.backend.memberID || put.Header.RaftTerm < 2 {
			t.Fatalf("Put %d: header %v after revision %d", i, put.Header, last)
		}
		last = put.Header.Revision
		for j, reader := range nodes { // the one that wrote reads without a fence
			opts := []clientv3.OpOption{}
			if j == i%3 {
				opts = append(opts, clientv3.WithSerializable())
			}
			got, err := reader.client.Get(ctx, "k", opts...)
			if err != nil || string(got.Kvs[0].Value) != fmt.Sprint(i) {
				t.Fatalf("Get %d through node %d: %v, %v", i, j, got, err)
			}
		}
	}
	for seen := 0; seen < 12; {
		resp := <-watched
		if resp.Err() != nil {
			t.Fatalf("watch: %v", resp.Err())
		}
		for _, e := range resp.Events {
			if string(e.Kv.Value) != fmt.Sprint(seen) || seen > 0 && string(e.PrevKv.GetValue()) != fmt.Sprint(seen-1) {
				t.Fatalf("event %d: %v", seen, e)
			}
			seen++
		}
	}
	txn, err := follower.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision("k"), "=", last)).Then(clientv3.OpPut("k", "txn")).Commit()
	if err != nil || !txn.Succeeded {
		t.Fatalf("Txn: %v, %v", txn, err)
	}
	lease, err := follower.client.Grant(ctx, 100)
	if err != nil {
		t.Fatalf("Grant: %v", err)
	}
	if kept, err := follower.client.KeepAliveOnce(ctx, lease.ID); err != nil || kept.TTL != 100 {
		t.Errorf("KeepAliveOnce through a follower: %v, %v", kept, err)
	}
	if left, err := follower.client.TimeToLive(ctx, lease.ID); err != nil || left.TTL < 90 || left.GrantedTTL != 100 {
		t.Errorf("TimeToLive through a follower: %v, %v", left, err)
	}
	if _, err := follower.client.KeepAliveOnce(ctx, 12345); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Errorf("KeepAliveOnce of no lease: %v", err)
	}
	if _, err := follower.client.MoveLeader(ctx, follower.backend.memberID); !errors.Is(err, rpctypes.ErrNotLeader) {
		t.Errorf("MoveLeader through a follower: %v", err)
	}
	if _, err := leader.client.MoveLeader(ctx, follower.backend.memberID); err != nil {
		t.Fatalf("MoveLeader: %v", err)
	}
	if now, _ := leaderAmong(t, nodes); now.backend.memberID != follower.backend.memberID {
		t.Errorf("%x leads after MoveLeader to %x", now.backend.memberID, follower.backend.memberID)
	}
	sameHash(ctx, t, nodes)
}

// sameHash makes sure that all nodes have the same data.
func sameHash(ctx context.Context, t *testing.T, nodes []clusterNode) {
	t.Helper()
	var hashes []uint32
	for _, n := range nodes {
		if _, err := n.client.Get(ctx, "k"); err != nil { // fences
			t.Fatalf("Get: %v", err)
		}
		h, err := n.client.HashKV(ctx, n.Endpoint(), 0)
		if err != nil {
			t.Fatalf("HashKV: %v", err)
		}
		hashes = append(hashes, h.Hash)
	}
	for _, h := range hashes {
		if h != hashes[0] {
			t.Errorf("the nodes have different data: %x", hashes)
		}
	}
}

// TestClusterWithoutLeader: writes wait for the next leader, and what a lease
// or a watch needs goes on with it; the old one comes back and catches up.
func TestClusterWithoutLeader(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	nodes := startNodes(t, dir)
	leader, follower := leaderAmong(t, nodes)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	lease, err := leader.client.Grant(ctx, 4) // outlives the put on a busy machine
	if err != nil {
		t.Fatalf("Grant: %v", err)
	}
	put, err := leader.client.Put(ctx, "k", "leased", clientv3.WithLease(lease.ID))
	if err != nil {
		t.Fatalf("Put: %v", err)
	}
	watched := follower.client.Watch(ctx, "k", clientv3.WithRev(put.Header.Revision+1))
	if err := leader.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	if _, err := follower.client.Put(ctx, "other", "1"); err != nil {
		t.Fatalf("Put without the old leader: %v", err)
	}
	if resp := <-watched; len(resp.Events) != 1 || resp.Events[0].Type != clientv3.EventTypeDelete {
		t.Fatalf("the lease is not revoked by the next leader: %v", resp)
	}
	for i := range nodes {
		if nodes[i].Server == leader.Server {
			nodes[i] = startNode(t, nodeConfig(dir, i+1, ClusterStateNew, 1, 2, 3))
			got, err := nodes[i].client.Get(ctx, "other")
			if err != nil || len(got.Kvs) != 1 {
				t.Errorf("the old leader has not caught up: %v, %v", got, err)
			}
		}
	}
	sameHash(ctx, t, nodes)
}

// TestClusterGrows: a server that ran alone becomes the first node, with its
// data, and others join it.
func TestClusterGrows(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	alone := nodeConfig(dir, 1, "")
	alone.Cluster = ClusterConfig{}
	first := startNode(t, alone)
	for i := range 10 {
		if _, err := first.client.Put(ctx, "k", string(bytes.Repeat([]byte{'a' + byte(i)}, 1000))); err != nil {
			t.Fatalf("Put: %v", err)
		}
	}
	if err := first.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	nodes := []clusterNode{startNode(t, nodeConfig(dir, 1, ClusterStateNew, 1))}
	first, _ = leaderAmong(t, nodes)
	if got, err := first.client.Get(ctx, "k"); err != nil || got.Kvs[0].Version != 10 {
		t.Fatalf("the data is not there any more: %v, %v", got, err)
	}
	for i := 2; i <= 3; i++ {
		added, err := first.client.MemberAddAsLearner(ctx, []string{fmt.Sprintf("unix://%s/p%d", dir, i)})
		if err != nil {
			t.Fatalf("MemberAdd: %v", err)
		}
		cfg := nodeConfig(dir, i, ClusterStateExisting, 1, i)
		if i == 3 { // it was killed before it had got anything
			joinAndDie(t, cfg.DataDir, first, added.Member.ID)
		}
		learner := startNode(t, cfg)
		<-learner.Ready()
		if _, err := learner.client.Put(ctx, "k", "x"); i == 2 && !errors.Is(err, rpctypes.ErrGRPCNotSupportedForLearner) && (err == nil || !strings.Contains(err.Error(), "learner")) {
			t.Errorf("Put through a learner: %v", err)
		}
		for {
			_, err := first.client.MemberPromote(ctx, added.Member.ID)
			if err == nil {
				break
			}
			if !errors.Is(err, rpctypes.ErrMemberLearnerNotReady) && !errors.Is(err, rpctypes.ErrMemberNotEnoughStarted) {
				t.Fatalf("MemberPromote: %v", err)
			}
		}
		nodes = append(nodes, learner)
		got, err := learner.client.Get(ctx, "k")
		for err != nil && strings.Contains(err.Error(), "learner") && ctx.Err() == nil { // it has yet to hear of it
			got, err = learner.client.Get(ctx, "k")
		}
		if err != nil || got.Kvs[0].Version != 10 {
			t.Fatalf("the node that joined has %v, %v", got, err)
		}
	}
	sameHash(ctx, t, nodes)
	awaitNames(ctx, t, nodes[2], 3) // else nobody can be removed
	removed := nodes[2]
	if _, err := first.client.MemberRemove(ctx, removed.backend.memberID); err != nil {
		t.Fatalf("MemberRemove: %v", err)
	}
	<-removed.Done()
	if err := removed.Err(); !errors.Is(err, raftlog.ErrRemoved) {
		t.Errorf("the removed node ended with %v", err)
	}
	status, err := first.client.Status(ctx, first.Endpoint())
	if err != nil || status.Leader == 0 || status.RaftTerm < 2 || status.RaftAppliedIndex < 5 {
		t.Errorf("Status: %v, %v", status, err)
	}
}

// awaitNames waits until all of so many nodes have made themselves known.
func awaitNames(ctx context.Context, t *testing.T, n clusterNode, size int) {
	t.Helper()
	for known := 0; known != size; {
		list, err := n.client.MemberList(ctx)
		if err != nil || len(list.Members) != size {
			t.Fatalf("MemberList: %v, %v, want %d members", list, err, size)
		}
		known = 0
		for _, m := range list.Members {
			if m.Name != "" && len(m.ClientURLs) > 0 {
				known++
			}
		}
	}
}

// TestClusterFindsDifference: a node whose database has got something else than
// the others have is found, and nobody serves until that is settled.
func TestClusterFindsDifference(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	nodes := startNodes(t, dir)
	_, follower := leaderAmong(t, nodes)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if _, err := follower.client.Put(ctx, "k", "1"); err != nil {
		t.Fatalf("Put: %v", err)
	}
	sameHash(ctx, t, nodes)
	for _, n := range nodes {
		if err := n.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
	}
	changeBehind(t, filepath.Join(dir, "n2"))
	restart := func(i int) {
		cfg := nodeConfig(dir, i+1, ClusterStateNew, 1, 2, 3)
		cfg.Cluster.CorruptCheckTime = 50 * time.Millisecond
		nodes[i] = startNode(t, cfg)
	}
	restart(0)
	restart(2)
	leaderAmong(t, []clusterNode{nodes[0], nodes[2]}) // of two that differ the leader counts
	restart(1)
	leader, _ := leaderAmong(t, nodes)
	if _, err := leader.client.Put(ctx, "k", "2"); err != nil && !errors.Is(err, rpctypes.ErrCorrupt) { // it may be found already
		t.Fatalf("Put: %v", err)
	}
	awaitCorrupt(ctx, t, leader, nodes[1])
	if _, err := leader.client.Put(ctx, "k", "3"); !errors.Is(err, rpctypes.ErrCorrupt) {
		t.Errorf("Put with data that differs: %v", err)
	}
}

// TestClusterUncompared: that a node is not there to be compared is logged and
// counted.
func TestClusterUncompared(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	var nodes []clusterNode
	var hooks []*test.Hook
	for i := 1; i <= 3; i++ {
		cfg := nodeConfig(dir, i, ClusterStateNew, 1, 2, 3)
		cfg.Cluster.CorruptCheckTime = 50 * time.Millisecond
		s, hook := start(t, cfg)
		nodes, hooks = append(nodes, clusterNode{s, clientOf(t, s)}), append(hooks, hook)
	}
	leader, follower := leaderAmong(t, nodes)
	if err := follower.Close(); err != nil {
		t.Fatal(err)
	}
	hook := hooks[slices.Index(nodes, leader)]
	hook.Reset()
	awaitLog(t, hook, "its data is not compared", 1)
	if n := nodeMetrics(t, leader)["keelson_uncompared_nodes_total"]; n == 0 {
		t.Error("it is not counted")
	}
}

// awaitCorrupt waits until other, and nobody else, has the alarm CORRUPT.
func awaitCorrupt(ctx context.Context, t *testing.T, n, other clusterNode) {
	t.Helper()
	var alarms []string
	for len(alarms) == 0 {
		list, err := n.client.AlarmList(ctx)
		if err != nil {
			t.Fatalf("AlarmList: %v", err)
		}
		for _, a := range list.Alarms {
			alarms = append(alarms, fmt.Sprintf("%x %v", a.MemberID, a.Alarm))
		}
	}
	if want := fmt.Sprintf("%x CORRUPT", other.backend.memberID); len(alarms) != 1 || alarms[0] != want {
		t.Errorf("alarms %q, want %q", alarms, want)
	}
}

// TestLearnerDiffers: so is a learner, which answers no client.
func TestLearnerDiffers(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cfg := nodeConfig(dir, 1, ClusterStateNew, 1)
	cfg.Cluster.CorruptCheckTime = 50 * time.Millisecond
	// The shortest TTL of a lease is one and a half election timeouts.
	cfg.Cluster.HeartbeatInterval, cfg.Cluster.ElectionTimeout = 100*time.Millisecond, 2500*time.Millisecond
	first := startNode(t, cfg)
	leaderAmong(t, []clusterNode{first})
	if lease, err := first.client.Grant(ctx, 1); err != nil || lease.TTL != 4 {
		t.Errorf("Grant of one second: %v, %v, want 4", lease, err)
	}
	if _, err := first.client.Put(ctx, "k", "1"); err != nil {
		t.Fatalf("Put: %v", err)
	}
	if _, err := first.client.MemberAddAsLearner(ctx, []string{fmt.Sprintf("unix://%s/p2", dir)}); err != nil {
		t.Fatalf("MemberAdd: %v", err)
	}
	joining := nodeConfig(dir, 2, ClusterStateExisting, 1, 2)
	learner := startNode(t, joining)
	for got, err := learner.client.Get(ctx, "k", clientv3.WithSerializable()); err != nil || len(got.Kvs) == 0; {
		if ctx.Err() != nil {
			t.Fatalf("the learner has nothing: %v", err)
		}
		got, err = learner.client.Get(ctx, "k", clientv3.WithSerializable())
	}
	if err := learner.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	changeBehind(t, joining.DataDir)
	learner = startNode(t, joining)
	awaitCorrupt(ctx, t, first, learner)
}

// changeBehind changes the newest value in the database of a node that is not
// running.
func changeBehind(t *testing.T, dir string) {
	t.Helper()
	old, err := sqlite.Open(t.Context(), sqlite.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	batches, err := old.Tail(t.Context(), 0, 1000)
	if err = errors.Join(err, old.Close()); err != nil {
		t.Fatal(err)
	}
	var newest *eventlog.Record // a lease may have expired since
	for _, b := range batches {
		for i := range b.Records {
			if b.Records[i].Kind == eventlog.KindPut {
				newest = &b.Records[i]
			}
		}
	}
	newest.Value = []byte("evil")
	other := t.TempDir()
	changed, err := sqlite.Open(t.Context(), sqlite.Options{Dir: other})
	if err != nil {
		t.Fatal(err)
	}
	_, err = changed.Load(t.Context(), func(*eventlog.Record) error { return nil })
	for i := range batches {
		err = errors.Join(err, changed.Append(t.Context(), &batches[i]))
	}
	if err = errors.Join(err, changed.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(other, sqlite.FileName), filepath.Join(dir, sqlite.FileName)); err != nil {
		t.Fatal(err)
	}
}

// joinAndDie leaves what a node leaves that has joined and received no data.
func joinAndDie(t *testing.T, dir string, first clusterNode, id uint64) {
	t.Helper()
	log, err := raftlog.Open(t.Context(), raftlog.Options{Dir: dir, Cluster: first.backend.cluster.id.Cluster, ID: id})
	if err == nil {
		err = log.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestClusterRefusesEmptyMember: a node whose data is gone must not take part
// as the one that it was.
func TestClusterRefusesEmptyMember(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	nodes := startNodes(t, dir)
	leaderAmong(t, nodes)
	awaitNames(t.Context(), t, nodes[0], 3)
	if err := nodes[2].Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "n3")); err != nil {
		t.Fatal(err)
	}
	for _, state := range []string{ClusterStateNew, ClusterStateExisting} {
		_, err := Start(t.Context(), nodeConfig(dir, 3, state, 1, 2, 3))
		if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "has been up before") {
			t.Errorf("start with %s and without its data: %v", state, err)
		}
	}
}

// TestClusterTLS: nodes recognize each other by certificates of one CA, and let
// nobody else in.
func TestClusterTLS(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	ca, other := certtest.New(t), certtest.New(t)
	ca.Write(t, filepath.Join(dir, "ca.crt"))
	peer := ca.Issue(t, dir, "localhost")
	var nodes []clusterNode
	for i := 1; i <= 3; i++ {
		cfg := nodeConfig(dir, i, ClusterStateNew, 1, 2, 3)
		cfg.Cluster.InitialCluster = strings.ReplaceAll(cfg.Cluster.InitialCluster, "unix://", "unixs://")
		cfg.Cluster.PeerTLS = TLS{
			CertFile: filepath.Join(dir, "localhost.crt"), KeyFile: filepath.Join(dir, "localhost.key"),
			TrustedCAFile: filepath.Join(dir, "ca.crt"), ClientCertAuth: true,
		}
		nodes = append(nodes, startNode(t, cfg))
	}
	_, follower := leaderAmong(t, nodes)
	if _, err := follower.client.Put(t.Context(), "k", "1"); err != nil {
		t.Fatalf("Put: %v", err)
	}
	sameHash(t.Context(), t, nodes)

	foreign := other.Issue(t, t.TempDir(), "localhost")
	for what, certificates := range map[string][]tls.Certificate{
		"a certificate of the nodes' CA": {peer}, "none": nil, "one of another CA": {foreign},
	} {
		creds := credentials.NewTLS(&tls.Config{RootCAs: ca.Pool(), ServerName: "localhost", Certificates: certificates, MinVersion: tls.VersionTLS12})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		_, members, err := raftlog.AskCluster(ctx, "unix:"+filepath.Join(dir, "p1"), creds, false)
		cancel()
		if let := err == nil && len(members) == 3; let != (len(certificates) > 0 && what != "one of another CA") {
			t.Errorf("with %s: %v, %v", what, members, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, _, err := raftlog.AskCluster(ctx, "unix:"+filepath.Join(dir, "p1"), nil, false); err == nil {
		t.Error("without TLS a node answers")
	}
}

// TestClusterFailedNode: on a node whose log has failed nobody waits for what
// the leader has done.
func TestClusterFailedNode(t *testing.T) {
	t.Parallel()
	three := startNodes(t, shortDir(t))
	_, follower := leaderAmong(t, three)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	reached := make(chan error, 1)
	go func() { reached <- nodes{follower.backend.cluster}.Reach(ctx, 1<<40) }()
	follower.backend.newest().raft.Interrupt()
	if err := <-reached; err == nil || ctx.Err() != nil {
		t.Errorf("Reach on a node whose log has failed: %v", err)
	}
	<-follower.Done()
}

// TestClusterStopsWithoutMajority: a write that waits for nodes that do not
// come does not make the stop a failure.
func TestClusterStopsWithoutMajority(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, shortDir(t))
	leader, _ := leaderAmong(t, nodes)
	var stops errgroup.Group
	for _, n := range nodes {
		if n.Server != leader.Server {
			stops.Go(n.Close)
		}
	}
	if err := stops.Wait(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	outcome := make(chan error, 1)
	go func() {
		_, err := leader.client.Put(t.Context(), "k", "v")
		outcome <- err
	}()
	time.Sleep(100 * time.Millisecond) // on its way, before the leader finds that it is alone
	if err := leader.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := <-outcome; err == nil {
		t.Error("a write that no other node has was acknowledged")
	}
}

// TestPeerURLs: URLs of nodes are stored as the others write them, however they
// were given, and such as cannot be reached are refused.
func TestPeerURLs(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	for change, want := range map[string]string{
		"n1=http://127.0.0.1:1,n2=https://127.0.0.1:2":   "for all peer URLs, or for none",
		"n1=http://127.0.0.1:1,n2=http://127.0.0.1":      "is not name=URL",
		"n1=http://127.0.0.1:1,n2=http://127.0.0.1:1":    "is there twice",
		"n1=https://127.0.0.1:1,n2=https://127.0.0.1:2":  "needs --peer-cert-file",
		"n2=http://127.0.0.1:1":                          "does not have this node",
		"n1=http://node.invalid:1,n2=http://127.0.0.1:2": "listen on an IP address",
	} {
		cfg := nodeConfig(dir, 1, ClusterStateNew, 1)
		cfg.Cluster.InitialCluster = change
		if _, err := Start(t.Context(), cfg); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), want) {
			t.Errorf("start with %s: %v, want %q", change, err, want)
		}
	}
	cfg := nodeConfig(dir, 1, ClusterStateNew, 1)
	cfg.Cluster.InitialCluster = " n1 = " + strings.TrimPrefix(cfg.Cluster.InitialCluster, "n1=") + " "
	cfg.Cluster.InitialAdvertisePeerURLs = []string{fmt.Sprintf(" unix://%s/p1", dir)}
	n := startNode(t, cfg)
	leaderAmong(t, []clusterNode{n})

	other := fmt.Sprintf("unix://%s/p2", dir)
	added, err := n.client.MemberAddAsLearner(t.Context(), []string{" " + other + " ", fmt.Sprintf("unix:%s/o2", dir)})
	if err != nil {
		t.Fatalf("MemberAdd: %v", err)
	}
	if want := []string{fmt.Sprintf("unix://%s/o2", dir), other}; !slices.Equal(added.Member.PeerURLs, want) {
		t.Errorf("the member has the peer URLs %q, want %q", added.Member.PeerURLs, want)
	}
	if _, err := n.client.MemberUpdate(t.Context(), added.Member.ID, []string{other + " "}); err != nil {
		t.Fatalf("MemberUpdate: %v", err)
	}
	list, err := n.client.MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list.Members {
		if m.ID == added.Member.ID && !slices.Equal(m.PeerURLs, []string{other}) {
			t.Errorf("the member has the peer URLs %q, want %q", m.PeerURLs, other)
		}
	}
	for _, bad := range [][]string{{"unixs://" + dir + "/p3"}, {other, other}} {
		if _, err := n.client.MemberAddAsLearner(t.Context(), bad); !errors.Is(err, rpctypes.ErrMemberBadURLs) {
			t.Errorf("MemberAdd with %q: %v", bad, err)
		}
		if _, err := n.client.MemberUpdate(t.Context(), added.Member.ID, bad); !errors.Is(err, rpctypes.ErrMemberBadURLs) {
			t.Errorf("MemberUpdate with %q: %v", bad, err)
		}
	}
}

// TestPeerLimits: what clients may do does not bound the nodes, and their URLs
// tell the version and nothing else.
func TestPeerLimits(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	var nodes []clusterNode
	for i := 1; i <= 3; i++ {
		cfg := nodeConfig(dir, i, ClusterStateNew, 1, 2, 3)
		cfg.MaxConcurrentStreams, cfg.MaxRequestBytes, cfg.GRPCKeepAliveMinTime = 1, 1000, time.Hour
		nodes = append(nodes, startNode(t, cfg))
	}
	_, follower := leaderAmong(t, nodes)
	var puts errgroup.Group
	for i := range 100 { // with the others' a batch of more than a client may send
		puts.Go(func() error {
			_, err := follower.client.Put(t.Context(), fmt.Sprint("k", i), strings.Repeat("v", 900))
			return err
		})
	}
	if err := puts.Wait(); err != nil {
		t.Fatalf("Put: %v", err)
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, "p1"))
	}}}
	defer client.CloseIdleConnections()
	for path, want := range map[string]int{"/version": http.StatusOK, "/metrics": http.StatusNotFound, "/health": http.StatusNotFound} {
		resp, err := client.Get("http://node" + path)
		if err != nil {
			t.Fatalf("GET %s: %v", path, err)
		}
		body, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != want || want == http.StatusOK && !strings.Contains(string(body), `"etcdserver"`) {
			t.Errorf("GET %s of a peer URL: %d, %s", path, resp.StatusCode, body)
		}
	}
}

// TestClusterRemovesLeader: of two nodes the one that leads can be removed,
// through itself; the other one goes on alone.
func TestClusterRemovesLeader(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	var nodes []clusterNode
	for i := 1; i <= 2; i++ {
		nodes = append(nodes, startNode(t, nodeConfig(dir, i, ClusterStateNew, 1, 2)))
	}
	leader, other := leaderAmong(t, nodes)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if _, err := leader.client.Put(ctx, "k", "1"); err != nil {
		t.Fatalf("Put: %v", err)
	}
	_, removed := leader.client.MemberRemove(ctx, leader.backend.memberID) // the node may stop before it answers
	select {
	case <-leader.Done():
	case <-ctx.Done():
		t.Fatalf("the leader goes on; MemberRemove: %v", removed)
	}
	if err := leader.Err(); !errors.Is(err, raftlog.ErrRemoved) {
		t.Errorf("the leader that was removed ended with %v", err)
	}
	if _, err := other.client.Put(ctx, "k", "2"); err != nil {
		t.Fatalf("Put without it: %v", err)
	}
	list, err := other.client.MemberList(ctx)
	if err != nil || len(list.Members) != 1 || list.Members[0].ID != other.backend.memberID {
		t.Errorf("MemberList: %v, %v", list, err)
	}
}
