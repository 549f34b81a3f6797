package store

import (
	"math"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Need is what a response will hold: the number of its key-value pairs, and the
// length of all keys and values together.
type Need struct {
	Pairs int
	Bytes int64
}

func (n Need) plus(m Need) Need { return Need{n.Pairs + m.Pairs, n.Bytes + m.Bytes} }

// add adds a key-value pair.
func (n *Need) add(e *entry, v *version, keysOnly bool) {
	n.Pairs++
	n.Bytes += int64(len(e.key))
	if !keysOnly {
		n.Bytes += int64(v.size)
	}
}

// need is what the key-value pairs of r will need.
func (r *ranged) need() (n Need) {
	for _, h := range r.hits {
		n.add(h.entry, h.version, r.request.KeysOnly)
	}
	return n
}

// txnNeed is about what r will need if the larger branch is taken: the values
// that its compares read, and its answer. Where left is used up, the
// transaction will not be evaluated, and the rest does not matter.
func (st *state) txnNeed(r *pb.TxnRequest, left *effort) Need {
	if isSmall(r) {
		return Need{}
	}
	return st.nestedNeed(r, left)
}

// isSmall reports whether each branch of r is at most one operation on one key,
// which is not worth a look: most are, kube-apiserver's among them.
func isSmall(r *pb.TxnRequest) bool {
	for _, c := range r.Compare {
		if c.Target == pb.Compare_VALUE {
			return false
		}
	}
	for _, ops := range [...][]*pb.RequestOp{r.Success, r.Failure} {
		if len(ops) > 1 {
			return false
		}
		for _, op := range ops {
			if len(op.GetRequestRange().GetRangeEnd()) > 0 || len(op.GetRequestDeleteRange().GetRangeEnd()) > 0 || op.GetRequestTxn() != nil {
				return false
			}
		}
	}
	return true
}

func (st *state) nestedNeed(r *pb.TxnRequest, left *effort) Need {
	var compares Need
	for _, c := range r.Compare {
		if c.Target == pb.Compare_VALUE {
			compares = compares.plus(st.rangeNeed(&pb.RangeRequest{Key: c.Key, RangeEnd: c.RangeEnd}, left))
		}
	}
	var needs [2]Need
	for i, ops := range [...][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			switch op := op.Request.(type) {
			case *pb.RequestOp_RequestRange:
				needs[i] = needs[i].plus(st.rangeNeed(op.RequestRange, left))
			case *pb.RequestOp_RequestPut:
				if put := op.RequestPut; put.PrevKv || put.IgnoreValue {
					needs[i] = needs[i].plus(st.rangeNeed(&pb.RangeRequest{Key: put.Key}, left))
				}
			case *pb.RequestOp_RequestDeleteRange:
				needs[i] = needs[i].plus(st.deleteNeed(op.RequestDeleteRange, left))
			case *pb.RequestOp_RequestTxn:
				needs[i] = needs[i].plus(st.nestedNeed(op.RequestTxn, left))
			}
		}
	}
	if needs[0].Bytes > needs[1].Bytes {
		return compares.plus(needs[0])
	}
	return compares.plus(needs[1])
}

// rangeNeed is txnNeed for a range. A sort by value needs the values that the
// limit cuts off, and those of keys alone, too.
func (st *state) rangeNeed(r *pb.RangeRequest, left *effort) (n Need) {
	rev, err := st.readRevision(r.Revision)
	s := newSpan(r.Key, r.RangeEnd)
	if err != nil || s.empty() || r.CountOnly {
		return n
	}
	limit, keysOnly := int64(math.MaxInt64), r.KeysOnly
	switch {
	case r.SortTarget == pb.RangeRequest_VALUE:
		keysOnly = false
	case r.Limit > 0:
		limit = r.Limit
	}
	st.ascend(s, 0, func(e *entry) bool {
		*left--
		if v, alive := e.at(rev); alive {
			n.add(e, v, keysOnly)
		}
		return *left > 0 && int64(n.Pairs) < limit
	})
	return n
}

// deleteNeed is txnNeed for a delete.
func (st *state) deleteNeed(r *pb.DeleteRangeRequest, left *effort) Need {
	if !r.PrevKv {
		return Need{}
	}
	return st.rangeNeed(&pb.RangeRequest{Key: r.Key, RangeEnd: r.RangeEnd}, left)
}
