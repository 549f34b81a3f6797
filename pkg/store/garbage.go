package store

import "slices"

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
// the index and returns their seqs, ascending. None is returned when all are
// out.
//
// The order matters to a crash in the middle of the physical deletion: a
// version goes before the tombstone that hides it, a grant before its revoke.
func (st *state) trim(limit int) []int64 {
	var freed []int64
	g := &st.garbage
	for ; len(freed) < limit && len(g.superseded) > 0 && g.superseded[0].main <= st.compacted; g.superseded = g.superseded[1:] {
		freed = append(freed, g.superseded[0].seq)
		st.trimKey(g.superseded[0].key)
	}
	if len(freed) == 0 {
		for ; len(freed) < limit && len(g.tombstones) > 0 && g.tombstones[0].main < st.compacted; g.tombstones = g.tombstones[1:] {
			freed = append(freed, g.tombstones[0].seq)
			st.trimKey(g.tombstones[0].key)
		}
	}
	if len(freed) == 0 {
		n := min(limit, g.due)
		freed = slices.Clone(g.retired[:n])
		g.retired = g.retired[n:]
		g.due -= n
	}
	slices.Sort(freed)
	return freed
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
	kept := make([]version, 0, len(e.older))
	for i, v := range e.older {
		if e.kept(i, st.compacted) {
			kept = append(kept, v)
		}
	}
	switch {
	case len(kept) == 0 && !e.kept(len(e.older), st.compacted):
		st.keys.Delete(key)
	case len(kept) < len(e.older):
		if len(kept) == 0 {
			kept = nil
		}
		st.keys.Set(&entry{key: e.key, last: e.last, older: kept})
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
	if v.tombstone {
		return v.main >= compacted
	}
	return i == len(e.older) || next > compacted
}
