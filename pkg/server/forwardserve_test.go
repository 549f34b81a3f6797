package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// gatedStore lets a put of the key "slow" wait for the test.
type gatedStore struct {
	Store
	entered chan context.Context // of such a put
	leave   chan struct{}
}

func newGatedStore() *gatedStore {
	return &gatedStore{entered: make(chan context.Context, 100), leave: make(chan struct{})}
}

func (s *gatedStore) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	if string(r.Key) == "slow" {
		s.entered <- ctx
		select {
		case <-s.leave:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return s.Store.Put(ctx, r)
}

// startGatedPair is a pair whose first member leads, with a gate before its store.
func startGatedPair(t *testing.T) (*pair, *gatedStore) {
	t.Helper()
	gate := newGatedStore()
	p := startPair(t, func(at int, opt *memberOptions) {
		if wrap := opt.wrap; at == 0 {
			opt.wrap = func(s Store) Store {
				gate.Store = wrap(s)
				return gate
			}
		}
	})
	return p, gate
}

// TestForwardSlow: a request that takes long holds nobody up.
func TestForwardSlow(t *testing.T) {
	p, gate := startGatedPair(t)
	ctx := short(t)
	slow := make(chan error, 1)
	go func() {
		_, err := p[1].kv.Put(ctx, &pb.PutRequest{Key: []byte("slow")})
		slow <- err
	}()
	<-gate.entered
	for i := range 20 {
		if _, err := p[1].kv.Put(ctx, &pb.PutRequest{Key: fmt.Append(nil, "fast", i)}); err != nil {
			t.Fatal(err)
		}
	}
	close(gate.leave)
	if err := <-slow; err != nil {
		t.Error(err)
	}
}

// TestForwardGone: the leader does not go on for a client that has gone.
func TestForwardGone(t *testing.T) {
	p, gate := startGatedPair(t)
	for name, leave := range map[string]func() (context.Context, context.CancelFunc){
		"canceled": func() (context.Context, context.CancelFunc) { return context.WithCancel(t.Context()) },
		"late": func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), 2*time.Second) // enough to reach the leader
		},
	} {
		ctx, cancel := leave()
		done := make(chan error, 1)
		go func() {
			_, err := p[1].kv.Put(ctx, &pb.PutRequest{Key: []byte("slow")})
			done <- err
		}()
		at := <-gate.entered
		if name == "canceled" {
			cancel()
		}
		select {
		case <-at.Done():
		case <-short(t).Done():
			t.Errorf("%s: the leader has not heard of it", name)
		}
		switch err := <-done; codeOf(err) {
		case codes.Canceled, codes.DeadlineExceeded:
		default: // the servers may notice the deadline before the client
			if name != "late" || codeOf(err) != codes.Unavailable {
				t.Errorf("%s: %v", name, err)
			}
		}
		cancel()
	}
}

// TestForwardLarge: large requests and answers arrive whole beside small ones.
func TestForwardLarge(t *testing.T) {
	p := startPair(t, nil)
	ctx := short(t)
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			key := fmt.Append(nil, i)
			for _, size := range []int{1, largeRequest - 100, largeRequest, DefaultMaxRequestBytes - 1000} {
				value := bytes.Repeat([]byte{byte(i)}, size)
				if _, err := p[1].kv.Put(ctx, &pb.PutRequest{Key: key, Value: value}); err != nil {
					t.Errorf("put of %d bytes: %v", size, err)
				}
				put, err := p[1].kv.Put(ctx, &pb.PutRequest{Key: key, Value: value, PrevKv: true})
				if err != nil || !bytes.Equal(put.PrevKv.GetValue(), value) {
					t.Errorf("the value before, of %d bytes: %d, %v", size, len(put.GetPrevKv().GetValue()), err)
				}
				txn, err := p[1].kv.Txn(ctx, &pb.TxnRequest{
					Compare: createdAt(key, 0), Success: []*pb.RequestOp{put1(key)},
					Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}},
				})
				if err != nil || !bytes.Equal(txn.Responses[0].GetResponseRange().GetKvs()[0].Value, value) {
					t.Errorf("txn that reads %d bytes: %v", size, err)
				}
			}
		})
	}
	clients.Wait()
	_, err := p[1].kv.Put(ctx, &pb.PutRequest{Key: []byte("a"), Value: make([]byte, DefaultMaxRequestBytes)})
	wantError(t, err, rpctypes.ErrGRPCRequestTooLarge)
}

func put1(key []byte) *pb.RequestOp { return put(key, []byte("1"), 0) }

// TestForwardedCounts: forwarded requests count among the leader's.
func TestForwardedCounts(t *testing.T) {
	p := startPair(t, nil)
	if _, err := p[1].kv.Put(short(t), &pb.PutRequest{Key: []byte("a")}); err != nil {
		t.Fatal(err)
	}
	_, err := p[1].kv.Put(short(t), &pb.PutRequest{})
	wantError(t, err, rpctypes.ErrGRPCEmptyKey)
	for _, m := range p {
		r := m.server.rpcs.method(pb.KV_Put_FullMethodName)
		if r.started.Load() != 2 || r.handled[codes.OK].Load() != 1 || r.handled[codes.InvalidArgument].Load() != 1 {
			t.Errorf("%d requests are counted, %d and %d answered", r.started.Load(), r.handled[codes.OK].Load(), r.handled[codes.InvalidArgument].Load())
		}
	}
}

// TestForwardOnce: while the leadership moves, each request is done once or not
// at all, and its client hears which unless nobody knows.
func TestForwardOnce(t *testing.T) {
	p := startPair(t, nil)
	ctx := short(t)
	stop := make(chan struct{})
	var running sync.WaitGroup
	done := make([]map[string]bool, 8) // by key: the client was told so
	for i := range done {
		done[i] = map[string]bool{}
		running.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprintf("%d/%d", i, n)
				_, err := p[i%2].kv.Put(ctx, &pb.PutRequest{Key: []byte(key)})
				if err != nil && codeOf(err) != codes.Unavailable {
					t.Errorf("put: %v", err)
				}
				done[i][key] = err == nil
			}
		})
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		p.lead(rnd.IntN(3) - 1)
		time.Sleep(time.Duration(rnd.IntN(5)) * time.Millisecond)
	}
	p.lead(0)
	close(stop)
	running.Wait()
	total := 0
	for i := range done {
		for key, told := range done[i] {
			resp, err := p[1].kv.Range(ctx, &pb.RangeRequest{Key: []byte(key)})
			switch {
			case err != nil:
				t.Fatal(err)
			case len(resp.Kvs) > 0 && resp.Kvs[0].Version > 1:
				t.Errorf("%s was put %d times", key, resp.Kvs[0].Version)
			case told && len(resp.Kvs) == 0:
				t.Errorf("%s was acknowledged and is not there", key)
			}
			if told {
				total++
			}
		}
	}
	if total == 0 {
		t.Error("nothing was done")
	}
}

// fakeStream hands messages to a forwardStream, and says when it asks for one.
type fakeStream struct {
	grpc.ServerStream
	ctx      context.Context
	messages chan []byte
	asked    chan struct{}
}

func (s *fakeStream) Context() context.Context     { return s.ctx }
func (s *fakeStream) SendHeader(metadata.MD) error { return nil }
func (s *fakeStream) SendMsg(any) error            { return nil }

func (s *fakeStream) RecvMsg(m any) error {
	s.asked <- struct{}{}
	select {
	case data, ok := <-s.messages:
		if !ok {
			return io.EOF
		}
		*m.(*frames) = data
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

func newFakeStream(t *testing.T, m *member) *fakeStream {
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(forwardedKey, forwardedTo(testClusterID, m.server.cfg.MemberID)))
	return &fakeStream{ctx: ctx, messages: make(chan []byte), asked: make(chan struct{}, 100)}
}

// TestForwardedRoom: what one node sends, and is not answered, is bounded.
func TestForwardedRoom(t *testing.T) {
	gate := newGatedStore()
	m := startMember(t, memberOptions{wrap: func(s Store) Store {
		gate.Store = s
		return gate
	}})
	methods := m.server.forwardedMethods()
	stream := newFakeStream(t, m)
	fs := newForwardStream(m.server, &methods, stream)
	fs.room = semaphore.NewWeighted(5 * frameOverhead) // four small requests
	ended := make(chan error, 1)
	go func() { ended <- fs.serve() }()
	req, err := proto.Marshal(&pb.PutRequest{Key: []byte("slow")})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		<-stream.asked
		stream.messages <- append(appendFrame(nil, uint64(i), putFrame, 0, len(req)), req...)
	}
	for range 4 {
		<-gate.entered
	}
	select {
	case <-gate.entered:
		t.Error("five are under way")
	case <-stream.asked:
		t.Error("a sixth is read")
	case <-time.After(50 * time.Millisecond):
	}
	gate.leave <- struct{}{}
	<-gate.entered
	close(gate.leave)
	<-stream.asked
	close(stream.messages)
	if err := <-ended; !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// TestForwardedDamage ends the stream, and what is under way on it.
func TestForwardedDamage(t *testing.T) {
	gate := newGatedStore()
	m := startMember(t, memberOptions{wrap: func(s Store) Store {
		gate.Store = s
		return gate
	}})
	methods := m.server.forwardedMethods()
	stream := newFakeStream(t, m)
	ended := make(chan error, 1)
	go func() { ended <- newForwardStream(m.server, &methods, stream).serve() }()
	req, err := proto.Marshal(&pb.PutRequest{Key: []byte("slow")})
	if err != nil {
		t.Fatal(err)
	}
	whole := append(appendFrame(nil, 1, putFrame, 0, len(req)), req...)
	stream.messages <- append(whole, whole[:len(whole)-1]...)
	at := <-gate.entered
	if err := <-ended; codeOf(err) != codes.InvalidArgument {
		t.Error(err)
	}
	<-at.Done()
}

// FuzzFrames reads what was written, and does not trust what was not.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{}, uint64(1), uint64(1), uint64(0), []byte("body"))
	f.Add(appendFrame(nil, 1, putFrame, 0, 1<<40), uint64(1)<<63, uint64(9), uint64(1), []byte{})
	f.Fuzz(func(t *testing.T, garbage []byte, number, kind, millis uint64, body []byte) {
		m := append(append(frames(appendFrame(nil, number, frameKind(kind), millis, len(body))), body...), garbage...)
		got, err := m.next()
		if err != nil || got.number != number || got.kind != frameKind(kind) || got.millis != millis || !bytes.Equal(got.body, body) {
			t.Errorf("%+v, %v", got, err)
		}
		if !bytes.Equal(m, garbage) {
			t.Error("what follows is not what was written")
		}
		for len(m) > 0 {
			before := len(m)
			if _, err := m.next(); err != nil {
				break
			}
			if len(m) >= before {
				t.Fatal("nothing was read")
			}
		}
	})
}
