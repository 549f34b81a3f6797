package store

import (
	"slices"
	"sort"
)

// garbage lists the records that a compaction frees, in the order in which
// compactions come to free them, so that nothing has to be searched for. Its
// slices are only appended to and cut off in front, and so are snapshots as
// the trees are: a copy never sees what is appended later.
type garbage struct {
	superseded []corpse // free once the compact revision is at or after main
	tombstones []corpse // free once the compact revision is after main
	retired    []int64  // seqs of lease, alarm and compaction records without effect
	due        int      // how many of retired were there at the newest compaction
}

// stage is when records are deleted from the log. All of one stage go before
// those of the next that were freed by the same compaction, or a crash in
// between would bring back what a tombstone hides, or a lease whose revoke is
// gone. Within a stage the order means nothing.
type stage int

const (
	stageSuperseded stage = iota
	stageTombstones
	stageRetired
	stages // how many there are
)

// corpse is a version of a key that is not its newest any more, or a tombstone.
type corpse struct {
	main int64 // superseded: revision of its successor; tombstone: its own
	seq  int64
	key  string
}

func (g *garbage) supersede(main, seq int64, key string) {
	g.superseded = append(g.superseded, corpse{main, seq, key})
}

func (g *garbage) bury(main, seq int64, key string) {
	g.tombstones = append(g.tombstones, corpse{main, seq, key})
}

func (g *garbage) retire(seq int64) { g.retired = append(g.retired, seq) }

// trim takes up to limit records that the newest compaction has freed out of
// the index and returns their seqs, all of one stage. None is returned when all
// are out.
func (st *state) trim(limit int) ([]int64, stage) {
	var freed []int64
	g := &st.garbage
	n := 0
	for ; n < min(limit, len(g.superseded)) && g.superseded[n].main <= st.compacted; n++ {
		freed = append(freed, g.superseded[n].seq)
		st.trimKey(g.superseded[n].key)
	}
	g.superseded = cutFront(g.superseded, n)
	if n > 0 {
		return freed, stageSuperseded
	}
	for ; n < min(limit, len(g.tombstones)) && g.tombstones[n].main < st.compacted; n++ {
		freed = append(freed, g.tombstones[n].seq)
		st.trimKey(g.tombstones[n].key)
	}
	g.tombstones = cutFront(g.tombstones, n)
	if n > 0 {
		return freed, stageTombstones
	}
	n = min(limit, g.due)
	freed = slices.Clone(g.retired[:n])
	g.retired = cutFront(g.retired, n)
	g.due -= n
	return freed, stageRetired
}

// cutFront returns s without its first n elements, and lets go of the array
// when none are left.
func cutFront[E any](s []E, n int) []E {
	if n == len(s) {
		return nil
	}
	return s[n:]
}

// trimmed reports whether trim has nothing left to do.
func (st *state) trimmed() bool {
	g := &st.garbage
	return (len(g.superseded) == 0 || g.superseded[0].main > st.compacted) &&
		(len(g.tombstones) == 0 || g.tombstones[0].main >= st.compacted) && g.due == 0
}

// trimKey takes everything out of a key's entry that compaction has freed.
func (st *state) trimKey(key string) {
	e, ok := st.keys.Get(key)
	if !ok {
		return
	}
	// What is freed comes before what is kept: a version is freed by an event
	// at or before the compact revision, and so are all before it.
	n := sort.Search(len(e.older), func(i int) bool { return e.kept(i, st.compacted) })
	switch {
	case n == len(e.older) && !e.kept(n, st.compacted):
		st.keys.Delete(key)
	case n > 0:
		st.keys.Set(&entry{key: e.key, last: e.last, older: slices.Clone(e.older[n:])})
	}
}

// kept reports whether compaction at revision compacted keeps e.older[i], or
// e.last for i = len(e.older): the newest version at or before compacted, but
// of tombstones only one at compacted itself, and everything after.
func (e *entry) kept(i int, compacted int64) bool {
	v, next := e.last, int64(0)
	if i < len(e.older) {
		v, next = e.older[i], e.last.main
		if i+1 < len(e.older) {
			next = e.older[i+1].main
		}
	}
	if v.tombstone() {
		return v.main >= compacted
	}
	return i == len(e.older) || next > compacted
}
