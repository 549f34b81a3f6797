// Package contract checks, statement by statement, what a client can see of
// etcd: each test is run against a real etcd and against keelson, each time on
// a fresh server. The numbers are those of the project's list of what an etcd
// client can rely on; a test that etcd itself fails is wrong.
package contract

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/keelson-io/keelson/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

type statement struct {
	name string
	run  func(*env)
	args []string // of the server
}

func TestContract(t *testing.T) {
	all := statements()
	for _, backend := range harness.Backends(t) {
		t.Run(string(backend), func(t *testing.T) {
			for _, s := range all {
				t.Run(s.name, func(t *testing.T) {
					t.Parallel()
					s.run(newEnv(t, backend, s.args...))
				})
			}
		})
	}
}

func statements() []statement {
	return slices.Concat(validation, transactions, ranges, compaction, watches, leases, maintenance, gateway, history, kube, snapshots)
}

// patience bounds a statement, which takes seconds.
const patience = 5 * time.Minute

// env is one server with raw clients on it, so that a test sees the status and
// the messages as they are on the wire.
type env struct {
	*testing.T
	ctx     context.Context
	srv     *harness.Server
	conn    *grpc.ClientConn
	kv      pb.KVClient
	watches pb.WatchClient
	lease   pb.LeaseClient
	maint   pb.MaintenanceClient
	cluster pb.ClusterClient
}

func newEnv(t *testing.T, backend harness.Backend, args ...string) *env {
	t.Helper()
	srv := harness.StartServer(t, backend, args...)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	e := (&env{T: t, ctx: ctx}).on(srv)
	if backend == harness.Etcd && len(srv.Nodes) == 1 {
		e.knowsItsStorage()
	}
	return e
}

// knowsItsStorage waits until an etcd has written down the version of its storage,
// which it does a moment after it is healthy.
func (e *env) knowsItsStorage() {
	e.Helper()
	must(e, e.srv.WaitReady(patience, func(ctx context.Context) error {
		_, body, err := e.srv.Get(ctx, "/version")
		if err == nil && !strings.Contains(body, `"storage":"3.`) {
			err = fmt.Errorf("/version: %s", body)
		}
		return err
	}))
}

// on returns the same with clients of another server.
func (e *env) on(srv *harness.Server) *env {
	e.Helper()
	conn, err := grpc.NewClient(srv.Endpoint,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(
			grpc.WaitForReady(true),
			grpc.MaxCallRecvMsgSize(64<<20),
			grpc.MaxCallSendMsgSize(64<<20)))
	must(e, err)
	e.Cleanup(func() { _ = conn.Close() })
	return &env{
		T: e.T, ctx: e.ctx, srv: srv, conn: conn,
		kv:      pb.NewKVClient(conn),
		watches: pb.NewWatchClient(conn),
		lease:   pb.NewLeaseClient(conn),
		maint:   pb.NewMaintenanceClient(conn),
		cluster: pb.NewClusterClient(conn),
	}
}

// client returns a clientv3 client, which rebuilds errors from their text.
func (e *env) client() *clientv3.Client {
	e.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{e.srv.Endpoint}, Logger: zap.NewNop()})
	must(e, err)
	e.Cleanup(func() { _ = c.Close() })
	return c
}

func must(e *env, err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

func equal[T comparable](e *env, what string, got, want T) {
	e.Helper()
	if got != want {
		e.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// fails checks code and text of an error.
func (e *env) fails(what string, err error, code codes.Code, text string) {
	e.Helper()
	if err == nil {
		e.Errorf("%s: succeeded, want %v %q", what, code, text)
		return
	}
	st := status.Convert(err)
	if st.Code() != code || st.Message() != text {
		e.Errorf("%s: got %v %q, want %v %q", what, st.Code(), st.Message(), code, text)
	}
}

const (
	textCompacted = "etcdserver: mvcc: required revision has been compacted"
	textFuture    = "etcdserver: mvcc: required revision is a future revision"
	textNoKey     = "etcdserver: key is not provided"
	textNotFound  = "etcdserver: key not found"
	textDuplicate = "etcdserver: duplicate key given in txn request"
	textNoLease   = "etcdserver: requested lease not found"
	textNoSpace   = "etcdserver: mvcc: database space exceeded"
)

func (e *env) put(key, value string) int64 {
	e.Helper()
	resp, err := e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
	must(e, err)
	return resp.Header.Revision
}

func (e *env) del(key, end string) *pb.DeleteRangeResponse {
	e.Helper()
	resp, err := e.kv.DeleteRange(e.ctx, &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)})
	must(e, err)
	return resp
}

func (e *env) rng(req *pb.RangeRequest) *pb.RangeResponse {
	e.Helper()
	resp, err := e.kv.Range(e.ctx, req)
	must(e, err)
	return resp
}

func (e *env) get(key string) *pb.RangeResponse {
	e.Helper()
	return e.rng(&pb.RangeRequest{Key: []byte(key)})
}

func (e *env) txn(req *pb.TxnRequest) *pb.TxnResponse {
	e.Helper()
	resp, err := e.kv.Txn(e.ctx, req)
	must(e, err)
	return resp
}

func (e *env) compact(rev int64) {
	e.Helper()
	_, err := e.kv.Compact(e.ctx, &pb.CompactionRequest{Revision: rev, Physical: true})
	must(e, err)
}

// rev is the store's current revision.
func (e *env) rev() int64 {
	e.Helper()
	return e.get("rev").Header.Revision
}

func (e *env) grant(id, ttl int64) *pb.LeaseGrantResponse {
	e.Helper()
	resp, err := e.lease.LeaseGrant(e.ctx, &pb.LeaseGrantRequest{ID: id, TTL: ttl})
	must(e, err)
	return resp
}

func (e *env) attach(key string, lease int64) {
	e.Helper()
	_, err := e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte(key), Lease: lease})
	must(e, err)
}

func opPut(key, value string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
		RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(value)},
	}}
}

func opDel(key, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
		RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)},
	}}
}

func opRange(req *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: req}}
}

func opGet(key string) *pb.RequestOp { return opRange(&pb.RangeRequest{Key: []byte(key)}) }

func opTxn(req *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: req}}
}

func cmpMod(key string, result pb.Compare_CompareResult, rev int64) *pb.Compare {
	return &pb.Compare{
		Key: []byte(key), Target: pb.Compare_MOD, Result: result,
		TargetUnion: &pb.Compare_ModRevision{ModRevision: rev},
	}
}

// keys renders the keys of a response, in its order.
func keys(kvs []*mvccpb.KeyValue) string {
	names := make([]string, len(kvs))
	for i, kv := range kvs {
		names[i] = string(kv.Key)
	}
	return strings.Join(names, " ")
}

// show renders one key-value pair with everything but its lease.
func show(kv *mvccpb.KeyValue) string {
	if kv == nil {
		return "none"
	}
	return fmt.Sprintf("%s=%s create=%d mod=%d version=%d",
		kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version)
}
