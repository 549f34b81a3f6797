package server

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/keelson-io/keelson/pkg/watch"
)

// pastSource is a store for the watch service: a list of events.
type pastSource struct {
	mu        sync.Mutex
	events    []*mvccpb.Event
	live      map[string]*mvccpb.KeyValue
	current   int64
	compacted int64
}

// change applies one revision: "key=value" puts, "key" deletes.
func (p *pastSource) change(ops ...string) (int64, []*mvccpb.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current++
	var events []*mvccpb.Event
	for _, o := range ops {
		key, value, put := strings.Cut(o, "=")
		prev := p.live[key]
		ev := &mvccpb.Event{
			Type: mvccpb.Event_DELETE, PrevKv: prev,
			Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: p.current},
		}
		delete(p.live, key)
		if put {
			ev.Type = mvccpb.Event_PUT
			ev.Kv.Value, ev.Kv.CreateRevision, ev.Kv.Version = []byte(value), p.current, 1
			if prev != nil {
				ev.Kv.CreateRevision, ev.Kv.Version = prev.CreateRevision, prev.Version+1
			}
			p.live[key] = ev.Kv
		}
		events = append(events, ev)
	}
	p.events = append(p.events, events...)
	return p.current, events
}

func (p *pastSource) Revision() (int64, int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current, p.compacted
}

func (p *pastSource) History(_ context.Context, key, end []byte, from int64, limit int, _ bool) ([]*mvccpb.Event, int64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.events, func(ev *mvccpb.Event) bool { return ev.Kv.ModRevision >= from })
	if i < 0 {
		return nil, p.current + 1, nil
	}
	var events []*mvccpb.Event
	for _, ev := range p.events[i:] {
		if ev.Kv.ModRevision >= from+int64(limit) {
			return events, ev.Kv.ModRevision, nil
		}
		if len(end) == 0 && bytes.Equal(ev.Kv.Key, key) || bytes.Compare(ev.Kv.Key, key) >= 0 && bytes.Compare(ev.Kv.Key, end) < 0 {
			events = append(events, ev)
		}
	}
	return events, p.current + 1, nil
}

// watchFixture is the watch service alone, over a network in memory.
type watchFixture struct {
	t      *testing.T
	source *pastSource
	hub    *watch.Hub
	server *grpc.Server
	conn   *grpc.ClientConn
	stop   func() // ends the hub
}

func newWatchFixture(t *testing.T, opts watchOptions, hubOpts watch.Options) *watchFixture {
	t.Helper()
	f := &watchFixture{t: t, source: &pastSource{live: map[string]*mvccpb.KeyValue{}, current: 1, compacted: -1}}
	f.hub = watch.New(f.source, hubOpts)
	ctx, cancel := context.WithCancel(context.Background())
	hubDone := make(chan error, 1)
	go func() { hubDone <- f.hub.Run(ctx) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-hubDone; err != nil {
			t.Errorf("hub: %v", err)
		}
	})
	f.server = grpc.NewServer()
	header := func(revision int64) *pb.ResponseHeader {
		return &pb.ResponseHeader{ClusterId: 1, MemberId: 2, RaftTerm: 3, Revision: revision}
	}
	pb.RegisterWatchServer(f.server, newWatchServer(f.hub, header, opts))
	listener := bufconn.Listen(1 << 16)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = f.server.Serve(listener) // an error if it is stopped before
	}()
	conn, err := grpc.NewClient("passthrough:///keelson", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	f.conn = conn
	t.Cleanup(func() {
		conn.Close()
		f.stop()
		f.server.Stop()
		<-served
	})
	return f
}

// change commits and publishes one revision.
func (f *watchFixture) change(ops ...string) {
	revision, events := f.source.change(ops...)
	f.hub.Publish(revision, events, false)
}

// watchClient is one stream.
type watchClient struct {
	t      *testing.T
	rpc    pb.Watch_WatchClient
	cancel context.CancelFunc
}

func (f *watchFixture) open(md ...string) *watchClient {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), md...), time.Minute)
	f.t.Cleanup(cancel)
	rpc, err := pb.NewWatchClient(f.conn).Watch(ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	return &watchClient{t: f.t, rpc: rpc, cancel: cancel}
}

func (c *watchClient) send(req *pb.WatchRequest) {
	c.t.Helper()
	if err := c.rpc.Send(req); err != nil {
		c.t.Fatal(err)
	}
}

func (c *watchClient) create(r *pb.WatchCreateRequest) {
	c.t.Helper()
	c.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}})
}

func (c *watchClient) cancelWatch(id int64) {
	c.t.Helper()
	c.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
}

func (c *watchClient) progress() {
	c.t.Helper()
	c.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
}

func (c *watchClient) recv() *pb.WatchResponse {
	c.t.Helper()
	resp, err := c.rpc.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	if h := resp.Header; h.ClusterId != 1 || h.MemberId != 2 || h.RaftTerm != 3 {
		c.t.Fatalf("header %v", h)
	}
	return resp
}

// line is a response in one line.
func line(r *pb.WatchResponse) string {
	s := fmt.Sprintf("#%d @%d", r.WatchId, r.Header.Revision)
	if r.Created {
		s += " created"
	}
	if r.Canceled {
		s += " canceled"
	}
	if r.CancelReason != "" {
		s += " because: " + r.CancelReason
	}
	if r.CompactRevision != 0 {
		s += fmt.Sprintf(" compacted %d", r.CompactRevision)
	}
	if r.Fragment {
		s += " fragment"
	}
	for _, ev := range r.Events {
		s += fmt.Sprintf(" %s %s/%d", ev.Type, ev.Kv.Key, ev.Kv.ModRevision)
		if ev.PrevKv != nil {
			s += fmt.Sprintf("<%d", ev.PrevKv.ModRevision)
		}
	}
	return s
}

func (c *watchClient) expect(lines ...string) {
	c.t.Helper()
	for _, want := range lines {
		if got := line(c.recv()); got != want {
			c.t.Fatalf("got  %s\nwant %s", got, want)
		}
	}
}

// end expects the stream's end with an error.
func (c *watchClient) end(want string) {
	c.t.Helper()
	for {
		resp, err := c.rpc.Recv()
		if err == nil {
			c.t.Logf("before the end: %s", line(resp))
			continue
		}
		if got := fmt.Sprintf("%s: %s", status.Code(err), status.Convert(err).Message()); got != want {
			c.t.Fatalf("got  %s\nwant %s", got, want)
		}
		return
	}
}

func key(k string) *pb.WatchCreateRequest { return &pb.WatchCreateRequest{Key: []byte(k)} }

func prefixed(p string) *pb.WatchCreateRequest {
	return &pb.WatchCreateRequest{Key: []byte(p), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(p))}
}

// Statements 23 and 24 of the contract.
func TestWatchCreate(t *testing.T) {
	f := newWatchFixture(t, watchOptions{}, watch.Options{})
	f.change("a=1")
	f.change("b=1")
	c := f.open()
	c.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: -1})
	c.create(&pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("a")})
	c.create(&pb.WatchCreateRequest{Key: []byte("a"), WatchId: 1})
	c.create(&pb.WatchCreateRequest{Key: []byte("a"), WatchId: 1})
	c.create(&pb.WatchCreateRequest{})                                        // the key "\0"
	c.create(&pb.WatchCreateRequest{RangeEnd: []byte{0}, StartRevision: 2})   // everything
	c.create(&pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte{0}})   // b and all after
	c.create(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("b")}) // a up to b
	c.expect(
		"#-1 @3 created canceled because: etcdserver: mvcc: required revision has been compacted",
		"#-1 @3 created canceled because: mvcc: watcher range is empty",
		"#1 @3 created",
		"#-1 @3 created canceled because: mvcc: duplicate watch ID provided on the WatchStream",
		"#0 @3 created",
		"#2 @3 created",
		"#2 @3 PUT a/2 PUT b/3",
		"#3 @3 created",
		"#4 @3 created")
	f.change("c=1")
	got := []string{line(c.recv()), line(c.recv())}
	slices.Sort(got)
	if want := []string{"#2 @4 PUT c/4", "#3 @4 PUT c/4"}; !slices.Equal(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
}

// Unknown requests are passed over.
func TestWatchUnknownRequest(t *testing.T) {
	f := newWatchFixture(t, watchOptions{}, watch.Options{})
	c := f.open()
	c.send(&pb.WatchRequest{})
	c.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{}})
	c.cancelWatch(77)
	c.create(&pb.WatchCreateRequest{Key: []byte("a"), Filters: []pb.WatchCreateRequest_FilterType{99}})
	c.expect("#0 @1 created")
}

func TestWatchCancel(t *testing.T) {
	f := newWatchFixture(t, watchOptions{}, watch.Options{})
	c := f.open()
	c.create(key("a"))
	c.create(key("a"))
	c.expect("#0 @1 created", "#1 @1 created")
	c.cancelWatch(0)
	c.cancelWatch(0)
	c.expect("#0 @1 canceled")
	f.change("a=1")
	c.expect("#1 @2 PUT a/2")
}

// Statement 25.
func TestWatchCompacted(t *testing.T) {
	f := newWatchFixture(t, watchOptions{}, watch.Options{})
	f.change("a=1")
	f.change("a=2")
	f.change("a")
	f.change("a=3")
	f.source.mu.Lock()
	f.source.compacted = 4
	f.source.mu.Unlock()
	c := f.open()
	c.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 3})
	c.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 4})
	c.expect("#0 @5 created", "#0 @0 canceled compacted 4", "#1 @5 created", "#1 @5 DELETE a/4 PUT a/5")
}

// Statements 26 and 30: progress on request.
func TestWatchRequestProgress(t *testing.T) {
	f := newWatchFixture(t, watchOptions{}, watch.Options{})
	c := f.open()
	c.progress() // nobody is there
	c.create(key("a"))
	c.progress()
	c.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 3, WatchId: 9})
	c.progress() // one is not at its start
	c.cancelWatch(0)
	c.expect("#0 @1 created", "#-1 @1", "#9 @1 created", "#0 @1 canceled")
	f.change("a=1")
	f.change("a=2")
	c.progress()
	c.expect("#9 @3 PUT a/3", "#-1 @3")
}

// Statement 27: revisions are whole, one response for each when live.
func TestWatchLive(t *testing.T) {
	f := newWatchFixture(t, watchOptions{}, watch.Options{})
	c := f.open()
	r := prefixed("a")
	r.PrevKv = true
	c.create(r)
	c.expect("#0 @1 created")
	f.change("a1=1", "a2=1", "b=1")
	c.expect("#0 @2 PUT a1/2 PUT a2/2")
	f.change("a1=2", "a2")
	c.expect("#0 @3 PUT a1/3<2 DELETE a2/3<2")
	f.change("b=2")
	f.change("a1")
	c.expect("#0 @5 DELETE a1/5<3")
}

// Statement 29.
func TestWatchFilters(t *testing.T) {
	f := newWatchFixture(t, watchOptions{}, watch.Options{})
	c := f.open()
	noPut, noDelete := prefixed("a"), prefixed("a")
	noPut.Filters = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}
	noDelete.Filters = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}
	c.create(noPut)
	c.create(noDelete)
	c.expect("#0 @1 created", "#1 @1 created")
	f.change("a=1")
	c.expect("#1 @2 PUT a/2")
	f.change("a")
	c.expect("#0 @3 DELETE a/3")
	c.progress()
	c.expect("#-1 @3")
}

// Statement 30: progress in intervals, skipped once after events.
func TestWatchNotifyProgress(t *testing.T) {
	f := newWatchFixture(t, watchOptions{ProgressInterval: time.Millisecond}, watch.Options{})
	c := f.open()
	start := time.Now()
	r := key("a")
	r.ProgressNotify = true
	c.create(key("b"))
	c.create(r)
	c.expect("#0 @1 created", "#1 @1 created", "#1 @1")
	if took := time.Since(start); took < minProgressInterval/2 {
		t.Errorf("progress after %v", took)
	}
	f.change("c=1")
	got := line(c.recv())
	for got == "#1 @1" { // an interval was over before the change
		got = line(c.recv())
	}
	if got != "#1 @2" {
		t.Errorf("after the change: %s", got)
	}
}

// Statement 28.
func TestWatchFragment(t *testing.T) {
	f := newWatchFixture(t, watchOptions{}, watch.Options{})
	c := f.open()
	r := prefixed("a")
	r.Fragment = true
	c.create(r)
	c.create(prefixed("a"))
	c.expect("#0 @1 created", "#1 @1 created")
	big := strings.Repeat("x", 900<<10)
	f.change("a1="+big, "a2="+big, "a3="+big, "a4="+big, "a5=")
	// Watchers of the same range are served newest first.
	c.expect(
		"#1 @2 PUT a1/2 PUT a2/2 PUT a3/2 PUT a4/2 PUT a5/2",
		"#0 @2 fragment PUT a1/2 PUT a2/2",
		"#0 @2 PUT a3/2 PUT a4/2 PUT a5/2")
	f.change("a1=" + strings.Repeat("x", 3<<20)) // one event is not split
	c.expect("#1 @3 PUT a1/3", "#0 @3 PUT a1/3")
}

func TestFragments(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(50, 400).Draw(t, "limit")
		wr := &pb.WatchResponse{Header: &pb.ResponseHeader{Revision: 300, RaftTerm: 7}, WatchId: 1000}
		for range rapid.IntRange(2, 20).Draw(t, "events") {
			wr.Events = append(wr.Events, &mvccpb.Event{Kv: &mvccpb.KeyValue{
				Key: make([]byte, rapid.IntRange(1, 200).Draw(t, "size")), ModRevision: 300,
			}})
		}
		parts := fragments(wr, limit)
		merged := &pb.WatchResponse{Header: wr.Header, WatchId: wr.WatchId}
		for i, p := range parts {
			if p.Fragment != (i < len(parts)-1) {
				t.Fatalf("part %d of %d has fragment=%v", i, len(parts), p.Fragment)
			}
			if n := proto.Size(p); n >= limit && len(p.Events) != 1 {
				t.Fatalf("part %d has %d bytes and %d events", i, n, len(p.Events))
			}
			if i > 0 { // it would not have fitted before
				whole := &pb.WatchResponse{
					Header: wr.Header, WatchId: wr.WatchId, Fragment: true,
					Events: append(slices.Clip(parts[i-1].Events), p.Events[0]),
				}
				if n := proto.Size(whole); n < limit {
					t.Fatalf("part %d could have been part of the one before, with %d bytes", i, n)
				}
			}
			merged.Events = append(merged.Events, p.Events...)
		}
		if !proto.Equal(merged, wr) {
			t.Fatal("the parts do not make the whole")
		}
	})
}

// recordingStream is the server's end of a stream, for what the client cannot
// see.
type recordingStream struct {
	pb.Watch_WatchServer
	ctx  context.Context
	recv func() (*pb.WatchRequest, error)
	send func(*pb.WatchResponse) error
}

func (r *recordingStream) Context() context.Context          { return r.ctx }
func (r *recordingStream) Recv() (*pb.WatchRequest, error)   { return r.recv() }
func (r *recordingStream) Send(resp *pb.WatchResponse) error { return r.send(resp) }

// Statement 31, as the server ends the stream.
func TestWatchEnds(t *testing.T) {
	f := newWatchFixture(t, watchOptions{}, watch.Options{})
	w := newWatchServer(f.hub, func(rev int64) *pb.ResponseHeader { return &pb.ResponseHeader{Revision: rev} }, watchOptions{})
	broken := status.Error(13, "broken")
	wait := func(ctx context.Context) (*pb.WatchRequest, error) { <-ctx.Done(); return nil, ctx.Err() }
	for _, tt := range []struct {
		name  string
		setup func(r *recordingStream, cancel func())
		want  string
	}{
		{"canceled", func(r *recordingStream, cancel func()) {
			cancel()
		}, "rpc error: code = Canceled desc = etcdserver: watch canceled"},
		{"canceled in recv", func(r *recordingStream, cancel func()) {
			r.recv = func() (*pb.WatchRequest, error) { cancel(); return nil, status.FromContextError(r.ctx.Err()).Err() }
		}, "rpc error: code = Canceled desc = etcdserver: watch canceled"},
		{"closed, then canceled", func(r *recordingStream, cancel func()) {
			r.recv = func() (*pb.WatchRequest, error) { defer cancel(); return nil, io.EOF }
		}, "rpc error: code = Canceled desc = etcdserver: watch canceled"},
		{"recv fails", func(r *recordingStream, cancel func()) {
			r.recv = func() (*pb.WatchRequest, error) { return nil, broken }
		}, broken.Error()},
		{"send fails", func(r *recordingStream, cancel func()) {
			reqs := make(chan *pb.WatchRequest, 1)
			reqs <- &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: key("a")}}
			r.recv = func() (*pb.WatchRequest, error) {
				select {
				case req := <-reqs:
					return req, nil
				case <-r.ctx.Done():
					return nil, r.ctx.Err()
				}
			}
			r.send = func(*pb.WatchResponse) error { return broken }
		}, broken.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			r := &recordingStream{ctx: ctx}
			r.recv = func() (*pb.WatchRequest, error) { return wait(ctx) }
			tt.setup(r, cancel)
			if err := w.Watch(r); err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
			if st := f.hub.Stats(); st.Streams != 0 || st.Watchers != 0 {
				t.Errorf("left over: %+v", st)
			}
		})
	}
}

// A client that has closed its sending side still gets its events.
func TestWatchCloseSend(t *testing.T) {
	f := newWatchFixture(t, watchOptions{}, watch.Options{})
	c := f.open()
	c.create(key("a"))
	if err := c.rpc.CloseSend(); err != nil {
		t.Fatal(err)
	}
	c.expect("#0 @1 created")
	f.change("a=1")
	c.expect("#0 @2 PUT a/2")
}

// A stopped hub lets a graceful stop of the server end.
func TestWatchStop(t *testing.T) {
	f := newWatchFixture(t, watchOptions{}, watch.Options{})
	c := f.open()
	c.create(key("a"))
	c.expect("#0 @1 created")
	f.stop()
	c.end("Unavailable: etcdserver: server stopped")
	f.open().end("Unavailable: etcdserver: server stopped")
	f.server.GracefulStop()
}

// A client that does not read holds up nobody, and gets everything later.
func TestWatchSlowClient(t *testing.T) {
	f := newWatchFixture(t, watchOptions{}, watch.Options{QueueEvents: 4, QueueBytes: 64 << 10, RingEvents: 2})
	slow, quick := f.open(), f.open()
	for _, c := range []*watchClient{slow, quick} {
		c.create(key("a"))
		c.expect("#0 @1 created")
	}
	value := "a=" + strings.Repeat("x", 10<<10)
	for rev := int64(2); rev < 300; rev++ {
		f.change(value)
		if got, want := line(quick.recv()), fmt.Sprintf("#0 @%d PUT a/%d", rev, rev); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
	if st := f.hub.Stats(); st.Slow != 1 {
		t.Fatalf("%d slow watchers", st.Slow)
	}
	for next := int64(2); next < 300; {
		for _, ev := range slow.recv().Events {
			if ev.Kv.ModRevision != next {
				t.Fatalf("got revision %d, want %d", ev.Kv.ModRevision, next)
			}
			next++
		}
	}
	slow.progress()
	slow.expect("#-1 @299")
}

// clientv3, which comes back after each end of a stream, sees each event once.
func TestWatchClient(t *testing.T) {
	f := newWatchFixture(t, watchOptions{}, watch.Options{})
	client := clientv3.NewCtxClient(context.Background())
	t.Cleanup(func() { client.Close() })
	watcher := clientv3.NewWatchFromWatchClient(pb.NewWatchClient(f.conn), client)
	t.Cleanup(func() { watcher.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	events := watcher.Watch(ctx, "a", clientv3.WithPrefix(), clientv3.WithRev(2), clientv3.WithPrevKV())
	for i := range 20 {
		f.change(fmt.Sprintf("a%d=1", i%3))
	}
	next := int64(2)
	for resp := range events {
		if err := resp.Err(); err != nil {
			t.Fatal(err)
		}
		for _, ev := range resp.Events {
			if ev.Kv.ModRevision != next || !ev.IsCreate() && ev.PrevKv == nil {
				t.Fatalf("got %v, want revision %d", ev, next)
			}
			next++
		}
		if next == 22 {
			break
		}
	}
	if err := watcher.RequestProgress(ctx); err != nil {
		t.Fatal(err)
	}
	if resp := <-events; !resp.IsProgressNotify() || resp.Header.Revision != 21 {
		t.Fatalf("got %+v, want progress", resp)
	}
}
