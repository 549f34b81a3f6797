package embed

import (
	"context"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/lease"
	"github.com/keelson-io/keelson/pkg/server"
	"github.com/keelson-io/keelson/pkg/store"
	"github.com/keelson-io/keelson/pkg/watch"
)

// What the services are given passes each call on to the generation that
// serves, after waiting for it if need be; what has no error to give is asked
// of the newest one there is.
var (
	_ server.Store  = currentStore{}
	_ server.Hub    = currentHub{}
	_ server.Lessor = currentLessor{}
)

// errReopening is the answer while the data is opened again: nothing was
// changed.
var errReopening = fmt.Errorf("%w: the data is being opened again", store.ErrUnavailable)

type (
	currentStore  struct{ *backend }
	currentHub    struct{ *backend }
	currentLessor struct{ *backend }
)

// ask is fn of the store that serves.
func ask[R any](ctx context.Context, b *backend, fn func(*store.Store) (R, error)) (R, error) {
	g, err := b.generation(ctx)
	if err != nil {
		var none R
		return none, err
	}
	return fn(g.store)
}

// do is ask without a result.
func do(ctx context.Context, b *backend, fn func(*store.Store) error) error {
	g, err := b.generation(ctx)
	if err != nil {
		return err
	}
	return fn(g.store)
}

func (s currentStore) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	return ask(ctx, s.backend, func(st *store.Store) (*pb.RangeResponse, error) { return st.Range(ctx, r) })
}

func (s currentStore) RangePairs(ctx context.Context, r *pb.RangeRequest) (resp *pb.RangeResponse, pairs store.Pairs, err error) {
	err = do(ctx, s.backend, func(st *store.Store) error {
		resp, pairs, err = st.RangePairs(ctx, r)
		return err
	})
	return resp, pairs, err
}

func (s currentStore) RangeStream(ctx context.Context, r *pb.RangeRequest, send func(*pb.RangeResponse) error) error {
	return do(ctx, s.backend, func(st *store.Store) error { return st.RangeStream(ctx, r, send) })
}

func (s currentStore) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	return ask(ctx, s.backend, func(st *store.Store) (*pb.PutResponse, error) { return st.Put(ctx, r) })
}

func (s currentStore) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	return ask(ctx, s.backend, func(st *store.Store) (*pb.DeleteRangeResponse, error) { return st.DeleteRange(ctx, r) })
}

func (s currentStore) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	return ask(ctx, s.backend, func(st *store.Store) (*pb.TxnResponse, error) { return st.Txn(ctx, r) })
}

func (s currentStore) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	return ask(ctx, s.backend, func(st *store.Store) (*pb.CompactionResponse, error) { return st.Compact(ctx, r) })
}

func (s currentStore) LeaseGrant(ctx context.Context, id, ttl int64) (store.Lease, error) {
	return ask(ctx, s.backend, func(st *store.Store) (store.Lease, error) { return st.LeaseGrant(ctx, id, ttl) })
}

func (s currentStore) LeaseRevoke(ctx context.Context, id int64) error {
	return do(ctx, s.backend, func(st *store.Store) error { return st.LeaseRevoke(ctx, id) })
}

func (s currentStore) LeaseKeys(id int64) [][]byte { return s.newest().store.LeaseKeys(id) }

func (s currentStore) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	return ask(ctx, s.backend, func(st *store.Store) (*pb.AlarmResponse, error) { return st.Alarm(ctx, r) })
}

func (s currentStore) Alarms() []*pb.AlarmMember { return s.newest().store.Alarms() }

func (s currentStore) HashKV(ctx context.Context, revision int64) (store.HashKV, error) {
	return ask(ctx, s.backend, func(st *store.Store) (store.HashKV, error) { return st.HashKV(ctx, revision) })
}

func (s currentStore) Hash(ctx context.Context) (uint32, error) {
	return ask(ctx, s.backend, func(st *store.Store) (uint32, error) { return st.Hash(ctx) })
}

func (s currentStore) Fence(ctx context.Context) error {
	return do(ctx, s.backend, func(st *store.Store) error { return st.Fence(ctx) })
}

func (s currentStore) Revision() (current, compacted int64) { return s.newest().store.Revision() }

func (s currentStore) Position() eventlog.Position { return s.newest().store.Position() }

func (s currentStore) Size() eventlog.Size { return s.newest().store.Size() }

func (s currentStore) OverQuota() bool { return s.newest().store.OverQuota() }

func (s currentStore) Defragment(ctx context.Context) error {
	return do(ctx, s.backend, func(st *store.Store) error { return st.Defragment(ctx) })
}

func (s currentStore) Export(ctx context.Context) (*store.Export, error) {
	return ask(ctx, s.backend, func(st *store.Store) (*store.Export, error) { return st.Export(ctx) })
}

// NewStream returns a stream of the newest hub; if that has stopped, so has
// the stream, and its client comes back.
func (h currentHub) NewStream() *watch.Stream { return h.newest().hub.Load().NewStream() }

func (h currentHub) Stats() watch.Stats { return h.newest().hub.Load().Stats() }

func (l currentLessor) Renew(ctx context.Context, id int64) (int64, error) {
	g, err := l.generation(ctx)
	if err != nil {
		return 0, err
	}
	return g.lessor.Renew(ctx, id)
}

func (l currentLessor) TimeToLive(ctx context.Context, id int64) (lease.Lease, bool, error) {
	g, err := l.generation(ctx)
	if err != nil {
		return lease.Lease{}, false, err
	}
	return g.lessor.TimeToLive(ctx, id)
}

func (l currentLessor) List() []lease.Lease { return l.newest().lessor.List() }

func (l currentLessor) Stats() lease.Stats { return l.newest().lessor.Stats() }

// leader is whether this instance can serve, where etcd asks for a leader: the
// database answers.
func (b *backend) leader() (lost <-chan struct{}, ok bool) {
	switch m := b.now.Load(); {
	case m.phase != serving:
		return nil, false
	case m.generation.raft != nil:
		return b.cluster.leader()
	case m.generation.shared == nil:
		return nil, true
	default: // the streams of a generation end with it
		return m.generation.shared.Answers()
	}
}
