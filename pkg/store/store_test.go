package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/sirupsen/logrus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
)

func quiet() *logrus.Entry {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	return logrus.NewEntry(logger)
}

// fixture is a store on a memlog that runs until the test ends.
type fixture struct {
	*Store
	t    testing.TB
	disk *memlog.Disk
	log  *memlog.Log
	stop func() error // ends Run and returns its error

	mu     sync.Mutex
	events []*mvccpb.Event
	noPrev bool // of the last batch
}

func open(t testing.TB, disk *memlog.Disk, opt Options) *fixture {
	t.Helper()
	l := disk.Open(nil)
	f := openOn(t, disk, l, opt)
	f.log = l
	return f
}

// openOn is open on a given log.
func openOn(t testing.TB, disk *memlog.Disk, l eventlog.Log, opt Options) *fixture {
	t.Helper()
	f := &fixture{t: t, disk: disk}
	opt.Logger = quiet()
	opt.OnApply = func(a Applied) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.events = append(f.events, a.Events...)
		f.noPrev = a.NoPrev
	}
	store, err := Open(t.Context(), l, opt)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	f.Store = store
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- store.Run(ctx) }()
	var once sync.Once
	var runErr error
	f.stop = func() error {
		once.Do(func() {
			cancel()
			runErr = <-done
		})
		return runErr
	}
	t.Cleanup(func() { _ = f.stop() })
	return f
}

func (f *fixture) put(key, value string) int64 {
	f.t.Helper()
	resp, err := f.Put(f.t.Context(), &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
	if err != nil {
		f.t.Fatalf("put %s: %v", key, err)
	}
	return resp.Header.Revision
}

func (f *fixture) delete(key, end string) *pb.DeleteRangeResponse {
	f.t.Helper()
	resp, err := f.DeleteRange(f.t.Context(), &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end), PrevKv: true})
	if err != nil {
		f.t.Fatalf("delete %s: %v", key, err)
	}
	return resp
}

func (f *fixture) list(r *pb.RangeRequest) *pb.RangeResponse {
	f.t.Helper()
	resp, err := f.Range(f.t.Context(), r)
	if err != nil {
		f.t.Fatalf("range %v: %v", r, err)
	}
	return resp
}

func (f *fixture) get(key string, rev int64) string {
	f.t.Helper()
	resp := f.list(&pb.RangeRequest{Key: []byte(key), Revision: rev})
	if len(resp.Kvs) == 0 {
		return "<none>"
	}
	kv := resp.Kvs[0]
	return fmt.Sprintf("%s c%d m%d v%d", kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version)
}

func (f *fixture) wantGet(key string, rev int64, want string) {
	f.t.Helper()
	if got := f.get(key, rev); got != want {
		f.t.Fatalf("get %s at %d: got %q, want %q", key, rev, got, want)
	}
}

func (f *fixture) compact(rev int64) {
	f.t.Helper()
	if _, err := f.Compact(f.t.Context(), &pb.CompactionRequest{Revision: rev, Physical: true}); err != nil {
		f.t.Fatalf("compact %d: %v", rev, err)
	}
}

func TestPutGetDelete(t *testing.T) {
	f := open(t, &memlog.Disk{}, Options{})
	if rev, compacted := f.Revision(); rev != 1 || compacted != -1 {
		t.Fatalf("an empty store is at %d, compacted %d", rev, compacted)
	}
	f.put("a", "1") // 2
	f.put("a", "2") // 3
	if resp := f.delete("x", ""); resp.Deleted != 0 || resp.Header.Revision != 3 {
		t.Fatalf("a delete of nothing: %v", resp)
	}
	if resp := f.delete("a", ""); resp.Deleted != 1 || resp.Header.Revision != 4 || string(resp.PrevKvs[0].Value) != "2" {
		t.Fatalf("a delete: %v", resp)
	}
	f.put("a", "3") // 5
	for rev, want := range map[int64]string{1: "<none>", 2: "1 c2 m2 v1", 3: "2 c2 m3 v2", 4: "<none>", 5: "3 c5 m5 v1", 0: "3 c5 m5 v1"} {
		f.wantGet("a", rev, want)
	}
	if _, err := f.Range(t.Context(), &pb.RangeRequest{Key: []byte("a"), Revision: 6}); !errors.Is(err, ErrFutureRev) {
		t.Fatalf("a future revision: %v", err)
	}
}

// TestReopen: after any history a new store on the same log says the same.
func TestReopen(t *testing.T) {
	disk := &memlog.Disk{}
	f := open(t, disk, Options{})
	f.put("a", "1")
	f.put("b", "1")
	f.put("a", "2")
	f.delete("b", "")
	f.put("b", "2")
	lease, err := f.LeaseGrant(t.Context(), 0, 60)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Put(t.Context(), &pb.PutRequest{Key: []byte("l"), Lease: lease.ID}); err != nil {
		t.Fatal(err)
	}
	f.compact(5)
	before, err := f.HashKV(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.stop(); err != nil {
		t.Fatal(err)
	}
	g := open(t, disk, Options{})
	after, err := g.HashKV(t.Context(), 0)
	if err != nil || after != before {
		t.Fatalf("HashKV after reopening: %+v, %v; before: %+v", after, err, before)
	}
	if keys := g.LeaseKeys(lease.ID); len(keys) != 1 || string(keys[0]) != "l" {
		t.Fatalf("keys of the lease: %q", keys)
	}
	if got := g.Leases(); len(got) != 1 || got[0] != lease {
		t.Fatalf("leases: %v", got)
	}
	if err := g.LeaseRevoke(t.Context(), lease.ID); err != nil {
		t.Fatal(err)
	}
	g.wantGet("l", 0, "<none>")
	if rev := g.put("z", ""); rev != before.Revision+2 {
		t.Fatalf("the revision after reopening, a revoke and a put is %d, was %d", rev, before.Revision)
	}
	if _, err := g.Range(t.Context(), &pb.RangeRequest{Key: []byte("a"), Revision: 4}); !errors.Is(err, ErrCompacted) {
		t.Fatalf("a compacted revision: %v", err)
	}
}

// TestCompactionFreesRecords: nothing but what is alive stays in the log.
func TestCompactionFreesRecords(t *testing.T) {
	disk := &memlog.Disk{}
	f := open(t, disk, Options{})
	for i := range 2000 {
		f.put(fmt.Sprintf("k%d", i%10), "v")
	}
	f.delete("k0", "k9") // all but k9
	lease, err := f.LeaseGrant(t.Context(), 7, 60)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.LeaseRevoke(t.Context(), lease.ID); err != nil {
		t.Fatal(err)
	}
	rev := f.put("k9", "last")
	f.compact(rev)
	if n := disk.Records(); n != 2 { // k9 and the compaction mark
		t.Fatalf("%d records are left", n)
	}
	if n := f.now().keys.Len(); n != 1 {
		t.Fatalf("%d keys are left in the index", n)
	}
	f.wantGet("k9", 0, fmt.Sprintf("last c11 m%d v%d", rev, 201))
}

// TestUnknownOutcome: both forms of a write fault end in the truth.
func TestUnknownOutcome(t *testing.T) {
	for name, fault := range map[string]memlog.Fault{"not persisted": memlog.FailUnpersisted, "persisted": memlog.FailPersisted} {
		t.Run(name, func(t *testing.T) {
			f := open(t, &memlog.Disk{}, Options{})
			f.put("a", "1")
			f.log.InjectFault(fault)
			if rev := f.put("a", "2"); rev != 3 {
				t.Fatalf("revision %d", rev)
			}
			f.wantGet("a", 0, "2 c2 m3 v2")
		})
	}
	t.Run("final", func(t *testing.T) {
		f := open(t, &memlog.Disk{}, Options{})
		f.put("a", "1")
		f.log.InjectFault(memlog.FailFinal)
		if _, err := f.Put(t.Context(), &pb.PutRequest{Key: []byte("a")}); !errors.Is(err, ErrStopped) {
			t.Fatalf("put on a failed log: %v", err)
		}
		if err := f.stop(); err == nil {
			t.Fatal("Run returned nil on a failed log")
		}
		if _, err := f.Put(t.Context(), &pb.PutRequest{Key: []byte("a")}); !errors.Is(err, ErrStopped) {
			t.Fatalf("put after the end: %v", err)
		}
	})
}

// TestTwoStores: two stores on one log take turns at every base; each sees the
// other's writes at its next linearizable read, and a failed compare is never
// answered from an old state.
func TestTwoStores(t *testing.T) {
	disk := &memlog.Disk{}
	stores := []*fixture{open(t, disk, Options{}), open(t, disk, Options{})}
	const clients, rounds = 4, 100
	var wg sync.WaitGroup
	for i, f := range stores {
		for range clients {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for range rounds {
					increment(t, f)
				}
				_ = i
			}()
		}
	}
	wg.Wait()
	want := fmt.Sprintf("%d", len(stores)*clients*rounds)
	for _, f := range stores {
		resp := f.list(&pb.RangeRequest{Key: []byte("n")})
		if got := string(resp.Kvs[0].Value); got != want {
			t.Errorf("the counter is %s, want %s", got, want)
		}
	}
	a, _ := stores[0].HashKV(t.Context(), 0)
	b, _ := stores[1].HashKV(t.Context(), 0)
	if a != b {
		t.Errorf("hashes differ: %+v, %+v", a, b)
	}
	for i, f := range stores {
		f.mu.Lock()
		for j, event := range f.events {
			if want := int64(j + 2); event.Kv.ModRevision != want {
				t.Fatalf("store %d: event %d has revision %d", i, j, event.Kv.ModRevision)
			}
			if j > 0 && string(event.PrevKv.Value) != string(f.events[j-1].Kv.Value) {
				t.Fatalf("store %d: the previous value of event %d is %s", i, j, event.PrevKv.Value)
			}
		}
		f.mu.Unlock()
	}
}

// increment adds one to the counter n by compare and swap.
func increment(t *testing.T, f *fixture) {
	for {
		resp, err := f.Range(t.Context(), &pb.RangeRequest{Key: []byte("n")})
		if err != nil {
			t.Error(err)
			return
		}
		n, mod := 0, int64(0)
		if len(resp.Kvs) > 0 {
			mod = resp.Kvs[0].ModRevision
			_, _ = fmt.Sscan(string(resp.Kvs[0].Value), &n)
		}
		txn, err := f.Txn(t.Context(), &pb.TxnRequest{
			Compare: []*pb.Compare{{Key: []byte("n"), Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{ModRevision: mod}}},
			Success: []*pb.RequestOp{putOp("n", fmt.Sprint(n+1))},
			Failure: []*pb.RequestOp{rangeOp(&pb.RangeRequest{Key: []byte("n")})},
		})
		if err != nil {
			t.Error(err)
			return
		}
		if txn.Succeeded {
			return
		}
		if seen := txn.Responses[0].GetResponseRange().Kvs; len(seen) == 0 || seen[0].ModRevision <= mod {
			t.Errorf("a compare with revision %d failed against %v", mod, seen)
			return
		}
	}
}

func putOp(key, value string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}}}
}

func rangeOp(r *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
}

// TestQuota: past the quota puts fail and raise the alarm, deletes go on, and
// disarming lets writes through again once there is room.
func TestQuota(t *testing.T) {
	f := open(t, &memlog.Disk{}, Options{QuotaBytes: 4096, MemberID: 9})
	var err error
	n := 0
	for ; err == nil && n < 100; n++ {
		_, err = f.Put(t.Context(), &pb.PutRequest{Key: fmt.Appendf(nil, "k%d", n), Value: make([]byte, 500)})
	}
	if !errors.Is(err, ErrNoSpace) || n < 5 {
		t.Fatalf("put %d: %v", n, err)
	}
	if alarms := f.Alarms(); len(alarms) != 1 || alarms[0].Alarm != pb.AlarmType_NOSPACE || alarms[0].MemberID != 9 {
		t.Fatalf("alarms: %v", alarms)
	}
	if f.OverQuota() {
		t.Error("what was refused counts") // it would have gone over
	}
	f.opt.QuotaBytes = f.Size().InUse
	if !f.OverQuota() {
		t.Error("all of the quota is used, and that is not known")
	}
	f.opt.QuotaBytes = 4096
	rev := f.delete("k", "l").Header.Revision
	f.compact(rev)
	if _, err := f.Put(t.Context(), &pb.PutRequest{Key: []byte("k")}); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("put while the alarm is raised: %v", err)
	}
	resp, err := f.Alarm(t.Context(), &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: 9, Alarm: pb.AlarmType_NOSPACE})
	if err != nil || len(resp.Alarms) != 1 {
		t.Fatalf("disarm: %v, %v", resp, err)
	}
	f.put("k", "again")
}

// TestHistory pages through the past, with the previous versions.
func TestHistory(t *testing.T) {
	f := open(t, &memlog.Disk{}, Options{CacheBytes: 1})
	for i := range 250 {
		f.put(fmt.Sprintf("k%d", i%3), fmt.Sprint(i))
	}
	f.delete("k", "l") // one revision, three events
	var got []*mvccpb.Event
	for from := int64(2); from <= 252; {
		events, next, err := f.History(t.Context(), []byte("k"), []byte("l"), from, 100, true)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, events...)
		from = next
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(got) != 253 || len(got) != len(f.events) {
		t.Fatalf("%d events from the past, %d live", len(got), len(f.events))
	}
	for i, event := range got {
		if live := f.events[i]; event.String() != live.String() {
			t.Fatalf("event %d: past %v, live %v", i, event, live)
		}
	}
}

// TestStopDrains: what was submitted before the end is committed or refused,
// and never lost in between.
func TestStopDrains(t *testing.T) {
	disk := &memlog.Disk{}
	f := open(t, disk, Options{})
	results := make(chan error, 100)
	for i := range cap(results) {
		go func() {
			_, err := f.Put(context.Background(), &pb.PutRequest{Key: fmt.Appendf(nil, "k%d", i)})
			results <- err
		}()
	}
	f.put("first", "")
	if err := f.stop(); err != nil {
		t.Fatal(err)
	}
	acknowledged := 0
	for range cap(results) {
		switch err := <-results; {
		case err == nil:
			acknowledged++
		case !errors.Is(err, ErrStopped):
			t.Errorf("a put at the end: %v", err)
		}
	}
	g := open(t, disk, Options{})
	if resp := g.list(&pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), CountOnly: true}); resp.Count != int64(acknowledged) {
		t.Fatalf("%d puts were acknowledged, %d are there", acknowledged, resp.Count)
	}
}

// TestPutTakesFromDeleted: a put that keeps the value or lease of a key which
// its own transaction deletes is refused, whole.
func TestPutTakesFromDeleted(t *testing.T) {
	f := open(t, &memlog.Disk{}, Options{})
	f.put("a", "1")
	for _, put := range []*pb.PutRequest{{Key: []byte("a"), IgnoreValue: true}, {Key: []byte("a"), Value: []byte("2"), IgnoreLease: true}} {
		_, err := f.Txn(t.Context(), &pb.TxnRequest{Success: []*pb.RequestOp{
			{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("A"), RangeEnd: []byte{0}}}},
			{Request: &pb.RequestOp_RequestPut{RequestPut: put}},
		}})
		if !errors.Is(err, ErrKeyNotFound) {
			t.Errorf("%v: %v", put, err)
		}
	}
	f.wantGet("a", 0, "1 c2 m2 v1")
}
