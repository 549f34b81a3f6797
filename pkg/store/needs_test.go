package store

import (
	"context"
	"errors"
	"fmt"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
)

// gatedLog tells of each read of many values, and holds it up.
type gatedLog struct {
	*memlog.Log
	began chan int
	gate  chan struct{}
}

func (l *gatedLog) Values(ctx context.Context, seqs []int64) ([][]byte, error) {
	if len(seqs) > maxReads {
		l.began <- len(seqs)
		<-l.gate
	}
	return l.Log.Values(ctx, seqs)
}

// TestReadsBesideCommitter: a transaction that compares many values which are
// not in memory holds up nobody, and sees what others write meanwhile.
func TestReadsBesideCommitter(t *testing.T) {
	for name, tt := range map[string]struct {
		meanwhile func(f *fixture)
		again     int // values that are read for a second turn
		succeeded bool
	}{
		"unchanged":    {func(f *fixture) { f.put("other", "old") }, 0, true},
		"few changed":  {func(f *fixture) { f.put("key-07", "new") }, 0, false},
		"many changed": {func(f *fixture) { putKeys(f, 40, "old") }, 40, true},
	} {
		t.Run(name, func(t *testing.T) {
			disk := new(memlog.Disk)
			l := &gatedLog{disk.Open(nil), make(chan int), make(chan struct{})}
			f := openOn(t, disk, l, Options{CacheBytes: 1})
			putKeys(f, 100, "old")
			compare := &pb.Compare{
				Key: []byte("key-"), RangeEnd: []byte("key."), Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: []byte("old")},
			}
			put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("result")}}}
			type outcome struct {
				resp *pb.TxnResponse
				err  error
			}
			done := make(chan outcome, 1)
			go func() {
				resp, err := f.Txn(context.Background(), &pb.TxnRequest{
					Compare: []*pb.Compare{compare}, Success: []*pb.RequestOp{put}, Failure: []*pb.RequestOp{put},
				})
				done <- outcome{resp, err}
			}()
			if n := <-l.began; n != 100 {
				t.Fatalf("%d values are read", n)
			}
			tt.meanwhile(f)
			l.gate <- struct{}{}
			if tt.again > 0 {
				if n := <-l.began; n != tt.again {
					t.Fatalf("%d values are read again", n)
				}
				f.put("other", "old")
				l.gate <- struct{}{}
			}
			if got := <-done; got.err != nil || got.resp.Succeeded != tt.succeeded {
				t.Fatalf("%v, %v", got.resp, got.err)
			}
		})
	}
}

// countingLog counts the reads of values.
type countingLog struct {
	*memlog.Log
	reads int
}

func (l *countingLog) Values(ctx context.Context, seqs []int64) ([][]byte, error) {
	l.reads++
	return l.Log.Values(ctx, seqs)
}

// TestNeedsOneByOne: a transaction that comes to know what it needs value by
// value is evaluated from its beginning each time, so the committer sends it
// away sooner or later.
func TestNeedsOneByOne(t *testing.T) {
	const compares = 20
	disk := new(memlog.Disk)
	f := openOn(t, disk, disk.Open(nil), Options{CacheBytes: 1})
	putKeys(f, compares, "old")
	txn := &pb.TxnRequest{}
	for i := range compares {
		txn.Compare = append(txn.Compare, &pb.Compare{
			Key: fmt.Appendf(nil, "key-%02d", i), Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: []byte("old")},
		})
	}
	txn.Success = []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("result")}}}}
	if resp, err := f.Txn(t.Context(), txn); err != nil || !resp.Succeeded {
		t.Errorf("%v, %v", resp, err)
	}
	if err := f.stop(); err != nil {
		t.Fatal(err)
	}

	l := &countingLog{Log: disk.Open(nil)}
	s, err := Open(t.Context(), l, Options{CacheBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	r := &request{eval: func(ev *evaluation) error { _, err := ev.txn(txn); return err }, read: map[int64][]byte{}}
	if _, err := s.evaluate(t.Context(), []*request{r}); err != nil {
		t.Fatal(err)
	}
	var need *needValues
	if !errors.As(r.err, &need) || l.reads > maxRounds {
		t.Errorf("the committer has read %d times, then: %v", l.reads, r.err)
	}
}

// TestPrevNotWanted: what keys were before is read from the log only if a
// watcher, or the request itself, wants to know.
func TestPrevNotWanted(t *testing.T) {
	disk := new(memlog.Disk)
	l := &countingLog{Log: disk.Open(nil)}
	wanted := false
	f := openOn(t, disk, l, Options{CacheBytes: 1, WantsPrev: func() bool { return wanted }})
	put := func(wantReads int, wantNoPrev bool, wantPrev, wantAnswer string, r *pb.PutRequest) {
		t.Helper()
		l.reads = 0
		resp, err := f.Put(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		prev := f.events[len(f.events)-1].PrevKv
		if l.reads != wantReads || f.noPrev != wantNoPrev || string(prev.GetValue()) != wantPrev || string(resp.PrevKv.GetValue()) != wantAnswer {
			t.Errorf("put %v: %d reads, no prev %v, event with %v, answer with %v", r, l.reads, f.noPrev, prev, resp.PrevKv)
		}
	}
	put(0, false, "", "", &pb.PutRequest{Key: []byte("k"), Value: []byte("1")})
	put(0, true, "", "", &pb.PutRequest{Key: []byte("k"), Value: []byte("2")})
	put(1, true, "", "2", &pb.PutRequest{Key: []byte("k"), Value: []byte("3"), PrevKv: true})
	wanted = true
	put(1, false, "3", "", &pb.PutRequest{Key: []byte("k"), Value: []byte("4")})
	events, _, err := f.History(t.Context(), []byte("k"), nil, 3, 10, true)
	if err != nil || len(events) != 3 || string(events[0].PrevKv.GetValue()) != "1" {
		t.Errorf("history: %v, %v", events, err)
	}
}

func putKeys(f *fixture, n int, value string) {
	for i := range n {
		f.put(fmt.Sprintf("key-%02d", i), value)
	}
}
