// Package hostile loads a server the way a broken or malicious client would,
// while another client goes about its business. Each load ends with three
// questions: was that client served, all the time and correctly; did the
// server take no more memory than docs/limits.md says; does it still work?
// How long anything takes is not asked.
//
// KEELSON_HOSTILE_SCALE multiplies the sizes of the loads (default 1), and
// KEELSON_TEST_BACKEND=etcd puts them on an etcd, for comparison: there the
// memory is shown only.
package hostile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/keelson-io/keelson/test/harness"
)

const (
	mib = 1 << 20

	// patience is how long one step may take: far more than it does.
	patience = 10 * time.Minute

	// maxRequest is --max-request-bytes' default.
	maxRequest = 3 << 19
)

// scaled is n times KEELSON_HOSTILE_SCALE.
func scaled(t testing.TB, n int) int {
	t.Helper()
	env := os.Getenv("KEELSON_HOSTILE_SCALE")
	if env == "" {
		return n
	}
	scale, err := strconv.Atoi(env)
	if err != nil || scale < 1 {
		t.Fatalf("KEELSON_HOSTILE_SCALE=%q: it is a factor from 1 on", env)
	}
	return n * scale
}

func backend() harness.Backend {
	if harness.Backend(os.Getenv("KEELSON_TEST_BACKEND")) == harness.Etcd {
		return harness.Etcd
	}
	return harness.Keelson
}

// server is a backend under load.
type server struct{ *harness.Server }

func start(t *testing.T, args ...string) *server {
	t.Helper()
	return &server{harness.StartServer(t, backend(), args...)}
}

// patient returns a context for one step of a load.
func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func (s *server) client(t testing.TB) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.Endpoint}, DialTimeout: patience, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// conn is a gRPC connection without clientv3's own limits and retries.
func (s *server) conn(t testing.TB) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(s.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(1<<31-1), grpc.MaxCallSendMsgSize(1<<31-1)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// under runs load beside a healthy client. The server may take limit MiB at its
// peak, times the scale; some of it may be of an earlier load, since Go gives
// memory back slowly. It must still run afterwards, and the client must have
// been served from before the load until after it.
func (s *server) under(t *testing.T, limit int, load func(t *testing.T)) {
	t.Helper()
	before := s.memory(t, "VmRSS")
	s.resetPeak(t)
	stop := s.healthy(t)
	load(t)
	rounds := stop()
	peak := s.memory(t, "VmHWM")
	t.Logf("memory %d MiB before, %d at the peak, %d after; the healthy client had %d rounds",
		before, peak, s.memory(t, "VmRSS"), rounds)
	select {
	case <-s.Done():
		t.Fatalf("the server has ended:\n%s", s.LogTail(20))
	default:
	}
	if limit = scaled(t, limit); peak > limit && s.Backend == harness.Keelson && os.Getenv("KEELSON_RACE") == "" {
		t.Errorf("the server has taken %d MiB, the limit is %d", peak, limit)
	}
	if s.Backend == harness.Keelson && bytes.Contains(s.Log(), []byte("panic")) {
		t.Errorf("the server has panicked:\n%s", s.LogTail(40))
	}
}

// memory returns a field of /proc/<pid>/status in MiB.
func (s *server) memory(t testing.TB, field string) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID()))
	if err != nil {
		t.Fatalf("the memory of the server: %v\n%s", err, s.LogTail(20))
	}
	for line := range bytes.Lines(status) {
		if rest, ok := bytes.CutPrefix(line, []byte(field+":")); ok {
			var kib int
			if _, err := fmt.Sscan(string(rest), &kib); err != nil {
				t.Fatal(err)
			}
			return kib >> 10
		}
	}
	t.Fatalf("no %s in %s", field, status)
	return 0
}

// resetPeak makes VmHWM count from now on.
func (s *server) resetPeak(t testing.TB) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.PID()), []byte("5"), 0); err != nil {
		t.Fatalf("resetting the peak memory: %v", err)
	}
}

// healthy starts a client that uses the server as any other would, until stop
// is called, which returns how often it went through everything. Each of its
// requests must succeed and say what is so.
func (s *server) healthy(t *testing.T) (stop func() int) {
	t.Helper()
	c := s.client(t)
	ctx, cancel := context.WithCancel(context.Background())
	events := c.Watch(ctx, "healthy", clientv3.WithPrevKV())
	first := make(chan struct{})
	done := make(chan struct{})
	end := make(chan struct{})
	rounds := 0
	go func() {
		defer close(done)
		for {
			if err := healthyRound(c, events); err != nil {
				t.Errorf("the healthy client is not served: round %d: %v", rounds, err)
				if rounds == 0 {
					close(first)
				}
				return
			}
			if rounds++; rounds == 1 {
				close(first)
			}
			select {
			case <-end:
				return
			case <-time.After(time.Millisecond): // a client, not a load
			}
		}
	}()
	<-first
	var once sync.Once
	stop = func() int {
		once.Do(func() {
			close(end)
			<-done
			// Whatever the load was, there is one more round after it.
			if !t.Failed() {
				if err := healthyRound(c, events); err != nil {
					t.Errorf("the healthy client is not served after the load: %v", err)
				}
			}
			cancel()
			_ = c.Close()
		})
		return rounds
	}
	t.Cleanup(func() { stop() })
	return stop
}

// healthyRound is one of each request. Where a machine is slow one may time out,
// with what became of it unknown: then it is sent again, by clientv3 itself if it
// is not a put.
func healthyRound(c *clientv3.Client, events clientv3.WatchChan) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	value := strconv.FormatInt(time.Now().UnixNano(), 10)
	put, err := c.Put(ctx, "healthy", value)
	for errors.Is(err, rpctypes.ErrTimeout) && ctx.Err() == nil {
		put, err = c.Put(ctx, "healthy", value)
	}
	if err != nil {
		return fmt.Errorf("put: %w", err)
	}
	got, err := c.Get(ctx, "healthy")
	if err != nil {
		return fmt.Errorf("get: %w", err)
	}
	if len(got.Kvs) != 1 || string(got.Kvs[0].Value) != value || got.Kvs[0].ModRevision != put.Header.Revision {
		return fmt.Errorf("get: %v after putting %s at %d", got.Kvs, value, put.Header.Revision)
	}
	txn, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision("healthy"), "=", put.Header.Revision)).
		Then(clientv3.OpGet("healthy", clientv3.WithCountOnly())).Commit()
	if err != nil {
		return fmt.Errorf("txn: %w", err)
	}
	if !txn.Succeeded || txn.Responses[0].GetResponseRange().Count != 1 {
		return fmt.Errorf("txn: %v", txn)
	}
	lease, err := c.Grant(ctx, 600)
	if err != nil {
		return fmt.Errorf("lease grant: %w", err)
	}
	if _, err = c.Revoke(ctx, lease.ID); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return fmt.Errorf("lease revoke: %w", err)
	}
	for {
		select {
		case resp, ok := <-events:
			if !ok || resp.Err() != nil {
				return fmt.Errorf("the watch ended: %w", resp.Err())
			}
			for _, ev := range resp.Events {
				if ev.Kv.ModRevision != put.Header.Revision {
					continue
				}
				if string(ev.Kv.Value) != value {
					return fmt.Errorf("watched %v after putting %s", ev.Kv, value)
				}
				return nil
			}
		case <-ctx.Done():
			return errors.New("the watch shows nothing")
		}
	}
}

// parallel runs fn(0) to fn(n-1) at the same time and returns the first error.
func parallel(n int, fn func(i int) error) error {
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- fn(i) }()
	}
	var first error
	for range n {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// fill puts n keys, prefix and eight digits, each with the value.
func (s *server) fill(t testing.TB, prefix string, n int, value []byte, perTxn int) {
	t.Helper()
	kv := pb.NewKVClient(s.conn(t))
	var next sync.Mutex
	at := 0
	err := parallel(4, func(int) error {
		for {
			next.Lock()
			from := at
			at = min(at+perTxn, n)
			to := at
			next.Unlock()
			if from == to {
				return nil
			}
			txn := &pb.TxnRequest{}
			for i := from; i < to; i++ {
				txn.Success = append(txn.Success, opPut(fmt.Appendf(nil, "%s%08d", prefix, i), value))
			}
			if _, err := kv.Txn(patient(t), txn); err != nil {
				return err
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func opPut(key, value []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: value}}}
}

func opRange(r *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
}

func opTxn(r *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}
}

// everything is the range over all keys.
func everything() *pb.RangeRequest {
	return &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}
}
