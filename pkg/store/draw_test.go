package store

import (
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"pgregory.net/rapid"
)

var (
	drawKeys   = []string{"a", "aa", "ab", "b", "b\x00", "c", "d", "\xff"}
	drawEnds   = []string{"", "", "\x00", "a", "ab", "b", "c", "e", "\xff\xff"}
	drawValues = []string{"", "x", "y", "z", "a longer value that takes some room"}
)

func (w *world) key() []byte { return []byte(rapid.SampledFrom(drawKeys).Draw(w.T, "key")) }

func (w *world) value() []byte { return []byte(rapid.SampledFrom(drawValues).Draw(w.T, "value")) }

func (w *world) span() (key, end string) {
	if rapid.IntRange(0, 4).Draw(w.T, "all") == 0 {
		return "\x00", "\x00"
	}
	return rapid.SampledFrom(drawKeys).Draw(w.T, "key"), rapid.SampledFrom(drawEnds).Draw(w.T, "end")
}

// revision draws one that is mostly current or between the compact revision
// and the next.
func (w *world) revision(label string) int64 {
	if label != "compact" && rapid.Bool().Draw(w.T, "current") {
		return 0
	}
	return rapid.Int64Range(w.model.compacted-1, w.model.revision+1).Draw(w.T, label)
}

func (w *world) putRequest() *pb.PutRequest {
	r := &pb.PutRequest{Key: w.key(), PrevKv: rapid.Bool().Draw(w.T, "prevKV")}
	if r.IgnoreValue = rapid.IntRange(0, 4).Draw(w.T, "ignoreValue") == 0; !r.IgnoreValue {
		r.Value = w.value()
	}
	if r.IgnoreLease = rapid.IntRange(0, 4).Draw(w.T, "ignoreLease") == 0; !r.IgnoreLease {
		r.Lease = rapid.SampledFrom([]int64{0, 0, 0, 0, 1, 2, 3}).Draw(w.T, "lease")
	}
	return r
}

func (w *world) deleteRequest() *pb.DeleteRangeRequest {
	key, end := w.span()
	return &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end), PrevKv: rapid.Bool().Draw(w.T, "prevKV")}
}

func (w *world) rangeRequest() *pb.RangeRequest {
	key, end := w.span()
	r := &pb.RangeRequest{Key: []byte(key), RangeEnd: []byte(end), Revision: w.revision("revision")}
	filter := func(label string) int64 {
		if rapid.IntRange(0, 4).Draw(w.T, label) > 0 {
			return 0
		}
		return rapid.Int64Range(1, w.model.revision+1).Draw(w.T, label)
	}
	r.MinModRevision, r.MaxModRevision = filter("minMod"), filter("maxMod")
	r.MinCreateRevision, r.MaxCreateRevision = filter("minCreate"), filter("maxCreate")
	r.Limit = rapid.SampledFrom([]int64{0, 0, 0, 1, 2, 3, 5}).Draw(w.T, "limit")
	r.SortOrder = pb.RangeRequest_SortOrder(rapid.Int32Range(0, 2).Draw(w.T, "order"))
	r.SortTarget = pb.RangeRequest_SortTarget(rapid.Int32Range(0, 4).Draw(w.T, "target"))
	r.KeysOnly = rapid.IntRange(0, 3).Draw(w.T, "keysOnly") == 0
	r.CountOnly = rapid.IntRange(0, 5).Draw(w.T, "countOnly") == 0
	return r
}

func (w *world) compares() []*pb.Compare {
	var all []*pb.Compare
	for range rapid.SampledFrom([]int{0, 1, 1, 1, 2}).Draw(w.T, "compares") {
		key, end := w.span()
		c := &pb.Compare{
			Key: []byte(key), RangeEnd: []byte(end),
			Target: pb.Compare_CompareTarget(rapid.Int32Range(0, 4).Draw(w.T, "target")),
			Result: pb.Compare_CompareResult(rapid.Int32Range(0, 3).Draw(w.T, "result")),
		}
		n := rapid.Int64Range(0, 3).Draw(w.T, "small")
		rev := rapid.Int64Range(0, w.model.revision).Draw(w.T, "rev")
		if e, ok := w.model.at(key, w.model.revision); ok && rapid.Bool().Draw(w.T, "hit") {
			n, rev = e.version, e.main
			c.TargetUnion = &pb.Compare_Value{Value: []byte(e.value)}
		}
		switch c.Target {
		case pb.Compare_VERSION:
			c.TargetUnion = &pb.Compare_Version{Version: n}
		case pb.Compare_CREATE:
			c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: rev}
		case pb.Compare_MOD:
			c.TargetUnion = &pb.Compare_ModRevision{ModRevision: rev}
		case pb.Compare_LEASE:
			c.TargetUnion = &pb.Compare_Lease{Lease: n}
		case pb.Compare_VALUE:
			if c.TargetUnion == nil {
				c.TargetUnion = &pb.Compare_Value{Value: w.value()}
			}
		}
		all = append(all, c)
	}
	return all
}

// scope is what a transaction has drawn so far. etcd refuses two puts of one
// key, and a put of a key that is deleted, too; but a nested transaction may
// delete what one beside it has put before.
type scope struct {
	puts    []string    // of all levels
	deletes [][2]string // of all levels
	firm    []string    // puts that may not be deleted here: of this level, those around it, and those within
}

// clone returns the scope of a branch of a transaction nested in s, whose
// other nested transactions' puts are not firm to it.
func (s *scope) clone(level []string) *scope {
	return &scope{slices.Clone(s.puts), slices.Clone(s.deletes), slices.Clone(level)}
}

func (s *scope) mayPut(key string) bool {
	return !slices.Contains(s.puts, key) &&
		!slices.ContainsFunc(s.deletes, func(d [2]string) bool { return within(key, d[0], d[1]) })
}

func (s *scope) mayDelete(key, end string) bool {
	return !slices.ContainsFunc(s.firm, func(put string) bool { return within(put, key, end) })
}

// txnRequest draws a transaction that is valid within s, where level has the
// puts of the transactions around it.
func (w *world) txnRequest(s *scope, level []string, depth int) *pb.TxnRequest {
	r := &pb.TxnRequest{Compare: w.compares()}
	success, failure := s.clone(level), s.clone(level)
	r.Success = w.operations(success, depth)
	r.Failure = w.operations(failure, depth)
	s.puts = slices.Concat(success.puts, failure.puts)
	s.firm = slices.Concat(s.firm, success.firm, failure.firm)
	s.deletes = slices.Concat(success.deletes, failure.deletes)
	return r
}

func (w *world) operations(s *scope, depth int) []*pb.RequestOp {
	var ops []*pb.RequestOp
	level := slices.Clone(s.firm)
	for range rapid.IntRange(0, 4).Draw(w.T, "ops") {
		switch kind := rapid.IntRange(0, 9).Draw(w.T, "op"); {
		case kind < 4:
			put := w.putRequest()
			if s.mayPut(string(put.Key)) {
				s.puts = append(s.puts, string(put.Key))
				s.firm = append(s.firm, string(put.Key))
				level = append(level, string(put.Key))
				ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}})
			}
		case kind < 6:
			del := w.deleteRequest()
			if key, end := string(del.Key), string(del.RangeEnd); s.mayDelete(key, end) {
				s.deletes = append(s.deletes, [2]string{key, end})
				ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: del}})
			}
		case kind < 8 || depth == 0:
			ops = append(ops, rangeOp(w.rangeRequest()))
		default:
			nested := w.txnRequest(s, level, depth-1)
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: nested}})
		}
	}
	return ops
}
