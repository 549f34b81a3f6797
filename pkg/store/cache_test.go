package store

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/keelson-io/keelson/pkg/internal/testaid"
)

// cacheValue is a value that says whose it is.
func cacheValue(seq int64, size int) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(seq)), make([]byte, size)...)
}

// TestValueCache compares the cache with a map that forgets nothing: what the
// cache has is right, what was dropped it has not, and it is never too large,
// and never loses a value while there is room.
func TestValueCache(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.OneOf(rapid.Int64Range(0, 2000), rapid.Int64Range(2000, 100_000), rapid.Just[int64](1<<30)).Draw(t, "limit")
		seq := rapid.OneOf(rapid.Int64Range(1, 20), rapid.Int64Range(1, 3*firstSlots), rapid.Int64Range(1, 1<<40))
		c := newValueCache(limit)
		values := map[int64][]byte{}
		total := int64(0)
		full := false // values may have been pushed out
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			first := seq.Draw(t, "seq")
			n := rapid.SampledFrom([]int64{1, 1, 10, firstSlots}).Draw(t, "run")
			act := rapid.IntRange(0, 3).Draw(t, "act")
			size := rapid.IntRange(0, 300).Draw(t, "size")
			for seq := first; seq < first+n; seq++ {
				switch value, known := values[seq]; act {
				case 0, 1:
					if !known {
						values[seq] = cacheValue(seq, size)
						total += int64(len(values[seq])) + slotOverhead
					}
					c.put(seq, values[seq])
				case 2:
					c.drop(seq)
					if known {
						total -= int64(len(value)) + slotOverhead
						delete(values, seq)
					}
				default:
					got, ok := c.get(seq)
					switch {
					case ok && (!known || &got[0] != &value[0]):
						t.Fatalf("the cache has %x as value %d, not %x", got, seq, value)
					case !ok && known && !full && total <= limit:
						t.Fatalf("the cache has lost value %d", seq)
					}
				}
			}
			if c.size() > limit {
				t.Fatalf("%d bytes, more than %d", c.size(), limit)
			}
			if !full && total <= limit && c.size() != total {
				t.Fatalf("%d bytes, not %d", c.size(), total)
			}
			full = full || total > limit
		}
	})
}

// TestValueCacheReaders has readers beside a writer who overwrites everything
// all the time.
func TestValueCacheReaders(t *testing.T) {
	const n = 3 * firstSlots
	c := newValueCache(n / 2 * (slotOverhead + 8))
	c.put(0, cacheValue(0, 0)) // is read again and again, and so it stays
	stop := make(chan struct{})
	var wg sync.WaitGroup
	rnd := testaid.NewRandom(t)
	for range 3 {
		own := rand.New(rand.NewPCG(rnd.Uint64(), 0))
		wg.Go(func() {
			seqs, values := make([]int64, 100), make([][]byte, 100)
			for {
				select {
				case <-stop:
					return
				default:
				}
				for i := range seqs {
					seqs[i] = own.Int64N(n)
				}
				seqs[0] = 0
				missing := map[int]bool{}
				for _, i := range c.getAll(seqs, values) {
					missing[i] = true
				}
				for i, value := range values {
					if missing[i] != (value == nil) || value != nil && int64(binary.BigEndian.Uint64(value)) != seqs[i] {
						t.Errorf("value %d is %x", seqs[i], value)
						return
					}
				}
				if missing[0] && seqs[0] == 0 {
					t.Error("a value that nobody has dropped is not found")
					return
				}
			}
		})
	}
	for range 5 * n {
		seq := 1 + rnd.Int64N(n/4)
		c.drop(seq)
		c.put(seq, cacheValue(seq, 0))
	}
	close(stop)
	wg.Wait()
}
