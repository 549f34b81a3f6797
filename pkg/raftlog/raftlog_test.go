package raftlog_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/eventlog/logtest"
	"github.com/keelson-io/keelson/pkg/internal/testaid"
	"github.com/keelson-io/keelson/pkg/raftlog"
)

// TestMain lets the files of the WAL be small: they are allocated whole, and
// written anew at each start. For the same reason the suite of the drivers,
// which runs with three kinds of clusters, plays 100 random scripts on all of
// them together, unless it is told how many.
func TestMain(m *testing.M) {
	wal.SegmentSizeBytes = 1 << 20
	testaid.Quiet()
	logrus.SetLevel(logrus.ErrorLevel) // nodes warn of what the tests do to them
	if flag.Lookup("rapid.checks").Value.String() == "100" {
		_ = flag.Set("rapid.checks", strconv.Itoa(max(1, 34/raftlog.Sparse)))
	}
	m.Run()
}

// network connects nodes of one process. A message goes through its encoding,
// so that nodes share no memory.
type network struct {
	// heartbeat is the interval of heartbeats of nodes that are opened, and
	// after which they ask again what was not answered.
	heartbeat time.Duration

	// election is the election timeout of nodes that are opened.
	election time.Duration

	// marks is after how many entries nodes that are opened make a mark.
	marks uint64

	// writeDelay is how long the nodes let what they apply collect before they
	// write it, if it is not 0.
	writeDelay time.Duration

	mu    sync.Mutex
	nodes map[uint64]*raftlog.Log // mu
	cut   map[[2]uint64]bool      // mu; from, to

	// fate says after which time each copy of a message arrives; nil lets one
	// arrive at once.
	fate func() []time.Duration // mu

	// watch sees what is sent, and may change it; nil if nobody looks.
	watch func(*raftpb.Message) // mu

	// drop says what is lost; nil loses nothing.
	drop func(*raftpb.Message) bool // mu
}

// patient is an election timeout that does not pass while a node is only slow:
// another one leads when a test makes it the leader.
const patient = time.Minute

// newNetwork returns one for patient nodes.
func newNetwork() *network {
	return &network{heartbeat: 10 * time.Millisecond, election: patient, marks: 50, nodes: make(map[uint64]*raftlog.Log), cut: make(map[[2]uint64]bool)}
}

func (n *network) Send(messages []*raftpb.Message) {
	for _, m := range messages {
		n.mu.Lock()
		from, to, fate := n.nodes[m.GetFrom()], n.nodes[m.GetTo()], n.fate
		if n.cut[[2]uint64{m.GetFrom(), m.GetTo()}] {
			to = nil
		}
		if n.watch != nil {
			m, _ = proto.Clone(m).(*raftpb.Message) // it is one
			n.watch(m)
		}
		if n.drop != nil && n.drop(m) {
			to = nil
		}
		n.mu.Unlock()
		if from != nil && to != nil && slices.Contains(to.Members().Removed, m.GetFrom()) { // as Peers: it may not hear of it otherwise
			from.Removed()
			continue
		}
		if to == nil {
			if from != nil && m.GetType() == raftpb.MsgSnap { // as Peers: raft waits to hear of it
				from.ReportSnapshot(m.GetTo(), false)
			}
			continue
		}
		if m.GetType() == raftpb.MsgSnap {
			go n.sendSnapshot(m.GetFrom(), m.GetTo())
			continue
		}
		raw, err := proto.Marshal(m)
		if err != nil {
			panic(err)
		}
		if fate == nil {
			deliver(to, raw)
			continue
		}
		for _, late := range fate() {
			time.AfterFunc(late, func() { deliver(to, raw) })
		}
	}
}

func deliver(to *raftlog.Log, raw []byte) {
	received := new(raftpb.Message)
	if err := proto.Unmarshal(raw, received); err != nil {
		panic(err)
	}
	if err := to.Step(received); err != nil && !errors.Is(err, eventlog.ErrClosed) && !errors.Is(err, eventlog.ErrFailed) {
		panic(err)
	}
}

// sendSnapshot brings a snapshot from one node to another.
func (n *network) sendSnapshot(from, to uint64) {
	n.mu.Lock()
	source, sink := n.nodes[from], n.nodes[to]
	n.mu.Unlock()
	r, w := io.Pipe()
	go func() { w.CloseWithError(source.WriteSnapshot(context.Background(), w)) }()
	err := sink.ReadSnapshot(context.Background(), r)
	source.ReportSnapshot(to, err == nil)
	r.CloseWithError(err)
}

func (n *network) set(id uint64, log *raftlog.Log) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[id] = log
}

// isolate cuts node id off from the others, or connects it again.
func (n *network) isolate(id uint64, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for other := uint64(1); other <= 5; other++ {
		n.cut[[2]uint64{id, other}], n.cut[[2]uint64{other, id}] = cut, cut
	}
}

// membersOf are the members of a new cluster of size nodes.
func membersOf(size int) []raftlog.Member {
	var members []raftlog.Member
	for i := range size {
		members = append(members, raftlog.Member{ID: uint64(i + 1), Name: fmt.Sprint("n", i+1), PeerURLs: []string{fmt.Sprint("http://node", i+1)}})
	}
	return members
}

// openNode opens node id of a cluster of size nodes kept in dir.
func openNode(t testing.TB, net *network, dir string, id uint64, size int) *raftlog.Log {
	t.Helper()
	return openMember(t, net, dir, id, membersOf(size))
}

// openMember opens node id of a cluster of members, if it is new.
func openMember(t testing.TB, net *network, dir string, id uint64, members []raftlog.Member) *raftlog.Log {
	t.Helper()
	opt := raftlog.Options{
		Dir: filepath.Join(dir, fmt.Sprint("node", id)), Cluster: 7, ID: id, Transport: net,
		HeartbeatInterval: net.heartbeat, ElectionTimeout: net.election, SnapshotCount: net.marks,
	}
	opt.Members = members
	log, err := raftlog.Open(t.Context(), opt)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	if net.writeDelay != 0 {
		log.SetWriteDelay(net.writeDelay)
	}
	net.set(id, log)
	return log
}

// cluster is a log of several nodes that looks like one: what is asked of it,
// the leader is asked.
type cluster struct {
	eventlog.Log // the leader's, after Load
	t            testing.TB
	nodes        []*raftlog.Log
}

func openCluster(t testing.TB, net *network, dir string, size int) *cluster {
	t.Helper()
	c := &cluster{t: t, nodes: make([]*raftlog.Log, size)}
	for i := range c.nodes {
		c.nodes[i] = openNode(t, net, dir, uint64(i+1), size)
	}
	c.Log = c.nodes[0]
	return c
}

// Load loads every node and returns what the leader has once it knows that it
// has everything.
func (c *cluster) Load(ctx context.Context, fn func(*eventlog.Record) error) (eventlog.Head, error) {
	for _, n := range c.nodes {
		if _, err := n.Load(ctx, func(*eventlog.Record) error { return nil }); err != nil {
			return eventlog.Head{}, err
		}
	}
	elect(c.t, c.nodes[0], c.nodes...)
	c.Log = c.nodes[0]
	if _, err := c.Head(ctx); err != nil {
		return eventlog.Head{}, err
	}
	return c.Log.(*raftlog.Log).LoadAgain(ctx, fn)
}

func (c *cluster) Close() error {
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.Close())
	}
	return errors.Join(errs...)
}

func TestLog(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprint(size, " nodes"), func(t *testing.T) {
			t.Parallel()
			logtest.Run(t, logtest.Harness{
				Open: func(t testing.TB, dir string) eventlog.Log { return openCluster(t, newNetwork(), dir, size) },
				FailAppend: func(_ testing.TB, log eventlog.Log, persisted bool) {
					log.(*cluster).Log.(*raftlog.Log).FailAppend(persisted)
				},
			})
		})
	}
}
