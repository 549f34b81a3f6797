package server

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	forwardService = "keelson.forward.v1.Leader"
	forwardMethod  = "/" + forwardService + "/Requests"

	// maxForwardedBytes is what the requests of one node that are not answered
	// yet hold: more of them are not read before.
	maxForwardedBytes = 64 << 20

	// answersBytes is more than most messages have: an answer to a put takes 40.
	answersBytes = 4 << 10

	// idleWorkers is how many goroutines of a stream wait for further requests:
	// for the same reason as streamWorkers.
	idleWorkers = 256
)

var forwardStreamDesc = grpc.StreamDesc{StreamName: "Requests", ServerStreams: true, ClientStreams: true}

// RegisterForwarded registers on g what answers requests that other nodes of
// the cluster pass on, and nobody else: g is the server that they reach.
func (s *Server) RegisterForwarded(g grpc.ServiceRegistrar) {
	methods := s.forwardedMethods()
	desc := forwardStreamDesc
	desc.Handler = func(_ any, stream grpc.ServerStream) error {
		return newForwardStream(s, &methods, stream).serve()
	}
	g.RegisterService(&grpc.ServiceDesc{ServiceName: forwardService, HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{desc}}, s)
}

// forwardedMethod is how a forwarded request is answered.
type forwardedMethod struct {
	info    *grpc.UnaryServerInfo
	request func() proto.Message
	handler grpc.UnaryHandler
}

type forwardedMethods [requestKinds]forwardedMethod

func (s *Server) forwardedMethods() (all forwardedMethods) {
	kv := &kvServer{Server: s}
	all[putFrame] = answeredBy(pb.KV_Put_FullMethodName, kv.Put)
	all[deleteFrame] = answeredBy(pb.KV_DeleteRange_FullMethodName, kv.DeleteRange)
	all[txnFrame] = answeredBy(pb.KV_Txn_FullMethodName, kv.Txn)
	return all
}

// message is a pointer to Q, which is one.
type message[Q any] interface {
	*Q
	proto.Message
}

// answeredBy is a method that call answers.
func answeredBy[Q, R any, P message[Q]](method string, call func(context.Context, P) (R, error)) forwardedMethod {
	return forwardedMethod{
		info:    &grpc.UnaryServerInfo{FullMethod: method},
		request: func() proto.Message { return P(new(Q)) },
		handler: func(ctx context.Context, req any) (any, error) { return call(ctx, req.(P)) },
	}
}

// forwardStream answers the requests that one node passes on, each as if it had
// come alone: none waits for another one.
//
//	link of the node ─▶ stream ── receive ─▶ workers ─▶ interceptUnary ─▶ handler
//	        ▲                                   │
//	        └────────── send ◀── answers ◀──────┘
type forwardStream struct {
	server  *Server
	methods *forwardedMethods
	stream  grpc.ServerStream
	room    *semaphore.Weighted

	work    chan *forwarded // to workers that wait for some
	idle    atomic.Int32    // how many do
	running sync.WaitGroup

	mu      sync.Mutex
	cancels map[uint64]context.CancelFunc // mu; of the requests under way
	answers []*answers                    // mu; to be sent in this order; the last one takes more
	wake    chan struct{}                 // 1 buffered: there are answers
}

// forwarded is a request of another node.
type forwarded struct {
	frame
	held   int64           // of the room, until it is answered
	ctx    context.Context // of its handler
	cancel context.CancelFunc
}

// answers are a message: parts, and then what was encoded since.
type answers struct {
	parts mem.BufferSlice
	buf   []byte
	size  int
	held  int64 // of the room, by their requests
}

func newForwardStream(s *Server, methods *forwardedMethods, stream grpc.ServerStream) *forwardStream {
	return &forwardStream{
		server: s, methods: methods, stream: stream, room: semaphore.NewWeighted(maxForwardedBytes),
		work: make(chan *forwarded), cancels: make(map[uint64]context.CancelFunc), wake: make(chan struct{}, 1),
	}
}

// serve answers until the stream ends.
func (fs *forwardStream) serve() error {
	if md, _ := metadata.FromIncomingContext(fs.stream.Context()); !isFor(md, fs.server.cfg) {
		return status.Errorf(codes.PermissionDenied, "keelson: requests for another node than %s", forwardedTo(fs.server.cfg.ClusterID, fs.server.cfg.MemberID))
	}
	if err := fs.stream.SendHeader(nil); err != nil { // the other node waits for leave
		return err
	}
	ctx, cancel := context.WithCancel(fs.stream.Context())
	fs.running.Go(func() { fs.send(ctx) })
	err := fs.receive(ctx)
	cancel()
	close(fs.work)
	fs.running.Wait()
	return err
}

// isFor reports whether a stream is meant for this node: another one may have
// had its address.
func isFor(md metadata.MD, cfg Config) bool {
	to := md.Get(forwardedKey)
	return len(to) == 1 && to[0] == forwardedTo(cfg.ClusterID, cfg.MemberID)
}

// receive hands requests to workers.
func (fs *forwardStream) receive(ctx context.Context) error {
	for {
		var message frames
		if err := fs.stream.RecvMsg(&message); err != nil {
			return err
		}
		for len(message) > 0 {
			f, err := message.next()
			if err != nil {
				return status.Error(codes.InvalidArgument, err.Error())
			}
			if f.kind == cancelFrame {
				fs.cancel(f.number)
				continue
			}
			held := min(frameOverhead+int64(len(f.body)), maxForwardedBytes)
			if err := fs.room.Acquire(ctx, held); err != nil {
				return err
			}
			fs.begin(ctx, f, held)
		}
	}
}

// begin lets a worker answer a request.
func (fs *forwardStream) begin(ctx context.Context, f frame, held int64) {
	var cancel context.CancelFunc
	if f.millis > 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(f.millis)*time.Millisecond)
	} else {
		ctx, cancel = context.WithCancel(ctx)
	}
	fs.mu.Lock()
	fs.cancels[f.number] = cancel
	fs.mu.Unlock()
	request := &forwarded{f, held, ctx, cancel}
	select {
	case fs.work <- request:
	default:
		fs.running.Go(func() { fs.worker(request) })
	}
}

// worker answers one request after the other, while some come.
func (fs *forwardStream) worker(f *forwarded) {
	for f != nil {
		fs.answer(f)
		if fs.idle.Add(1) > idleWorkers {
			f = nil
		} else {
			f = <-fs.work // nil when the stream has ended
		}
		fs.idle.Add(-1)
	}
}

func (fs *forwardStream) cancel(number uint64) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if cancel := fs.cancels[number]; cancel != nil {
		cancel()
	}
}

// answer answers one request as gRPC would have it answered.
func (fs *forwardStream) answer(f *forwarded) {
	resp, err := fs.handle(f)
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f.cancel()
	delete(fs.cancels, f.number)
	if len(fs.answers) == 0 {
		wakeUp(fs.wake)
	}
	if n := len(fs.answers); n == 0 || fs.answers[n-1].size >= messageBytes {
		fs.answers = append(fs.answers, &answers{buf: make([]byte, 0, answersBytes)})
	}
	to := fs.answers[len(fs.answers)-1]
	to.held += f.held
	if err != nil {
		to.status(f.number, err)
	} else {
		to.response(f.number, resp)
	}
}

func (fs *forwardStream) handle(f *forwarded) (any, error) {
	if f.kind >= requestKinds {
		return nil, status.Errorf(codes.Unimplemented, "keelson: requests of kind %d", f.kind)
	}
	m := &fs.methods[f.kind]
	req := m.request()
	if err := proto.Unmarshal(f.body, req); err != nil {
		return nil, status.Error(codes.Internal, fmt.Sprintf("keelson: a forwarded request cannot be read: %v", err))
	}
	f.body = nil // it would keep the whole message that it came with
	return fs.server.interceptUnary(f.ctx, req, m.info, m.handler)
}

// response adds the response to a request.
func (a *answers) response(number uint64, resp any) {
	if held, ok := resp.(*heldResponse); ok { // the other node was to send it by a call of its own
		defer held.hold.release()
		resp = held.resp
	}
	size := sizeOf(resp)
	a.buf = appendFrame(a.buf, number, responseFrame, 0, size)
	a.size += sizeFrame(size)
	if size <= copiedBytes {
		e := encoder{buf: a.buf}
		e.message(resp)
		a.buf = e.buf
		return
	}
	a.cut()
	a.parts = append(a.parts, encode(resp, size)...)
}

// status adds the error that a request was answered with.
func (a *answers) status(number uint64, err error) {
	st, ok := status.FromError(err)
	if !ok {
		st = status.FromContextError(err)
	}
	body, err := proto.Marshal(st.Proto())
	if err != nil { // the message is no text
		body, _ = proto.Marshal(status.New(st.Code(), "keelson: "+err.Error()).Proto())
	}
	a.buf = append(appendFrame(a.buf, number, statusFrame, 0, len(body)), body...)
	a.size += sizeFrame(len(body))
}

// cut makes what is in buf a part.
func (a *answers) cut() {
	if len(a.buf) > 0 {
		a.parts = append(a.parts, mem.SliceBuffer(a.buf))
		a.buf = nil
	}
}

// send sends answers until ctx ends.
func (fs *forwardStream) send(ctx context.Context) {
	for {
		message := fs.take()
		if message == nil {
			select {
			case <-fs.wake:
				runtime.Gosched() // who is about to answer comes along
				continue
			case <-ctx.Done():
				return
			}
		}
		message.cut()
		if fs.stream.SendMsg(encodedMessage(message.parts)) != nil {
			return // receive hears why
		}
		fs.room.Release(message.held)
	}
}

// take returns the first message, or nil.
func (fs *forwardStream) take() *answers {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if len(fs.answers) == 0 {
		return nil
	}
	first := fs.answers[0]
	fs.answers[0] = nil
	fs.answers = fs.answers[1:]
	return first
}
