package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
)

var errFault = errors.New("fault")

// faultyLog is a log whose calls a test can have fail, or watch; a nil error
// lets the call through.
type faultyLog struct {
	*memlog.Log

	mu              sync.Mutex
	values, compact func() error
	append          func() error
	head            func()
}

func (l *faultyLog) hook(of *func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if *of == nil {
		return nil
	}
	return (*of)()
}

func (l *faultyLog) set(of *func() error, fn func() error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*of = fn
}

func (l *faultyLog) Values(ctx context.Context, seqs []int64) ([][]byte, error) {
	if err := l.hook(&l.values); err != nil {
		return nil, err
	}
	return l.Log.Values(ctx, seqs)
}

func (l *faultyLog) Compact(ctx context.Context, seqs []int64) error {
	if err := l.hook(&l.compact); err != nil {
		return err
	}
	return l.Log.Compact(ctx, seqs)
}

func (l *faultyLog) Append(ctx context.Context, b *eventlog.Batch) error {
	if err := l.hook(&l.append); err != nil {
		return err
	}
	return l.Log.Append(ctx, b)
}

func (l *faultyLog) Head(ctx context.Context) (eventlog.Position, error) {
	if l.head != nil {
		l.head()
	}
	return l.Log.Head(ctx)
}

// openFaulty returns a running store without a cache on a faultyLog; prepare,
// if not nil, has the log before the store does.
func openFaulty(t *testing.T, disk *memlog.Disk, prepare func(*faultyLog)) (*fixture, *faultyLog) {
	t.Helper()
	l := &faultyLog{Log: disk.Open(nil)}
	if prepare != nil {
		prepare(l)
	}
	return openOn(t, disk, l, Options{CacheBytes: 1}), l
}

// times returns a hook that gives errFault n times.
func times(n int) func() error {
	return func() error {
		if n == 0 {
			return nil
		}
		n--
		return errFault
	}
}

func TestValuesFailAfterAppend(t *testing.T) {
	for _, c := range []struct {
		name   string
		faults int
		want   error
		prevKV string
	}{
		{"for a while", 3, nil, "1"},
		{"for long", 100, ErrUnknownOutcome, "<none>"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, l := openFaulty(t, &memlog.Disk{}, nil)
			f.put("a", "1")
			l.set(&l.values, times(c.faults))
			_, err := f.Put(t.Context(), &pb.PutRequest{Key: []byte("a"), Value: []byte("2"), PrevKv: true})
			l.set(&l.values, nil)
			if !errors.Is(err, c.want) {
				t.Fatalf("put: %v, want %v", err, c.want)
			}
			f.mu.Lock()
			prev := f.events[1].PrevKv
			f.mu.Unlock()
			if got := "<none>"; prev != nil && string(prev.Value) != c.prevKV || prev == nil && got != c.prevKV {
				t.Fatalf("the event's previous version: %v, want %v", prev, c.prevKV)
			}
			f.wantGet("a", 0, "2 c2 m3 v2")
			f.put("a", "3")
			f.wantGet("a", 0, "3 c2 m4 v3")
		})
	}
}

// TestValuesFailBeforeAppend: the batch is refused and nothing has changed.
func TestValuesFailBeforeAppend(t *testing.T) {
	f, l := openFaulty(t, &memlog.Disk{}, nil)
	f.put("a", "1")
	l.set(&l.values, times(1))
	if _, err := f.Put(t.Context(), &pb.PutRequest{Key: []byte("a"), IgnoreValue: true}); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("put: %v", err)
	}
	f.wantGet("a", 0, "1 c2 m2 v1")
	l.set(&l.values, times(1))
	if _, err := f.Range(t.Context(), &pb.RangeRequest{Key: []byte("a")}); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("range: %v", err)
	}
}

// TestNeverAppended: a log that keeps losing batches gets its writers an
// answer, and it does not say that the outcome is unknown.
func TestNeverAppended(t *testing.T) {
	f, l := openFaulty(t, &memlog.Disk{}, nil)
	l.set(&l.append, func() error { return eventlog.ErrUnknown })
	if _, err := f.Put(t.Context(), &pb.PutRequest{Key: []byte("a")}); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrUnknownOutcome) {
		t.Fatalf("put: %v", err)
	}
	l.set(&l.append, nil)
	if rev := f.put("a", "1"); rev != 2 {
		t.Fatalf("revision %d", rev)
	}
}

// TestUnknownThenTaken: the batch of unknown fate is not there, and another's
// is in its place.
func TestUnknownThenTaken(t *testing.T) {
	disk := &memlog.Disk{}
	other := open(t, disk, Options{})
	f, l := openFaulty(t, disk, nil)
	once := true
	l.set(&l.append, func() error {
		if !once {
			return nil
		}
		once = false
		other.put("a", "theirs")
		return eventlog.ErrUnknown
	})
	if rev := f.put("a", "ours"); rev != 3 {
		t.Fatalf("revision %d", rev)
	}
	other.wantGet("a", 0, "ours c2 m3 v2")
}

// TestMissedCompaction: a store that compaction has overtaken cannot go on,
// and says so.
func TestMissedCompaction(t *testing.T) {
	disk := &memlog.Disk{}
	behind, err := Open(t.Context(), disk.Open(nil), Options{Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	ahead := open(t, disk, Options{})
	ahead.put("a", "1")
	ahead.compact(ahead.put("a", "2"))
	if err := behind.Run(t.Context()); !errors.Is(err, eventlog.ErrFailed) || !errors.Is(err, eventlog.ErrCompacted) {
		t.Fatalf("Run: %v", err)
	}
	if _, err := behind.Put(t.Context(), &pb.PutRequest{Key: []byte("b")}); !errors.Is(err, ErrStopped) {
		t.Fatalf("put: %v", err)
	}
	if err := behind.Fence(t.Context()); !errors.Is(err, ErrStopped) {
		t.Fatalf("Fence: %v", err)
	}
}

// TestFailedCompaction: a log that fails in the background ends the store, and
// those who wait for the deletion.
func TestFailedCompaction(t *testing.T) {
	f, l := openFaulty(t, &memlog.Disk{}, nil)
	f.put("a", "1")
	rev := f.put("a", "2")
	l.set(&l.compact, func() error { return eventlog.ErrFailed })
	if _, err := f.Compact(t.Context(), &pb.CompactionRequest{Revision: rev, Physical: true}); !errors.Is(err, ErrStopped) {
		t.Fatalf("compact: %v", err)
	}
	if err := f.stop(); !errors.Is(err, eventlog.ErrFailed) {
		t.Fatalf("Run: %v", err)
	}
}

// TestFenceUnderWrites: a batch that changes nothing is answered while another
// instance writes at every look at the head; and the answer is not old.
func TestFenceUnderWrites(t *testing.T) {
	disk := &memlog.Disk{}
	other := open(t, disk, Options{})
	other.put("a", "0")
	var writing atomic.Bool
	f, _ := openFaulty(t, disk, func(l *faultyLog) {
		l.head = func() {
			if writing.Load() {
				other.put("a", "more")
			}
		}
	})
	writing.Store(true)
	before := other.get("a", 0)
	resp, err := f.Txn(t.Context(), &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: []byte("a"), Target: pb.Compare_VERSION, Result: pb.Compare_EQUAL, TargetUnion: &pb.Compare_Version{Version: 0}}},
		Success: []*pb.RequestOp{putOp("b", "")},
		Failure: []*pb.RequestOp{rangeOp(&pb.RangeRequest{Key: []byte("a")})},
	})
	writing.Store(false)
	if err := f.stop(); err != nil { // and with it any Head under way
		t.Fatal(err)
	}
	if err != nil || resp.Succeeded {
		t.Fatalf("txn: %v, %v", resp, err)
	}
	kv := resp.Responses[0].GetResponseRange().Kvs[0]
	if got := fmt.Sprintf("%s c%d m%d v%d", kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version); got == before {
		t.Fatalf("the answer is from before the request: %s", got)
	}
}

// TestNotify: a store follows another one's writes without being asked.
func TestNotify(t *testing.T) {
	disk := &memlog.Disk{}
	seen := make(chan string, 1)
	l := disk.Open(nil)
	follower, err := Open(t.Context(), l, Options{Logger: quiet(), OnApply: func(a Applied) {
		for _, e := range a.Events {
			seen <- string(e.Kv.Key)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- follower.Run(ctx) }()
	disk.Open(follower.Notify)
	other := open(t, disk, Options{})
	other.put("a", "1")
	if key := <-seen; key != "a" {
		t.Fatalf("event of %s", key)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestQuotaOfWhatIsPut: only what a batch has put counts against the quota,
// and once, however often a request is evaluated and whatever it asked for.
func TestQuotaOfWhatIsPut(t *testing.T) {
	st := newState()
	ev := newEvaluation(&st, func(int64) ([]byte, bool) { return nil, false }, quota{limit: 10_000})
	never := &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: []byte("x"), Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{Version: 1}}},
		Success: []*pb.RequestOp{putOp("x", string(make([]byte, 5000)))},
	}
	for range 10 {
		ev.begin()
		if _, err := ev.txn(never); err != nil {
			t.Fatal(err)
		}
	}
	ev.begin()
	if _, err := ev.put(&pb.PutRequest{Key: []byte("a"), Value: make([]byte, 5000)}); err != nil {
		t.Fatal(err)
	}
	ev.begin()
	if _, err := ev.txn(never); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("a transaction that may not fit: %v", err)
	}
}
