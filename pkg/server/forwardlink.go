package server

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// leaderGrace is how long a leader that has been replaced may take to say what
// became of the requests that it has: it learns it as soon as it hears from the
// next one. One that is paused or cut off is not waited for.
const leaderGrace = time.Second

// errLeaderFailed answers requests of which nobody knows what was done.
var errLeaderFailed = rpctypes.ErrGRPCTimeoutDueToLeaderFail

// links are the ways to the leader and to those that have led a moment ago.
type links struct {
	ctx    context.Context // of all of them; ends with close
	cancel context.CancelFunc

	mu      sync.Mutex
	open    map[leaderConn]*link // mu
	running sync.WaitGroup       // Add under mu, and only while ctx has not ended
}

type leaderConn struct {
	id   uint64
	conn *grpc.ClientConn
}

func newLinks() *links {
	ls := &links{open: make(map[leaderConn]*link)}
	ls.ctx, ls.cancel = context.WithCancel(context.Background())
	return ls
}

// to returns the way to leader, or nil after close.
func (ls *links) to(s *Server, leader Leader) *link {
	at := leaderConn{leader.ID, leader.Conn}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if l := ls.open[at]; l != nil && !l.isLeft() {
		return l
	}
	if ls.ctx.Err() != nil {
		return nil
	}
	for _, other := range ls.open {
		wakeUp(other.look)
	}
	l := newLink(s, at)
	ls.open[at] = l
	ls.running.Go(func() {
		l.run(ls.ctx)
		ls.mu.Lock()
		defer ls.mu.Unlock()
		if ls.open[at] == l {
			delete(ls.open, at)
		}
	})
	return l
}

// close ends all links and waits for that.
func (ls *links) close() {
	ls.mu.Lock()
	ls.cancel()
	ls.mu.Unlock()
	ls.running.Wait()
}

// link takes requests to one leader for as long as it leads. Those that come
// while a message is on its way travel together in the next one; so do the
// answers. Each handler is woken once: when this node shows what it asked for.
//
//	handlers ─ call ─▶ queue ── send ───▶ stream ─▶ forwardStream of the leader
//	    ▲                                   │
//	    └── settle ◀── show ◀── receive ◀───┘
//
// Invariant: a call is in queue until it is handed to gRPC, and is never handed
// to it twice.
type link struct {
	server *Server
	leader leaderConn
	look   chan struct{} // 1 buffered: another one may lead
	wake   chan struct{} // 1 buffered: there is something to send
	shown  chan struct{} // 1 buffered: there is something to show
	ended  chan struct{} // closed when the leader is not waited for any more
	warned bool          // belongs to run: see warn

	mu       sync.Mutex
	last     uint64           // mu; number of the newest call
	open     map[uint64]*call // mu; those without an outcome
	queue    []*call          // mu; of these, what was not sent yet
	canceled []uint64         // mu; those sent, for which nobody waits any more
	answered []*call          // mu; what this node may not show yet
	left     bool             // mu; another one leads: nothing is taken any more
	reaping  bool             // mu; reap will be called
}

// call is a request on its way.
type call struct {
	number   uint64
	kind     frameKind
	req      proto.Message
	size     int           // of req, encoded
	resp     proto.Message // receive's until it is answered
	deadline time.Time     // the client's; zero if it has none
	begun    time.Time
	done     chan error // 1 buffered: the outcome

	sent     bool // guarded by the link's mu, as the next one is
	answered bool
	revision int64 // set before answered
}

// forwardKind returns how req travels to the leader with others. Those that may
// be slow or large, or have a large answer, so that they would hold others up,
// take a call of their own, and so do those that are rare.
func forwardKind(req any) (kind frameKind, together bool) {
	switch req.(type) {
	case *pb.PutRequest:
		kind = putFrame
	case *pb.DeleteRangeRequest:
		kind = deleteFrame
	case *pb.TxnRequest:
		kind = txnFrame
	default:
		return 0, false
	}
	return kind, requestBytes(req) < largeRequest && !mayBeLarge(req)
}

func newLink(s *Server, leader leaderConn) *link {
	return &link{
		server: s, leader: leader, open: make(map[uint64]*call),
		look: make(chan struct{}, 1), wake: make(chan struct{}, 1), shown: make(chan struct{}, 1), ended: make(chan struct{}),
	}
}

func (l *link) isLeft() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.left
}

// run carries requests until another node leads or ctx ends.
func (l *link) run(ctx context.Context) {
	carrying, stop := context.WithCancel(ctx)
	defer stop()
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() {
		l.watch(carrying)
		stop()
	})
	running.Go(func() { l.show(ctx) })
	for carrying.Err() == nil {
		err := l.carry(carrying)
		l.settleSent()
		l.warn(err)
		select { // gRPC has the pause between two connections; this one is for a leader that refuses the stream
		case <-time.After(leaderPause):
		case <-carrying.Done():
		}
	}
	l.leave()
	close(l.ended)
}

// warn says why a stream has ended, once until an answer comes. A connection that
// is lost is noticed, and said, where messages of raft travel on it.
func (l *link) warn(err error) {
	if code := codeOf(err); l.warned || code == codes.Unavailable || code == codes.Canceled {
		return
	}
	l.server.log.WithError(err).Warn("requests are not passed on to the leader; trying again")
	l.warned = true
}

// watch returns when another node has led for leaderGrace.
func (l *link) watch(ctx context.Context) {
	for {
		leader, changed := l.server.cfg.Cluster.Leader()
		if leader.ID != 0 && l.leader != (leaderConn{leader.ID, leader.Conn}) {
			break
		}
		select {
		case <-changed:
		case <-l.look:
		case <-ctx.Done():
			return
		}
	}
	l.leave()
	select {
	case <-time.After(leaderGrace):
	case <-ctx.Done():
	}
}

// leave takes no more requests and gives back those that were not sent.
func (l *link) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left = true
	for _, c := range l.queue {
		l.settle(c, rpctypes.ErrGRPCNoLeader)
	}
	l.queue = nil
}

// call lets the leader answer req. ErrGRPCNoLeader: it has not got it, or has
// refused it for not leading. ErrGRPCTimeout: it is done, but this node does
// not show it. errLeaderFailed: nobody knows.
func (l *link) call(ctx context.Context, kind frameKind, req, resp proto.Message) error {
	c := &call{kind: kind, req: req, size: proto.Size(req), resp: resp, begun: time.Now(), done: make(chan error, 1)}
	c.deadline, _ = ctx.Deadline()
	if !l.push(c) {
		return rpctypes.ErrGRPCNoLeader
	}
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		l.abandon(c)
		return ctx.Err()
	}
}

// invoke is call by a call of gRPC of its own.
func (l *link) invoke(ctx context.Context, method string, req, resp any) error {
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, forwardedKey, ""))
	defer cancel()
	go func() {
		select {
		case <-l.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	return l.leader.conn.Invoke(ctx, method, req, resp)
}

func (l *link) push(c *call) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left {
		return false
	}
	l.last++
	c.number = l.last
	l.open[c.number] = c
	l.queue = append(l.queue, c)
	if len(l.queue) == 1 {
		wakeUp(l.wake)
	}
	if !l.reaping {
		l.reaping = true
		time.AfterFunc(l.server.cfg.RequestTimeout/8, l.reap)
	}
	return true
}

// settle is called with mu held.
func (l *link) settle(c *call, outcome error) {
	if l.open[c.number] == c {
		delete(l.open, c.number)
		c.done <- outcome
	}
}

// abandon is called when nobody waits for c any more.
func (l *link) abandon(c *call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[c.number] == c {
		delete(l.open, c.number)
		l.forget(c)
	}
}

// forget sees to it that c is not sent or, if it was, that the leader hears
// that nobody waits for it. mu is held.
func (l *link) forget(c *call) {
	switch {
	case !c.sent:
		l.queue = slices.DeleteFunc(l.queue, func(queued *call) bool { return queued == c })
	case !c.answered:
		l.canceled = append(l.canceled, c.number)
		wakeUp(l.wake)
	}
}

// reap ends the calls that have taken as long as a request may. One timer for
// all of them is cheaper than one for each.
func (l *link) reap() {
	l.mu.Lock()
	defer l.mu.Unlock()
	timeout := l.server.cfg.RequestTimeout
	for _, c := range l.open {
		if time.Since(c.begun) < timeout {
			continue
		}
		l.forget(c)
		switch {
		case !c.sent:
			l.settle(c, rpctypes.ErrGRPCNoLeader)
		case c.answered:
			l.settle(c, rpctypes.ErrGRPCTimeout)
		default:
			l.settle(c, errLeaderFailed)
		}
	}
	l.answered = slices.DeleteFunc(l.answered, func(c *call) bool { return l.open[c.number] != c }) // nobody waits to be shown it
	if l.reaping = len(l.open) > 0; l.reaping {
		time.AfterFunc(timeout/8, l.reap)
	}
}

// settleSent ends the calls whose answers will not come, since the stream that
// they were sent on has ended.
func (l *link) settleSent() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.canceled = nil
	for _, c := range l.open {
		if c.sent && !c.answered {
			l.settle(c, errLeaderFailed)
		}
	}
}

// carry sends and receives on one stream until that ends.
func (l *link) carry(ctx context.Context) error {
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx,
		forwardedKey, forwardedTo(l.server.cfg.ClusterID, l.leader.id)))
	defer cancel()
	stream, err := l.leader.conn.NewStream(ctx, &forwardStreamDesc, forwardMethod, grpc.ForceCodecV2(newCodec(new(traffic))))
	if err != nil {
		return err
	}
	if md, err := stream.Header(); err != nil || md == nil { // refused: nothing was sent
		return stream.RecvMsg(new(frames))
	}
	var sending sync.WaitGroup
	defer sending.Wait()
	sending.Go(func() {
		defer cancel()
		l.send(stream)
	})
	defer cancel() // before the wait
	return l.receive(stream)
}

// send sends what waits, as long as that can be done; receive hears why not.
func (l *link) send(stream grpc.ClientStream) {
	var calls []*call
	var canceled []uint64
	for {
		if calls, canceled = l.take(calls[:0], canceled[:0]); len(calls)+len(canceled) > 0 {
			if stream.SendMsg(l.encode(calls, canceled)) != nil {
				return
			}
			clear(calls)
			continue
		}
		select {
		case <-l.wake:
			runtime.Gosched() // who is about to call comes along
		case <-stream.Context().Done():
			return
		}
	}
}

// take appends what makes the next message; the calls count as sent.
func (l *link) take(calls []*call, canceled []uint64) ([]*call, []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	canceled = append(canceled, l.canceled...)
	l.canceled = l.canceled[:0]
	size := 0
	for _, c := range l.queue {
		if size >= messageBytes {
			break
		}
		size += sizeFrame(c.size)
		c.sent = true
		calls = append(calls, c)
	}
	l.queue = slices.Delete(l.queue, 0, len(calls))
	return calls, canceled
}

var requestBuffers = mem.NewTieredBufferPool(4<<10, 16<<10, 64<<10, 128<<10)

// encode makes a message. The requests do not change while they are here.
func (l *link) encode(calls []*call, canceled []uint64) encodedMessage {
	size := len(canceled) * sizeFrame(0)
	for _, c := range calls {
		size += sizeFrame(c.size)
	}
	buf := requestBuffers.Get(size)
	data := (*buf)[:0]
	for _, number := range canceled {
		data = appendFrame(data, number, cancelFrame, 0, 0)
	}
	marshal := proto.MarshalOptions{UseCachedSize: true}
	for _, c := range calls {
		var millis uint64
		if left := time.Until(c.deadline); !c.deadline.IsZero() && left < l.server.cfg.RequestTimeout {
			millis = uint64(max(left/time.Millisecond, 0)) + 1 // the leader does not give up before
		}
		data = appendFrame(data, c.number, c.kind, millis, c.size)
		data, _ = marshal.MarshalAppend(data, c.req) // requests have no strings, which alone could be invalid
	}
	*buf = data
	return encodedMessage{mem.NewBuffer(buf, requestBuffers)}
}

// receive takes answers until the stream ends.
func (l *link) receive(stream grpc.ClientStream) error {
	for {
		var message frames
		if err := stream.RecvMsg(&message); err != nil {
			return err
		}
		if l.warned {
			l.server.log.Info("requests are passed on to the leader again")
			l.warned = false
		}
		for len(message) > 0 {
			f, err := message.next()
			if err != nil {
				return err
			}
			if err := l.answer(f); err != nil {
				return err
			}
		}
		wakeUp(l.shown)
	}
}

// answer takes what the leader has answered to one request.
func (l *link) answer(f frame) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.open[f.number]
	if c == nil || !c.sent || c.answered {
		return nil // nobody waits for it
	}
	if f.kind != responseFrame {
		var st spb.Status
		if err := proto.Unmarshal(f.body, &st); err != nil {
			return err
		}
		l.settle(c, status.FromProto(&st).Err())
		return nil
	}
	if err := proto.Unmarshal(f.body, c.resp); err != nil {
		return err
	}
	c.revision = headerOf(c.resp).GetRevision()
	c.answered = true
	l.answered = append(l.answered, c)
	return nil
}

// show waits for all who have an answer until this node shows it. One wait
// with many to wake is cheaper than that of each.
func (l *link) show(ctx context.Context) {
	var calls []*call
	for ended := false; ; {
		l.mu.Lock()
		calls, l.answered = l.answered, calls[:0]
		l.mu.Unlock()
		for i, c := range calls {
			var outcome error
			if l.server.cfg.Cluster.Reach(ctx, c.revision) != nil {
				outcome = rpctypes.ErrGRPCTimeout // it is done: nothing else may be said, or it would be tried again
			}
			l.mu.Lock()
			l.settle(c, outcome)
			l.mu.Unlock()
			calls[i] = nil
		}
		switch {
		case len(calls) > 0:
			continue
		case ended:
			return
		}
		select {
		case <-l.shown:
		case <-l.ended:
			ended = true
		}
	}
}

func headerOf(resp any) *pb.ResponseHeader {
	return resp.(interface{ GetHeader() *pb.ResponseHeader }).GetHeader()
}

// wakeUp lets the reader of a channel with room for one look again.
func wakeUp(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}
