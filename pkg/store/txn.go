package store

import (
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// txn evaluates a transaction in three passes, as etcd does: compares of all
// levels on the state before, which gives the path through the branches;
// checks of the operations on that path, on the state before, too; then the
// operations. Only the last changes anything, and it cannot fail.
func (ev *evaluation) txn(r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := ev.charge(txnCost(r)); err != nil {
		return nil, err
	}
	left := effort(maxTxnKeys)
	path, err := ev.comparePath(r, nil, &left)
	if err != nil {
		return nil, err
	}
	if _, err := ev.checkTxn(r, path, &txnCheck{left: left}); err != nil {
		return nil, err
	}
	resp, _ := ev.applyTxn(r, path)
	resp.Header = ev.header()
	return resp, nil
}

// readOnlyTxn answers a transaction of nothing but ranges on st, but for their
// key-value pairs.
func readOnlyTxn(st *state, r *pb.TxnRequest, values valueFunc) (*pb.TxnResponse, []ranged, error) {
	resp := &pb.TxnResponse{Header: &pb.ResponseHeader{Revision: st.revision}}
	left := effort(maxTxnKeys)
	var err error
	if resp.Succeeded, err = st.compareAll(r.Compare, &left, values); err != nil {
		return nil, nil, err
	}
	for _, op := range branch(r, resp.Succeeded) {
		if err := checkRange(st, op.GetRequestRange()); err != nil {
			return nil, nil, err
		}
		if err := left.read(st, op.GetRequestRange()); err != nil {
			return nil, nil, err
		}
	}
	var parts []ranged
	for _, op := range branch(r, resp.Succeeded) {
		part, err := st.rangeRequest(op.GetRequestRange(), values)
		if err != nil {
			return nil, nil, err
		}
		parts = append(parts, part)
		resp.Responses = append(resp.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: part.resp}})
	}
	return resp, parts, nil
}

// isReadOnly reports whether both branches have only ranges, and whether all
// of these are serializable. A nested transaction counts as a write.
func isReadOnly(r *pb.TxnRequest) (readOnly, serializable bool) {
	serializable = true
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			ranged := op.GetRequestRange()
			if ranged == nil {
				return false, false
			}
			serializable = serializable && ranged.Serializable
		}
	}
	return true, serializable
}

// branch returns the operations that the outcome of the compares selects.
func branch(r *pb.TxnRequest, succeeded bool) []*pb.RequestOp {
	if succeeded {
		return r.Success
	}
	return r.Failure
}

// txnCost is the cost of the dearer branch.
func txnCost(r *pb.TxnRequest) int64 {
	var costs [2]int64
	for i, ops := range [...][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			switch {
			case op.GetRequestPut() != nil:
				costs[i] += putCost(op.GetRequestPut())
			case op.GetRequestTxn() != nil:
				costs[i] += txnCost(op.GetRequestTxn())
			}
		}
	}
	return max(costs[0], costs[1])
}

// comparePath appends to path the outcome of r's compares and of those of the
// transactions nested in the branch taken, depth first.
func (ev *evaluation) comparePath(r *pb.TxnRequest, path []bool, left *effort) ([]bool, error) {
	succeeded, err := ev.state.compareAll(r.Compare, left, ev.values)
	if err != nil {
		return nil, err
	}
	path = append(path, succeeded)
	for _, op := range branch(r, succeeded) {
		if nested := op.GetRequestTxn(); nested != nil {
			if path, err = ev.comparePath(nested, path, left); err != nil {
				return nil, err
			}
		}
	}
	return path, nil
}

// compareAll reports whether all of compares hold; after the first that does
// not, the others do not matter.
func (st *state) compareAll(compares []*pb.Compare, left *effort, values valueFunc) (bool, error) {
	for _, c := range compares {
		if err := left.walk(st, newSpan(c.Key, c.RangeEnd)); err != nil {
			return false, err
		}
		if ok, err := st.compare(c, values); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

// txnCheck is what the check of a transaction knows of the operations so far.
type txnCheck struct {
	left effort
	// deleted is what is deleted on the way: a put that takes the value or the
	// lease of such a key has nothing to take it from. (etcd checks that only
	// on the state before, and ends in a panic.)
	deleted []span
}

// checkTxn checks the operations on path and returns what of path is left
// after r.
func (ev *evaluation) checkTxn(r *pb.TxnRequest, path []bool, check *txnCheck) ([]bool, error) {
	ops := branch(r, path[0])
	path = path[1:]
	for _, op := range ops {
		var err error
		switch op := op.Request.(type) {
		case *pb.RequestOp_RequestRange:
			if err = check.left.read(&ev.state, op.RequestRange); err == nil {
				err = ev.checkTxnRange(op.RequestRange)
			}
		case *pb.RequestOp_RequestPut:
			put := op.RequestPut
			takes := put.IgnoreValue || put.IgnoreLease
			if err = ev.checkPut(put); err == nil && takes && slices.ContainsFunc(check.deleted, func(s span) bool { return s.contains(stringOf(put.Key)) }) {
				err = ErrKeyNotFound
			}
		case *pb.RequestOp_RequestDeleteRange:
			s := newSpan(op.RequestDeleteRange.Key, op.RequestDeleteRange.RangeEnd)
			check.deleted = append(check.deleted, s)
			err = check.left.walk(&ev.state, s)
		case *pb.RequestOp_RequestTxn:
			path, err = ev.checkTxn(op.RequestTxn, path, check)
		}
		if err != nil {
			return nil, err
		}
	}
	return path, nil
}

// checkTxnRange is checkRange, and sees to it that the values a sort by value
// will need are there before anything is changed.
func (ev *evaluation) checkTxnRange(r *pb.RangeRequest) error {
	if err := checkRange(&ev.state, r); err != nil || r.SortTarget != pb.RangeRequest_VALUE {
		return err
	}
	hits, _ := ev.state.collect(newSpan(r.Key, r.RangeEnd), readable(&ev.state, r.Revision), 0, 0, &pb.RangeRequest{})
	seqs := make([]int64, len(hits))
	for i, h := range hits {
		seqs[i] = h.version.seq
	}
	_, err := ev.values(seqs)
	return err
}

// checkRange fails if r's revision cannot be read from st. Unlike a range
// alone, one within a transaction has its negative revisions checked, too.
func checkRange(st *state, r *pb.RangeRequest) error {
	switch {
	case r.Revision == 0:
		return nil
	case r.Revision > st.revision:
		return ErrFutureRev
	case r.Revision < st.compacted:
		return ErrCompacted
	}
	return nil
}

// readable is the revision that a range checked by checkRange reads at.
func readable(st *state, rev int64) int64 {
	if rev <= 0 {
		return st.revision
	}
	return rev
}

// applyTxn applies the operations on path and returns what of path is left
// after r.
func (ev *evaluation) applyTxn(r *pb.TxnRequest, path []bool) (*pb.TxnResponse, []bool) {
	resp := &pb.TxnResponse{Succeeded: path[0]}
	path = path[1:]
	for _, op := range branch(r, resp.Succeeded) {
		out := &pb.ResponseOp{}
		switch op := op.Request.(type) {
		case *pb.RequestOp_RequestRange:
			out.Response = &pb.ResponseOp_ResponseRange{ResponseRange: ev.applyRange(op.RequestRange)}
		case *pb.RequestOp_RequestPut:
			out.Response = &pb.ResponseOp_ResponsePut{ResponsePut: ev.applyPut(op.RequestPut)}
		case *pb.RequestOp_RequestDeleteRange:
			out.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: ev.applyDelete(op.RequestDeleteRange)}
		case *pb.RequestOp_RequestTxn:
			var nested *pb.TxnResponse
			nested, path = ev.applyTxn(op.RequestTxn, path)
			nested.Header = &pb.ResponseHeader{}
			out.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: nested}
		}
		resp.Responses = append(resp.Responses, out)
	}
	return resp, path
}

// applyRange answers a range within a transaction, which sees the changes made
// before it.
func (ev *evaluation) applyRange(r *pb.RangeRequest) *pb.RangeResponse {
	ranged, err := ev.state.rangeRequest(r, ev.values)
	if err != nil {
		panic("store: a checked range failed: " + err.Error())
	}
	ev.fills = append(ev.fills, ranged.complete()...)
	return ranged.resp
}
