package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
)

// benchKeys fills a store with n keys of 1 KiB, k00000 and on.
func benchKeys(b *testing.B, n int) *fixture {
	b.Helper()
	f := open(b, &memlog.Disk{}, Options{})
	value := make([]byte, 1024)
	var wg sync.WaitGroup
	for w := range 50 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := w; i < n; i += 50 {
				if _, err := f.Put(context.Background(), &pb.PutRequest{Key: fmt.Appendf(nil, "k%05d", i), Value: value}); err != nil {
					b.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	b.ReportAllocs()
	return f
}

func BenchmarkPut(b *testing.B) {
	for _, clients := range []int{1, 200} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			f := benchKeys(b, 10_000)
			value := make([]byte, 1024)
			var next atomic.Int64
			b.ResetTimer()
			var wg sync.WaitGroup
			for range clients {
				wg.Add(1)
				go func() {
					defer wg.Done()
					for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
						if _, err := f.Put(context.Background(), &pb.PutRequest{Key: fmt.Appendf(nil, "k%05d", i*7919%10_000), Value: value}); err != nil {
							b.Error(err)
						}
					}
				}()
			}
			wg.Wait()
		})
	}
}

func BenchmarkRange(b *testing.B) {
	f := benchKeys(b, 20_000)
	for _, bench := range []struct {
		name string
		r    *pb.RangeRequest
	}{
		{"one", &pb.RangeRequest{Key: []byte("k00777"), Limit: 1}},
		{"limit500", &pb.RangeRequest{Key: []byte("k00777"), RangeEnd: []byte("l"), Limit: 500}},
		{"list20k", &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}},
		{"count20k", &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), CountOnly: true}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := f.Range(context.Background(), bench.r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkHistory walks through 20,000 revisions in pages of 1000.
func BenchmarkHistory(b *testing.B) {
	f := benchKeys(b, 20_000)
	for b.Loop() {
		for from := int64(2); from <= 20_000; {
			_, next, err := f.History(context.Background(), []byte("k"), []byte("l"), from, 1000, true)
			if err != nil {
				b.Fatal(err)
			}
			from = next
		}
	}
}

// BenchmarkCompactHotKey deletes the versions of one key that is written all
// the time.
func BenchmarkCompactHotKey(b *testing.B) {
	f := benchKeys(b, 1)
	for b.Loop() {
		var rev int64
		for range 20_000 {
			rev = f.put("hot", "v")
		}
		f.compact(rev - 10_000)
	}
}

// BenchmarkValueCache has 20,000 values that are overwritten or read in any
// order, and read in that of their seqs.
func BenchmarkValueCache(b *testing.B) {
	const n = 20_000
	value := make([]byte, 1024)
	b.Run("overwrite", func(b *testing.B) {
		c := newValueCache(DefaultCacheBytes)
		seqs := make([]int64, n)
		for i := int64(1); b.Loop(); i++ {
			key := rand.IntN(n)
			c.put(i, value)
			c.drop(seqs[key])
			seqs[key] = i
		}
	})
	for _, order := range []string{"random", "seq"} {
		b.Run("list/"+order, func(b *testing.B) {
			c := newValueCache(DefaultCacheBytes)
			seqs := make([]int64, n)
			for i := range seqs {
				seqs[i] = int64(i)
				c.put(seqs[i], value)
			}
			if order == "random" {
				rand.Shuffle(n, func(i, j int) { seqs[i], seqs[j] = seqs[j], seqs[i] })
			}
			values := make([][]byte, n)
			for b.Loop() {
				c.getAll(seqs, values)
			}
		})
	}
}
