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
// that its compares read, and its answer, of ranges and deletes of more than
// one key. Where left is used up, the transaction will not be evaluated, and
// the rest does not matter.
func (st *state) txnNeed(r *pb.TxnRequest, left *effort) Need {
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
			case *pb.RequestOp_RequestDeleteRange:
				needs[i] = needs[i].plus(st.deleteNeed(op.RequestDeleteRange, left))
			case *pb.RequestOp_RequestTxn:
				needs[i] = needs[i].plus(st.txnNeed(op.RequestTxn, left))
			}
		}
	}
	if needs[0].Bytes > needs[1].Bytes {
		return compares.plus(needs[0])
	}
	return compares.plus(needs[1])
}

// rangeNeed is txnNeed for a range. A sort by value needs the values that the
// limit cuts off, too.
func (st *state) rangeNeed(r *pb.RangeRequest, left *effort) (n Need) {
	rev, err := st.readRevision(r.Revision)
	s := newSpan(r.Key, r.RangeEnd)
	if err != nil || s.single || s.empty() || r.CountOnly {
		return n
	}
	limit := int64(math.MaxInt64)
	if r.Limit > 0 && r.SortTarget != pb.RangeRequest_VALUE {
		limit = r.Limit
	}
	st.ascend(s, 0, func(e *entry) bool {
		*left--
		if v, alive := e.at(rev); alive {
			n.add(e, v, r.KeysOnly)
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
