package raftlog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

// ErrNotLeader: this node cannot append; nothing of the batch is there.
var ErrNotLeader = errors.New("raft: this node is not the leader")

// ErrNotEmpty: the data directory of a node that begins together with others,
// or joins them, has data already.
var ErrNotEmpty = errors.New("raft: the data directory is not empty: a node with data can only be the first of a cluster of one node, to which others are added")

// ErrInterrupted: Interrupt was called before the log was closed.
var ErrInterrupted = fmt.Errorf("%w: interrupted", eventlog.ErrClosed)

var errNoAnswer = errors.New("raft: no leader has answered: this node is cut off from the majority of the nodes, or they are electing one")

// The defaults of Options, which are etcd's.
const (
	DefaultHeartbeatInterval = 100 * time.Millisecond
	DefaultElectionTimeout   = time.Second
	DefaultSnapshotCount     = 10_000
)

// Transport carries messages between nodes.
type Transport interface {
	// Send sends each message to the node that it names (To). It does not
	// block; a message may be lost, late or repeated, but not changed. Instead
	// of a MsgSnap it sends what WriteSnapshot writes to that node's
	// ReadSnapshot, and calls ReportSnapshot.
	Send(messages []*raftpb.Message)
}

// Options are those of Open.
type Options struct {
	// Dir is the data directory: the database, and the Raft log in "raft".
	Dir string

	// Cluster and ID name the cluster and this node in it; neither is 0.
	Cluster, ID uint64

	// Members are those of a new cluster, the same on each of them, in order
	// of their ids; none if this node joins one that there is. They count for
	// nothing once there is a Raft log.
	Members []Member

	// OnMembers hears of the members at Open, and of every change of them,
	// before any node may count on it. It does not block.
	OnMembers func(Members)

	// Transport reaches the other nodes.
	Transport Transport

	// HeartbeatInterval is how often the leader is heard. After
	// ElectionTimeout without, the others elect a new one.
	HeartbeatInterval, ElectionTimeout time.Duration

	// SnapshotCount is after how many entries, at most, a mark is made.
	SnapshotCount uint64

	// Logger is logrus's standard logger unless set.
	Logger *logrus.Entry
}

// Log is a node's copy of the log.
type Log struct {
	local   *sqlite.Log // the database; it may lack what behind has
	behind  *writeBehind
	node    *node
	logger  *logrus.Entry
	id      uint64
	cluster uint64

	applying  sync.Mutex        // held while an entry is applied
	conf      *raftpb.ConfState // applying; as of the newest entry applied
	term      uint64            // applying; of that entry
	receiving sync.Mutex        // held by the one snapshot that is received

	sending   atomic.Int32              // snapshots under way
	sent      atomic.Pointer[time.Time] // when the last one was; nil: never
	members   atomic.Pointer[Members]
	onMembers func(Members)
	changes   changes

	proposals proposals
	applied   *progress
	marks     marks
	kept      kept
	reads     reads

	snapshotCount          uint64
	readTimeout, readRetry time.Duration

	appending chan struct{}                   // holds the token of the one Append
	onAppend  func(commit func() error) error // for tests; nil otherwise

	cancel  context.CancelFunc
	stopped sync.WaitGroup
	ended   chan struct{} // closed after failed is set, or by Close
	endOnce sync.Once
	failed  atomic.Pointer[error]
	closed  atomic.Bool
}

var _ eventlog.Log = (*Log)(nil)

// Open opens a node's data. The node takes part in its cluster after Load.
func Open(ctx context.Context, opt Options) (*Log, error) {
	if err := opt.complete(); err != nil {
		return nil, err
	}
	if err := finishWAL(filepath.Join(opt.Dir, raftDir)); err != nil {
		return nil, err
	}
	if err := installSnapshot(opt.Dir, Identity{Cluster: opt.Cluster, Node: opt.ID}); err != nil {
		return nil, err
	}
	local, err := sqlite.Open(ctx, sqlite.Options{
		Dir:         opt.Dir,
		Synchronous: sqlite.UnsafeLosesAcknowledgedWritesOnPowerCut, // the WAL has them
		Logger:      opt.Logger,
	})
	if err != nil {
		return nil, err
	}
	err = checkNew(ctx, local, opt)
	if err == nil {
		err = local.CheckPages() // else a node that joins would not get it, but late
	}
	if err != nil {
		return nil, errors.Join(err, local.Close())
	}
	d, err := openDisk(filepath.Join(opt.Dir, raftDir), Identity{Cluster: opt.Cluster, Node: opt.ID}, Members{Members: opt.Members})
	if err != nil {
		return nil, errors.Join(err, local.Close())
	}
	l, err := newLog(local, d, opt)
	if err != nil {
		return nil, errors.Join(err, d.close(), local.Close())
	}
	return l, nil
}

// checkNew refuses data that the other nodes of a new cluster do not have, or
// that those of one which this node joins would replace.
func checkNew(ctx context.Context, local *sqlite.Log, opt Options) error {
	_, known, err := Identify(opt.Dir)
	if err != nil || known || len(opt.Members) == 1 {
		return err
	}
	if head, err := local.Head(ctx); err != nil || head > 0 {
		return errors.Join(err, fmt.Errorf("%w: %s", ErrNotEmpty, opt.Dir))
	}
	return nil
}

func (opt *Options) complete() error {
	if opt.Logger == nil {
		opt.Logger = logrus.NewEntry(logrus.StandardLogger())
	}
	if opt.HeartbeatInterval == 0 {
		opt.HeartbeatInterval = DefaultHeartbeatInterval
	}
	if opt.ElectionTimeout == 0 {
		opt.ElectionTimeout = DefaultElectionTimeout
	}
	if opt.OnMembers == nil {
		opt.OnMembers = func(Members) {}
	}
	if opt.SnapshotCount == 0 {
		opt.SnapshotCount = DefaultSnapshotCount
	}
	switch {
	case opt.Cluster == 0 || opt.ID == 0 || raft.IsLocalMsgTarget(opt.ID):
		return fmt.Errorf("raft: %x cannot be the id of a node of cluster %x", opt.ID, opt.Cluster)
	case !slices.IsSortedFunc(opt.Members, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) }):
		return errors.New("raft: the members are not in order of their ids")
	case len(opt.Members) > 0 && !slices.ContainsFunc(opt.Members, func(m Member) bool { return m.ID == opt.ID }):
		return fmt.Errorf("raft: node %x is not one of its cluster", opt.ID)
	case opt.HeartbeatInterval < 0 || opt.ElectionTimeout < 5*opt.HeartbeatInterval:
		return fmt.Errorf("raft: the election timeout %v must be at least five times the heartbeat interval %v", opt.ElectionTimeout, opt.HeartbeatInterval)
	}
	return nil
}

func newLog(local *sqlite.Log, d *disk, opt Options) (*Log, error) {
	head, err := local.State(context.Background())
	if err == nil {
		err = d.leadsTo(head.Position)
	}
	if err != nil {
		return nil, err
	}
	snapshot, err := d.mem.Snapshot()
	if err != nil {
		return nil, err
	}
	n, err := newNode(d, opt)
	if err != nil {
		return nil, err
	}
	l := &Log{
		local:         local,
		behind:        newWriteBehind(local, head),
		node:          n,
		logger:        opt.Logger,
		id:            opt.ID,
		cluster:       opt.Cluster,
		term:          snapshot.GetMetadata().GetTerm(),
		conf:          snapshot.GetMetadata().GetConfState(),
		onMembers:     opt.OnMembers,
		applied:       newProgress(snapshot.GetMetadata().GetIndex()),
		snapshotCount: opt.SnapshotCount,
		readTimeout:   opt.ElectionTimeout + 5*time.Second, // as etcd's requests
		readRetry:     opt.HeartbeatInterval,
		appending:     make(chan struct{}, 1),
		ended:         make(chan struct{}),
	}
	l.reads.init(l.askAgain)
	l.appending <- struct{}{}
	l.changes.one = make(chan struct{}, 1)
	l.changes.one <- struct{}{}
	l.members.Store(&d.members)
	l.onMembers(d.members)
	n.apply, n.onRead = l.applyEntries, l.confirmRead
	n.voters = func() []uint64 { return l.Members().ids(false) }
	return l, nil
}

// Load implements eventlog.Log. The node begins to take part in its cluster.
func (l *Log) Load(ctx context.Context, fn func(*eventlog.Record) error) (eventlog.Head, error) {
	if err := l.check(); err != nil {
		return eventlog.Head{}, err
	}
	head, err := l.behind.load(ctx, fn)
	if err != nil {
		return head, err
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l.cancel = cancel
	for _, fn := range []func(context.Context) error{l.node.run, l.behind.run} {
		l.stopped.Go(func() {
			if err := fn(run); err != nil {
				l.stop(err)
			}
		})
	}
	l.stopped.Go(func() {
		select { // a checkpoint may fail while nobody waits
		case <-l.local.Failed():
			l.stop(l.local.Err())
		case <-run.Done():
		}
	})
	return head, nil
}

// Step takes a message that another node's Transport has sent.
func (l *Log) Step(m *raftpb.Message) error {
	if err := l.check(); err != nil {
		return err
	}
	return l.node.step(m)
}

// Unreachable says that a message to node id was lost.
func (l *Log) Unreachable(id uint64) {
	if l.check() == nil {
		l.node.inputs.put(func(raw *raft.RawNode) { raw.ReportUnreachable(id) })
		l.unreachable(id)
	}
}

// ReportSnapshot says whether node id has received a snapshot that its leader's
// Transport was to send (MsgSnap): WriteSnapshot's.
func (l *Log) ReportSnapshot(id uint64, received bool) {
	outcome := raft.SnapshotFinish
	if !received {
		outcome = raft.SnapshotFailure
	}
	if l.check() == nil {
		l.node.inputs.put(func(raw *raft.RawNode) { raw.ReportSnapshot(id, outcome) })
	}
}

// Append implements eventlog.Log, on the leader: ErrNotLeader elsewhere. The
// batch is durable on a majority of the nodes, and applied on this one, when it
// returns nil. While no majority answers it waits.
func (l *Log) Append(ctx context.Context, batch *eventlog.Batch) error {
	if err := errors.Join(l.check(), ctx.Err()); err != nil {
		return err
	}
	select {
	case <-l.appending:
		defer func() { l.appending <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	case <-l.ended:
		return l.check()
	}
	head := l.behind.now()
	if head.Position != batch.Base {
		return fmt.Errorf("%w: it is at %d, the batch is based on %d", eventlog.ErrStale, head.Position, batch.Base)
	}
	if err := batch.Check(head.Seq); err != nil { // every node would fail at it
		return err
	}
	if hook := l.onAppend; hook != nil {
		return hook(func() error { return l.commit(ctx, batch) })
	}
	return l.commit(ctx, batch)
}

// commit proposes batch and waits for its fate.
func (l *Log) commit(ctx context.Context, batch *eventlog.Batch) error {
	p, err := l.propose(batch)
	if err != nil {
		return err
	}
	select {
	case <-p.done:
		return p.outcome
	case <-ctx.Done():
		err = ctx.Err()
	case <-l.ended:
		err = l.check()
	}
	if !l.proposals.abandon(p) {
		select {
		case <-p.done:
			return p.outcome
		case <-l.ended:
			l.stopped.Wait() // whoever applies it has stopped
			err = l.check()
		}
	}
	return fmt.Errorf("%w: %w", eventlog.ErrUnknown, err)
}

// propose hands batch to raft, or says why nothing of it will ever be there.
func (l *Log) propose(batch *eventlog.Batch) (*proposal, error) {
	data := eventlog.AppendBatch(nil, batch)
	type answer struct {
		p   *proposal
		err error
	}
	answers := make(chan answer, 1)
	l.node.inputs.put(func(raw *raft.RawNode) {
		select {
		case <-l.ended: // its author may have gone already
			return
		default:
		}
		s := raw.BasicStatus()
		if s.RaftState != raft.StateLeader {
			answers <- answer{err: ErrNotLeader}
			return
		}
		p := l.proposals.add(batch, s.GetTerm())
		if err := raw.Propose(data); err != nil {
			l.proposals.settle(p.id, err)
			answers <- answer{err: fmt.Errorf("%w: %w", ErrNotLeader, err)}
			return
		}
		answers <- answer{p: p}
	})
	// The loop answers at once; without it there is no loop any more.
	select {
	case a := <-answers:
		return a.p, a.err
	case <-l.ended:
		return nil, fmt.Errorf("%w: %w", eventlog.ErrUnknown, l.check())
	}
}

// Tail implements eventlog.Log. After an Append with ErrUnknown it waits until
// the batch is there or never will be.
func (l *Log) Tail(ctx context.Context, after eventlog.Position, limit int) ([]eventlog.Batch, error) {
	if err := errors.Join(l.check(), ctx.Err()); err != nil {
		return nil, err
	}
	if err := l.proposals.settled(ctx, l.ended); err != nil {
		return nil, err
	}
	if err := l.check(); err != nil {
		return nil, err
	}
	return l.behind.tail(ctx, after, limit)
}

// Follow calls notify with the position of what is applied whenever that may
// have grown, until ctx ends.
func (l *Log) Follow(ctx context.Context, notify func(eventlog.Position)) error {
	for ctx.Err() == nil {
		_, grown := l.applied.now()
		if err := l.local.Err(); err != nil {
			return err
		}
		notify(l.behind.now().Position)
		select {
		case <-grown:
		case <-ctx.Done():
		}
	}
	return nil
}

// Values implements eventlog.Log.
func (l *Log) Values(ctx context.Context, seqs []int64) ([][]byte, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	return l.behind.values(ctx, seqs)
}

// flush brings everything that is applied to the database.
func (l *Log) flush(ctx context.Context) error {
	err := l.behind.flush(ctx)
	if err != nil && ctx.Err() == nil && !l.closed.Load() {
		l.stop(err)
	}
	return err
}

// Compact implements eventlog.Log. Every node deletes for itself.
func (l *Log) Compact(ctx context.Context, seqs []int64) error {
	if err := errors.Join(l.check(), ctx.Err()); err != nil {
		return err
	}
	if err := l.flush(ctx); err != nil { // else it does not know yet what may be deleted
		return err
	}
	return l.local.Compact(ctx, seqs)
}

// Size implements eventlog.Log: that of the database.
func (l *Log) Size() eventlog.Size { return l.behind.size() }

// Defragment implements eventlog.Log, on this node.
func (l *Log) Defragment(ctx context.Context) error {
	if err := l.check(); err != nil {
		return err
	}
	return l.local.Defragment(ctx)
}

// check returns why nothing more can be asked of the log, or nil.
func (l *Log) check() error {
	if l.closed.Load() {
		return eventlog.ErrClosed
	}
	return l.Err()
}

// stop makes every later call return err as ErrFailed.
func (l *Log) stop(err error) {
	final := err
	if !errors.Is(err, eventlog.ErrFailed) {
		final = fmt.Errorf("%w: %w", eventlog.ErrFailed, err)
	}
	if l.failed.CompareAndSwap(nil, &final) {
		if !errors.Is(err, ErrReplaced) {
			l.logger.WithError(err).Error("the log has failed and takes no more calls")
		}
		l.end()
	}
}

// end lets everybody know that nothing is done any more. It does not wait.
func (l *Log) end() {
	l.endOnce.Do(func() {
		close(l.ended)
		if l.cancel != nil {
			l.cancel()
		}
	})
}

// Interrupt ends an Append that waits for a majority, whose batch is then of
// unknown fate, and every other call, with ErrInterrupted.
func (l *Log) Interrupt() {
	err := ErrInterrupted
	l.failed.CompareAndSwap(nil, &err)
	l.end()
}

// Failed is closed when the log has failed, which Err then explains, or when
// it was closed.
func (l *Log) Failed() <-chan struct{} { return l.ended }

// Err is why the log has failed, an ErrFailed, or nil.
func (l *Log) Err() error {
	if err := l.failed.Load(); err != nil {
		return *err
	}
	return l.local.Err()
}

// Close implements eventlog.Log.
func (l *Log) Close() error {
	if !l.closed.CompareAndSwap(false, true) {
		return eventlog.ErrClosed
	}
	l.end()
	l.stopped.Wait()
	var err error
	if l.Err() == nil { // else it is as after a crash
		err = l.behind.flush(context.Background())
	}
	return errors.Join(err, l.node.disk.close(), l.local.Close())
}
