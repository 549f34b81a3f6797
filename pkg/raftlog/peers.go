package raftlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Peers is the Transport of real nodes. To each of them two gRPC streams lead,
// for entries and for everything else, so that no heartbeat waits behind a
// large batch; Raft does not mind the order. A message that cannot be sent is
// dropped, and Raft hears that the node is not reachable.
type Peers struct {
	opt      PeersOptions
	patience time.Duration // snapshotPatience

	log atomic.Pointer[Log] // set by Serve

	mu      sync.Mutex
	peers   map[uint64]*peer    // mu
	traffic map[uint64]*traffic // mu; by node
	streams map[uint64]int      // mu; of messages, from each node
	closing sync.WaitGroup      // those that were replaced or removed
}

// PeersOptions are those of NewPeers.
type PeersOptions struct {
	// Cluster and ID are this node's; a node of another cluster, or one that
	// takes this one for another, is refused.
	Cluster, ID uint64

	// Credentials are how connections to other nodes are secured; plain if nil.
	Credentials credentials.TransportCredentials

	// OnRoundTrip, unless nil, hears from time to time how long the way to
	// another node and back takes. It does not block.
	OnRoundTrip func(id uint64, took time.Duration)

	Logger *logrus.Entry
}

const (
	serviceName    = "keelson.raft.v1.Peers"
	messagesMethod = "/" + serviceName + "/Messages"
	snapshotMethod = "/" + serviceName + "/Snapshot"
	clusterMethod  = "/" + serviceName + "/Cluster"
	publishMethod  = "/" + serviceName + "/Publish"
	pingMethod     = "/" + serviceName + "/Ping"

	// What a node may send on a stream, and on its connection, before it is
	// taken in: whole messages of raft, without waiting for leave in between.
	streamWindow, connWindow = 8 << 20, 32 << 20

	// answerWindow is what a node may send in answers before they are read. A
	// fixed one keeps gRPC from estimating the bandwidth, with pings.
	answerWindow = 4 << 20

	// queued is how many messages wait for a stream before they are dropped;
	// Raft has no more than maxInflight on their way.
	queued = maxInflight

	// connections that do not get rid of what they have to send, for so long,
	// are closed: after a partition TCP would be slow to try again.
	sendTimeout = 2 * time.Second

	// keepaliveInterval is after how long of silence both sides of a connection
	// make sure that the other one is there.
	keepaliveInterval = 10 * time.Second

	// removedCode answers the messages of a node that was removed.
	removedCode = codes.FailedPrecondition

	headerCluster, headerFrom, headerTo = "keelson-cluster", "keelson-from", "keelson-to"

	// headerLeave asks a node to say how much it takes in: see messageStream.
	headerLeave = "keelson-leave"

	// leaveBytes is how much that is, beyond what it has taken in: half of what
	// gRPC lets wait on a stream before it has the sender wait.
	leaveBytes = 32 << 10
)

var (
	stream = &grpc.StreamDesc{ClientStreams: true}
	twoWay = &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
)

// NewPeers returns a Transport that knows no other nodes yet.
func NewPeers(opt PeersOptions) *Peers {
	if opt.OnRoundTrip == nil {
		opt.OnRoundTrip = func(uint64, time.Duration) {}
	}
	return &Peers{opt: opt, patience: snapshotPatience, peers: make(map[uint64]*peer), traffic: make(map[uint64]*traffic), streams: make(map[uint64]int)}
}

// Set says where node id is reached: at the first address, host:port or
// unix:path, that answers. One that was known under others is reached there no
// more. It does not block.
func (ps *Peers) Set(id uint64, addresses ...string) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	old := ps.peers[id]
	if old != nil && slices.Equal(old.addresses, addresses) {
		return nil
	}
	p, err := ps.dial(id, addresses)
	if err != nil {
		return fmt.Errorf("node %x at %v: %w", id, addresses, err)
	}
	ps.peers[id] = p
	ps.leave(old)
	return nil
}

// leave closes p, for which nobody waits: it may be sending a snapshot.
func (ps *Peers) leave(p *peer) {
	if p != nil {
		p.cancel()
		ps.closing.Go(func() { _ = p.close() })
	}
}

// Remove forgets node id. It does not block.
func (ps *Peers) Remove(id uint64) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.leave(ps.peers[id])
	delete(ps.peers, id)
	delete(ps.traffic, id)
}

// Close ends all connections.
func (ps *Peers) Close() error {
	ps.mu.Lock()
	peers := ps.peers
	ps.peers = make(map[uint64]*peer)
	ps.mu.Unlock()
	var errs []error
	for _, p := range peers {
		errs = append(errs, p.close())
	}
	ps.closing.Wait()
	return errors.Join(errs...)
}

// Send implements Transport.
func (ps *Peers) Send(messages []*raftpb.Message) {
	for _, m := range messages {
		if !ps.put(m) {
			ps.lost(m.GetTo())
		}
	}
}

// put leaves m to be sent and reports whether it may get there.
func (ps *Peers) put(m *raftpb.Message) bool {
	ps.mu.Lock() // held, so that p is not closed
	defer ps.mu.Unlock()
	p := ps.peers[m.GetTo()]
	if p == nil {
		return false
	}
	if m.GetType() == raftpb.MsgSnap {
		p.done.Go(func() { ps.sendSnapshot(p) })
		return true
	}
	return p.put(m)
}

// lost tells raft that a message to node id was dropped.
func (ps *Peers) lost(id uint64) {
	ps.failed(id)
	if log := ps.log.Load(); log != nil {
		log.Unreachable(id)
	}
}

// peer is the way to another node.
type peer struct {
	id        uint64
	addresses []string
	conn      *grpc.ClientConn
	creds     *handshakes // of conn
	traffic   *traffic
	entries   queue
	others    queue
	ctx       context.Context // of all streams; ends with close
	cancel    context.CancelFunc
	done      sync.WaitGroup
}

// queue is for the messages that one stream after the other sends.
type queue struct {
	waiting chan *raftpb.Message
	sending sync.Mutex     // held while a message is handed to the stream
	stream  *messageStream // sending; nil while there is none
}

// messageStream carries messages. Up to which of its bytes they may be sent
// without having to wait for leave from gRPC, the node at the other end says,
// if it is asked to, in the Index of empty messages: the first when it has let
// the stream in, and others as it takes messages in.
type messageStream struct {
	grpc.ClientStream
	sent  int           // sending of its queue; bytes
	leave atomic.Uint64 // up to which of them
}

// hear takes what the node says until the stream ends.
func (s *messageStream) hear() error {
	for {
		m := new(raftpb.Message)
		if err := s.RecvMsg(m); err != nil {
			return err
		}
		s.leave.Store(m.GetIndex())
	}
}

// streamBytes is what gRPC makes of m.
func streamBytes(m *raftpb.Message) int { return 5 + proto.Size(m) }

// dial makes the way to node id. The caller holds ps.mu.
func (ps *Peers) dial(id uint64, addresses []string) (*peer, error) {
	creds := remembering(ps.opt.Credentials)
	conn, err := dial(addresses, creds,
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: sendTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveInterval, Timeout: sendTimeout}),
		grpc.WithInitialWindowSize(answerWindow), grpc.WithInitialConnWindowSize(answerWindow),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(math.MaxInt32), grpc.MaxCallRecvMsgSize(math.MaxInt32)),
	)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ps.outgoing(context.Background(), id))
	p := &peer{
		id: id, addresses: addresses, conn: conn, creds: creds, traffic: ps.trafficWith(id), ctx: ctx, cancel: cancel,
	}
	for _, q := range []*queue{&p.entries, &p.others} {
		q.waiting = make(chan *raftpb.Message, queued)
		p.done.Go(func() { ps.pump(p, q) })
	}
	p.done.Go(func() { ps.ping(p) })
	return p, nil
}

// put leaves m to be sent and reports whether there was room.
func (p *peer) put(m *raftpb.Message) bool {
	q := &p.others
	switch m.GetType() {
	case raftpb.MsgApp:
		q = &p.entries
	case raftpb.MsgReadIndex, raftpb.MsgReadIndexResp:
		if p.sendNow(m) {
			return true
		}
	}
	select {
	case q.waiting <- m:
		return true
	default:
		return false
	}
}

// sendNow sends m without a goroutine in between, if there is a stream that has
// nothing else to do and would not have the sender wait: it is called with ps.mu
// held, and by raft's loop.
func (p *peer) sendNow(m *raftpb.Message) bool {
	q := &p.others
	if !q.sending.TryLock() {
		return false
	}
	defer q.sending.Unlock()
	if q.stream == nil || uint64(q.stream.sent+streamBytes(m)) > q.stream.leave.Load() || q.hand(m) != nil {
		return false
	}
	p.traffic.sent.Add(int64(proto.Size(m)))
	return true
}

// send hands m to the stream.
func (q *queue) send(m *raftpb.Message) error {
	q.sending.Lock()
	defer q.sending.Unlock()
	return q.hand(m)
}

// hand is send for a caller that holds sending.
func (q *queue) hand(m *raftpb.Message) error {
	q.stream.sent += streamBytes(m)
	return q.stream.SendMsg(m)
}

// use makes s the stream that sends; nil: there is none.
func (q *queue) use(s *messageStream) {
	q.sending.Lock()
	defer q.sending.Unlock()
	q.stream = s
}

func (p *peer) close() error {
	p.cancel()
	p.done.Wait()
	return p.conn.Close()
}

// pump sends what is in q, over one stream after the other, until p closes.
func (ps *Peers) pump(p *peer, q *queue) {
	logger := ps.opt.Logger.WithFields(logrus.Fields{"node": formatID(p.id), "addresses": p.addresses})
	for lost := ""; ; { // why, as far as it was logged
		err := p.stream(q, func(m *raftpb.Message, letIn bool) {
			p.traffic.sent.Add(int64(proto.Size(m)))
			if lost != "" && letIn {
				logger.Info("the node is reached again")
				lost = ""
			}
		})
		if p.ctx.Err() != nil {
			return
		}
		code := status.Code(err)
		if log := ps.log.Load(); code == removedCode && log != nil {
			log.stop(ErrRemoved) // it may never hear of it from the leader, which does not talk to it any more
			return
		}
		why := code.String()
		if failed := p.creds.failed(); failed != nil && code == codes.Unavailable {
			why, err = failed.Error(), failed
		}
		if why != lost && q == &p.others { // what ends one stream ends both
			logger.WithError(err).Warn("the node is not reached; trying again")
			lost = why
		}
		ps.lost(p.id)
		ps.checkGone(p.ctx, p.id)
		// What waited is late. gRPC has the pause between two connections;
		// this one is for a node that refuses the stream.
		for drained := false; !drained; {
			select {
			case <-q.waiting:
			default:
				drained = true
			}
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-p.ctx.Done():
			return
		}
	}
}

// stream sends what is in q until that fails; sent is called after each message
// that has waited there, with whether the node has said that it lets the stream
// in: it is asked for that on the stream of others.
func (p *peer) stream(q *queue, sent func(m *raftpb.Message, letIn bool)) error {
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	if q == &p.others {
		ctx = metadata.AppendToOutgoingContext(ctx, headerLeave, "")
	}
	opened, err := p.conn.NewStream(ctx, twoWay, messagesMethod)
	if err != nil {
		return err
	}
	s := &messageStream{ClientStream: opened}
	// That the stream has ended, and why, only a read tells: nothing may have to
	// be sent for a long time.
	ended := make(chan error, 1)
	p.done.Go(func() { ended <- s.hear() })
	q.use(s)
	defer q.use(nil)
	for {
		select {
		case m := <-q.waiting:
			err := q.send(m)
			if errors.Is(err, io.EOF) {
				return <-ended
			}
			if err != nil {
				return err
			}
			sent(m, s.leave.Load() > 0)
		case err := <-ended:
			return err
		}
	}
}

// ServerOptions are those of the gRPC server that other nodes reach: their own
// limits, whatever those of clients are. Nodes are trusted, and many of
// their streams stand for one request each that they pass on.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(math.MaxInt32),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.InitialWindowSize(streamWindow),
		grpc.InitialConnWindowSize(connWindow),
		grpc.MaxConcurrentStreams(math.MaxUint32),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveInterval / 2}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveInterval, Timeout: sendTimeout}),
	}
}

// Serve makes s take what other nodes send to log, whose Transport ps is. A
// log that is opened in place of another is served by the same s with Use.
func (ps *Peers) Serve(s grpc.ServiceRegistrar, log *Log) {
	ps.Use(log)
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: serviceName,
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			{MethodName: "Cluster", Handler: unary(ps.answerCluster)},
			{MethodName: "Publish", Handler: unary(ps.answerPublish)},
			{MethodName: "Ping", Handler: unary(ps.answerPing)},
		},
		Streams: []grpc.StreamDesc{
			{StreamName: "Messages", ClientStreams: true, ServerStreams: true, Handler: func(_ any, s grpc.ServerStream) error { return ps.receive(s) }},
			{StreamName: "Snapshot", ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error { return ps.receiveSnapshot(s) }},
		},
	}, ps)
}

// unary is the handler of a method that counts itself among nobody's requests.
func unary(answer func(context.Context, func(any) error) (any, error)) func(any, context.Context, func(any) error, grpc.UnaryServerInterceptor) (any, error) {
	return func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		return answer(ctx, decode)
	}
}

// Use makes log the one that other nodes reach.
func (ps *Peers) Use(log *Log) { ps.log.Store(log) }

// Conn returns the connection to node id, for calls of other services there,
// or nil if the node is not known.
func (ps *Peers) Conn(id uint64) *grpc.ClientConn {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p := ps.peers[id]; p != nil {
		return p.conn
	}
	return nil
}

// outgoing is ctx with what says who asks whom.
func (ps *Peers) outgoing(ctx context.Context, to uint64) context.Context {
	return metadata.AppendToOutgoingContext(ctx,
		headerCluster, formatID(ps.opt.Cluster), headerFrom, formatID(ps.opt.ID), headerTo, formatID(to))
}

// receive takes the messages of one stream.
func (ps *Peers) receive(s grpc.ServerStream) error {
	from, err := ps.check(s.Context())
	if err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	ps.heard(from, 1)
	defer func() {
		if ps.heard(from, -1) == 0 {
			ps.checkGone(context.WithoutCancel(s.Context()), from)
		}
	}()
	traffic := ps.trafficOf(from)
	md, _ := metadata.FromIncomingContext(s.Context())
	asked := len(md.Get(headerLeave)) > 0
	for received, leave := uint64(0), uint64(0); ; {
		if asked && received+leaveBytes/2 >= leave {
			leave = received + leaveBytes
			if err := s.SendMsg(&raftpb.Message{Index: &leave}); err != nil {
				return err
			}
		}
		m := new(raftpb.Message)
		if err := s.RecvMsg(m); errors.Is(err, io.EOF) {
			return s.SendMsg(new(raftpb.Message))
		} else if err != nil {
			return err
		}
		received += uint64(streamBytes(m))
		traffic.received.Add(int64(proto.Size(m)))
		if slices.Contains(ps.log.Load().Members().Removed, from) {
			return status.Error(removedCode, ErrRemoved.Error())
		}
		if m.GetFrom() != from {
			return status.Errorf(codes.InvalidArgument, "node %x sent a message of node %x", from, m.GetFrom())
		}
		if err := ps.log.Load().Step(m); err != nil {
			return status.Error(codes.Unavailable, err.Error())
		}
	}
}

// check returns who has opened a stream, if it is for this node.
func (ps *Peers) check(ctx context.Context) (from uint64, err error) {
	md, _ := metadata.FromIncomingContext(ctx)
	var cluster, to uint64
	for name, id := range map[string]*uint64{headerCluster: &cluster, headerFrom: &from, headerTo: &to} {
		values := md.Get(name)
		if len(values) != 1 {
			return 0, fmt.Errorf("a node has to say %s", name)
		}
		if *id, err = strconv.ParseUint(values[0], 16, 64); err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
	}
	switch {
	case cluster != ps.opt.Cluster:
		return 0, fmt.Errorf("this node belongs to cluster %x, not to %x", ps.opt.Cluster, cluster)
	case to != ps.opt.ID:
		return 0, fmt.Errorf("this is node %x, not %x", ps.opt.ID, to)
	}
	return from, nil
}

func formatID(id uint64) string { return strconv.FormatUint(id, 16) }
