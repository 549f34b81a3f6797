package server

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
	"github.com/keelson-io/keelson/pkg/lease"
	"github.com/keelson-io/keelson/pkg/store"
)

// failingStore answers every request with err, or hangs until its context
// ends if err is nil.
type failingStore struct {
	Store
	err func() error
}

func (f failingStore) fail(ctx context.Context) error {
	if err := f.err(); err != nil {
		return err
	}
	<-ctx.Done()
	return fmt.Errorf("waiting for the log: %w", ctx.Err())
}

func (f failingStore) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if r.CountOnly { // for the metrics
		return f.Store.Range(ctx, r)
	}
	return nil, f.fail(ctx)
}

func (f failingStore) RangePairs(ctx context.Context, _ *pb.RangeRequest) (*pb.RangeResponse, store.Pairs, error) {
	return nil, store.Pairs{}, f.fail(ctx)
}

func (f failingStore) RangeStream(ctx context.Context, _ *pb.RangeRequest, _ func(*pb.RangeResponse) error) error {
	return f.fail(ctx)
}

func (f failingStore) Put(ctx context.Context, _ *pb.PutRequest) (*pb.PutResponse, error) {
	return nil, f.fail(ctx)
}

func (f failingStore) DeleteRange(ctx context.Context, _ *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	return nil, f.fail(ctx)
}

func (f failingStore) Txn(ctx context.Context, _ *pb.TxnRequest) (*pb.TxnResponse, error) {
	return nil, f.fail(ctx)
}

func (f failingStore) Compact(ctx context.Context, _ *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	return nil, f.fail(ctx)
}

func (f failingStore) LeaseGrant(ctx context.Context, _, _ int64) (store.Lease, error) {
	return store.Lease{}, f.fail(ctx)
}

func (f failingStore) LeaseRevoke(ctx context.Context, _ int64) error { return f.fail(ctx) }

func (f failingStore) Alarm(ctx context.Context, _ *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	return nil, f.fail(ctx)
}

func (f failingStore) HashKV(ctx context.Context, _ int64) (store.HashKV, error) {
	return store.HashKV{}, f.fail(ctx)
}

func (f failingStore) Hash(ctx context.Context) (uint32, error) { return 0, f.fail(ctx) }

func (f failingStore) Fence(ctx context.Context) error { return f.fail(ctx) }

func (f failingStore) Defragment(ctx context.Context) error { return f.fail(ctx) }

func (f failingStore) Export(ctx context.Context) (*store.Export, error) { return nil, f.fail(ctx) }

// calls are all requests that reach the store.
func (m *member) calls() map[string]func(context.Context) error {
	key := []byte("k")
	return map[string]func(context.Context) error{
		"Range": func(ctx context.Context) error {
			_, err := m.kv.Range(ctx, &pb.RangeRequest{Key: key})
			return err
		},
		"RangeStream": func(ctx context.Context) error {
			stream, err := m.kv.RangeStream(ctx, &pb.RangeRequest{Key: key})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
		"RangeStream serializable": func(ctx context.Context) error {
			stream, err := m.kv.RangeStream(ctx, &pb.RangeRequest{Key: key, Serializable: true})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
		"Put": func(ctx context.Context) error {
			_, err := m.kv.Put(ctx, &pb.PutRequest{Key: key})
			return err
		},
		"DeleteRange": func(ctx context.Context) error {
			_, err := m.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key})
			return err
		},
		"Txn": func(ctx context.Context) error {
			_, err := m.kv.Txn(ctx, &pb.TxnRequest{Success: list(opPut("k"))})
			return err
		},
		"Compact": func(ctx context.Context) error {
			_, err := m.kv.Compact(ctx, &pb.CompactionRequest{Revision: 1})
			return err
		},
		"LeaseGrant": func(ctx context.Context) error {
			_, err := m.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 5})
			return err
		},
		"LeaseRevoke": func(ctx context.Context) error {
			_, err := m.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 5})
			return err
		},
		"LeaseTimeToLive": func(ctx context.Context) error {
			_, err := m.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 5})
			return err
		},
		"Alarm": func(ctx context.Context) error {
			_, err := m.maintenance.Alarm(ctx, &pb.AlarmRequest{})
			return err
		},
		"HashKV": func(ctx context.Context) error {
			_, err := m.maintenance.HashKV(ctx, &pb.HashKVRequest{})
			return err
		},
		"Hash": func(ctx context.Context) error {
			_, err := m.maintenance.Hash(ctx, &pb.HashRequest{})
			return err
		},
		"Defragment": func(ctx context.Context) error {
			_, err := m.maintenance.Defragment(ctx, &pb.DefragmentRequest{})
			return err
		},
		"MemberList": func(ctx context.Context) error {
			_, err := m.cluster.MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
			return err
		},
	}
}

// Every error of the store gets its status in every request.
func TestErrorsOfTheStore(t *testing.T) {
	var err error
	m := startMember(t, memberOptions{wrap: func(s Store) Store {
		return failingStore{s, func() error { return err }}
	}})
	ctx := short(t)
	for _, tc := range []struct{ err, want error }{
		{store.ErrCompacted, rpctypes.ErrGRPCCompacted},
		{store.ErrFutureRev, rpctypes.ErrGRPCFutureRev},
		{store.ErrKeyNotFound, rpctypes.ErrGRPCKeyNotFound},
		{store.ErrLeaseNotFound, rpctypes.ErrGRPCLeaseNotFound},
		{store.ErrLeaseExists, rpctypes.ErrGRPCLeaseExist},
		{store.ErrNoSpace, rpctypes.ErrGRPCNoSpace},
		{store.ErrCorruptAlarm, rpctypes.ErrGRPCCorrupt},
		{store.ErrUnavailable, rpctypes.ErrGRPCNoLeader},
		{store.ErrUnknownOutcome, rpctypes.ErrGRPCTimeout},
		{store.ErrTimeout, rpctypes.ErrGRPCTimeout},
		{store.ErrStopped, rpctypes.ErrGRPCStopped},
		{fmt.Errorf("%w: %w", store.ErrUnknownOutcome, eventlog.ErrFailed), rpctypes.ErrGRPCTimeout},
		{fmt.Errorf("%w: %w", store.ErrStopped, eventlog.ErrUnknown), rpctypes.ErrGRPCStopped},
		{fmt.Errorf("reading: %w", eventlog.ErrFailed), rpctypes.ErrGRPCStopped},
		{fmt.Errorf("reading: %w", eventlog.ErrCorrupt), rpctypes.ErrGRPCCorrupt},
		{errors.New("a surprise"), status.Error(codes.Unknown, "a surprise")},
	} {
		err = tc.err
		for name, call := range m.calls() {
			t.Run(name+"/"+tc.err.Error(), func(t *testing.T) { wantError(t, call(ctx), tc.want) })
		}
	}
}

// A log that does not answer makes "request timed out" at the server's limit,
// where the store has none of its own; the client's own deadline and cancel
// stay what they are.
func TestTimeouts(t *testing.T) {
	m := startMember(t, memberOptions{
		config: func(c *Config) { c.RequestTimeout = 20 * time.Millisecond },
		wrap:   func(s Store) Store { return failingStore{s, func() error { return nil }} },
	})
	unbounded := map[string]bool{"Put": true, "DeleteRange": true, "Txn": true, "Defragment": true, "Hash": true, "HashKV": true, "RangeStream serializable": true}
	for name, call := range m.calls() {
		t.Run(name, func(t *testing.T) {
			if !unbounded[name] {
				wantError(t, call(short(t)), rpctypes.ErrGRPCTimeout)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
			defer cancel()
			if got := codeOf(call(ctx)); got != codes.DeadlineExceeded {
				t.Errorf("with a deadline of its own: %v", got)
			}
			ctx, cancel = context.WithCancel(t.Context())
			cancel()
			if got := codeOf(call(ctx)); got != codes.Canceled {
				t.Errorf("canceled: %v", got)
			}
		})
	}
}

// A transaction that only reads waits for the log as a range does.
func TestReadOnlyTxnTimesOut(t *testing.T) {
	m := startMember(t, memberOptions{
		config: func(c *Config) { c.RequestTimeout = 20 * time.Millisecond },
		wrap:   func(s Store) Store { return failingStore{s, func() error { return nil }} },
	})
	txn := func(serializable bool, patience time.Duration) error {
		get := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("k"), Serializable: serializable}}}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		_, err := m.kv.Txn(ctx, &pb.TxnRequest{Failure: []*pb.RequestOp{get}})
		return err
	}
	wantError(t, txn(false, 10*time.Second), rpctypes.ErrGRPCTimeout)
	if err := txn(true, 100*time.Millisecond); codeOf(err) != codes.DeadlineExceeded {
		t.Errorf("serializable, which needs no fence: %v", err)
	}
}

// longRange is a store whose ranges take as long as took.
type longRange struct {
	Store
	took time.Duration
}

func (s longRange) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	select {
	case <-time.After(s.took):
		return s.Store.Range(ctx, r)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// The limit is for a log that does not answer, not for the length of a list.
func TestLongListIsNoTimeout(t *testing.T) {
	m := startMember(t, memberOptions{
		config: func(c *Config) { c.RequestTimeout = 20 * time.Millisecond },
		wrap:   func(s Store) Store { return longRange{s, 50 * time.Millisecond} },
	})
	if _, err := m.kv.Range(short(t), &pb.RangeRequest{Key: []byte("k")}); err != nil {
		t.Error(err)
	}
}

func TestToStatus(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		name string
		ctx  context.Context
		err  error
		want error
	}{
		{"nil", t.Context(), nil, nil},
		{"the client went", canceled, fmt.Errorf("waiting: %w", context.Canceled), status.Error(codes.Canceled, "context canceled")},
		{"the server's own cancel", t.Context(), context.Canceled, rpctypes.ErrGRPCCanceled},
		{"the server's own deadline", t.Context(), context.DeadlineExceeded, rpctypes.ErrGRPCTimeout},
		{"an answer that the client did not wait for", canceled, store.ErrNoSpace, rpctypes.ErrGRPCNoSpace},
		{"lease", t.Context(), lease.ErrNotFound, rpctypes.ErrGRPCLeaseNotFound},
		{"lessor", t.Context(), lease.ErrNotPrimary, rpctypes.ErrGRPCNoLeader},
		{"a status stays", t.Context(), status.Error(codes.Aborted, "x"), status.Error(codes.Aborted, "x")},
	} {
		t.Run(tc.name, func(t *testing.T) { wantError(t, toStatus(tc.ctx, tc.err), tc.want) })
	}
}

// The texts are those from which clientv3 makes its errors, but for keelson's own.
func TestStatusesAreEtcds(t *testing.T) {
	for _, s := range statuses {
		if known := (rpctypes.EtcdError{}); !errors.Is(s.status, errTooManyKeys) && !errors.As(rpctypes.Error(s.status), &known) {
			t.Errorf("%v: clients do not know %v", s.sentinel, s.status)
		}
	}
}

// The unknown commit, end to end: the write whose answer is lost is answered
// by what became of it, and a log that fails for good by "server stopped".
func TestWriteFaults(t *testing.T) {
	m := startMember(t, memberOptions{})
	ctx := short(t)
	for i, fault := range []memlog.Fault{memlog.FailUnpersisted, memlog.FailPersisted} {
		m.log.InjectFault(fault)
		resp, err := m.kv.Put(ctx, &pb.PutRequest{Key: []byte("k")})
		if err != nil || resp.Header.Revision != int64(i+2) {
			t.Errorf("put with fault %v: revision %d, %v", fault, resp.GetHeader().GetRevision(), err)
		}
	}
}
