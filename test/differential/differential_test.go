// Package differential sends random sequences of requests to a real etcd and
// to keelson and compares every answer, every error and what every watcher is
// told.
//
// Both servers live for many sequences. Each sequence begins by deleting all
// that is there and compacting, and takes its revisions relative to the one it
// begins at, so that a failing sequence shrinks to what fails.
//
// Where keelson is a cluster (KEELSON_TEST_DATASTORE=cluster), a sequence
// watches one node of it, and its requests move from node to node.
package differential

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/keelson-io/keelson/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// side is one of the two servers. Of a cluster, requests go to one node at a
// time, and watches are on the node that is watched.
type side struct {
	*node   // that requests go to
	watched *node
	nodes   []*node
}

// node is a server with its clients.
type node struct {
	srv   *harness.Server
	kv    pb.KVClient
	watch pb.WatchClient
	lease pb.LeaseClient
	maint pb.MaintenanceClient
}

func newSide(t *testing.T, backend harness.Backend) *side {
	t.Helper()
	srv := harness.StartServer(t, backend, "--watch-progress-notify-interval=100ms")
	s := &side{}
	for _, n := range srv.Nodes {
		s.nodes = append(s.nodes, newNode(t, n))
	}
	s.node, s.watched = s.nodes[0], s.nodes[0]
	return s
}

func newNode(t *testing.T, srv *harness.Server) *node {
	t.Helper()
	conn, err := grpc.NewClient(srv.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &node{
		srv: srv, kv: pb.NewKVClient(conn), watch: pb.NewWatchClient(conn),
		lease: pb.NewLeaseClient(conn), maint: pb.NewMaintenanceClient(conn),
	}
}

// pair is what is compared. It is replaced after a difference, which may have
// driven the two apart.
type pair struct {
	etcd, keelson *side
	compacted     map[int64]bool // revisions that were compacted
}

func newPair(t *testing.T) *pair {
	t.Helper()
	return &pair{
		etcd: newSide(t, harness.Etcd), keelson: newSide(t, harness.Keelson),
		compacted: map[int64]bool{},
	}
}

// workers run beside each other, each with a pair of its own: mostly they wait
// for etcd, which looks after new watchers ten times a second.
const workers = 4

func TestDifferential(t *testing.T) {
	for worker := range workers {
		t.Run(strconv.Itoa(worker), func(t *testing.T) {
			t.Parallel()
			var p *pair
			rapid.Check(t, func(rt *rapid.T) {
				if p == nil {
					p = newPair(t)
				}
				same := false
				defer func() {
					if !same {
						for _, n := range slices.Concat(p.etcd.nodes, p.keelson.nodes) {
							n.srv.Kill()
						}
						p = nil
					}
				}()
				p.run(t.Context(), rt)
				same = true
			})
		})
	}
}

func (p *pair) run(ctx context.Context, rt *rapid.T) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	s := &sequence{rt: rt, ctx: ctx, pair: p}
	s.begin()
	for n := between(s, "steps", 1, 40); n > 0; n-- {
		s.step()
	}
	s.end()
}

// sequence is one run of random requests.
type sequence struct {
	rt *rapid.T
	// ctx ends with the sequence.
	ctx context.Context //nolint:containedctx // of one call of the property
	*pair
	base     int64                   // the revision that the sequence begins at
	rev      int64                   // the current revision
	compact  int64                   // the last compacted revision
	watchers [2]pb.Watch_WatchClient // of everything
	events   []*mvccpb.Event         // all since base
	streams  []*stream
	past     bool      // a watcher may be behind
	timedOut bool      // etcd did not answer in time
	short    time.Time // when a lease of 2 seconds, which is still there, was asked for
}

// fatalf ends the sequence: as a failure, unless etcd has broken down and there
// is nothing to compare with. On a slow disk it times out; and where a
// compaction is at a revision that deletes a key and puts it again, it loses
// the key and ends itself when that is read.
func (s *sequence) fatalf(format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	if s.timedOut {
		s.rt.Skip("etcd timed out: " + what)
	}
	if !s.short.IsZero() && time.Since(s.short) > 2*time.Second {
		s.rt.Skip("a lease may have expired: " + what)
	}
	select {
	case <-s.etcd.srv.Done():
		if bytes.Contains(s.etcd.srv.Log(), []byte("range failed to find revision pair")) {
			s.rt.Skip("etcd has lost a key: " + what)
		}
	case <-time.After(time.Second):
	}
	s.rt.Fatal(what)
}

// begin brings both servers into the same, nearly empty state.
func (s *sequence) begin() {
	s.move("watched node", s.keelson.nodes)
	s.keelson.watched = s.keelson.node
	leases := s.call(&pb.LeaseLeasesRequest{})
	for _, l := range leases.(*pb.LeaseLeasesResponse).Leases {
		s.call(&pb.LeaseRevokeRequest{ID: l.ID})
	}
	s.call(&pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	put := s.call(&pb.PutRequest{Key: []byte("base")}).(*pb.PutResponse)
	s.base, s.rev = put.Header.Revision, put.Header.Revision
	s.call(&pb.CompactionRequest{Revision: s.base, Physical: true})
	s.compact, s.compacted[s.base] = s.base, true
	s.events = []*mvccpb.Event{{Kv: &mvccpb.KeyValue{Key: []byte("base"), ModRevision: s.base}}}
	for i, side := range s.sides() {
		s.watchers[i] = s.open(side, s.base+1)
	}
}

// move lets requests to keelson go to one of nodes, which from then on shows
// what others have answered.
func (s *sequence) move(label string, nodes []*node) {
	if len(nodes) < 2 {
		return
	}
	n := between(s, label, 0, len(nodes)-1)
	s.rt.Logf("requests go to node %d", n)
	s.keelson.node = nodes[n]
	if _, err := s.keelson.kv.Range(s.ctx, &pb.RangeRequest{Key: []byte("base")}); err != nil {
		s.fatalf("node %d: %v", n, err)
	}
}

func (s *sequence) sides() [2]*side { return [2]*side{s.etcd, s.keelson} }

// open starts a watch of everything.
func (s *sequence) open(side *side, from int64) pb.Watch_WatchClient {
	stream, err := side.watched.watch.Watch(s.ctx)
	if err != nil {
		s.fatalf("%v", err)
	}
	err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: from, PrevKv: true,
	}}})
	if err != nil {
		s.fatalf("%v", err)
	}
	resp, err := stream.Recv()
	if err != nil || !resp.Created || resp.Canceled {
		s.fatalf("creating a watch from %d: %v %v", from, resp, err)
	}
	return stream
}

// read reads a watch until it has given everything up to a revision.
func (s *sequence) read(stream pb.Watch_WatchClient, until int64) []*mvccpb.Event {
	var events []*mvccpb.Event
	for {
		resp, err := stream.Recv()
		if err != nil {
			s.fatalf("watch, waiting for revision %d: %v; got\n%s", until, err, lines(events))
		}
		if resp.Canceled {
			s.fatalf("watch canceled: %v", resp)
		}
		events = append(events, resp.Events...)
		if len(events) > 0 && events[len(events)-1].Kv.ModRevision >= until {
			return events
		}
	}
}

func lines(events []*mvccpb.Event) string {
	var out strings.Builder
	for _, ev := range events {
		out.WriteString(text(ev) + "\n")
	}
	return out.String()
}

// step sends one random request to both and compares what comes back, then
// what they show of it to their watchers; or does something with a watch.
func (s *sequence) step() {
	if len(s.keelson.nodes) > 1 && s.pick("move", 2, 1) == 1 {
		s.move("node", s.keelson.nodes)
	}
	switch s.pick("step", 120, 80, 1, 2, 2, 1) {
	case 0:
		s.send(s.request())
	case 1:
		s.watchStep()
	case 2:
		s.heap()
	case 3:
		s.shortLease()
	case 4:
		s.crash()
	case 5:
		s.pickedLease()
	}
}

func (s *sequence) send(req proto.Message) {
	if _, ok := req.(*pb.CompactionRequest); ok {
		s.catchUp()
	}
	resp := s.call(req)
	if c, ok := req.(*pb.CompactionRequest); ok && resp != nil {
		s.compact, s.compacted[c.Revision] = c.Revision, true
	}
	if resp == nil {
		return
	}
	h, ok := resp.(interface{ GetHeader() *pb.ResponseHeader })
	if !ok || h.GetHeader().GetRevision() <= s.rev {
		return
	}
	s.rev = h.GetHeader().GetRevision()
	s.events = append(s.events, s.sameEvents("watched", s.watchers, s.rev)...)
	s.settleAll(string(req.ProtoReflect().Descriptor().Name()))
}

// crash kills keelson and starts it again, so that nothing of the past is in
// its memory: watches read it from the log. The streams end with it. In a
// cluster it is the watched node, which may lead or not.
func (s *sequence) crash() {
	s.rt.Log("keelson is killed")
	if err := s.keelson.watched.srv.TryRestart(); err != nil {
		s.fatalf("%v", err)
	}
	s.move("node after the crash", s.keelson.nodes)
	for _, n := range s.keelson.nodes { // it is to show at once what there is
		if _, err := n.kv.Range(s.ctx, &pb.RangeRequest{Key: []byte("base")}); err != nil {
			s.fatalf("%v", err)
		}
	}
	for _, in := range s.watchers {
		if err := in.CloseSend(); err != nil {
			s.fatalf("%v", err)
		}
	}
	s.streams = nil
	for i, side := range s.sides() {
		s.watchers[i] = s.open(side, s.rev+1)
	}
	for range 4 { // what the past looks like from here
		s.watchStep()
	}
}

// sameEvents returns the events of two watches of everything.
func (s *sequence) sameEvents(what string, streams [2]pb.Watch_WatchClient, until int64) []*mvccpb.Event {
	events := s.read(streams[0], until)
	want, got := lines(events), lines(s.read(streams[1], until))
	if got != want {
		s.fatalf("%s up to %d\nof etcd:\n%sof keelson:\n%s", what, until, want, got)
	}
	return events
}

// end compares what is left: the whole state and its history, through reads
// and through a watch that starts in the past.
func (s *sequence) end() {
	s.send(&pb.PutRequest{Key: []byte("end")})
	for rev := s.compact; rev <= s.rev; rev++ {
		s.call(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: rev})
	}
	s.call(&pb.HashKVRequest{})
	from := s.compact
	if s.overtaken(from) {
		from++
	}
	var late [2]pb.Watch_WatchClient
	for i, side := range s.sides() {
		late[i] = s.open(side, from)
	}
	s.sameEvents(fmt.Sprint("watched from ", from), late, s.rev)
	for _, stream := range slices.Concat(s.watchers[:], late[:]) {
		if err := stream.CloseSend(); err != nil {
			s.fatalf("%v", err)
		}
	}
}

// call sends a request to both, compares the answers and returns etcd's, nil
// if it is an error.
func (s *sequence) call(req proto.Message) proto.Message {
	want, wantErr := s.etcd.send(s.ctx, req)
	s.timedOut = s.timedOut || rpctypes.ErrorDesc(wantErr) == rpctypes.ErrorDesc(rpctypes.ErrGRPCTimeout)
	got, gotErr := s.keelson.send(s.ctx, req)
	a, b := answer(want, wantErr), answer(got, gotErr)
	s.rt.Logf("%s %s -> %s", req.ProtoReflect().Descriptor().Name(), text(req), a)
	if a != b {
		s.fatalf("%s %s\netcd:    %s\nkeelson: %s", req.ProtoReflect().Descriptor().Name(), text(req), a, b)
	}
	if wantErr != nil {
		return nil
	}
	return want
}

// streamed is a Range request to be sent as RangeStream.
type streamed struct{ *pb.RangeRequest }

func (c *side) send(ctx context.Context, req proto.Message) (proto.Message, error) {
	switch r := req.(type) {
	case *pb.RangeRequest:
		return c.kv.Range(ctx, r)
	case *pb.PutRequest:
		return c.kv.Put(ctx, r)
	case *pb.DeleteRangeRequest:
		return c.kv.DeleteRange(ctx, r)
	case *pb.TxnRequest:
		return c.kv.Txn(ctx, r)
	case *pb.CompactionRequest:
		return c.kv.Compact(ctx, r)
	case *pb.HashKVRequest:
		return c.maint.HashKV(ctx, r)
	case *pb.LeaseGrantRequest:
		return c.lease.LeaseGrant(ctx, r)
	case *pb.LeaseRevokeRequest:
		return c.lease.LeaseRevoke(ctx, r)
	case *pb.LeaseTimeToLiveRequest:
		return c.lease.LeaseTimeToLive(ctx, r)
	case *pb.LeaseLeasesRequest:
		return c.lease.LeaseLeases(ctx, r)
	case *pb.LeaseKeepAliveRequest:
		return c.keepAlive(ctx, r)
	case streamed:
		return c.rangeStream(ctx, r.RangeRequest)
	default:
		return nil, fmt.Errorf("no RPC takes %T", req)
	}
}

func (c *side) keepAlive(ctx context.Context, r *pb.LeaseKeepAliveRequest) (proto.Message, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.lease.LeaseKeepAlive(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(r); err != nil {
		return nil, err
	}
	return stream.Recv()
}

// chunked is the answer to a RangeStream, put together.
type chunked struct {
	*pb.RangeResponse
	keys []int // of each chunk
}

func (c *side) rangeStream(ctx context.Context, req *pb.RangeRequest) (proto.Message, error) {
	stream, err := c.kv.RangeStream(ctx, req)
	if err != nil {
		return nil, err
	}
	merged := chunked{RangeResponse: &pb.RangeResponse{}}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if req.Limit < 0 {
				merged.keys = nil // etcd takes that for "all at once"
			}
			return merged, nil
		}
		if err != nil {
			return nil, err
		}
		merged.keys = append(merged.keys, len(resp.RangeResponse.Kvs))
		proto.Merge(merged.RangeResponse, resp.RangeResponse)
	}
}

var (
	marshal = prototext.MarshalOptions{}
	long    = regexp.MustCompile("x{100,}")
)

func text(m proto.Message) string {
	switch m := m.(type) {
	case streamed:
		return "as a stream: " + text(m.RangeRequest)
	case chunked:
		return fmt.Sprint("in chunks of ", m.keys, ": ", text(m.RangeResponse))
	}
	// prototext varies its spacing from build to build, not within one.
	return long.ReplaceAllStringFunc(marshal.Format(m), func(value string) string {
		return fmt.Sprintf("%d x", len(value))
	})
}

// answer renders a response without what belongs to the server it is from.
func answer(resp proto.Message, err error) string {
	if err != nil {
		st := status.Convert(err)
		return fmt.Sprintf("%v %q", st.Code(), st.Message())
	}
	if r, ok := resp.(interface{ GetHeader() *pb.ResponseHeader }); ok {
		if h := r.GetHeader(); h != nil {
			h.ClusterId, h.MemberId, h.RaftTerm = 0, 0, 0
		}
	}
	switch r := resp.(type) {
	case *pb.LeaseTimeToLiveResponse:
		// etcd gives the keys in no order, and the time goes on.
		slices.SortFunc(r.Keys, slices.Compare)
		r.TTL = min(r.TTL, 1)
	case *pb.LeaseLeasesResponse:
		// Leases that expire in the same moment are in no order.
		slices.SortFunc(r.Leases, func(a, b *pb.LeaseStatus) int { return int(a.ID - b.ID) })
	}
	return text(resp)
}
