// Package store is etcd's data model over a log: it evaluates requests,
// commits their effects in groups, and answers reads from memory.
//
//	writers ─▶ queue ─▶ committer ─ evaluate ─▶ Log.Append ─▶ publish ─▶ OnApply, answers
//	                       │  ▲                                  │
//	              trim ◀───┘  └── Log.Tail (other writers)       ▼
//	               │                                      state (immutable)
//	               ▼                                             │
//	           compactor ─▶ Log.Compact            readers ◀─────┘ + values (cache, Log.Values)
//
// One goroutine, the committer, makes new states; everyone else reads the
// newest published one without a lock.
package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"golang.org/x/sync/errgroup"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// Options of a Store.
type Options struct {
	Logger *logrus.Entry
	// CacheBytes bounds the values kept in memory; 0 is DefaultCacheBytes.
	CacheBytes int64
	// QuotaBytes is how much the log may hold before the NOSPACE alarm is
	// raised; 0 or less is no limit.
	QuotaBytes int64
	// ChunkBytes is about the size of RangeStream's chunks; 0 is
	// DefaultChunkBytes.
	ChunkBytes int
	// RequestTimeout is about how long a write or a fence waits for the log
	// before it gives up with ErrTimeout; 0 is for ever.
	RequestTimeout time.Duration
	// MemberID names this member in the alarms it raises.
	MemberID uint64
	// OnApply is called once at the end of Open with the leases there are, and
	// then for every batch, in log order, when its state is visible to readers
	// and before its writers, Fence and Reach are answered. It must not block.
	OnApply func(Applied)
	// WantsPrev is asked for every batch whether its events are to have a
	// PrevKv, which may have to be read from the log; nil: they are.
	WantsPrev func() bool
	// Admit is called when it is known what the response to a request will
	// need, and before it does; for a transaction it is an estimate first. It
	// may wait; its error ends the request. A second call with the same context
	// takes the place of the first.
	Admit func(context.Context, Need) error
	// OnCommit is called for every batch that this store has appended: with
	// the number of requests and records in it and how long the log took.
	OnCommit func(requests, records int, took time.Duration)
}

// DefaultCacheBytes is the bound of the value cache if none is given.
const DefaultCacheBytes = 64 << 20

// Applied is what a batch has changed.
type Applied struct {
	Revision int64 // the current main revision after the batch
	// Events are all changes in order of (main, sub). Kv is complete; PrevKv is
	// set if there was a version before that is not compacted, unless NoPrev
	// says that it was left out. They are shared and read-only. There are none
	// where they would hold too much: History has them.
	Events  []*mvccpb.Event
	NoPrev  bool    // WantsPrev was false
	Granted []Lease // leases granted that are still there
	Revoked []int64 // leases gone
}

// Lease is a lease: its id and its time to live in seconds, as granted.
type Lease struct{ ID, TTL int64 }

// Store is a revisioned key-value store on a log. Its methods are safe for
// concurrent use; those that change something wait for Run.
type Store struct {
	log       eventlog.Log
	opt       Options
	values    *values
	published atomic.Pointer[published]
	queue     *queue
	patience  patience
	compactor *compactor
	plans     plans
	aheadOf   chan string   // a key whose value was not cached; buffered
	hashing   chan struct{} // holds the one HashKV under way
}

// published is a state that readers may see.
type published struct {
	state
	told chan struct{} // closed when OnApply has returned
	next chan struct{} // closed when another one has taken its place
}

// Open loads log into a new Store, which takes writes once Run runs. It takes
// time in proportion to the number of records.
func Open(ctx context.Context, log eventlog.Log, opt Options) (*Store, error) {
	if opt.Logger == nil {
		opt.Logger = logrus.NewEntry(logrus.StandardLogger())
	}
	if opt.CacheBytes == 0 {
		opt.CacheBytes = DefaultCacheBytes
	}
	if opt.ChunkBytes == 0 {
		opt.ChunkBytes = DefaultChunkBytes
	}
	if opt.OnApply == nil {
		opt.OnApply = func(Applied) {}
	}
	if opt.WantsPrev == nil {
		opt.WantsPrev = func() bool { return true }
	}
	if opt.Admit == nil {
		opt.Admit = func(context.Context, Need) error { return nil }
	}
	if opt.OnCommit == nil {
		opt.OnCommit = func(int, int, time.Duration) {}
	}
	st := newState()
	st = st.edit()
	head, err := log.Load(ctx, st.apply)
	if err != nil {
		return nil, fmt.Errorf("loading the log: %w", err)
	}
	if head.Position < st.position || head.Seq < st.seq {
		return nil, fmt.Errorf("loading the log: %w: the head %+v is before record %d", eventlog.ErrCorrupt, head, st.seq)
	}
	st.position, st.seq = head.Position, head.Seq
	st.revision = max(st.revision, head.Revision)

	s := &Store{
		log:      log,
		opt:      opt,
		values:   &values{cache: newValueCache(opt.CacheBytes), log: log, logger: opt.Logger},
		queue:    newQueue(),
		patience: patience{limit: opt.RequestTimeout},
		aheadOf:  make(chan string, 1),
		hashing:  make(chan struct{}, 1),
	}
	s.compactor = newCompactor(log, opt.Logger)
	s.published.Store(&published{state: st, told: make(chan struct{}), next: make(chan struct{})})
	for _, a := range st.alarms {
		s.logAlarm(a.alarm, true)
	}
	opt.OnApply(Applied{Revision: st.revision, Granted: s.Leases()})
	close(s.published.Load().told)
	return s, nil
}

// Run commits writes until ctx ends; then it refuses new ones, commits what is
// queued and returns nil. It returns early if the log has failed or is
// corrupt, with an error that says so: the process should stop.
func (s *Store) Run(ctx context.Context) error {
	// The compactor outlives ctx by as long as the committer needs it.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var g errgroup.Group
	g.Go(func() error {
		defer stop()
		return s.commitUntil(ctx)
	})
	g.Go(func() error {
		s.readAhead(background)
		return nil
	})
	g.Go(func() error {
		err := s.compactor.run(background)
		if err != nil {
			s.queue.fail(err)
		}
		return err
	})
	return g.Wait()
}

// Notify says that the log's head may be at position by another's hand, so
// that the store catches up without waiting for its next write or fence. It
// does not block.
func (s *Store) Notify(position eventlog.Position) {
	if position > s.published.Load().position {
		s.queue.wakeUp()
	}
}

// now returns the newest state.
func (s *Store) now() *state { return &s.published.Load().state }

// Fence returns once every write acknowledged before the call, by any
// instance, is visible to reads of this store, and OnApply was told of it.
func (s *Store) Fence(ctx context.Context) error {
	head, err := s.log.Head(ctx)
	if err != nil {
		return logError(err)
	}
	return s.reachPosition(ctx, head)
}

// reachPosition returns once reads of this store show position head.
func (s *Store) reachPosition(ctx context.Context, head eventlog.Position) error {
	var over <-chan struct{} // one limit for all of the waiting, if there is any
	for {
		p := s.published.Load()
		if p.position >= head {
			<-p.told
			return nil
		}
		if over == nil {
			over = s.patience.over()
		}
		s.queue.wakeUp()
		select {
		case <-p.next:
		case <-ctx.Done():
			return ctx.Err()
		case <-over:
			return ErrTimeout
		case <-s.queue.stopped:
			return ErrStopped
		}
	}
}

// Reach returns once reads of this store show revision, and OnApply was told of
// it.
func (s *Store) Reach(ctx context.Context, revision int64) error {
	for {
		p := s.published.Load()
		if p.revision >= revision {
			<-p.told
			return nil
		}
		s.queue.wakeUp()
		select {
		case <-p.next:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.queue.stopped:
			return ErrStopped
		}
	}
}

// Range answers a range request; it is linearizable unless it says that
// serializable is enough.
func (s *Store) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	resp, pairs, err := s.RangePairs(ctx, r)
	if err != nil {
		return nil, err
	}
	resp.Kvs = pairs.Messages()
	return resp, nil
}

// complete makes the key-value pairs of parts, when there is room for them.
func (s *Store) complete(ctx context.Context, parts ...ranged) error {
	var need Need
	for i := range parts {
		need = need.plus(parts[i].need())
	}
	if err := s.opt.Admit(ctx, need); err != nil {
		return err
	}
	for i := range parts {
		if err := s.values.fill(ctx, parts[i].complete()); err != nil {
			return err
		}
	}
	return nil
}

// reader is a valueFunc that reads from the log what is not cached.
func (s *Store) reader(ctx context.Context) valueFunc {
	return func(seqs []int64) ([][]byte, error) { return s.values.read(ctx, seqs) }
}

// read fences unless serializable and runs fn on the newest state. Where a
// compaction deletes a value that fn reads meanwhile, fn runs again on a newer
// state: it either finds newer versions or that its revision is compacted.
func (s *Store) read(ctx context.Context, serializable bool, fn func(*state) error) error {
	if !serializable {
		if err := s.Fence(ctx); err != nil {
			return err
		}
	}
	for {
		st := s.now()
		err := fn(st)
		if !errors.Is(err, eventlog.ErrCompacted) {
			return err
		}
		if err := s.Fence(ctx); err != nil { // the compaction may be another instance's
			return err
		}
		if st == s.now() {
			return fmt.Errorf("%w: the index names a record that the log does not have: %w", eventlog.ErrCorrupt, err)
		}
	}
}

// Put answers a put request. The put is durable when the error is nil.
func (s *Store) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	return submitFor(ctx, s, len(r.Key)+len(r.Value), func(ev *evaluation) (*pb.PutResponse, error) { return ev.put(r) })
}

// DeleteRange answers a delete request; it is durable when the error is nil.
func (s *Store) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	left := effort(math.MaxInt64)
	if err := s.opt.Admit(ctx, s.now().deleteNeed(r, &left)); err != nil {
		return nil, err
	}
	return submitFor(ctx, s, len(r.Key), func(ev *evaluation) (*pb.DeleteRangeResponse, error) { return ev.deleteRange(r) })
}

// Txn answers a transaction; what it changed is durable when the error is nil.
func (s *Store) Txn(ctx context.Context, r *pb.TxnRequest) (resp *pb.TxnResponse, err error) {
	left := effort(maxTxnKeys)
	if err := s.opt.Admit(ctx, s.now().txnNeed(r, &left)); err != nil {
		return nil, err
	}
	if readOnly, serializable := isReadOnly(r); readOnly {
		err = s.read(ctx, serializable, func(st *state) error {
			var parts []ranged
			var err error
			if resp, parts, err = readOnlyTxn(st, r, s.reader(ctx)); err != nil {
				return err
			}
			return s.complete(ctx, parts...)
		})
		return resp, err
	}
	return submitFor(ctx, s, int(txnCost(r)), func(ev *evaluation) (*pb.TxnResponse, error) { return ev.txn(r) })
}

// Compact hides the revisions that a compaction at r.Revision frees. If
// r.Physical is set it also waits until they are deleted.
func (s *Store) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	resp, err := submitFor(ctx, s, 0, func(ev *evaluation) (*pb.CompactionResponse, error) {
		return &pb.CompactionResponse{Header: ev.header()}, ev.compact(r.Revision)
	})
	if err != nil {
		return nil, err
	}
	if r.Physical {
		if err := s.compactor.wait(ctx, r.Revision); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// LeaseGrant grants lease id, or one with an id of the store's choice if id is
// 0, for ttl seconds. The grant is durable when the error is nil.
func (s *Store) LeaseGrant(ctx context.Context, id, ttl int64) (Lease, error) {
	for {
		lease := Lease{ID: id, TTL: ttl}
		if id == 0 {
			lease.ID = rand.Int64N(1<<63-1) + 1
		}
		err := s.submit(ctx, 0, func(ev *evaluation) error { return ev.leaseGrant(lease.ID, ttl) })
		if id == 0 && errors.Is(err, ErrLeaseExists) {
			continue
		}
		return lease, err
	}
}

// LeaseRevoke revokes lease id and deletes its keys.
func (s *Store) LeaseRevoke(ctx context.Context, id int64) error {
	return s.submit(ctx, 0, func(ev *evaluation) error { return ev.leaseRevoke(id) })
}

// LeaseExpire is LeaseRevoke for as long as ctx lasts: if that has ended when it
// is its turn, the lease stays. Who is not the one any more that counts the
// time, and is it again, does not know what was renewed in between.
func (s *Store) LeaseExpire(ctx context.Context, id int64) error {
	return s.submit(ctx, 0, func(ev *evaluation) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return ev.leaseRevoke(id)
	})
}

// Lease returns lease id, if it exists.
func (s *Store) Lease(id int64) (Lease, bool) {
	g, ok := s.now().leases.Get(id)
	return Lease{ID: g.id, TTL: g.ttl}, ok
}

// LeaseKeys returns the keys attached to lease id, in order; they are
// read-only.
func (s *Store) LeaseKeys(id int64) [][]byte {
	names := s.now().keysOf(id)
	keys := make([][]byte, len(names))
	for i, name := range names {
		keys[i] = bytesOf(name)
	}
	return keys
}

// Leases returns all leases in order of id.
func (s *Store) Leases() []Lease {
	leases := s.now().leases
	all := make([]Lease, 0, leases.Len())
	leases.Ascend(-1<<63, func(g grant) bool {
		all = append(all, Lease{ID: g.id, TTL: g.ttl})
		return true
	})
	return all
}

// Alarm raises, disarms or lists alarms.
func (s *Store) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	if r.Action == pb.AlarmRequest_GET {
		if err := s.Fence(ctx); err != nil {
			return nil, err
		}
		resp := &pb.AlarmResponse{}
		for _, a := range s.Alarms() {
			if r.Alarm == pb.AlarmType_NONE || r.Alarm == a.Alarm {
				resp.Alarms = append(resp.Alarms, a)
			}
		}
		resp.Header = &pb.ResponseHeader{Revision: s.now().revision}
		return resp, nil
	}
	return submitFor(ctx, s, 0, func(ev *evaluation) (*pb.AlarmResponse, error) {
		alarms := ev.alarm(r)
		return &pb.AlarmResponse{Header: ev.header(), Alarms: alarms}, nil
	})
}

// Alarms returns the alarms that are raised.
func (s *Store) Alarms() []*pb.AlarmMember {
	var all []*pb.AlarmMember
	for _, a := range s.now().alarms {
		all = append(all, &pb.AlarmMember{MemberID: a.member, Alarm: pb.AlarmType(a.alarm)})
	}
	return all
}

// Revision returns the current and the compact revision; the latter is -1
// before the first compaction.
func (s *Store) Revision() (current, compacted int64) {
	st := s.now()
	return st.revision, st.compacted
}

// Position returns the position of the newest batch applied.
func (s *Store) Position() eventlog.Position { return s.now().position }

// OverQuota reports whether the log takes more than its quota, besides what
// compaction is about to free.
func (s *Store) OverQuota() bool {
	return s.opt.QuotaBytes > 0 && s.log.Size().InUse >= s.opt.QuotaBytes && s.compactor.idle(s.now().compacted)
}

// Size returns the space that the log takes.
func (s *Store) Size() eventlog.Size { return s.log.Size() }

// Keys returns the number of living keys.
func (s *Store) Keys() int { return s.now().keys.Count() }

// CachedBytes returns how much the value cache holds.
func (s *Store) CachedBytes() int64 { return s.values.cache.size() }

// Defragment gives freed space back to the operating system or database.
func (s *Store) Defragment(ctx context.Context) error {
	if err := s.log.Defragment(ctx); err != nil {
		return logError(err)
	}
	return nil
}
