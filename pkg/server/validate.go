package server

import (
	"slices"
	"sort"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// envelopeBytes is what etcd's internal request adds to a client's, which is
// what it compares with the limit: a field's tag and length, and a header
// with a request id.
const envelopeBytes = 18

// checkSize returns ErrGRPCRequestTooLarge for a write that is too large to
// be logged. Checks of the request itself come before it.
func (s *Server) checkSize(r proto.Message) error {
	if proto.Size(r)+envelopeBytes > s.cfg.MaxRequestBytes {
		return rpctypes.ErrGRPCRequestTooLarge
	}
	return nil
}

func checkRange(r *pb.RangeRequest) error {
	if len(r.Key) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	if _, ok := pb.RangeRequest_SortOrder_name[int32(r.SortOrder)]; !ok {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	if _, ok := pb.RangeRequest_SortTarget_name[int32(r.SortTarget)]; !ok {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	return nil
}

func checkRangeStream(r *pb.RangeRequest) error {
	if err := checkRange(r); err != nil {
		return err
	}
	byKey := r.SortTarget == pb.RangeRequest_KEY && r.SortOrder == pb.RangeRequest_ASCEND
	if r.SortOrder != pb.RangeRequest_NONE && !byKey {
		return status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")
	}
	if r.MinModRevision != 0 || r.MaxModRevision != 0 || r.MinCreateRevision != 0 || r.MaxCreateRevision != 0 {
		return status.Error(codes.Unimplemented, "RangeStream does not support revision filters")
	}
	return nil
}

func checkPut(r *pb.PutRequest) error {
	switch {
	case len(r.Key) == 0:
		return rpctypes.ErrGRPCEmptyKey
	case r.IgnoreValue && len(r.Value) != 0:
		return rpctypes.ErrGRPCValueProvided
	case r.IgnoreLease && r.Lease != 0:
		return rpctypes.ErrGRPCLeaseProvided
	}
	return nil
}

func checkDelete(r *pb.DeleteRangeRequest) error {
	if len(r.Key) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	return nil
}

// checkTxn checks a transaction with all that it nests; maxOps is how many
// operations its longest list may have.
func checkTxn(r *pb.TxnRequest, maxOps int) error {
	if err := checkTxnOps(r, maxOps); err != nil {
		return err
	}
	for _, branch := range [][]*pb.RequestOp{r.Success, r.Failure} {
		if alone(branch) {
			continue // as most are
		}
		if _, err := collectWrites(branch); err != nil {
			return err
		}
	}
	return nil
}

// alone reports whether nothing in ops can be in another's way.
func alone(ops []*pb.RequestOp) bool {
	return len(ops) == 0 || len(ops) == 1 && ops[0].GetRequestTxn() == nil
}

func checkTxnOps(r *pb.TxnRequest, maxOps int) error {
	ops := max(len(r.Compare), len(r.Success), len(r.Failure))
	if ops > maxOps {
		return rpctypes.ErrGRPCTooManyOps
	}
	for _, c := range r.Compare {
		if len(c.Key) == 0 {
			return rpctypes.ErrGRPCEmptyKey
		}
	}
	for _, branch := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range branch {
			if err := checkOp(op, maxOps-ops); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkOp(op *pb.RequestOp, maxOps int) error {
	switch r := op.Request.(type) {
	case *pb.RequestOp_RequestRange:
		return checkRange(r.RequestRange)
	case *pb.RequestOp_RequestPut:
		return checkPut(r.RequestPut)
	case *pb.RequestOp_RequestDeleteRange:
		return checkDelete(r.RequestDeleteRange)
	case *pb.RequestOp_RequestTxn:
		return checkTxnOps(r.RequestTxn, maxOps)
	}
	return rpctypes.ErrGRPCKeyNotFound // unset: etcd's answer, odd as it is
}

// onlyReads returns the ranges of r, and whether both branches have nothing
// else.
func onlyReads(r *pb.TxnRequest) (reads []*pb.RangeRequest, only bool) {
	for _, branch := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range branch {
			if op.GetRequestRange() == nil {
				return nil, false
			}
			reads = append(reads, op.GetRequestRange())
		}
	}
	return reads, true
}

// writes is what a list of operations may put and delete, at any depth.
type writes struct {
	puts map[string]struct{}
	dels intervals
}

// collectWrites returns the writes of a list, or ErrGRPCDuplicateKey if one
// key would be put twice, or put and deleted, in one run of it. The order of
// the checks is etcd's and so are their gaps: a nested delete counts only
// against what comes after it, and a delete to "\x00" (no upper bound)
// against nothing.
func collectWrites(ops []*pb.RequestOp) (writes, error) {
	w := writes{puts: make(map[string]struct{})}
	var dels []interval
	for _, op := range ops {
		if d := op.GetRequestDeleteRange(); d != nil {
			dels = append(dels, intervalOf(d))
		}
	}
	w.dels = newIntervals(dels)
	for _, op := range ops {
		if txn := op.GetRequestTxn(); txn != nil {
			if err := w.addTxn(txn); err != nil {
				return writes{}, err
			}
		}
	}
	for _, op := range ops {
		if p := op.GetRequestPut(); p != nil {
			if err := w.put(string(p.Key), nil); err != nil {
				return writes{}, err
			}
		}
	}
	return w, nil
}

// addTxn adds a nested transaction. Its branches exclude each other.
func (w *writes) addTxn(txn *pb.TxnRequest) error {
	success, err := collectWrites(txn.Success)
	if err != nil {
		return err
	}
	failure, err := collectWrites(txn.Failure)
	if err != nil {
		return err
	}
	for key := range success.puts {
		if err := w.put(key, nil); err != nil {
			return err
		}
	}
	for key := range failure.puts {
		if err := w.put(key, success.puts); err != nil {
			return err
		}
	}
	w.dels = newIntervals(slices.Concat(w.dels, success.dels, failure.dels))
	return nil
}

// put adds a key; that it is there already is no conflict if it is in other.
func (w *writes) put(key string, other map[string]struct{}) error {
	_, twice := w.puts[key]
	if _, excluded := other[key]; excluded {
		twice = false
	}
	if twice || w.dels.contain(key) {
		return rpctypes.ErrGRPCDuplicateKey
	}
	w.puts[key] = struct{}{}
	return nil
}

// interval holds the keys from ≤ key < to.
type interval struct{ from, to string }

func intervalOf(d *pb.DeleteRangeRequest) interval {
	if len(d.RangeEnd) == 0 {
		return interval{string(d.Key), string(d.Key) + "\x00"}
	}
	return interval{string(d.Key), string(d.RangeEnd)}
}

// intervals is a set of intervals, sorted.
// Invariant: none is empty, none touches another.
type intervals []interval

// newIntervals joins what overlaps. A client may send some hundred thousand
// deletes and puts in one transaction: neither here nor in contain may the
// work be quadratic.
func newIntervals(list []interval) intervals {
	slices.SortFunc(list, func(a, b interval) int {
		if a.from != b.from {
			if a.from < b.from {
				return -1
			}
			return 1
		}
		return 0
	})
	var out intervals
	for _, iv := range list {
		if iv.from >= iv.to {
			continue
		}
		if n := len(out); n > 0 && iv.from <= out[n-1].to {
			out[n-1].to = max(out[n-1].to, iv.to)
			continue
		}
		out = append(out, iv)
	}
	return out
}

func (ivs intervals) contain(key string) bool {
	i := sort.Search(len(ivs), func(i int) bool { return key < ivs[i].to })
	return i < len(ivs) && ivs[i].from <= key
}
