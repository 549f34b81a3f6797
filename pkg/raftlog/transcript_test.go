package raftlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/sirupsen/logrus"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

// TestTranscripts plays what testdata/*.txt say on nodes that do one step at a
// time. go test -rewrite writes what they answer.
//
//	nodes 3                   opens a new cluster of nodes 1 to 3
//	join 4                    opens a node that has no data yet
//	step 1 …                  lets nodes do what they have to do: write, apply
//	think 1 …                 lets them take what was delivered, and send what needs no write
//	deliver [from=1] [to=2]   brings messages to where they go
//	drop [from=1] [to=2]      loses them
//	cut 1, heal 1             loses all messages of a node from now on
//	hold, release             keeps snapshots on their way
//	stabilize [1 …] [quiet]   steps and delivers, among nodes, until nothing is left to do
//	campaign 2                node 2 tries to become the leader
//	silence 2 …               nodes that have heard of no leader for an election timeout
//	gone 2 … leader=1         nodes that have seen that the leader's process has ended
//	tick 1 [count=10]         time passes
//	append 1 key …            node 1 evaluates a batch on what it has, and proposes it
//	fence 2                   asks what is committed
//	fence-again 2             asks again, for lack of an answer
//	change 1 add=4|add-learner=4|promote=4|remove=4
//	hand-over 1 [to=2]        hands the leadership over
//	checkpoint 1              makes a database durable
//	crash 1, restart 1        node 1 loses what is not durable
//	status [1 …]              what nodes have
func TestTranscripts(t *testing.T) {
	t.Parallel()
	datadriven.Walk(t, "testdata/transcripts", func(t *testing.T, path string) {
		s := &sim{t: t, dir: t.TempDir(), nodes: make(map[uint64]*simNode), cut: make(map[uint64]bool), data: make(map[*raftpb.Message][]byte)}
		defer s.close()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s.t, s.quiet = t, d.HasArg("quiet")
			s.out.Reset()
			s.run(d)
			return s.out.String()
		})
	})
}

// sim is a cluster whose nodes have no goroutines of their own: what a node's
// loop, its WAL and its database have to do waits in its mailboxes until step.
type sim struct {
	t       *testing.T
	dir     string
	nodes   map[uint64]*simNode
	wire    []*raftpb.Message
	cut     map[uint64]bool
	held    bool                       // snapshots are
	data    map[*raftpb.Message][]byte // of a snapshot on its way
	waiting []outcome
	fences  uint64
	out     strings.Builder
	quiet   bool
}

type simNode struct {
	id     uint64
	log    *Log    // nil while it is down
	image  []byte  // its database as of the newest checkpoint
	state  string  // as it was said last
	marked uint64  // likewise
	names  Members // likewise
}

// outcome is what somebody waits for.
type outcome struct {
	what string
	node *simNode
	get  func() (error, bool)
}

func (s *sim) sayf(format string, args ...any) {
	if !s.quiet {
		fmt.Fprintf(&s.out, format+"\n", args...)
	}
}

func (s *sim) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *sim) run(d *datadriven.TestData) {
	switch d.Cmd {
	case "nodes":
		s.openNew(int(s.ids(d)[0]))
	case "hold", "release":
		s.held = d.Cmd == "hold"
	case "deliver", "drop":
		s.move(d)
	case "stabilize":
		named := named(d)
		among := func(m *raftpb.Message) bool {
			return len(named) == 0 || slices.Contains(named, m.GetFrom()) && slices.Contains(named, m.GetTo())
		}
		for s.stepAll(s.ids(d)) || s.deliver(among) {
		}
	case "step":
		for s.stepAll(s.ids(d)) {
		}
	case "status":
		s.quiet = false
		for _, id := range s.ids(d) {
			s.sayf("%s", s.nodes[id].describe(s))
		}
	default:
		for _, id := range s.ids(d) {
			s.act(d, id)
		}
	}
}

// act does what is about one node.
func (s *sim) act(d *datadriven.TestData, id uint64) {
	n := s.nodes[id]
	switch d.Cmd {
	case "join":
		s.open(id, nil)
	case "restart":
		s.open(id, nil)
	case "crash":
		s.crash(n)
	case "cut", "heal":
		s.cut[id] = d.Cmd == "cut"
	case "campaign":
		s.must(n.log.node.raw.Campaign())
	case "think":
		s.think(n)
	case "silence":
		s.must(n.log.node.raw.ForgetLeader())
	case "gone":
		var leader uint64
		d.ScanArgs(s.t, "leader", &leader)
		n.log.node.leaderGone(leader)
	case "tick":
		count := 1
		d.MaybeScanArgs(s.t, "count", &count)
		for range count {
			n.log.node.tickOnce()
		}
	case "append":
		for _, arg := range d.CmdArgs[1:] {
			s.append(n, arg.Key)
		}
	case "fence":
		s.fences++
		n.log.reads.last = s.fences - 1
		n.log.reads.asked = nil // the one before may be lost
		n.log.nextQuestion()
		s.sayf("%d asks as %d", id, s.fences)
	case "fence-again":
		n.log.askAgain() // the first time it is not old yet
		n.log.askAgain()
	case "change":
		s.change(n, d)
	case "hand-over":
		s.handOver(n, d)
	case "checkpoint":
		s.checkpoint(n)
	default:
		s.t.Fatalf("%s: no such command", d.Pos)
	}
}

// ids are the nodes that a command names, or all that run.
func (s *sim) ids(d *datadriven.TestData) []uint64 {
	if ids := named(d); len(ids) > 0 {
		return ids
	}
	return s.all()
}

func named(d *datadriven.TestData) (ids []uint64) {
	for _, arg := range d.CmdArgs {
		if id, err := strconv.ParseUint(arg.Key, 10, 64); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

func (s *sim) all() (ids []uint64) {
	for id, n := range s.nodes {
		if n.log != nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (s *sim) openNew(size int) {
	var members []Member
	for id := uint64(1); id <= uint64(size); id++ {
		members = append(members, Member{ID: id, Name: fmt.Sprint("n", id), PeerURLs: []string{fmt.Sprint("http://node", id)}})
	}
	for _, m := range members {
		s.open(m.ID, members)
	}
}

func (s *sim) open(id uint64, members []Member) {
	s.t.Helper()
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	log, err := Open(context.Background(), Options{
		Dir: s.nodeDir(id), Cluster: 7, ID: id, Members: members, Transport: s,
		HeartbeatInterval: 100 * time.Millisecond, ElectionTimeout: time.Second,
		SnapshotCount: 1, // every entry can be a mark, once there is a checkpoint
		Logger:        logrus.NewEntry(logger),
	})
	s.must(err)
	_, err = log.behind.load(context.Background(), func(*eventlog.Record) error { return nil })
	s.must(err)
	n := s.nodes[id]
	if n == nil {
		n = &simNode{id: id}
		s.nodes[id] = n
	}
	n.log, n.marked, n.names = log, log.node.disk.marked, log.Members()
	log.readRetry = time.Hour // fence-again asks again
	log.node.onRead = func(request, index uint64) {
		if q := log.reads.asked; q != nil && q.id == request {
			log.confirmRead(request, index)
			s.sayf("%d: the answer to %d is entry %d", id, request, q.index)
		}
	}
	if n.image == nil {
		s.checkpoint(n)
	}
	log.node.starts = log.node.alone()
	log.node.campaignAlone()
	s.notice(n)
}

func (s *sim) nodeDir(id uint64) string { return filepath.Join(s.dir, fmt.Sprint("node", id)) }

func (s *sim) checkpoint(n *simNode) {
	s.t.Helper()
	s.must(n.log.Checkpoint(context.Background()))
	image, err := os.ReadFile(filepath.Join(s.nodeDir(n.id), sqlite.FileName))
	s.must(err)
	n.image = image
}

// crash is a power cut: what waits to be written is gone, and of the database
// what came after the newest checkpoint.
func (s *sim) crash(n *simNode) {
	s.must(n.log.Close())
	n.log = nil
	database := filepath.Join(s.nodeDir(n.id), sqlite.FileName)
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(database + suffix); !errors.Is(err, os.ErrNotExist) {
			s.must(err)
		}
	}
	s.must(os.WriteFile(database, n.image, 0o600))
	s.waiting = slices.DeleteFunc(s.waiting, func(o outcome) bool { return o.node == n })
}

func (s *sim) close() {
	for _, n := range s.nodes {
		if n.log != nil {
			s.must(n.log.Close())
		}
	}
}

// Send implements Transport.
func (s *sim) Send(messages []*raftpb.Message) {
	for _, m := range messages {
		s.checkPublished(m)
		if m.GetType() == raftpb.MsgSnap {
			var data bytes.Buffer
			s.must(s.nodes[m.GetFrom()].log.WriteSnapshot(context.Background(), &data))
			s.data[m] = data.Bytes()
		}
		s.wire = append(s.wire, m)
	}
}

// checkPublished: when a message may help to elect a leader, or lets another
// node know what is committed, its sender's answers to questions reckon with
// that already.
func (s *sim) checkPublished(m *raftpb.Message) {
	n := s.nodes[m.GetFrom()].log.node
	votes := m.GetType() == raftpb.MsgVote || m.GetType() == raftpb.MsgVoteResp || m.GetType() == raftpb.MsgTimeoutNow
	if published := n.status.Load().Term; votes && published < m.GetTerm() {
		s.t.Errorf("%s: term %d is published", describeMessage(m), published)
	}
	if published := n.committed.Load(); published < m.GetCommit() {
		s.t.Errorf("%s: entry %d is published to be committed", describeMessage(m), published)
	}
}

// drive runs fn, which may wait for the loop of n, and the loop.
func (s *sim) drive(n *simNode, fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	for {
		select {
		case err := <-done:
			return err
		case <-n.log.node.inputs.wake:
			s.loop(n)
		}
	}
}

// loop takes the inputs of n's loop, and reports whether there were any.
func (s *sim) loop(n *simNode) bool {
	inputs := n.log.node.inputs.take()
	for _, input := range inputs {
		input(n.log.node.raw)
	}
	return len(inputs) > 0
}

// stepAll reports whether there was something to do.
func (s *sim) stepAll(ids []uint64) bool {
	worked := false
	for _, id := range ids {
		for n := s.nodes[id]; n.log != nil && s.step(n); {
			worked = true
		}
	}
	return worked
}

// think lets the loop of n run until nothing is left for it to do, and reports
// whether there was anything.
func (s *sim) think(n *simNode) bool {
	node := n.log.node
	worked := s.loop(n)
	worked = node.campaignAlone() || node.takeOver() || worked
	if node.halted != nil {
		return true
	}
	for node.raw.HasReady() {
		node.dispatch(node.raw.Ready())
		worked = true
	}
	s.notice(n)
	return worked
}

// step lets n do what raft and others want of it now.
func (s *sim) step(n *simNode) bool {
	node, worked := n.log.node, s.think(n)
	if node.halted != nil {
		s.again(n)
		return true
	}
	for _, m := range node.appends.take() {
		worked = true
		if len(m.Entries) > 0 {
			s.sayf("%d writes %s", n.id, entries(m.Entries))
		}
		s.must(node.save(m))
		node.send(m.Responses)
	}
	for _, m := range node.applies.take() {
		worked = true
		for _, e := range m.Entries {
			if !s.apply(n, e) {
				return true
			}
		}
		node.send(m.Responses)
	}
	s.settle()
	return worked
}

// apply applies e, and reports whether n is there still.
func (s *sim) apply(n *simNode, e *raftpb.Entry) bool {
	before := s.position(n)
	err := s.drive(n, func() error { return n.log.applyEntries(context.Background(), []*raftpb.Entry{e}) })
	effect := "nothing changes"
	if after := s.position(n); after > before {
		effect = fmt.Sprintf("position %d", after)
	}
	if ms := n.log.Members(); !slices.EqualFunc(ms.Members, n.names.Members, func(a, b Member) bool { return a.ID == b.ID && a.Learner == b.Learner }) {
		n.names = ms
		effect = "members " + ms.describe()
	}
	s.sayf("%d applies %s: %s", n.id, describeEntry(e), effect)
	if marked := n.log.node.disk.marked; marked != n.marked {
		s.sayf("%d needs nothing up to %d for a restart", n.id, marked)
		n.marked = marked
	}
	if errors.Is(err, ErrRemoved) {
		s.settle()
		s.stop(n)
		return false
	}
	s.must(err)
	return true
}

// again opens a node that has received a snapshot.
func (s *sim) again(n *simNode) {
	if !errors.Is(n.log.node.halted, ErrReplaced) {
		s.t.Fatal(n.log.node.halted)
	}
	s.must(n.log.Close())
	n.image = nil // it is durable
	s.open(n.id, nil)
	s.sayf("%d opens the snapshot: entry %d, position %d, members %s", n.id, n.log.Status().Applied, s.position(n), n.names.describe())
}

func (s *sim) stop(n *simNode) {
	s.sayf("%d stops: %v", n.id, ErrRemoved)
	s.must(n.log.Close())
	n.log = nil
}

func (s *sim) position(n *simNode) eventlog.Position {
	return n.log.behind.now().Position
}

// notice says what a node is once that changes.
func (s *sim) notice(n *simNode) {
	b := n.log.node.raw.BasicStatus()
	state := fmt.Sprintf("%s of term %d, leader %d", strings.TrimPrefix(b.RaftState.String(), "State"), b.GetTerm(), b.Lead)
	if state != n.state {
		s.sayf("%d: %s", n.id, state)
		n.state = state
	}
}

// settle says the outcomes that are known by now.
func (s *sim) settle() {
	s.waiting = slices.DeleteFunc(s.waiting, func(o outcome) bool {
		err, known := o.get()
		switch {
		case known && err != nil:
			s.sayf("%d: %s: %v", o.node.id, o.what, err)
		case known:
			s.sayf("%d: %s: done", o.node.id, o.what)
		}
		return known
	})
}

// append proposes a batch on what n has.
func (s *sim) append(n *simNode, key string) {
	head := n.log.behind.now()
	b := &eventlog.Batch{ID: eventlog.NewBatchID(), Base: head.Position}
	b.Records = []eventlog.Record{{
		Seq: head.Seq + 1, Position: b.Position(), Kind: eventlog.KindPut, Revision: eventlog.Revision{Main: head.Revision + 1},
		Key: []byte(key), Value: []byte("value"), CreateRevision: head.Revision + 1, Version: 1,
	}}
	var p *proposal
	if err := s.drive(n, func() (err error) { p, err = n.log.propose(b); return err }); err != nil {
		s.sayf("%d: %s: %v", n.id, key, err)
		return
	}
	s.waiting = append(s.waiting, outcome{key, n, func() (error, bool) {
		select {
		case <-p.done:
			return p.outcome, true
		default:
			return nil, false
		}
	}})
}

func (s *sim) change(n *simNode, d *datadriven.TestData) {
	arg := d.CmdArgs[1]
	var id uint64
	arg.Scan(s.t, 0, &id)
	m, known := n.log.Members().Member(id)
	if !known {
		m = Member{ID: id, Name: fmt.Sprint("n", id), PeerURLs: []string{fmt.Sprint("http://node", id)}}
	}
	kind := map[string]raftpb.ConfChangeType{
		"add": raftpb.ConfChangeAddNode, "add-learner": raftpb.ConfChangeAddLearnerNode,
		"promote": raftpb.ConfChangeAddNode, "remove": raftpb.ConfChangeRemoveNode,
	}[arg.Key]
	what := fmt.Sprint(arg.Key, " ", id)
	var open *openChange
	if err := s.drive(n, func() (err error) { open, err = n.log.proposeMember(kind, m); return err }); err != nil {
		s.sayf("%d: %s: %v", n.id, what, err)
		return
	}
	s.waiting = append(s.waiting, outcome{what, n, func() (error, bool) {
		select {
		case err := <-open.outcome:
			return err, true
		default:
			return nil, false
		}
	}})
}

func (s *sim) handOver(n *simNode, d *datadriven.TestData) {
	to, err := successor(n.log.node.raw)
	if d.MaybeScanArgs(s.t, "to", &to); err != nil {
		s.sayf("%d: %v", n.id, err)
		return
	}
	s.sayf("%d hands over to %d", n.id, to)
	n.log.node.raw.TransferLeader(to)
}

// move delivers or drops the messages that a command names.
func (s *sim) move(d *datadriven.TestData) {
	var from, to uint64
	d.MaybeScanArgs(s.t, "from", &from)
	d.MaybeScanArgs(s.t, "to", &to)
	wanted := func(m *raftpb.Message) bool {
		return (from == 0 || m.GetFrom() == from) && (to == 0 || m.GetTo() == to)
	}
	if d.Cmd == "deliver" {
		s.deliver(wanted)
		return
	}
	s.wire = slices.DeleteFunc(s.wire, func(m *raftpb.Message) bool {
		if wanted(m) {
			s.sayf("lost: %s", describeMessage(m))
			s.lose(m)
		}
		return wanted(m)
	})
}

// lose lets the sender of a snapshot know, as Peers does.
func (s *sim) lose(m *raftpb.Message) {
	if from := s.nodes[m.GetFrom()]; m.GetType() == raftpb.MsgSnap && from.log != nil {
		from.log.ReportSnapshot(m.GetTo(), false)
	}
}

// deliver brings the messages that are wanted to where they go, and reports
// whether there were any.
func (s *sim) deliver(wanted func(*raftpb.Message) bool) bool {
	var going []*raftpb.Message
	s.wire = slices.DeleteFunc(s.wire, func(m *raftpb.Message) bool {
		goes := wanted(m) && (!s.held || m.GetType() != raftpb.MsgSnap)
		if goes {
			going = append(going, m)
		}
		return goes
	})
	for _, m := range going {
		to, from := s.nodes[m.GetTo()], s.nodes[m.GetFrom()]
		switch {
		case s.cut[m.GetFrom()] || s.cut[m.GetTo()] || to == nil || to.log == nil:
			s.sayf("lost: %s", describeMessage(m))
			s.lose(m)
		case slices.Contains(to.log.Members().Removed, m.GetFrom()) && from.log != nil: // as Peers
			s.sayf("refused: %s", describeMessage(m))
			s.stop(from)
		case m.GetType() == raftpb.MsgSnap:
			s.sendSnapshot(m)
		default:
			s.sayf("%s", describeMessage(m))
			raw, err := proto.Marshal(m)
			s.must(err)
			received := new(raftpb.Message)
			s.must(proto.Unmarshal(raw, received))
			s.must(to.log.Step(received))
		}
	}
	return len(going) > 0
}

// sendSnapshot brings a snapshot from one node to another.
func (s *sim) sendSnapshot(m *raftpb.Message) {
	from, to := s.nodes[m.GetFrom()], s.nodes[m.GetTo()]
	s.sayf("%d->%d a snapshot", from.id, to.id)
	err := s.drive(to, func() error { return to.log.ReadSnapshot(context.Background(), bytes.NewReader(s.data[m])) })
	if err != nil {
		s.sayf("%d: %v", to.id, err)
	}
	from.log.ReportSnapshot(to.id, err == nil)
}

// describe says what n has.
func (n *simNode) describe(s *sim) string {
	mem := n.log.node.disk.mem
	first, err := mem.FirstIndex()
	s.must(err)
	last, err := mem.LastIndex()
	s.must(err)
	batches, err := n.log.behind.tail(context.Background(), 0, 1000)
	s.must(err)
	var keys []string
	for _, b := range batches {
		keys = append(keys, string(b.Records[0].Key))
	}
	return fmt.Sprintf("%d: %s; entries %d to %d, applied %d; keys %v; members %s",
		n.id, n.state, first, last, n.log.Status().Applied, keys, n.log.Members().describe())
}

// describe returns the ids, those of learners in brackets.
func (ms Members) describe() string {
	var ids []string
	for _, m := range ms.Members {
		if id := fmt.Sprint(m.ID); m.Learner {
			ids = append(ids, "("+id+")")
		} else {
			ids = append(ids, id)
		}
	}
	return strings.Join(ids, " ")
}

func describeMessage(m *raftpb.Message) string {
	bare := proto.Clone(m).(*raftpb.Message)
	bare.Entries, bare.Context, bare.Responses = nil, nil, nil
	text := raft.DescribeMessage(bare, nil)
	if m.GetType() == raftpb.MsgSnap {
		return fmt.Sprintf("%d->%d a snapshot", m.GetFrom(), m.GetTo())
	}
	if m.GetType() == raftpb.MsgApp && len(m.Entries) > 0 {
		text += " " + entries(m.Entries)
	}
	return text
}

func entries(es []*raftpb.Entry) string {
	var all []string
	for _, e := range es {
		all = append(all, describeEntry(e))
	}
	return "[" + strings.Join(all, ", ") + "]"
}

// describeEntry is term/index and the content.
func describeEntry(e *raftpb.Entry) string {
	at := fmt.Sprintf("%d/%d ", e.GetTerm(), e.GetIndex())
	if e.GetType() == raftpb.EntryConfChange {
		cc, _, err := decodeChange(e)
		if err != nil {
			return at + err.Error()
		}
		return fmt.Sprintf("%s%s %d", at, strings.TrimPrefix(cc.GetType().String(), "ConfChange"), cc.GetNodeId())
	}
	if len(e.Data) == 0 {
		return at + "empty"
	}
	b, err := eventlog.DecodeBatch(e.Data)
	if err != nil {
		return at + err.Error()
	}
	return fmt.Sprintf("%s%s on %d", at, b.Records[0].Key, b.Base)
}
