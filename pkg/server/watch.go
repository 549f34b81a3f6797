package server

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/pkg/watch"
)

const (
	defaultProgressInterval = 10 * time.Minute
	minProgressInterval     = 100 * time.Millisecond

	// defaultFragmentBytes is the size from which a response is split for
	// watchers that ask for it: etcd's request limit and its overhead.
	defaultFragmentBytes = 1536*1024 + 512*1024

	// eventsField is the number of WatchResponse.events on the wire.
	eventsField protowire.Number = 11
)

// watchOptions are the settings of the watch service. Zero values take the
// defaults.
type watchOptions struct {
	// ProgressInterval is the time between progress notifications, to which
	// each stream adds up to a tenth: 10 minutes, at least 100 ms.
	ProgressInterval time.Duration

	// FragmentBytes is the size from which responses are split: 2 MiB.
	FragmentBytes int
}

// watchServer is the gRPC watch service.
type watchServer struct {
	pb.UnimplementedWatchServer
	hub    Hub
	header func(revision int64) *pb.ResponseHeader
	opts   watchOptions
}

// newWatchServer returns the watch service over hub. header makes a response
// header with the given revision. All streams end with Unavailable, so that
// clients come back elsewhere, when hub has stopped: it has to stop before a
// graceful stop of the gRPC server can end.
func newWatchServer(hub Hub, header func(revision int64) *pb.ResponseHeader, opts watchOptions) pb.WatchServer {
	if opts.ProgressInterval <= 0 {
		opts.ProgressInterval = defaultProgressInterval
	}
	opts.ProgressInterval = max(opts.ProgressInterval, minProgressInterval)
	if opts.FragmentBytes <= 0 {
		opts.FragmentBytes = defaultFragmentBytes
	}
	return &watchServer{hub: hub, header: header, opts: opts}
}

// sendsPerLook is how many responses are sent before a look at what else there
// is.
const sendsPerLook = 64

// Watch serves one stream of watchers: this goroutine sends, another receives.
func (s *watchServer) Watch(rpc pb.Watch_WatchServer) error {
	ctx := rpc.Context()
	stream := s.hub.NewStream()
	defer stream.Close()

	// What there is to do besides sending rouses the stream: to wait on one
	// channel takes a fraction of the time that waiting on six does.
	defer context.AfterFunc(ctx, stream.Rouse)()
	// Not waited for: Recv returns only after gRPC has seen Watch return. By
	// then the stream is closed, and receive changes nothing any more.
	received := make(chan error, 1)
	go func() {
		received <- s.receive(rpc, stream)
		stream.Rouse()
	}()
	interval := s.opts.ProgressInterval
	interval += rand.N(interval/10 + 1)
	var due atomic.Bool
	timer := time.AfterFunc(interval, func() {
		due.Store(true)
		stream.Rouse()
	})
	defer timer.Stop()

	for sent := 1; ; sent++ {
		resp, ok := stream.Pop()
		if ok {
			if err := s.send(rpc, resp); err != nil {
				return streamError(ctx, err)
			}
			if sent%sendsPerLook != 0 {
				continue
			}
		}
		if due.Load() {
			due.Store(false)
			timer.Reset(interval)
			stream.NotifyProgress()
		}
		if end := ended(ctx, received, stream.Done()); end != nil {
			return end
		}
		if !ok {
			<-stream.Wake()
		}
	}
}

// ended is why a stream ends, nil if it goes on. It does not wait: a select of
// one channel that is not ready takes no lock.
func ended(ctx context.Context, received <-chan error, stopped <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return streamError(ctx, ctx.Err())
	default:
	}
	select {
	case err := <-received:
		return streamError(ctx, err)
	default:
	}
	select {
	case <-stopped:
		return rpctypes.ErrGRPCStopped
	default:
	}
	return nil
}

// streamError is what a stream ends with after err.
func streamError(ctx context.Context, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(ctx.Err(), context.Canceled) {
		return rpctypes.ErrGRPCWatchCanceled
	}
	return err
}

// receive passes the client's requests on until it fails. A client that has
// only closed its sending side goes on receiving: then receive waits for the
// end of the stream.
func (s *watchServer) receive(rpc pb.Watch_WatchServer, stream *watch.Stream) error {
	ctx := rpc.Context()
	for {
		req, err := rpc.Recv()
		if errors.Is(err, io.EOF) {
			<-ctx.Done()
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		if err := stream.Admit(ctx); err != nil {
			<-ctx.Done() // the sending side has seen the reason too
			return ctx.Err()
		}
		switch r := req.RequestUnion.(type) {
		case *pb.WatchRequest_CreateRequest:
			if r.CreateRequest != nil {
				create(stream, r.CreateRequest)
			}
		case *pb.WatchRequest_CancelRequest:
			if r.CancelRequest != nil {
				stream.Cancel(r.CancelRequest.WatchId)
			}
		case *pb.WatchRequest_ProgressRequest:
			if r.ProgressRequest != nil {
				stream.RequestProgress()
			}
		default:
			// An unknown request is passed over, as in etcd.
		}
	}
}

func create(stream *watch.Stream, r *pb.WatchCreateRequest) {
	if r.StartRevision < 0 {
		stream.Refuse(rpctypes.ErrCompacted.Error())
		return
	}
	req := watch.Request{
		ID:             r.WatchId,
		Key:            r.Key,
		End:            r.RangeEnd,
		StartRevision:  r.StartRevision,
		PrevKV:         r.PrevKv,
		Fragment:       r.Fragment,
		ProgressNotify: r.ProgressNotify,
	}
	if len(req.Key) == 0 {
		req.Key = []byte{0}
	}
	for _, f := range r.Filters {
		switch f {
		case pb.WatchCreateRequest_NOPUT:
			req.NoPut = true
		case pb.WatchCreateRequest_NODELETE:
			req.NoDelete = true
		}
	}
	stream.Create(req)
}

// send sends one response, in fragments if its watcher wants that.
func (s *watchServer) send(rpc pb.Watch_WatchServer, resp watch.Response) error {
	wr := &pb.WatchResponse{
		Header:          s.header(resp.Revision),
		WatchId:         resp.WatchID,
		Created:         resp.Created,
		Canceled:        resp.Canceled,
		CancelReason:    resp.CancelReason,
		CompactRevision: resp.CompactRevision,
		Events:          resp.Events,
	}
	if !resp.Fragment || len(wr.Events) < 2 || proto.Size(wr) < s.opts.FragmentBytes {
		return rpc.Send(wr)
	}
	for _, part := range fragments(wr, s.opts.FragmentBytes) {
		if err := rpc.Send(part); err != nil {
			return err
		}
	}
	return nil
}

// fragments splits a response with events: each part is below limit bytes or
// holds one event, all but the last are marked.
func fragments(wr *pb.WatchResponse, limit int) []*pb.WatchResponse {
	empty := proto.Size(&pb.WatchResponse{Header: wr.Header, WatchId: wr.WatchId, Fragment: true})
	var parts []*pb.WatchResponse
	for events := wr.Events; len(events) > 0; {
		n, size := 0, empty
		for n < len(events) {
			size += eventSize(events[n])
			if n > 0 && size >= limit {
				break
			}
			n++
		}
		parts = append(parts, &pb.WatchResponse{
			Header: wr.Header, WatchId: wr.WatchId, Fragment: n < len(events), Events: events[:n:n],
		})
		events = events[n:]
	}
	return parts
}

// eventSize is what an event adds to the size of a response.
func eventSize(ev *mvccpb.Event) int {
	return protowire.SizeTag(eventsField) + protowire.SizeBytes(proto.Size(ev))
}
