package hostile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// fitting is the largest value that a put of a short key may have.
const fitting = maxRequest - 64

// TestRequestsAtTheLimit puts values as large as may be, hundreds at once, and
// larger ones by the thousand.
func TestRequestsAtTheLimit(t *testing.T) {
	clients := func(t *testing.T, s *server) []pb.KVClient {
		conns := make([]pb.KVClient, 8)
		for i := range conns {
			conns[i] = pb.NewKVClient(s.conn(t))
		}
		return conns
	}
	busy := func(err error) bool { return errors.Is(rpctypes.Error(err), rpctypes.ErrTooManyRequests) }
	value := bytes.Repeat([]byte("x"), fitting)
	t.Run("at", func(t *testing.T) {
		n := scaled(t, 400)
		s := start(t)
		conns := clients(t, s)
		s.under(t, 1600, func(t *testing.T) {
			var taken atomic.Int64
			err := parallel(n, func(i int) error {
				_, err := conns[i%len(conns)].Put(patient(t), &pb.PutRequest{Key: fmt.Appendf(nil, "%02d", i%50), Value: value})
				if err == nil {
					taken.Add(1)
				} else if !busy(err) {
					return err
				}
				return nil
			})
			t.Logf("%d of %d taken", taken.Load(), n)
			if err != nil || taken.Load() < 50 {
				t.Errorf("%d of %d taken: %v", taken.Load(), n, err)
			}
		})
	})
	t.Run("above", func(t *testing.T) {
		n := scaled(t, 100)
		s := start(t)
		conns := clients(t, s)
		s.under(t, 700, func(t *testing.T) {
			for extra, want := range map[int]codes.Code{
				64:      codes.InvalidArgument,   // the server's own limit
				1 << 20: codes.ResourceExhausted, // gRPC's, before it is all there
			} {
				large := append(value[:fitting:fitting], make([]byte, extra)...)
				err := parallel(n, func(i int) error {
					for range 5 {
						_, err := conns[i%len(conns)].Put(patient(t), &pb.PutRequest{Key: []byte("a"), Value: large})
						if code := status.Code(err); code != want && !busy(err) {
							return fmt.Errorf("%d bytes: %w, want %v", len(large), err, want)
						}
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	})
}

// TestMaxConcurrentStreams has a thousand large requests at once on connections
// that may have eight each: no more of them are in memory.
func TestMaxConcurrentStreams(t *testing.T) {
	s := start(t, "--max-concurrent-streams", "8")
	conns := make([]pb.KVClient, 8)
	for i := range conns {
		conns[i] = pb.NewKVClient(s.conn(t))
	}
	s.under(t, 500, func(t *testing.T) {
		large := make([]byte, maxRequest)
		err := parallel(scaled(t, 1000), func(i int) error {
			_, err := conns[i%len(conns)].Put(patient(t), &pb.PutRequest{Key: []byte("a"), Value: large})
			if code := status.Code(err); code != codes.InvalidArgument {
				return fmt.Errorf("a request above the limit: %w", err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// TestTransactions sends transactions that are deep, wide, and both.
func TestTransactions(t *testing.T) {
	s := start(t)
	s.fill(t, "some/", 20_000, []byte("a value"), 128)
	nested := func(depth int) *pb.TxnRequest {
		r := &pb.TxnRequest{Success: []*pb.RequestOp{opPut([]byte("deep"), []byte("value"))}}
		for range depth {
			r = &pb.TxnRequest{Success: []*pb.RequestOp{opTxn(r)}}
		}
		return r
	}
	// The longest list of every level counts against what is left below it.
	var wide func(levels, ops int, leaf *pb.RequestOp) *pb.TxnRequest
	wide = func(levels, ops int, leaf *pb.RequestOp) *pb.TxnRequest {
		r := &pb.TxnRequest{}
		for range ops {
			if levels == 1 {
				r.Success = append(r.Success, leaf)
			} else {
				r.Success = append(r.Success, opTxn(wide(levels-1, ops, leaf)))
			}
		}
		return r
	}
	del := &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("x")}}}
	count := everything()
	count.CountOnly = true
	empty := &pb.TxnRequest{Compare: make([]*pb.Compare, 900_000)}
	for i := range empty.Compare {
		empty.Compare[i] = &pb.Compare{}
	}
	tooMany := func(err error) bool { return errors.Is(rpctypes.Error(err), rpctypes.ErrTooManyOps) }
	for _, load := range []struct {
		name string
		n    int // at once
		txn  *pb.TxnRequest
		good func(error) bool
	}{
		{"as deep as may be", 100, nested(127), func(err error) bool { return err == nil }},
		{"deeper", 100, nested(128), tooMany},
		{"9000 deep", 20, nested(4400), tooMany},
		{"20,000 deep", 20, nested(9900), tooMany}, // protobuf itself takes 10,000 levels
		{"42 × 42 × 42 deletes", 10, wide(3, 42, del), func(err error) bool { return err == nil || refused(err) }},
		{"42 × 42 × 42 counts", 10, wide(3, 42, opRange(count)), func(err error) bool { return err == nil || refused(err) }},
		{"42 × 42 × 42 ranges over all keys", 2, wide(3, 42, opRange(everything())), refused},
		{"900,000 empty compares", 40, empty, func(err error) bool { return tooMany(err) || refused(err) }},
	} {
		t.Run(load.name, func(t *testing.T) {
			s.under(t, 1000, func(t *testing.T) {
				kv := pb.NewKVClient(s.conn(t))
				err := parallel(load.n, func(int) error {
					_, err := kv.Txn(patient(t), load.txn)
					if !load.good(err) {
						return fmt.Errorf("unexpected outcome: %w", err)
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestLargeDelete deletes large values with one request: what it held in all
// does not come into memory, and a watcher that does not ask for it sees the
// deletes.
func TestLargeDelete(t *testing.T) {
	s := start(t)
	n := scaled(t, 400)
	s.fill(t, "large/", n, make([]byte, maxRequest-4096), 1)
	s.under(t, 350, func(t *testing.T) {
		conn := s.conn(t)
		stream := watchStream(patient(t), t, pb.NewWatchClient(conn))
		must(t, stream.Send(create(&pb.WatchCreateRequest{Key: []byte("large/"), RangeEnd: []byte("large0")})))
		if resp, err := stream.Recv(); err != nil || !resp.Created {
			t.Fatalf("%v %v", resp, err)
		}
		resp, err := pb.NewKVClient(conn).DeleteRange(patient(t), &pb.DeleteRangeRequest{Key: []byte("large/"), RangeEnd: []byte("large0")})
		if err != nil || resp.Deleted != int64(n) {
			t.Errorf("%v %v", resp, err)
		}
		seen, err := stream.Recv()
		if err != nil || len(seen.Events) != n || seen.Events[n-1].Type != mvccpb.Event_DELETE {
			t.Errorf("%d events: %v", len(seen.GetEvents()), err)
		}
	})
}

// TestLeases grants 100,000 leases, keeps them alive on one stream, lets some
// expire all at once and revokes the others.
func TestLeases(t *testing.T) {
	s := start(t)
	n := scaled(t, 100_000)
	expiring := scaled(t, 5_000)
	s.under(t, 250, func(t *testing.T) {
		ctx := patient(t)
		leases := pb.NewLeaseClient(s.conn(t))
		const clients = 500
		err := parallel(clients, func(i int) error {
			for id := i + 1; id <= n; id += clients {
				ttl := int64(3600)
				if id <= expiring {
					ttl = 5
				}
				if _, err := leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: int64(id), TTL: ttl}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d MiB with %d leases", s.memory(t, "VmRSS"), n)
		keepAliveAll(t, leases, expiring, n)
		all, err := leases.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
		if err != nil || len(all.Leases) < n-expiring {
			t.Errorf("%d leases are listed of %d: %v", len(all.GetLeases()), n, err)
		}
		for id := 1; id <= expiring; { // each in its time, as the server gets to it
			resp, err := leases.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: int64(id)})
			if err != nil {
				t.Fatal(err)
			}
			if resp.TTL == -1 {
				id++
			}
		}
		err = parallel(clients, func(i int) error {
			for id := expiring + i + 1; id <= n; id += clients {
				if _, err := leases.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: int64(id)}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// keepAliveAll sends keep-alives of the leases after first up to last, without
// waiting for the answers, and then reads these.
func keepAliveAll(t *testing.T, leases pb.LeaseClient, first, last int) {
	stream, err := leases.LeaseKeepAlive(patient(t))
	must(t, err)
	sent := make(chan error, 1)
	go func() {
		var err error
		for id := first + 1; id <= last && err == nil; id++ {
			err = stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(id)})
		}
		sent <- errors.Join(err, stream.CloseSend())
	}()
	for id := first + 1; id <= last; id++ {
		resp, err := stream.Recv()
		if err != nil || resp.ID != int64(id) || resp.TTL != 3600 {
			t.Fatalf("keeping %d alive: %v %v", id, resp, err)
		}
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// TestKeepAliveFlood sends keep-alives whose answers nobody reads.
func TestKeepAliveFlood(t *testing.T) {
	s := start(t)
	s.under(t, 150, func(t *testing.T) {
		ctx, cancel := context.WithCancel(patient(t))
		defer cancel()
		conn := s.conn(t)
		stream, err := pb.NewLeaseClient(conn).LeaseKeepAlive(ctx)
		must(t, err)
		n := scaled(t, 500_000)
		sent := make(chan error, 1)
		go func() {
			var err error
			for i := 0; i < n && err == nil; i++ {
				err = stream.Send(&pb.LeaseKeepAliveRequest{ID: 1})
			}
			sent <- err
		}()
		for i := range 2000 {
			if _, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("a")}); err != nil {
				t.Fatalf("request %d beside the stream: %v", i, err)
			}
		}
		cancel()
		if err := <-sent; status.Code(err) != codes.Canceled && !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
}

// TestWaiters has thousands wait for one lock; the lock goes from hand to hand,
// and nothing is left of those who give up.
func TestWaiters(t *testing.T) {
	s := start(t)
	n := scaled(t, 2_000)
	s.under(t, 250, func(t *testing.T) {
		ctx, giveUp := context.WithCancel(patient(t))
		defer giveUp()
		c := s.client(t)
		session, err := concurrency.NewSession(c)
		must(t, err)
		holder := concurrency.NewMutex(session, "busy")
		must(t, holder.Lock(ctx))
		conn := s.conn(t)
		got := make(chan string, n)
		ended := make(chan error, n)
		for range n {
			go func() { ended <- lockOnce(ctx, conn, got) }()
		}
		kv := pb.NewKVClient(conn)
		claims := func() int64 {
			resp, err := kv.Range(patient(t), &pb.RangeRequest{Key: []byte("busy/"), RangeEnd: []byte("busy0"), CountOnly: true})
			must(t, err)
			return resp.Count
		}
		for claims() < int64(n)+1 {
		}
		must(t, holder.Unlock(ctx))
		for range 10 { // hand to hand
			key := <-got
			_, err := kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte(key)})
			must(t, err)
			must(t, <-ended)
		}
		last := <-got
		giveUp()
		for range n - 10 {
			if err := <-ended; err != nil && status.Code(err) != codes.Canceled {
				t.Fatal(err)
			}
		}
		_, err = kv.DeleteRange(patient(t), &pb.DeleteRangeRequest{Key: []byte(last)})
		must(t, err)
		for limit := patient(t); claims() > 0; {
			if limit.Err() != nil {
				t.Fatalf("%d claims are left", claims())
			}
		}
	})
}

// lockOnce waits for the lock and says by which key it has it.
func lockOnce(ctx context.Context, conn *grpc.ClientConn, got chan<- string) error {
	// The messages of the Lock service are in etcd's server module; these look
	// the same on the wire.
	name, held := &pb.RangeRequest{Key: []byte("busy")}, &pb.StatusResponse{}
	err := conn.Invoke(ctx, "/v3lockpb.Lock/Lock", name, held)
	if err == nil {
		got <- held.Version
	}
	return err
}

// TestGateway sends JSON that is large, deep, or does not end.
func TestGateway(t *testing.T) {
	s := start(t)
	post := func(body io.Reader) (int, error) {
		transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", s.Socket)
		}}
		defer transport.CloseIdleConnections()
		req, err := http.NewRequestWithContext(patient(t), http.MethodPost, "http://localhost/v3/kv/txn", body)
		if err != nil {
			return 0, err
		}
		resp, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			return 0, err
		}
		defer func() { _ = resp.Body.Close() }()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, err
	}
	for _, load := range []struct {
		name string
		n    int
		body func() io.Reader
	}{
		{"1 GiB", 10, func() io.Reader {
			return io.MultiReader(strings.NewReader(`{"compare":[{"key":"`), io.LimitReader(endless('A'), 1<<30))
		}},
		{"deep", 10, func() io.Reader { return io.LimitReader(endless('['), 4<<20) }},
		{"wide", 10, func() io.Reader {
			return io.MultiReader(strings.NewReader(`{"compare":[{}`), strings.NewReader(strings.Repeat(`,{}`, 2<<20)), strings.NewReader(`]}`))
		}},
	} {
		t.Run(load.name, func(t *testing.T) {
			s.under(t, 800, func(t *testing.T) {
				err := parallel(load.n, func(int) error {
					code, err := post(load.body())
					if err == nil && code != http.StatusBadRequest && code != http.StatusTooManyRequests {
						err = fmt.Errorf("answered %d", code)
					}
					if err != nil && !strings.Contains(err.Error(), "broken pipe") && !strings.Contains(err.Error(), "reset") {
						return err
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestHalfBodies has JSON requests of which half has come.
func TestHalfBodies(t *testing.T) {
	t.Parallel() // it waits
	s := start(t)
	s.under(t, 500, func(t *testing.T) {
		body := `{"compare":[{"key":"` + strings.Repeat("A", 4*mib)
		err := parallel(scaled(t, 100), func(int) error {
			conn := s.dial(t)
			_, _ = fmt.Fprintf(conn, "POST /v3/kv/txn HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", 8*mib, body)
			return ended(t, conn)
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// endless is a reader of one byte over and over.
type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

// TestSnapshots asks for many snapshots at once, and reads only how each begins.
func TestSnapshots(t *testing.T) {
	s := start(t)
	s.fill(t, "snapshot/", 500, make([]byte, 20_000), 20)
	s.under(t, 150, func(t *testing.T) {
		c := pb.NewMaintenanceClient(s.conn(t))
		err := parallel(scaled(t, 1000), func(int) error {
			ctx, leave := context.WithCancel(patient(t))
			defer leave()
			stream, err := c.Snapshot(ctx, &pb.SnapshotRequest{})
			if err != nil {
				return err
			}
			_, err = stream.Recv()
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}
