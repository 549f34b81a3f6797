package store

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

// revisionRef is one version of a key, in the entry of some snapshot.
type revisionRef struct {
	entry *entry
	index int // of entry.older, or its length for entry.last
}

func (r revisionRef) version() *version {
	if r.index == len(r.entry.older) {
		return &r.entry.last
	}
	return &r.entry.older[r.index]
}

// record returns what is known of the version without its record, but Seq.
func (r revisionRef) record() eventlog.Record {
	v := r.version()
	out := eventlog.Record{
		Kind: eventlog.KindPut, Revision: eventlog.Revision{Main: v.main, Sub: int64(v.sub)},
		Key: bytesOf(r.entry.key), CreateRevision: v.create, Version: v.version, Lease: v.lease,
	}
	if v.tombstone() {
		out.Kind = eventlog.KindDelete
	}
	return out
}

func compareRefs(a, b revisionRef) int {
	v, w := a.version(), b.version()
	if c := cmp.Compare(v.main, w.main); c != 0 {
		return c
	}
	return cmp.Compare(v.sub, w.sub)
}

// revisions returns the versions in span, tombstones too, with main revisions
// in [from, to], in order.
func (st *state) revisions(s span, from, to int64) []revisionRef {
	var refs []revisionRef
	if s.empty() {
		return nil
	}
	st.ascend(s, from, func(e *entry) bool {
		i, _ := slices.BinarySearchFunc(e.older, from, func(v version, rev int64) int { return cmp.Compare(v.main, rev) })
		for ; i <= len(e.older); i++ {
			ref := revisionRef{e, i}
			if main := ref.version().main; main >= from && main <= to {
				refs = append(refs, ref)
			}
		}
		return true
	})
	slices.SortFunc(refs, compareRefs)
	return refs
}

// Walks through the past come in pages; a plan keeps what one walk has found
// for the pages to come, so that the index is not searched for each.
const (
	maxPlans    = 8
	maxPlanRefs = 50_000
)

// plan is the rest of a walk: refs has all revisions of the span in [from,
// until), in order.
type plan struct {
	span        span
	from, until int64
	refs        []revisionRef
}

// plans are the rests of recent walks.
type plans struct {
	mu    sync.Mutex
	plans []plan // the oldest first
}

// take removes and returns the plan that goes on at from.
func (p *plans) take(s span, from int64) (plan, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, candidate := range p.plans {
		if candidate.span == s && candidate.from == from {
			p.plans = slices.Delete(p.plans, i, i+1)
			return candidate, true
		}
	}
	return plan{}, false
}

func (p *plans) put(rest plan) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.plans) == maxPlans {
		p.plans = slices.Delete(p.plans, 0, 1)
	}
	p.plans = append(p.plans, rest)
}

// historyBytes is how many bytes of values a page of the past holds at most,
// but for what its last revision brings.
const historyBytes = 1 << 20

// History returns the events of the keys in [key, end), by etcd's conventions
// for ranges, with main revisions from `from` on: those of whole revisions, at
// most limit of them (1 or more) and fewer where their values are large, in
// order, with PrevKv if prevKV asks for it
// and compaction has left it. next is the revision to go on from: all before
// it is covered. It is the current revision + 1 when nothing is left.
//
// ErrCompacted means that from is before the compact revision.
func (s *Store) History(ctx context.Context, key, end []byte, from int64, limit int, prevKV bool) (events []*mvccpb.Event, next int64, err error) {
	sp := newSpan(slices.Clone(key), slices.Clone(end)) // outlives the request in a plan
	err = s.read(ctx, true, func(st *state) error {
		if from < st.compacted {
			return ErrCompacted
		}
		p, ok := s.plans.take(sp, from)
		if !ok {
			p = st.plan(sp, from)
		}
		refs := p.page(limit, prevKV)
		next = p.from
		if len(p.refs) > 0 {
			s.plans.put(p)
		}
		var fills []fill
		events, fills = pastEvents(refs, prevKV, st.compacted)
		return s.values.fill(ctx, fills)
	})
	if err != nil {
		return nil, 0, err
	}
	return events, next, nil
}

// plan searches the index for the revisions of a span from a revision on.
func (st *state) plan(s span, from int64) plan {
	p := plan{span: s, from: from, until: st.revision + 1, refs: st.revisions(s, from, st.revision)}
	if len(p.refs) <= maxPlanRefs {
		return p
	}
	// Cut before the revision that does not fit whole, unless it is the first.
	cut := p.refs[maxPlanRefs].version().main
	n, _ := slices.BinarySearchFunc(p.refs, cut, func(r revisionRef, main int64) int { return cmp.Compare(r.version().main, main) })
	if n == 0 {
		cut++
		n, _ = slices.BinarySearchFunc(p.refs, cut, func(r revisionRef, main int64) int { return cmp.Compare(r.version().main, main) })
	}
	p.refs, p.until = slices.Clone(p.refs[:n]), cut
	return p
}

// page takes the references of up to limit main revisions off p, or of those
// whose values reach historyBytes.
func (p *plan) page(limit int, prevKV bool) []revisionRef {
	mains, bytes, last := 0, 0, int64(0)
	for i, ref := range p.refs {
		if main := ref.version().main; main != last {
			if mains == limit || bytes >= historyBytes {
				page := p.refs[:i]
				p.refs, p.from = p.refs[i:], main
				return page
			}
			mains++
			last = main
		}
		bytes += ref.bytes(prevKV)
	}
	page := p.refs
	p.refs, p.from = nil, p.until
	return page
}

// bytes is the size of the values in the event that r was.
func (r revisionRef) bytes(prevKV bool) int {
	v := r.version()
	n := max(0, int(v.size))
	if prev, ok := r.entry.before(v.main, v.create); prevKV && ok {
		n += int(prev.size)
	}
	return n
}

// pastEvents returns the events that refs were when they happened, and the
// values that these wait for.
func pastEvents(refs []revisionRef, prevKV bool, compacted int64) ([]*mvccpb.Event, []fill) {
	events := make([]*mvccpb.Event, len(refs))
	fills := make([]fill, 0, len(refs))
	for i, ref := range refs {
		v := ref.version()
		event := &mvccpb.Event{Kv: &mvccpb.KeyValue{}}
		if v.tombstone() {
			event.Type = mvccpb.Event_DELETE
			event.Kv.Key, event.Kv.ModRevision = bytesOf(ref.entry.key), v.main
		} else {
			ref.entry.kv(v, event.Kv)
			fills = append(fills, fill{v.seq, event.Kv})
		}
		if prev, ok := ref.entry.before(v.main, v.create); ok && prevKV && v.main > compacted {
			event.PrevKv = &mvccpb.KeyValue{}
			ref.entry.kv(prev, event.PrevKv)
			fills = append(fills, fill{prev.seq, event.PrevKv})
		}
		events[i] = event
	}
	return events, fills
}

// HashKV is a hash over the revisions up to HashRevision that CompactRevision
// leaves, comparable with any etcd's.
type HashKV struct {
	Hash            uint32
	HashRevision    int64
	CompactRevision int64
	Revision        int64 // the current one
}

// HashKV hashes the revisions up to revision, or the current one for 0; up to
// a negative one there are none, which etcd hashes, too. The values are those of
// the log, not of memory. One at a time reads it.
func (s *Store) HashKV(ctx context.Context, revision int64) (HashKV, error) {
	select {
	case s.hashing <- struct{}{}:
	case <-ctx.Done():
		return HashKV{}, ctx.Err()
	}
	defer func() { <-s.hashing }()
	scan, st, err := s.scan(ctx)
	if err != nil {
		return HashKV{}, err
	}
	defer scan.Close()
	switch {
	case revision > st.revision:
		return HashKV{}, ErrFutureRev
	case revision == 0:
		revision = st.revision
	case revision > 0 && revision < st.compacted:
		return HashKV{}, ErrCompacted
	}
	wanted := st.hashedAt(revision)
	hasher := snapshot.NewHasher()
	err = scan.Records(ctx, func(records []eventlog.Record) error {
		for i := range records {
			switch r := &records[i]; {
			case len(wanted) == 0 || r.Seq < wanted[0]:
			case r.Seq > wanted[0]:
				return missing(wanted[0])
			default:
				hasher.Add(r)
				wanted = wanted[1:]
			}
		}
		return nil
	})
	if err == nil && len(wanted) > 0 {
		err = missing(wanted[0])
	}
	if err != nil {
		return HashKV{}, logError(err)
	}
	return HashKV{Hash: hasher.Sum(), HashRevision: revision, CompactRevision: st.compacted, Revision: st.revision}, nil
}

// hashedAt returns the records that the hash at revision covers, in order.
func (st *state) hashedAt(revision int64) []int64 {
	alive := st.count(span{unbounded: true}, revision) > 0
	var seqs []int64
	for _, r := range st.revisions(span{unbounded: true}, 0, revision) {
		if st.hashed(r, revision, alive) {
			seqs = append(seqs, r.version().seq)
		}
	}
	return seqs
}

// hashed reports whether the hash at revision covers r: all after the compact
// revision, and before it what is alive at revision; or, where nothing is
// alive, what the compaction has left. A tombstone at the compact revision is
// left out because older versions of etcd delete it.
//
// Source: etcd's hashByRev and WriteKeyValue.
func (st *state) hashed(r revisionRef, revision int64, alive bool) bool {
	v := r.version()
	switch {
	case v.tombstone() && v.main == st.compacted:
		return false
	case v.main > st.compacted:
		return true
	case !alive:
		return r.entry.kept(r.index, st.compacted)
	}
	at, ok := r.entry.at(revision)
	return ok && at.seq == v.seq
}

// Hash returns a hash over the current content. Unlike HashKV's it is not
// comparable with etcd's, which covers the bytes of its own storage.
func (s *Store) Hash(ctx context.Context) (uint32, error) {
	h, err := s.HashKV(ctx, 0)
	return h.Hash, err
}
