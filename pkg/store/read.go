package store

import (
	"bytes"
	"cmp"
	"sort"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// span is etcd's key range: one key, [from, to), or all keys from from on.
type span struct {
	from, to  string
	single    bool
	unbounded bool
}

// newSpan reads etcd's convention: no end is a single key, an end of "\0" is
// no bound.
func newSpan(key, end []byte) span {
	s := span{from: stringOf(key), to: stringOf(end)}
	switch {
	case len(end) == 0:
		s.single = true
	case len(end) == 1 && end[0] == 0:
		s.unbounded = true
	}
	return s
}

func (s span) contains(key string) bool {
	if s.single {
		return key == s.from
	}
	return key >= s.from && (s.unbounded || key < s.to)
}

func (s span) empty() bool { return !s.single && !s.unbounded && s.from >= s.to }

// ascend calls fn for the entries of the span that were changed at or after
// revision mark, and maybe others, in order of keys, until fn returns false.
func (st *state) ascend(s span, mark int64, fn func(*entry) bool) {
	if s.single {
		if e, ok := st.keys.Get(s.from); ok {
			fn(e)
		}
		return
	}
	st.keys.AscendMarked(s.from, mark, func(e *entry) bool {
		return (s.unbounded || e.key < s.to) && fn(e)
	})
}

// count returns the number of keys of the span that are alive at main revision
// rev. Where nothing has changed since rev it takes the tree's own counts.
func (st *state) count(s span, rev int64) int64 {
	at := func(e *entry) int { return e.countAt(rev) }
	switch {
	case s.single:
		if e, ok := st.keys.Get(s.from); ok {
			return int64(e.countAt(rev))
		}
		return 0
	case s.empty():
		return 0
	case s.unbounded:
		return int64(st.keys.CountAt(rev, at) - st.keys.CountBeforeAt(s.from, rev, at))
	}
	return int64(st.keys.CountBeforeAt(s.to, rev, at) - st.keys.CountBeforeAt(s.from, rev, at))
}

// readRevision returns the main revision that a request for revision rev
// reads at.
func (st *state) readRevision(rev int64) (int64, error) {
	switch {
	case rev > st.revision:
		return 0, ErrFutureRev
	case rev <= 0:
		return st.revision, nil
	case rev < st.compacted:
		return 0, ErrCompacted
	}
	return rev, nil
}

// found is a key with the version that a range has found.
type found struct {
	entry   *entry
	version *version
}

// ranged is the answer to a range but for the key-value pairs, so that their
// size is known before they take memory.
type ranged struct {
	request *pb.RangeRequest
	resp    *pb.RangeResponse
	hits    []found
}

// kv sets all of kv but its value to pair i.
func (r *ranged) kv(i int, kv *mvccpb.KeyValue) {
	h := r.hits[i]
	h.entry.kv(h.version, kv)
	if r.request.KeysOnly && r.request.SortTarget != pb.RangeRequest_VALUE {
		kv.Lease = 0 // etcd serves this from an index without leases
	}
}

// complete makes the key-value pairs and returns those that wait for values.
func (r *ranged) complete() []fill {
	kvs := make([]mvccpb.KeyValue, len(r.hits))
	r.resp.Kvs = make([]*mvccpb.KeyValue, len(r.hits))
	var fills []fill
	if !r.request.KeysOnly {
		fills = make([]fill, len(r.hits))
	}
	for i, h := range r.hits {
		r.kv(i, &kvs[i])
		r.resp.Kvs[i] = &kvs[i]
		if fills != nil {
			fills[i] = fill{h.version.seq, &kvs[i]}
		}
	}
	return fills
}

// rangeRequest answers a range. Only a sort by value calls values.
//
// Source: etcd's executeRange, whose limit applies before the sort where the
// order is left open (NONE) and after it otherwise.
func (st *state) rangeRequest(r *pb.RangeRequest, values valueFunc) (ranged, error) {
	rev, err := st.readRevision(r.Revision)
	if err != nil {
		return ranged{}, err
	}
	s := newSpan(r.Key, r.RangeEnd)
	resp := &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: st.revision}}
	if r.CountOnly {
		resp.Count = st.count(s, rev)
		return ranged{r, resp, nil}, nil
	}

	filtered := hasFilters(r)
	sorted := r.SortOrder != pb.RangeRequest_NONE && (r.SortTarget != pb.RangeRequest_KEY || r.SortOrder != pb.RangeRequest_ASCEND)
	limit := int64(0)
	if r.Limit > 0 && !filtered && !sorted {
		limit = r.Limit
	}
	expected := int64(0)
	counts := rev == st.revision && !s.single // then counting is cheap, and no second search for the one key
	if counts {
		expected = st.count(s, rev)
	}
	hits, more := st.collect(s, rev, limit, expected, r)
	switch {
	case counts:
		resp.Count = expected
	case filtered || more:
		resp.Count = st.count(s, rev)
	default:
		resp.Count = int64(len(hits))
	}
	if sorted || r.SortTarget != pb.RangeRequest_KEY {
		if hits, err = sortFound(hits, r, values); err != nil {
			return ranged{}, err
		}
	}
	if r.Limit > 0 && int64(len(hits)) > r.Limit {
		hits, more = hits[:r.Limit], true
	}
	resp.More = more
	return ranged{r, resp, hits}, nil
}

func hasFilters(r *pb.RangeRequest) bool {
	return r.MinModRevision != 0 || r.MaxModRevision != 0 || r.MinCreateRevision != 0 || r.MaxCreateRevision != 0
}

// collect returns the living keys of the span at rev that pass the filters of
// r, in order; limit+1 of them where limit > 0 leaves some out and the order
// must see one more, as etcd's does; more says that some were left out.
// expected is how many there may be, or 0 if that is not known.
func (st *state) collect(s span, rev, limit, expected int64, r *pb.RangeRequest) (hits []found, more bool) {
	if s.empty() {
		return nil, false
	}
	want := limit
	if limit > 0 && r.SortTarget != pb.RangeRequest_KEY {
		want++ // etcd sorts the limit+1 keys that it fetched
	}
	if limit > 0 {
		expected = min(expected, limit)
	}
	if !hasFilters(r) {
		hits = make([]found, 0, expected)
	}
	st.ascend(s, 0, func(e *entry) bool {
		v, alive := e.at(rev)
		if !alive ||
			r.MaxModRevision != 0 && v.main > r.MaxModRevision ||
			r.MinModRevision != 0 && v.main < r.MinModRevision ||
			r.MaxCreateRevision != 0 && v.create > r.MaxCreateRevision ||
			r.MinCreateRevision != 0 && v.create < r.MinCreateRevision {
			return true
		}
		if limit > 0 && int64(len(hits)) == want {
			more = true
			return false
		}
		hits = append(hits, found{e, v})
		return true
	})
	return hits, more
}

// sortFound sorts hits as etcd does, down to its unstable sort of equals.
func sortFound(hits []found, r *pb.RangeRequest, values valueFunc) ([]found, error) {
	s := foundSort{hits: hits}
	switch r.SortTarget {
	case pb.RangeRequest_KEY:
		s.less = func(i, j int) bool { return hits[i].entry.key < hits[j].entry.key }
	case pb.RangeRequest_VERSION:
		s.less = func(i, j int) bool { return hits[i].version.version < hits[j].version.version }
	case pb.RangeRequest_CREATE:
		s.less = func(i, j int) bool { return hits[i].version.create < hits[j].version.create }
	case pb.RangeRequest_MOD:
		s.less = func(i, j int) bool { return hits[i].version.main < hits[j].version.main }
	case pb.RangeRequest_VALUE:
		seqs := make([]int64, len(hits))
		for i, h := range hits {
			seqs[i] = h.version.seq
		}
		read, err := values(seqs)
		if err != nil {
			return nil, err
		}
		s.values = read
		s.less = func(i, j int) bool { return bytes.Compare(read[i], read[j]) < 0 }
	}
	if r.SortOrder == pb.RangeRequest_DESCEND {
		sort.Sort(sort.Reverse(&s))
	} else {
		sort.Sort(&s)
	}
	return hits, nil
}

type foundSort struct {
	hits   []found
	values [][]byte // moves with hits where it is set
	less   func(i, j int) bool
}

func (s *foundSort) Len() int           { return len(s.hits) }
func (s *foundSort) Less(i, j int) bool { return s.less(i, j) }
func (s *foundSort) Swap(i, j int) {
	s.hits[i], s.hits[j] = s.hits[j], s.hits[i]
	if s.values != nil {
		s.values[i], s.values[j] = s.values[j], s.values[i]
	}
}

// compare evaluates one compare of a txn on st.
//
// Source: etcd's applyCompare.
func (st *state) compare(c *pb.Compare, values valueFunc) (bool, error) {
	var (
		s      = newSpan(c.Key, c.RangeEnd)
		hits   []found
		result = true
	)
	if !s.empty() {
		st.ascend(s, 0, func(e *entry) bool {
			v, alive := e.at(st.revision)
			if !alive {
				return true
			}
			if c.Target == pb.Compare_VALUE {
				hits = append(hits, found{e, v})
				return true
			}
			hits = append(hits[:0], found{e, v})
			result = holds(c, compareVersion(c, v))
			return result
		})
	}
	switch {
	case c.Target != pb.Compare_VALUE && len(hits) == 0:
		return holds(c, compareVersion(c, &version{})), nil
	case c.Target != pb.Compare_VALUE:
		return result, nil
	case len(hits) == 0:
		return false, nil // an absent value compares with nothing
	}
	seqs := make([]int64, len(hits))
	for i, h := range hits {
		seqs[i] = h.version.seq
	}
	read, err := values(seqs)
	if err != nil {
		return false, err
	}
	for _, value := range read {
		if !holds(c, bytes.Compare(value, c.GetValue())) {
			return false, nil
		}
	}
	return true, nil
}

// compareVersion compares the target of c, which is not VALUE.
func compareVersion(c *pb.Compare, v *version) int {
	switch c.Target {
	case pb.Compare_CREATE:
		return cmp.Compare(v.create, c.GetCreateRevision())
	case pb.Compare_MOD:
		return cmp.Compare(v.main, c.GetModRevision())
	case pb.Compare_VERSION:
		return cmp.Compare(v.version, c.GetVersion())
	case pb.Compare_LEASE:
		return cmp.Compare(v.lease, c.GetLease())
	}
	return 0 // etcd's answer for an unknown target
}

// holds reports whether the outcome of a comparison is the one c asks for; an
// unknown one always is, as in etcd.
func holds(c *pb.Compare, result int) bool {
	switch c.Result {
	case pb.Compare_EQUAL:
		return result == 0
	case pb.Compare_NOT_EQUAL:
		return result != 0
	case pb.Compare_GREATER:
		return result > 0
	case pb.Compare_LESS:
		return result < 0
	}
	return true
}
