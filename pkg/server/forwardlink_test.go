package server

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logrustest "github.com/sirupsen/logrus/hooks/test"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// follower is a member of a cluster that others lead.
type follower struct {
	Cluster // nil: what is not asked for
	*member

	mu      sync.Mutex
	leader  Leader        // mu
	changed chan struct{} // mu
	reach   func(ctx context.Context, revision int64) error
}

func (f *follower) Learner() (learner, sure bool)         { return false, true }
func (f *follower) Progress() (committed, applied uint64) { return 0, 0 }

func (f *follower) Leader() (Leader, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.leader, f.changed
}

func (f *follower) Reach(ctx context.Context, revision int64) error { return f.reach(ctx, revision) }

// follow makes l the leader.
func (f *follower) follow(l *scriptedLeader) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leader = Leader{ID: l.id, Conn: l.conn}
	close(f.changed)
	f.changed = make(chan struct{})
}

func startFollower(t *testing.T, l *scriptedLeader, timeout time.Duration) *follower {
	t.Helper()
	return startFollowerThatLogs(t, l, timeout, quietLogger())
}

func startFollowerThatLogs(t *testing.T, l *scriptedLeader, timeout time.Duration, logger *logrus.Entry) *follower {
	t.Helper()
	f := &follower{changed: make(chan struct{}), reach: func(context.Context, int64) error { return nil }}
	f.follow(l)
	f.member = startMember(t, memberOptions{config: func(c *Config) {
		c.Cluster, c.RequestTimeout, c.Logger = f, timeout, logger
	}})
	return f
}

// scriptedLeader is a leader that does what the test says with the messages of
// each stream.
type scriptedLeader struct {
	id      uint64
	conn    *grpc.ClientConn
	streams chan *scriptedStream
	others  chan struct{} // hears of calls of their own, which are not answered

	refuses  atomic.Bool // streams
	refusals atomic.Int32
}

// scriptedStream is one stream that the leader has let in.
type scriptedStream struct {
	t      *testing.T
	stream grpc.ServerStream
	end    chan error
}

func startLeader(t *testing.T, id uint64) *scriptedLeader {
	t.Helper()
	l := &scriptedLeader{id: id, streams: make(chan *scriptedStream, 10), others: make(chan struct{}, 10)}
	g := grpc.NewServer(grpc.ForceServerCodecV2(newCodec(new(traffic))), grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		l.others <- struct{}{}
		<-s.Context().Done()
		return s.Context().Err()
	}))
	desc := forwardStreamDesc
	desc.Handler = func(_ any, stream grpc.ServerStream) error {
		if l.refuses.Load() {
			l.refusals.Add(1)
			return status.Error(codes.PermissionDenied, "the test refuses it")
		}
		if err := stream.SendHeader(nil); err != nil {
			return err
		}
		s := &scriptedStream{t: t, stream: stream, end: make(chan error, 1)}
		l.streams <- s
		select {
		case err := <-s.end:
			return err
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
	g.RegisterService(&grpc.ServiceDesc{ServiceName: forwardService, HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{desc}}, nil)
	l.conn = serveOn(t, g)
	return l
}

// serveOn lets g serve until the test ends, and returns a connection to it that
// is ready.
func serveOn(t *testing.T, g *grpc.Server) *grpc.ClientConn {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	done := make(chan error, 1)
	go func() { done <- g.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///leader", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		g.Stop()
		if err := <-done; err != nil {
			t.Errorf("the leader: %v", err)
		}
	})
	conn.Connect()
	ctx := short(t)
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if !conn.WaitForStateChange(ctx, state) {
			t.Fatal("no connection")
		}
	}
	return conn
}

func (l *scriptedLeader) next(t *testing.T) *scriptedStream {
	t.Helper()
	select {
	case s := <-l.streams:
		return s
	case <-short(t).Done():
		t.Fatal("no stream was opened")
		return nil
	}
}

// message returns the frames of the next message.
func (s *scriptedStream) message() (all []frame) {
	s.t.Helper()
	var m frames
	if err := s.stream.RecvMsg(&m); err != nil {
		s.t.Errorf("receiving requests: %v", err)
	}
	for len(m) > 0 {
		f, err := m.next()
		if err != nil {
			s.t.Error(err)
			return nil
		}
		all = append(all, f)
	}
	return all
}

func (s *scriptedStream) send(data []byte) {
	s.t.Helper()
	if err := s.stream.SendMsg(encodedMessage{mem.SliceBuffer(data)}); err != nil {
		s.t.Errorf("sending answers: %v", err)
	}
}

// respond answers a request with resp.
func (s *scriptedStream) respond(number uint64, resp proto.Message) {
	s.t.Helper()
	s.send(answerFrame(s.t, number, responseFrame, resp))
}

func answerFrame(t *testing.T, number uint64, kind frameKind, body proto.Message) []byte {
	t.Helper()
	data, err := proto.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return append(appendFrame(nil, number, kind, 0, len(data)), data...)
}

func answerOf(revision int64) *pb.PutResponse {
	return &pb.PutResponse{Header: &pb.ResponseHeader{ClusterId: 1, MemberId: 2, RaftTerm: 3, Revision: revision}}
}

// put puts key in the background.
func (f *follower) put(ctx context.Context, key string) <-chan result {
	done := make(chan result, 1)
	go func() {
		resp, err := f.kv.Put(ctx, &pb.PutRequest{Key: []byte(key)})
		done <- result{resp, err}
	}()
	return done
}

type result struct {
	resp *pb.PutResponse
	err  error
}

// TestForwardTogether: what waits at the same time travels together, and so do
// the answers; each has its own, in whatever order.
func TestForwardTogether(t *testing.T) {
	leader := startLeader(t, 9)
	f := startFollower(t, leader, time.Minute)
	l := newLink(f.server, leaderConn{leader.id, leader.conn})
	const n = 20
	var calls sync.WaitGroup
	for i := range n {
		calls.Go(func() {
			resp := new(pb.PutResponse)
			err := l.call(short(t), putFrame, &pb.PutRequest{Key: fmt.Append(nil, i)}, resp)
			if err != nil || resp.Header.Revision != int64(1000+i) {
				t.Errorf("call %d: %v, %v", i, resp, err)
			}
		})
	}
	waitFor(t, func() bool { return l.waiting() == n })
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { l.run(ctx) })
	s := leader.next(t)
	all := s.message()
	if len(all) != n {
		t.Errorf("the first message has %d requests of %d", len(all), n)
	}
	slices.Reverse(all)
	var answers []byte
	for _, r := range all {
		var req pb.PutRequest
		if err := proto.Unmarshal(r.body, &req); err != nil || r.kind != putFrame || r.millis == 0 {
			t.Errorf("a request: %v, kind %d, %d ms", err, r.kind, r.millis)
		}
		var i int64
		_, _ = fmt.Sscan(string(req.Key), &i)
		answers = append(answers, answerFrame(t, r.number, responseFrame, answerOf(1000+i))...)
	}
	s.send(answers)
	calls.Wait()
	cancel()
	running.Wait()
}

func (l *link) waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}

// waitFor waits for what nothing signals.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for ctx := short(t); !ok(); time.Sleep(time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatal("it does not come to it")
		}
	}
}

// TestForwardStatus: what the leader says reaches the client as it was said.
func TestForwardStatus(t *testing.T) {
	leader := startLeader(t, 9)
	f := startFollower(t, leader, time.Minute)
	st, err := status.New(codes.FailedPrecondition, "it is so").WithDetails(&errdetails.RetryInfo{})
	if err != nil {
		t.Fatal(err)
	}
	put := f.put(short(t), "a")
	s := leader.next(t)
	s.send(answerFrame(t, s.message()[0].number, statusFrame, st.Proto()))
	got := status.Convert((<-put).err)
	if !proto.Equal(got.Proto(), st.Proto()) {
		t.Errorf("the client got %v, the leader said %v", got.Proto(), st.Proto())
	}
	put = f.put(short(t), "a")
	s.respond(s.message()[0].number, answerOf(7))
	r := <-put
	if h := r.resp.GetHeader(); r.err != nil || h.GetClusterId() != testClusterID || h.GetMemberId() != testMemberID || h.GetRaftTerm() != 1 || h.GetRevision() != 7 {
		t.Errorf("the header %v, %v, want this member's", h, r.err)
	}
}

// TestForwardCut: of what was sent on a stream that ends nobody knows what
// became, and it is not sent again; the next request opens a new one.
func TestForwardCut(t *testing.T) {
	response := answerFrame(t, 1, responseFrame, answerOf(7))
	for name, cut := range map[string]func(*scriptedStream){
		"refused":       func(s *scriptedStream) { s.end <- rpctypes.ErrGRPCStopped },
		"ended":         func(s *scriptedStream) { s.end <- nil },
		"half a frame":  func(s *scriptedStream) { s.send(response[:len(response)-1]) },
		"half a header": func(s *scriptedStream) { s.send(response[:2]) },
		"no message":    func(s *scriptedStream) { s.send(append(appendFrame(nil, 1, responseFrame, 0, 1), 0xff)) },
		"no status":     func(s *scriptedStream) { s.send(append(appendFrame(nil, 1, statusFrame, 0, 1), 0xff)) },
	} {
		t.Run(name, func(t *testing.T) {
			leader := startLeader(t, 9)
			f := startFollower(t, leader, time.Minute)
			put := f.put(short(t), "a")
			s := leader.next(t)
			s.message()
			cut(s)
			wantError(t, (<-put).err, rpctypes.ErrGRPCTimeoutDueToLeaderFail)
			put = f.put(short(t), "b")
			s = leader.next(t)
			again := s.message()
			if len(again) != 1 || string(again[0].body) != "\n\x01b" {
				t.Errorf("the next stream begins with %v", again)
			}
			s.respond(again[0].number, answerOf(7))
			if r := <-put; r.err != nil {
				t.Error(r.err)
			}
		})
	}
}

// TestForwardConnectionCut: the same for a connection that ends.
func TestForwardConnectionCut(t *testing.T) {
	leader := startLeader(t, 9)
	f := startFollower(t, leader, time.Minute)
	put := f.put(short(t), "a")
	leader.next(t).message()
	_ = leader.conn.Close()
	wantError(t, (<-put).err, rpctypes.ErrGRPCTimeoutDueToLeaderFail)
}

// TestForwardRefused: nothing is sent to a node that does not let the stream in,
// such as one of another cluster at the leader's address.
func TestForwardRefused(t *testing.T) {
	other := startMember(t, memberOptions{config: func(c *Config) { c.ClusterID = 1 }})
	leader := &scriptedLeader{id: testMemberID, conn: other.conn}
	other.conn.Connect()
	f := startFollower(t, leader, 300*time.Millisecond)
	waitFor(t, func() bool { return other.conn.GetState() == connectivity.Ready })
	wantError(t, (<-f.put(short(t), "a")).err, rpctypes.ErrGRPCNoLeader)
	if at := other.store.Position(); at != eventlog.Position(0) {
		t.Errorf("something was written: %d", at)
	}
}

// TestForwardRefusedLog: a leader that refuses the stream again and again is
// warned of once, and so is each time that it does so after an answer.
func TestForwardRefusedLog(t *testing.T) {
	leader := startLeader(t, 9)
	leader.refuses.Store(true)
	logger, hook := logrustest.NewNullLogger()
	f := startFollowerThatLogs(t, leader, time.Minute, logrus.NewEntry(logger))
	logged := func() (warnings, again int) {
		for _, e := range hook.AllEntries() {
			switch {
			case strings.Contains(e.Message, "not passed on to the leader"):
				warnings++
			case strings.Contains(e.Message, "passed on to the leader again"):
				again++
			}
		}
		return warnings, again
	}
	for outage := 1; outage <= 2; outage++ {
		put := f.put(short(t), "a")
		before := leader.refusals.Load()
		waitFor(t, func() bool { return leader.refusals.Load() >= before+4 })
		if warnings, _ := logged(); warnings != outage {
			t.Errorf("%d warnings in outage %d", warnings, outage)
		}
		leader.refuses.Store(false)
		s := leader.next(t)
		s.respond(s.message()[0].number, answerOf(7))
		if r := <-put; r.err != nil {
			t.Error(r.err)
		}
		if _, again := logged(); again != outage {
			t.Errorf("%d outages are over, want %d", again, outage)
		}
		leader.refuses.Store(true)
		refusals := leader.refusals.Load()
		s.end <- nil
		waitFor(t, func() bool { return leader.refusals.Load() > refusals }) // nothing is sent on this one
	}
}

// TestForwardDeadline: the leader hears how long a client waits, and when it
// does not any more.
func TestForwardDeadline(t *testing.T) {
	leader := startLeader(t, 9)
	f := startFollower(t, leader, time.Minute)
	const patience = 20 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	put := f.put(ctx, "a")
	s := leader.next(t)
	all := s.message()
	if len(all) != 1 || all[0].millis == 0 || all[0].millis > uint64(patience.Milliseconds()+1) {
		t.Errorf("the request: %+v", all)
	}
	cancel()
	if err := (<-put).err; codeOf(err) != codes.Canceled {
		t.Error(err)
	}
	if gone := s.message(); len(gone) != 1 || gone[0].kind != cancelFrame || gone[0].number != all[0].number {
		t.Errorf("the leader hears %+v of the end of %+v", gone, all)
	}
	s.respond(all[0].number, answerOf(7)) // late: nobody minds
	put = f.put(short(t), "b")
	s.respond(s.message()[0].number, answerOf(8))
	if r := <-put; r.err != nil || r.resp.Header.Revision != 8 {
		t.Error(r)
	}
}

// TestForwardCanceledBefore: a request whose client has gone before it was sent
// is not sent.
func TestForwardCanceledBefore(t *testing.T) {
	leader := startLeader(t, 9)
	f := startFollower(t, leader, time.Minute)
	l := newLink(f.server, leaderConn{leader.id, leader.conn})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- l.call(ctx, putFrame, &pb.PutRequest{Key: []byte("a")}, new(pb.PutResponse)) }()
	waitFor(t, func() bool { return l.waiting() == 1 })
	cancel()
	if err := <-done; err != context.Canceled { //nolint:errorlint // as it is
		t.Error(err)
	}
	go func() {
		done <- l.call(short(t), deleteFrame, &pb.DeleteRangeRequest{Key: []byte("b")}, new(pb.DeleteRangeResponse))
	}()
	waitFor(t, func() bool { return l.waiting() == 1 })
	ctx, cancel = context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { l.run(ctx) })
	s := leader.next(t)
	if all := s.message(); len(all) != 1 || all[0].kind != deleteFrame {
		t.Errorf("the leader got %+v", all)
	} else {
		s.respond(all[0].number, &pb.DeleteRangeResponse{Header: &pb.ResponseHeader{Revision: 7}})
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	cancel()
	running.Wait()
}

// TestForwardTimeout: a leader that says nothing is waited for as long as a
// request may take.
func TestForwardTimeout(t *testing.T) {
	leader := startLeader(t, 9)
	f := startFollower(t, leader, time.Second) // enough to send it
	put := f.put(short(t), "a")
	s := leader.next(t)
	s.message()
	wantError(t, (<-put).err, rpctypes.ErrGRPCTimeoutDueToLeaderFail)
	if gone := s.message(); len(gone) != 1 || gone[0].kind != cancelFrame {
		t.Errorf("the leader hears %+v", gone)
	}
}

// TestForwardUnshown: what is done, but not seen here, is not said to be
// anything else.
func TestForwardUnshown(t *testing.T) {
	leader := startLeader(t, 9)
	f := startFollower(t, leader, time.Second) // enough for an answer
	asked := make(chan int64, 10)
	f.reach = func(ctx context.Context, revision int64) error {
		asked <- revision
		<-ctx.Done()
		return ctx.Err()
	}
	put := f.put(short(t), "a")
	s := leader.next(t)
	s.respond(s.message()[0].number, answerOf(7))
	wantError(t, (<-put).err, rpctypes.ErrGRPCTimeout)
	select {
	case revision := <-asked:
		if revision != 7 {
			t.Errorf("waited for revision %d", revision)
		}
	default:
		t.Error("nothing was waited for")
	}
	// Behind it others may be answered for as long as this node shows nothing.
	put = f.put(short(t), "b")
	s.respond(s.message()[0].number, answerOf(8))
	wantError(t, (<-put).err, rpctypes.ErrGRPCTimeout)
	f.server.links.mu.Lock()
	defer f.server.links.mu.Unlock()
	for _, l := range f.server.links.open {
		l.mu.Lock()
		if n := len(l.answered); n > 0 {
			t.Errorf("%d requests are kept for which nobody waits", n)
		}
		l.mu.Unlock()
	}
}

// TestForwardNextLeader: when another one leads, what was not sent goes to it,
// what was sent may be answered for a while, and then nobody knows.
func TestForwardNextLeader(t *testing.T) {
	old, next := startLeader(t, 8), startLeader(t, 9)
	f := startFollower(t, old, time.Minute)
	answered, lost := f.put(short(t), "a"), f.put(short(t), "a")
	s := old.next(t)
	requests := s.message()
	for len(requests) < 2 {
		requests = append(requests, s.message()...)
	}
	alone := make(chan error, 1)
	go func() {
		_, err := f.lease.LeaseRevoke(short(t), &pb.LeaseRevokeRequest{ID: 1})
		alone <- err
	}()
	<-old.others
	begun := time.Now()
	f.follow(next)
	put := f.put(short(t), "b")
	other := next.next(t)
	other.respond(other.message()[0].number, answerOf(8))
	if r := <-put; r.err != nil {
		t.Errorf("through the next leader: %v", r.err)
	}
	s.respond(requests[0].number, answerOf(7))
	var outcomes []error
	for range 2 {
		select {
		case r := <-answered:
			outcomes = append(outcomes, r.err)
		case r := <-lost:
			outcomes = append(outcomes, r.err)
		}
	}
	if outcomes[0] != nil {
		t.Errorf("the old leader's answer: %v", outcomes[0])
	}
	wantError(t, outcomes[1], rpctypes.ErrGRPCTimeoutDueToLeaderFail)
	wantError(t, <-alone, rpctypes.ErrGRPCTimeoutDueToLeaderFail)
	if took := time.Since(begun); took < leaderGrace || took > 10*leaderGrace {
		t.Errorf("it took %v", took)
	}
}
