package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
)

// TestStress runs everything at once. Every transaction puts one value to a
// pair of keys, so that a reader that finds them different has seen a state
// that never was; a range that is repeated at its revision must say the same.
func TestStress(t *testing.T) {
	const pairs, length = 20, time.Second
	f := open(t, &memlog.Disk{}, Options{CacheBytes: 64 << 10, ChunkBytes: 500})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	run := func(n int, fn func(rng *rand.Rand) error) {
		for i := range n {
			wg.Add(1)
			go func() {
				defer wg.Done()
				rng := rand.New(rand.NewPCG(uint64(i), 0))
				for ctx.Err() == nil {
					if err := fn(rng); err != nil && ctx.Err() == nil {
						t.Error(err)
						return
					}
				}
			}()
		}
	}
	pair := func(rng *rand.Rand) (left, right string) {
		n := rng.IntN(pairs)
		return fmt.Sprintf("p%02d/l", n), fmt.Sprintf("p%02d/r", n)
	}
	run(4, func(rng *rand.Rand) error { // writers
		left, right := pair(rng)
		value := fmt.Sprintf("%x", make([]byte, rng.IntN(100)+1)) + fmt.Sprint(rng.Int())
		_, err := f.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{putOp(left, value), putOp(right, value)}})
		return err
	})
	run(1, func(rng *rand.Rand) error { // deletes, and reuse of values
		left, _ := pair(rng)
		if rng.IntN(4) == 0 {
			_, err := f.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte(left), RangeEnd: []byte(left[:4] + "s"), PrevKv: true})
			return err
		}
		before := f.get(left, 0)
		_, err := f.Put(ctx, &pb.PutRequest{Key: []byte("copy"), Value: []byte(before)})
		return err
	})
	run(2, func(rng *rand.Rand) error { // readers, now and in the past
		r := &pb.RangeRequest{Key: []byte("p"), RangeEnd: []byte("q")}
		if rng.IntN(2) == 0 {
			current, compacted := f.Revision()
			r.Revision = current - rng.Int64N(current-max(compacted, 0)+1)
		}
		return checkPairs(ctx, f.Store, r)
	})
	run(1, func(rng *rand.Rand) error { // compactions
		current, _ := f.Revision()
		_, err := f.Compact(ctx, &pb.CompactionRequest{Revision: current - rng.Int64N(20), Physical: rng.IntN(2) == 0})
		if errors.Is(err, ErrCompacted) {
			err = nil
		}
		return err
	})
	run(1, func(*rand.Rand) error { // hashes and history
		if _, err := f.HashKV(ctx, 0); err != nil {
			return err
		}
		_, from := f.Revision()
		for {
			events, next, err := f.History(ctx, []byte("p"), []byte("q"), from, 50, true)
			if errors.Is(err, ErrCompacted) {
				return nil
			}
			if err != nil || len(events) == 0 {
				return err
			}
			from = next
		}
	})
	time.Sleep(length)
	await(t, "enough events", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.events) >= leastEvents || t.Failed()
	})
	cancel()
	wg.Wait()
	verifyEvents(t, f)
}

// checkPairs fails if r, at its revision, sees half of a transaction, or if
// the stream or the same range again sees something else.
func checkPairs(ctx context.Context, s *Store, r *pb.RangeRequest) error {
	resp, err := s.Range(ctx, r)
	if errors.Is(err, ErrCompacted) {
		return nil
	}
	if err != nil {
		return err
	}
	if resp.Count != int64(len(resp.Kvs)) || len(resp.Kvs)%2 != 0 {
		return fmt.Errorf("%d keys counted, %d returned", resp.Count, len(resp.Kvs))
	}
	for i := 0; i < len(resp.Kvs); i += 2 {
		if l, r := resp.Kvs[i], resp.Kvs[i+1]; string(l.Value) != string(r.Value) || l.ModRevision != r.ModRevision {
			return fmt.Errorf("half a transaction: %v, %v", l, r)
		}
	}
	again := proto.CloneOf(r)
	if again.Revision == 0 {
		again.Revision = resp.Header.Revision
	}
	merged := &pb.RangeResponse{}
	err = s.RangeStream(ctx, again, func(chunk *pb.RangeResponse) error {
		proto.Merge(merged, chunk)
		return nil
	})
	if errors.Is(err, ErrCompacted) {
		return nil
	}
	merged.Header = resp.Header
	if err == nil && !proto.Equal(merged, resp) {
		err = fmt.Errorf("the range again:\n got %v\nwant %v", merged, resp)
	}
	return err
}

// TestStreamIsOfOneRevision: what is written between two chunks is not seen.
func TestStreamIsOfOneRevision(t *testing.T) {
	f := open(t, &memlog.Disk{}, Options{ChunkBytes: 1})
	for i := range 30 {
		f.put(fmt.Sprintf("k%02d", i), "old")
	}
	chunks, keys := 0, 0
	err := f.RangeStream(t.Context(), &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}, func(chunk *pb.RangeResponse) error {
		for _, kv := range chunk.Kvs {
			if string(kv.Value) != "old" || kv.Version != 1 {
				t.Errorf("chunk %d: %v", chunks, kv)
			}
		}
		chunks, keys = chunks+1, keys+len(chunk.Kvs)
		if chunk.Header != nil && (chunk.Header.Revision != 31 || chunk.Count != 30) {
			t.Errorf("the last chunk: revision %d, count %d", chunk.Header.Revision, chunk.Count)
		}
		for i := range 30 {
			f.put(fmt.Sprintf("k%02d", i), "new")
		}
		f.put(fmt.Sprintf("kk%d", chunks), "new")
		return nil
	})
	if err != nil || chunks < 3 || keys != 30 {
		t.Fatalf("%d keys in %d chunks, %v", keys, chunks, err)
	}
}

const leastEvents = 100

// verifyEvents holds every event's previous version against the event before.
func verifyEvents(t *testing.T, f *fixture) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	last := map[string]int{}
	for i, event := range f.events {
		if i > 0 && event.Kv.ModRevision < f.events[i-1].Kv.ModRevision {
			t.Fatalf("event %d goes back in time: %v", i, event)
		}
		at, ok := last[string(event.Kv.Key)]
		switch alive := ok && f.events[at].Kv.Version > 0; {
		case !alive && event.PrevKv != nil, alive && !proto.Equal(event.PrevKv, f.events[at].Kv):
			t.Fatalf("event %d has the previous version %v", i, event.PrevKv)
		}
		last[string(event.Kv.Key)] = i
	}
	if len(f.events) < leastEvents {
		t.Fatalf("only %d events", len(f.events))
	}
}

// TestEvictedValues: a value that a put with ignore_value, or a sort within a
// transaction, was checked with may be pushed out of the cache before it is
// applied.
func TestEvictedValues(t *testing.T) {
	f := open(t, &memlog.Disk{}, Options{CacheBytes: DefaultCacheBytes})
	f.put("a", "1")
	f.put("b", "2")
	evict := func() {
		f.values.cache.drop(1)
		f.values.cache.drop(2)
	}
	err := f.submit(t.Context(), 0, func(ev *evaluation) error {
		put := &pb.PutRequest{Key: []byte("a"), IgnoreValue: true}
		list := &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("c"), SortTarget: pb.RangeRequest_VALUE, SortOrder: pb.RangeRequest_DESCEND}
		if err := errors.Join(ev.checkPut(put), ev.checkTxnRange(list)); err != nil {
			return err
		}
		evict()
		ev.applyPut(put)
		if kvs := ev.applyRange(list).Kvs; string(kvs[0].Key) != "b" {
			t.Errorf("sorted by value: %v", kvs)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	f.wantGet("a", 0, "1 c2 m4 v2")
}

// TestLargePrevious: what a batch of writes has taken away is not brought into
// memory for the events that few may want; it is in the history.
func TestLargePrevious(t *testing.T) {
	f := open(t, &memlog.Disk{}, Options{CacheBytes: 1})
	const keys = 9
	large := strings.Repeat("x", maxPrevBytes/(keys-1))
	for i := range keys {
		f.put(fmt.Sprintf("k%d", i), large)
	}
	remove := func() []*mvccpb.Event {
		t.Helper()
		f.mu.Lock()
		f.events = nil
		f.mu.Unlock()
		if _, err := f.DeleteRange(t.Context(), &pb.DeleteRangeRequest{Key: []byte("k0"), RangeEnd: []byte("k9")}); err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.events
	}
	if events := remove(); events != nil {
		t.Errorf("%d events", len(events))
	}
	events, _, err := f.History(t.Context(), []byte("k0"), []byte("k9"), f.now().revision, 1, true)
	if err != nil || len(events) != keys {
		t.Fatalf("%d events are in the history: %v", len(events), err)
	}
	for _, ev := range events {
		if string(ev.PrevKv.GetValue()) != large {
			t.Errorf("the previous value of %s has %d bytes", ev.Kv.Key, len(ev.PrevKv.GetValue()))
		}
	}

	for i := range keys - 1 {
		f.put(fmt.Sprintf("k%d", i), large)
	}
	if events := remove(); len(events) != keys-1 || string(events[0].PrevKv.GetValue()) != large {
		t.Errorf("%d events of what is just within the bound", len(events))
	}
}

// TestHistoryOfLargeValues: a page of the past is bounded by what its values
// hold, previous ones too if they are asked for, in whole revisions.
func TestHistoryOfLargeValues(t *testing.T) {
	f := open(t, &memlog.Disk{}, Options{})
	value := strings.Repeat("x", historyBytes*3/5)
	const puts = 6
	for range puts {
		f.put("k", value)
	}
	for prevKV, want := range map[bool][]int64{false: {4, 6, 8}, true: {4, 5, 6, 7, 8}} {
		var stops []int64
		seen := 0
		for from := int64(2); from < 2+puts; {
			events, next, err := f.History(t.Context(), []byte("k"), nil, from, 100, prevKV)
			if err != nil {
				t.Fatal(err)
			}
			seen += len(events)
			stops = append(stops, next)
			from = next
		}
		if seen != puts || !slices.Equal(stops, want) {
			t.Errorf("with previous values %v: %d events, pages to %v, want %v", prevKV, seen, stops, want)
		}
	}
}
