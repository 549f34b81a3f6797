package store

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// maxTxnKeys is how many keys the operations of one transaction may go through
// together. A request of 1.5 MiB has room for a hundred thousand ranges over
// everything, and the committer serves nobody else meanwhile. A single range
// within a transaction, and a transaction of single keys, come nowhere near.
const maxTxnKeys = 4 << 20

// effort is how many keys a transaction may still go through.
type effort int64

func (left *effort) spend(n int64) error {
	if *left -= effort(n); *left < 0 {
		return ErrTooManyKeys
	}
	return nil
}

// walk spends what it takes to go through all keys of s on st, deleted ones
// too.
func (left *effort) walk(st *state, s span) error {
	if s.single || s.empty() {
		return left.spend(1)
	}
	n := int64(1)
	st.ascend(s, 0, func(*entry) bool {
		n++
		return n <= int64(*left)
	})
	return left.spend(n)
}

// read spends what it takes to answer r.
func (left *effort) read(st *state, r *pb.RangeRequest) error {
	s := newSpan(r.Key, r.RangeEnd)
	if readable(st, r.Revision) != st.revision {
		return left.walk(st, s)
	}
	n := int64(1)
	if !r.CountOnly {
		n += st.count(s, st.revision)
		if r.Limit > 0 && r.SortOrder == pb.RangeRequest_NONE && !hasFilters(r) {
			n = min(n-1, r.Limit) + 1
		}
	}
	return left.spend(n)
}
