package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
)

// world is a number of stores on one disk and the model of what they hold.
type world struct {
	*rapid.T
	tb     testing.TB
	disk   *memlog.Disk
	opt    Options
	stores []*follower
	model  *model
}

// follower is a store with what its OnApply has been told.
type follower struct {
	*Store
	log  *memlog.Log
	stop func() error

	// Owned by the committer; the test reads it after a fence.
	events []*mvccpb.Event
	leases map[int64]int64
	skip   int // events of the model before this store was opened
}

func (w *world) open() *follower {
	f := &follower{leases: map[int64]int64{}, skip: len(w.model.events), log: w.disk.Open(nil)}
	opt := w.opt
	opt.Logger = quiet()
	last := int64(0)
	opt.OnApply = func(a Applied) {
		for _, l := range a.Granted {
			f.leases[l.ID] = l.TTL
		}
		for _, id := range a.Revoked {
			delete(f.leases, id)
		}
		f.events = append(f.events, a.Events...)
		if n := len(a.Events); a.Revision < last || n > 0 && a.Events[n-1].Kv.ModRevision != a.Revision {
			w.tb.Errorf("a batch says revision %d after %d with events %v", a.Revision, last, a.Events)
		}
		last = a.Revision
	}
	store, err := Open(context.Background(), f.log, opt)
	if err != nil {
		w.Fatalf("Open: %v", err)
	}
	f.Store = store
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- store.Run(ctx) }()
	f.stop = func() error {
		cancel()
		return <-done
	}
	return f
}

// op is a request and what the model makes of it.
type op struct {
	name  string
	run   func(*Store) (proto.Message, error)
	model func(*model) (proto.Message, error)
}

func (w *world) verify(o op, got proto.Message, err error, want proto.Message, wantErr error) {
	w.Helper()
	if !errors.Is(err, wantErr) || (err == nil) != (wantErr == nil) {
		w.Fatalf("%s: error %v, want %v", o.name, err, wantErr)
	}
	if err == nil && !proto.Equal(got, want) {
		w.Fatalf("%s:\n got %v\nwant %v", o.name, got, want)
	}
}

// fence brings all stores to the head of the log.
func (w *world) fence() {
	for _, f := range w.stores {
		if err := f.Fence(context.Background()); err != nil {
			w.Fatalf("Fence: %v", err)
		}
	}
}

// alone runs an op by itself.
func (w *world) alone(f *follower, o op) {
	want, wantErr := o.model(w.model)
	got, err := o.run(f.Store)
	w.verify(o, got, err, want, wantErr)
}

// burst draws n writes and runs them as one batch: they queue up behind one
// that waits.
func (w *world) burst(f *follower, n int) {
	type result struct {
		resp proto.Message
		err  error
	}
	ops := make([]op, n)
	want := make([]result, n)
	results := make([]chan result, n)
	for i := range ops {
		ops[i] = w.write(i == 0 || len(w.stores) == 1)
		want[i].resp, want[i].err = ops[i].model(w.model)
		results[i] = make(chan result, 1)
	}
	release := stall(f.Store)
	for i, o := range ops {
		go func() {
			resp, err := o.run(f.Store)
			results[i] <- result{resp, err}
		}()
		for queued := 0; queued <= i; runtime.Gosched() {
			f.queue.mu.Lock()
			queued = len(f.queue.requests)
			f.queue.mu.Unlock()
		}
	}
	release()
	for i, o := range ops {
		got := <-results[i]
		w.verify(o, got.resp, got.err, want[i].resp, want[i].err)
	}
}

// write draws a changing request. It must be modelled before the next is
// drawn. A compaction deletes records at once, so that a store which has not
// read them could not go on: it must be fenced before one may be drawn.
func (w *world) write(mayCompact bool) op {
	ctx := context.Background()
	kind := rapid.IntRange(0, 19).Draw(w.T, "write")
	if kind == 11 && !mayCompact {
		kind++
	}
	switch kind {
	case 0, 1, 2, 3, 4, 5:
		r := w.putRequest()
		return op{
			fmt.Sprintf("put %v", r),
			func(s *Store) (proto.Message, error) { return s.Put(ctx, r) },
			func(m *model) (proto.Message, error) { return m.put(r) },
		}
	case 6, 7:
		r := w.deleteRequest()
		return op{
			fmt.Sprintf("delete %v", r),
			func(s *Store) (proto.Message, error) { return s.DeleteRange(ctx, r) },
			func(m *model) (proto.Message, error) { return m.begin().deleteRange(r), nil },
		}
	case 8:
		id, ttl := rapid.Int64Range(1, 3).Draw(w.T, "lease"), rapid.Int64Range(2, 99).Draw(w.T, "ttl")
		return op{
			fmt.Sprintf("grant %d", id),
			func(s *Store) (proto.Message, error) {
				l, err := s.LeaseGrant(ctx, id, ttl)
				return &pb.LeaseGrantResponse{ID: l.ID, TTL: l.TTL}, err
			},
			func(m *model) (proto.Message, error) { return m.grant(id, ttl) },
		}
	case 9:
		id := rapid.Int64Range(1, 3).Draw(w.T, "lease")
		return op{
			fmt.Sprintf("revoke %d", id),
			func(s *Store) (proto.Message, error) { return &pb.LeaseRevokeResponse{}, s.LeaseRevoke(ctx, id) },
			func(m *model) (proto.Message, error) { return m.revoke(id) },
		}
	case 10:
		r := &pb.AlarmRequest{
			Action:   rapid.SampledFrom([]pb.AlarmRequest_AlarmAction{0, 1, 2, 2, 2}).Draw(w.T, "action"),
			Alarm:    rapid.SampledFrom([]pb.AlarmType{0, 1, 1}).Draw(w.T, "alarm"),
			MemberID: rapid.Uint64Range(1, 2).Draw(w.T, "member"),
		}
		if len(w.model.alarms) > 0 { // not for long
			r = &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: w.model.alarms[0].Alarm, MemberID: w.model.alarms[0].MemberID}
		}
		if r.Action == pb.AlarmRequest_GET { // does not queue
			r.Action = pb.AlarmRequest_DEACTIVATE
		}
		return op{
			fmt.Sprintf("alarm %v", r),
			func(s *Store) (proto.Message, error) { return s.Alarm(ctx, r) },
			func(m *model) (proto.Message, error) { return m.alarm(r) },
		}
	case 11:
		r := &pb.CompactionRequest{Revision: w.revision("compact"), Physical: rapid.Bool().Draw(w.T, "physical")}
		return op{
			fmt.Sprintf("compact %v", r),
			func(s *Store) (proto.Message, error) { return s.Compact(ctx, r) },
			func(m *model) (proto.Message, error) { return m.compact(r.Revision) },
		}
	}
	r := w.txnRequest(&scope{}, nil, 2)
	if readOnly, _ := isReadOnly(r); readOnly { // does not queue
		r.Failure = append(r.Failure, &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{}}})
	}
	return op{
		fmt.Sprintf("txn %v", r),
		func(s *Store) (proto.Message, error) { return s.Txn(ctx, r) },
		func(m *model) (proto.Message, error) { return m.txn(r) },
	}
}

// read draws a request that changes nothing and holds its answer against the
// model.
func (w *world) read(f *follower) {
	ctx := context.Background()
	switch rapid.IntRange(0, 9).Draw(w.T, "read") {
	case 0, 1, 2, 3:
		r := w.rangeRequest()
		w.alone(f, op{
			fmt.Sprintf("range %v", r),
			func(s *Store) (proto.Message, error) { return s.Range(ctx, r) },
			func(m *model) (proto.Message, error) { return m.rangeRequest(r) },
		})
	case 4, 5:
		r := w.rangeRequest()
		r.SortOrder, r.SortTarget = 0, 0
		r.MinModRevision, r.MaxModRevision, r.MinCreateRevision, r.MaxCreateRevision = 0, 0, 0, 0
		w.alone(f, op{
			fmt.Sprintf("stream %v", r),
			func(s *Store) (proto.Message, error) { return w.stream(s, r) },
			func(m *model) (proto.Message, error) { return m.rangeRequest(r) },
		})
	case 6:
		r := &pb.TxnRequest{Compare: w.compares()}
		for range rapid.IntRange(1, 2).Draw(w.T, "ops") {
			r.Success = append(r.Success, rangeOp(w.rangeRequest()))
			r.Failure = append(r.Failure, rangeOp(w.rangeRequest()))
		}
		w.alone(f, op{
			fmt.Sprintf("txn %v", r),
			func(s *Store) (proto.Message, error) { return s.Txn(ctx, r) },
			func(m *model) (proto.Message, error) { return m.txn(r) },
		})
	case 7:
		rev := w.revision("hash")
		w.fence()
		got, err := f.HashKV(ctx, rev)
		want, wantErr := w.model.hash(rev)
		if !errors.Is(err, wantErr) || got != want {
			w.Fatalf("HashKV(%d): %+v %v, want %+v %v", rev, got, err, want, wantErr)
		}
	case 8:
		w.history(f)
	case 9:
		w.alone(f, op{
			"alarms",
			func(s *Store) (proto.Message, error) { return s.Alarm(ctx, &pb.AlarmRequest{}) },
			func(m *model) (proto.Message, error) { return m.alarm(&pb.AlarmRequest{}) },
		})
	}
}

// stream merges the chunks of a RangeStream.
func (w *world) stream(s *Store, r *pb.RangeRequest) (proto.Message, error) {
	merged := &pb.RangeResponse{}
	err := s.RangeStream(context.Background(), r, func(chunk *pb.RangeResponse) error {
		if merged.Header != nil {
			w.Fatalf("stream %v: a chunk after the one with the header", r)
		}
		if chunk.Header == nil && (chunk.More || chunk.Count != 0 || len(chunk.Kvs) == 0) {
			w.Fatalf("stream %v: a chunk that is not the last: %v", r, chunk)
		}
		proto.Merge(merged, chunk)
		return nil
	})
	if err == nil && merged.Header == nil {
		w.Fatalf("stream %v: no header", r)
	}
	return merged, err
}

// history walks through the past in pages, with writes in between.
func (w *world) history(f *follower) {
	key, end := w.span()
	prevKV := rapid.Bool().Draw(w.T, "prevKV")
	from := rapid.Int64Range(max(0, w.model.compacted-1), w.model.revision+1).Draw(w.T, "from")
	for {
		limit := rapid.IntRange(1, 5).Draw(w.T, "limit")
		w.fence()
		got, next, err := f.History(context.Background(), []byte(key), []byte(end), from, limit, prevKV)
		if from < w.model.compacted {
			if !errors.Is(err, ErrCompacted) {
				w.Fatalf("History from %d, compacted %d: %v", from, w.model.compacted, err)
			}
			return
		}
		if err != nil || next < from || next > w.model.revision+1 {
			w.Fatalf("History from %d of %d: next %d, %v", from, w.model.revision, next, err)
		}
		want := w.model.history(key, end, from, next, prevKV)
		if !slices.EqualFunc(got, want, func(a, b *mvccpb.Event) bool { return proto.Equal(a, b) }) {
			w.Fatalf("History(%q, %q) of [%d, %d), prevKV %v:\n got %v\nwant %v", key, end, from, next, prevKV, got, want)
		}
		mains := map[int64]bool{}
		for _, e := range got {
			mains[e.Kv.ModRevision] = true
		}
		if len(mains) > limit || next == from && from <= w.model.revision {
			w.Fatalf("History from %d, limit %d: %d revisions, next %d of %d", from, limit, len(mains), next, w.model.revision)
		}
		if next == w.model.revision+1 {
			return
		}
		from = next
		if rapid.IntRange(0, 3).Draw(w.T, "meanwhile") == 0 {
			w.alone(f, w.write(true))
		}
	}
}

// inspect holds everything there is against the model.
func (w *world) inspect() {
	w.fence()
	ctx := context.Background()
	m := w.model
	for i, f := range w.stores {
		if rev, compacted := f.Revision(); rev != m.revision || compacted != m.compacted {
			w.Fatalf("store %d is at %d, compacted %d; want %d, %d", i, rev, compacted, m.revision, m.compacted)
		}
		for rev := max(1, m.compacted); rev <= m.revision; rev++ {
			r := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: rev, Serializable: true}
			got, err := f.Range(ctx, r)
			want, wantErr := m.rangeRequest(r)
			w.verify(op{name: fmt.Sprintf("everything at %d", rev)}, got, err, want, wantErr)
		}
		got, err := f.HashKV(ctx, 0)
		if want, _ := m.hash(0); err != nil || got != want {
			w.Fatalf("HashKV: %+v %v, want %+v", got, err, want)
		}
		leases := map[int64]int64{}
		for _, l := range f.Leases() {
			leases[l.ID] = l.TTL
			var keys []string
			for _, key := range f.LeaseKeys(l.ID) {
				keys = append(keys, string(key))
			}
			if want := m.leaseKeys(l.ID); !slices.Equal(keys, want) {
				w.Fatalf("keys of lease %d: %q, want %q", l.ID, keys, want)
			}
		}
		if !maps.Equal(leases, m.leases) {
			w.Fatalf("leases %v, want %v", leases, m.leases)
		}
		if size := f.CachedBytes(); size > f.opt.CacheBytes {
			w.Fatalf("the cache holds %d bytes of %d", size, f.opt.CacheBytes)
		}
	}
}

// close stops a store and looks at what it has told its follower.
func (w *world) close(f *follower) {
	if err := f.Fence(context.Background()); err != nil {
		w.Fatalf("Fence: %v", err)
	}
	if err := f.stop(); err != nil {
		w.Fatalf("Run: %v", err)
	}
	want := w.model.events[f.skip:]
	if len(f.events) != len(want) {
		w.Fatalf("%d events, want %d", len(f.events), len(want))
	}
	for i, event := range f.events {
		if !proto.Equal(event, want[i]) {
			w.Fatalf("event %d:\n got %v\nwant %v", i, event, want[i])
		}
	}
	if !maps.Equal(f.leases, w.model.leases) {
		w.Fatalf("leases by OnApply %v, want %v", f.leases, w.model.leases)
	}
}

// checkLog compacts, waits for the deletion and looks at what the log has.
func (w *world) checkLog(f *follower) {
	w.fence()
	ctx := context.Background()
	if rev := w.model.revision; rev > w.model.compacted {
		w.alone(f, op{
			"compact",
			func(s *Store) (proto.Message, error) {
				return s.Compact(ctx, &pb.CompactionRequest{Revision: rev, Physical: true})
			},
			func(m *model) (proto.Message, error) { return m.compact(rev) },
		})
	} else if err := f.compactor.wait(ctx, rev); err != nil {
		w.Fatalf("waiting for the deletion: %v", err)
	}
	want := w.model.alive()
	_, err := w.disk.Open(nil).Load(ctx, func(r *eventlog.Record) error {
		l, ok := want[r.Seq]
		if !ok {
			return fmt.Errorf("record %d, a %v of %q at %v, should be gone", r.Seq, r.Kind, r.Key, r.Revision)
		}
		c := l.change
		if r.Kind != l.kind || string(r.Key) != c.key || r.CreateRevision != c.create || r.Version != c.version ||
			l.kind <= eventlog.KindDelete && (r.Revision != eventlog.Revision{Main: c.main, Sub: c.sub}) ||
			l.kind == eventlog.KindCompact && r.Revision.Main != l.id {
			return fmt.Errorf("record %d is %+v, want %+v", r.Seq, r, l)
		}
		delete(want, r.Seq)
		return nil
	})
	if err != nil || len(want) > 0 {
		w.Fatalf("the log after a compaction: %v; missing: %v", err, want)
	}
	st := f.now()
	versions := 0
	st.keys.Ascend("", func(e *entry) bool { versions += 1 + len(e.older); return true })
	if kept := len(w.model.kept(w.model.compacted)); versions != kept {
		w.Fatalf("the index has %d versions, want %d", versions, kept)
	}
}

// TestModel runs requests at random, alone and in batches, on one store or on
// two with one disk, with write faults and restarts, and holds every answer,
// every event and the log against the model.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := &world{T: rt, tb: t, disk: &memlog.Disk{}, model: newModel()}
		w.opt.CacheBytes = rapid.SampledFrom([]int64{1, 16 * 300, DefaultCacheBytes}).Draw(rt, "cache")
		w.opt.ChunkBytes = rapid.SampledFrom([]int{1, 100, DefaultChunkBytes}).Draw(rt, "chunk")
		for range rapid.IntRange(1, 2).Draw(rt, "stores") {
			w.stores = append(w.stores, w.open())
		}
		defer func() {
			for _, f := range w.stores {
				w.close(f)
			}
		}()
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			i := rapid.IntRange(0, len(w.stores)-1).Draw(rt, "store")
			f := w.stores[i]
			switch step := rapid.IntRange(0, 19).Draw(rt, "step"); {
			case step < 8:
				w.step(f)
			case step < 18:
				w.read(f)
			case step < 19:
				w.close(f)
				w.stores[i] = w.open()
			default:
				w.checkLog(f)
			}
		}
		w.inspect()
		w.checkLog(w.stores[0])
	})
}

// step makes one or several writes, maybe with a fault of the log. A compaction
// may delete what the other store has not read, so that one is fenced first.
func (w *world) step(f *follower) {
	w.fence()
	f.log.InjectFault(rapid.SampledFrom([]memlog.Fault{
		memlog.NoFault, memlog.NoFault, memlog.NoFault, memlog.FailPersisted, memlog.FailUnpersisted,
	}).Draw(w.T, "fault"))
	if rapid.Bool().Draw(w.T, "alone") {
		w.alone(f, w.write(true))
		return
	}
	w.burst(f, rapid.IntRange(1, 12).Draw(w.T, "burst"))
}
