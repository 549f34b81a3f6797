package cowtree

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

type item struct {
	key   int
	count int
	mark  int64
}

func (i item) Key() int             { return i.key }
func (i item) Compare(key int) int  { return cmp.Compare(i.key, key) }
func (i item) Weight() (int, int64) { return i.count, i.mark }

type tree = Tree[int, item]

func sorted(m map[int]item) []item {
	s := make([]item, 0, len(m))
	for _, it := range m {
		s = append(s, it)
	}
	slices.SortFunc(s, func(a, b item) int { return cmp.Compare(a.key, b.key) })
	return s
}

// check holds every read of tr against the plain model.
func check(t *rapid.T, tr tree, model map[int]item, from int, mark int64) {
	want := sorted(model)
	var got []item
	tr.Ascend(-1<<60, func(it item) bool { got = append(got, it); return true })
	if !slices.Equal(got, want) {
		t.Fatalf("items: got %v, want %v", got, want)
	}
	if tr.Len() != len(want) {
		t.Fatalf("Len: got %d, want %d", tr.Len(), len(want))
	}
	count, before, countAt, beforeAt := 0, 0, 0, 0
	var tail, marked []item
	twice := func(it item) int { return 2 * it.count }
	for _, it := range want {
		at := it.count
		if it.mark > mark {
			at = twice(it)
		}
		count += it.count
		countAt += at
		if it.key < from {
			before += it.count
			beforeAt += at
		} else {
			tail = append(tail, it)
			if it.mark >= mark {
				marked = append(marked, it)
			}
		}
	}
	if got := tr.Count(); got != count {
		t.Fatalf("Count: got %d, want %d", got, count)
	}
	if got := tr.CountBefore(from); got != before {
		t.Fatalf("CountBefore(%d): got %d, want %d", from, got, before)
	}
	if got := tr.CountAt(mark, twice); got != countAt {
		t.Fatalf("CountAt(%d): got %d, want %d", mark, got, countAt)
	}
	if got := tr.CountBeforeAt(from, mark, twice); got != beforeAt {
		t.Fatalf("CountBeforeAt(%d, %d): got %d, want %d", from, mark, got, beforeAt)
	}
	got = nil
	tr.Ascend(from, func(it item) bool { got = append(got, it); return true })
	if !slices.Equal(got, tail) {
		t.Fatalf("Ascend(%d): got %v, want %v", from, got, tail)
	}
	got = nil
	tr.AscendMarked(from, mark, func(it item) bool {
		if it.mark >= mark {
			got = append(got, it)
		}
		return true
	})
	if !slices.Equal(got, marked) {
		t.Fatalf("AscendMarked(%d, %d): got %v, want %v", from, mark, got, marked)
	}
	it, ok := tr.Get(from)
	if wantItem, wantOK := model[from]; ok != wantOK || it != wantItem {
		t.Fatalf("Get(%d): got %v %v, want %v %v", from, it, ok, wantItem, wantOK)
	}
}

// TestModel edits a tree at random, in ascending runs too, keeps snapshots on
// the way, and holds the tree and every snapshot against a map.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type snapshot struct {
			tree  tree
			model map[int]item
		}
		var (
			tr        = tree{}.Edit()
			model     = map[int]item{}
			snapshots []snapshot
			space     = rapid.SampledFrom([]int{10, 300, 3000}).Draw(t, "space")
			rng       = rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		)
		for range rapid.IntRange(1, 12).Draw(t, "rounds") {
			ascending := rng.IntN(3) == 0
			deletes := rng.IntN(100)
			for i := range rng.IntN(1500) {
				key := rng.IntN(space)
				if ascending {
					key = space + i
				}
				if rng.IntN(100) < deletes {
					tr.Delete(key)
					delete(model, key)
					continue
				}
				it := item{key: key, count: rng.IntN(2), mark: rng.Int64N(1000)}
				tr.Set(it)
				model[key] = it
			}
			copied := make(map[int]item, len(model))
			for k, v := range model {
				copied[k] = v
			}
			snapshots = append(snapshots, snapshot{tr, copied})
			tr = tr.Edit()
		}
		for key := range space { // down to nothing
			if rng.IntN(10) > 0 {
				tr.Delete(key)
				delete(model, key)
			}
		}
		check(t, tr, model, rng.IntN(space), rng.Int64N(1000))
		for _, s := range snapshots {
			check(t, s.tree, s.model, rng.IntN(space), rng.Int64N(1000))
		}
	})
}

// TestAscendStops: fn ends the walk.
func TestAscendStops(t *testing.T) {
	tr := tree{}.Edit()
	for i := range 1000 {
		tr.Set(item{key: i})
	}
	var got []int
	tr.Ascend(500, func(it item) bool { got = append(got, it.key); return len(got) < 3 })
	if !slices.Equal(got, []int{500, 501, 502}) {
		t.Fatalf("got %v", got)
	}
}

func benchTree(n int) tree {
	tr := tree{}.Edit()
	for _, k := range rand.Perm(n) {
		tr.Set(item{key: k, count: 1})
	}
	return tr
}

// BenchmarkSet replaces items at random, with a new edit for every batch.
func BenchmarkSet(b *testing.B) {
	for _, batch := range []int{1, 100} {
		b.Run(map[int]string{1: "batch=1", 100: "batch=100"}[batch], func(b *testing.B) {
			const n = 100_000
			tr := benchTree(n)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if i%batch == 0 {
					tr = tr.Edit()
				}
				tr.Set(item{key: rand.IntN(n), count: 1})
			}
		})
	}
}

func BenchmarkCountBefore(b *testing.B) {
	const n = 1_000_000
	tr := benchTree(n)
	for b.Loop() {
		tr.CountBefore(rand.IntN(n))
	}
}
