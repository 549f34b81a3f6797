package raftlog_test

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/raftlog"
)

// remote is a node that others reach through gRPC.
type remote struct {
	log    *raftlog.Log
	peers  *raftlog.Peers
	server *grpc.Server
	hook   *test.Hook
	trips  chan uint64 // to which nodes the way was measured
}

// startRemote starts node id of three in dir, which serves on a unix socket.
func startRemote(t *testing.T, dir string, cluster, id uint64) *remote {
	t.Helper()
	return startPatient(t, dir, cluster, id, patient)
}

// startPatient starts a node with an election timeout.
func startPatient(t *testing.T, dir string, cluster, id uint64, election time.Duration) *remote {
	t.Helper()
	logger, hook := test.NewNullLogger()
	r := &remote{hook: hook, server: grpc.NewServer(append(raftlog.ServerOptions(), grpc.WaitForHandlers(true))...), trips: make(chan uint64, 100)}
	r.peers = raftlog.NewPeers(raftlog.PeersOptions{
		Cluster: cluster, ID: id, Logger: logrus.NewEntry(logger),
		OnRoundTrip: func(id uint64, took time.Duration) {
			if took > 0 {
				r.trips <- id
			}
		},
	})
	log, err := raftlog.Open(t.Context(), raftlog.Options{
		Dir: filepath.Join(dir, fmt.Sprint("node", id)), Cluster: cluster, ID: id, Members: membersOf(3),
		Transport: r.peers, HeartbeatInterval: 20 * time.Millisecond, ElectionTimeout: election,
		Logger: logrus.NewEntry(logger),
	})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	r.log = log
	r.peers.Serve(r.server, log)
	listener, err := net.Listen("unix", filepath.Join(dir, fmt.Sprint(id)))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = r.server.Serve(listener) }() // ends with the server
	for other := uint64(1); other <= 3; other++ {
		if other == id {
			continue
		}
		if err := r.peers.Set(other, "unix:"+filepath.Join(dir, fmt.Sprint(other))); err != nil {
			t.Fatalf("Set: %v", err)
		}
	}
	if _, err := log.Load(t.Context(), func(*eventlog.Record) error { return nil }); err != nil {
		t.Fatalf("Load: %v", err)
	}
	return r
}

func (r *remote) stop(t *testing.T) {
	t.Helper()
	r.server.Stop()
	if err := r.peers.Close(); err != nil {
		t.Errorf("Close of the peers: %v", err)
	}
	if err := r.log.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// headOf asks for the head of a node that has just started, again if there is
// no leader yet: with little time to compute, elections take theirs.
func headOf(t *testing.T, log *raftlog.Log) (head eventlog.Position, err error) {
	t.Helper()
	for deadline := time.Now().Add(forever); time.Now().Before(deadline); {
		if head, err = log.Head(t.Context()); err == nil {
			break
		}
	}
	return head, err
}

// TestPeers: three nodes over gRPC go on without one, and bring it up to date
// when it is back, with entries larger than gRPC's usual limit.
func TestPeers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var all []*remote
	var logs []*raftlog.Log
	for id := uint64(1); id <= 3; id++ {
		all = append(all, startRemote(t, dir, 7, id))
		logs = append(logs, all[id-1].log)
	}
	defer func() {
		for _, r := range all {
			r.stop(t)
		}
	}()
	leader := logs[0]
	elect(t, leader, logs...)
	head := appendTo(t, leader, eventlog.Head{}, "first")

	down := leader.Status().ID%3 + 1
	all[down-1].stop(t)
	large := batchOn(head, "large")
	large.Records[0].Value = []byte(strings.Repeat("x", 6<<20))
	if err := leader.Append(t.Context(), large); err != nil {
		t.Fatalf("Append without node %d: %v", down, err)
	}
	head = after(large)
	up := 6 - leader.Status().ID - down
	await(t, "the traffic is counted", func() bool {
		sent, received := all[leader.Status().ID-1].peers.Traffic(), all[up-1].peers.Traffic()[leader.Status().ID]
		if sent[down].Sent > 6<<20 {
			t.Fatalf("the leader has sent %+v", sent)
		}
		return sent[up].Sent >= 6<<20 && received.Received >= 6<<20 && received.Sent > 0 && sent[down].Failures > 0
	})
	if committed := leader.Status().Committed; committed == 0 || committed < leader.Status().Applied {
		t.Errorf("status %+v", leader.Status())
	}
	for trip := range all[leader.Status().ID-1].trips {
		if trip == up {
			break
		}
	}
	for i := range 20 {
		head = appendTo(t, leader, head, fmt.Sprint("key", i))
	}

	all[down-1] = startRemote(t, dir, 7, down)
	back := all[down-1].log
	if at, err := headOf(t, back); err != nil || at != head.Position {
		t.Fatalf("Head of the node that is back: %d, %v, want %d", at, err, head.Position)
	}
	sameBatches(t, leader, back)

	all[down-1].stop(t)
	head = forgotten(t, leader, head)
	all[down-1] = startRemote(t, dir, 7, down)
	select {
	case <-all[down-1].log.Failed():
	case <-time.After(forever):
		t.Fatalf("no snapshot within %v", forever)
	}
	all[down-1].stop(t)
	all[down-1] = startRemote(t, dir, 7, down)
	if at, err := headOf(t, all[down-1].log); err != nil || at != head.Position {
		t.Fatalf("Head after a snapshot: %d, %v, want %d", at, err, head.Position)
	}
	sameBatches(t, leader, all[down-1].log)
}

// TestWrongCluster: a node of another cluster gets an answer that says so.
func TestWrongCluster(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, second := startRemote(t, dir, 7, 1), startRemote(t, dir, 8, 2)
	defer first.stop(t)
	defer second.stop(t)
	await(t, "the refusal", func() bool {
		for _, e := range second.hook.AllEntries() {
			if err, _ := e.Data["error"].(error); err != nil && strings.Contains(err.Error(), "belongs to cluster 7, not to 8") {
				return true
			}
		}
		return false
	})
}

// TestSnapshotStalls: a node that takes nothing of a snapshot is given up.
func TestSnapshotStalls(t *testing.T) {
	t.Parallel()
	dir, logger := t.TempDir(), logrus.New()
	hook := test.NewLocal(logger)
	logger.SetOutput(io.Discard)
	listener, err := net.Listen("unix", filepath.Join(dir, "2"))
	if err != nil {
		t.Fatal(err)
	}
	hangs := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		<-s.Context().Done()
		return s.Context().Err()
	}))
	go func() { _ = hangs.Serve(listener) }() // ends with the server
	defer hangs.Stop()

	log := leaderOf(t, nodesOf(t, newNetwork(), dir, 1)...)
	fill(t, log, eventlog.Head{}, 10) // more than gRPC takes unread
	peers := raftlog.NewPeers(raftlog.PeersOptions{Cluster: 7, ID: 1, Logger: logrus.NewEntry(logger)})
	defer peers.Close()
	peers.SetSnapshotPatience(200 * time.Millisecond)
	peers.Use(log)
	if err := peers.Set(2, "unix:"+filepath.Join(dir, "nobody"), "unix:"+filepath.Join(dir, "2")); err != nil {
		t.Fatal(err)
	}
	peers.Send([]*raftpb.Message{{Type: raftpb.MsgSnap.Enum(), From: new(uint64(1)), To: new(uint64(2))}})
	await(t, "the snapshot is given up", func() bool {
		for _, e := range hook.AllEntries() {
			if err, _ := e.Data["error"].(error); err != nil && strings.Contains(err.Error(), "takes no more of it") {
				return true
			}
		}
		return false
	})
}

// TestSendDoesNotWait: who sends to a node that takes nothing in does not wait
// for it, whatever is sent, and neither does who asks for something else.
func TestSendDoesNotWait(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]uint64{"that says nothing": 0, "that has let some in": raftlog.LeaveBytes} {
		t.Run(name, func(t *testing.T) {
			dir, opened := t.TempDir(), make(chan struct{}, 100)
			listener, err := net.Listen("unix", filepath.Join(dir, "2"))
			if err != nil {
				t.Fatal(err)
			}
			hangs := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
				if leave > 0 {
					_ = s.SendMsg(&raftpb.Message{Index: &leave})
				}
				opened <- struct{}{}
				<-s.Context().Done()
				return s.Context().Err()
			}))
			go func() { _ = hangs.Serve(listener) }() // ends with the server
			defer hangs.Stop()
			logger, _ := test.NewNullLogger()
			peers := raftlog.NewPeers(raftlog.PeersOptions{Cluster: 7, ID: 1, Logger: logrus.NewEntry(logger)})
			if err := peers.Set(2, "unix:"+filepath.Join(dir, "2")); err != nil {
				t.Fatal(err)
			}
			<-opened
			<-opened
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				for i := range 20_000 { // 2 MiB
					for _, typ := range []raftpb.MessageType{raftpb.MsgReadIndex, raftpb.MsgHeartbeat} {
						peers.Send([]*raftpb.Message{{Type: &typ, From: new(uint64(1)), To: new(uint64(2)), Context: make([]byte, 30)}})
					}
					if i%100 == 0 { // what has waited goes on
						time.Sleep(time.Millisecond)
					}
				}
				peers.Traffic()
			}()
			select {
			case <-sent:
			case <-time.After(forever):
				t.Error("who sends waits")
				hangs.Stop()
				<-sent
			}
			if err := peers.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSendNow: a node that takes messages in gets them without a goroutine in
// between, however many there are.
func TestSendNow(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, second := startRemote(t, dir, 7, 1), startRemote(t, dir, 7, 2)
	defer first.stop(t)
	defer second.stop(t)
	sent := 0 // bytes, at least
	await(t, "messages are sent at once", func() bool {
		for range 10 {
			m := &raftpb.Message{Type: raftpb.MsgReadIndexResp.Enum(), From: new(uint64(1)), To: new(uint64(2)), Context: make([]byte, 500)}
			if first.peers.SendNow(2, m) {
				sent += len(m.Context)
			}
		}
		return sent > 4*raftlog.LeaveBytes
	})
}

// TestAddresses: a node is reached at any of its addresses, and again at another
// one when that is gone.
func TestAddresses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var servers []*grpc.Server
	served := make(chan int, 100)
	for i := range 2 {
		listener, err := net.Listen("unix", filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
			for {
				if err := s.RecvMsg(new(raftpb.Message)); err != nil {
					return err
				}
				served <- i
			}
		}))
		go func() { _ = s.Serve(listener) }() // ends with the server
		servers = append(servers, s)
		defer s.Stop()
	}
	logger, _ := test.NewNullLogger()
	peers := raftlog.NewPeers(raftlog.PeersOptions{Cluster: 7, ID: 1, Logger: logrus.NewEntry(logger)})
	defer peers.Close()
	if err := peers.Set(2, "127.0.0.1:1", "unix:"+filepath.Join(dir, "0"), "unix:"+filepath.Join(dir, "1")); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{0, 1} {
		await(t, fmt.Sprint("a message at address ", want), func() bool {
			peers.Send([]*raftpb.Message{{Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(1)), To: new(uint64(2))}})
			select {
			case at := <-served:
				return at == want
			default:
				return false
			}
		})
		servers[want].Stop()
	}
}

// TestLeaderEnds: a leader whose process ends is replaced at once, and not
// after an election timeout; one that is only said to have ended leads on.
func TestLeaderEnds(t *testing.T) {
	t.Parallel()
	const election = 10 * time.Minute
	dir := t.TempDir()
	var all []*remote
	var logs []*raftlog.Log
	for id := uint64(1); id <= 3; id++ {
		all = append(all, startPatient(t, dir, 7, id, election))
		logs = append(logs, all[id-1].log)
	}
	leader := logs[1]
	elect(t, leader, logs...)
	head := appendTo(t, leader, eventlog.Head{}, "before")

	term := leader.Status().Term
	logs[0].LeaderGone(leader.Status().ID)
	await(t, "node 1 hears from the leader again", func() bool { return logs[0].Status().Leader == leader.Status().ID })
	if head = appendTo(t, leader, head, "still"); leader.Status().Term != term {
		t.Errorf("term %d after %d: a node that was wrong about the leader has disturbed it", leader.Status().Term, term)
	}

	all[1].stop(t)
	next := leaderOf(t, logs[0], logs[2])
	if at, err := next.Head(t.Context()); err != nil || at != head.Position {
		t.Errorf("Head: %d, %v, want %d", at, err, head.Position)
	}
	appendTo(t, next, head, "after")
	all[0].stop(t)
	all[2].stop(t)
}
