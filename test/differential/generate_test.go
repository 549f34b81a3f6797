package differential

import (
	"bytes"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// request draws the next request, valid or not.
func (s *sequence) request() proto.Message {
	switch s.pick("kind", 24, 16, 10, 30, 5, 5, 4, 3, 2, 1, 4) {
	case 0:
		return s.put()
	case 1:
		return s.rng()
	case 2:
		return s.del()
	case 3:
		r := s.txn(rapid.IntRange(0, 2).Draw(s.rt, "depth"))
		if deletesToEnd(r) {
			ignoreNothing(r)
		}
		return r
	case 4:
		// Physical, so that no hash sees a compaction on its way.
		return &pb.CompactionRequest{Revision: s.revision(), Physical: true}
	case 5:
		return s.hash()
	case 6:
		return &pb.LeaseGrantRequest{ID: s.leaseID(1), TTL: rapid.SampledFrom([]int64{1000, 9_000_000_001, 5000}).Draw(s.rt, "ttl")}
	case 7:
		return &pb.LeaseRevokeRequest{ID: s.leaseID(1)}
	case 8:
		return &pb.LeaseTimeToLiveRequest{ID: s.leaseID(1), Keys: s.rarely("keys")}
	case 9:
		return &pb.LeaseLeasesRequest{}
	default:
		return streamed{s.rng()}
	}
}

// hash asks for no revision that has been compacted at: etcd remembers, until
// it is restarted, hashes that it computed while it compacted, over records
// that are gone.
func (s *sequence) hash() *pb.HashKVRequest {
	rev := s.revision()
	if s.compacted[rev] {
		rev = 0
	}
	return &pb.HashKVRequest{Revision: rev}
}

// pick draws an index by weight.
func (s *sequence) pick(label string, weights ...int) int {
	sum := 0
	for _, w := range weights {
		sum += w
	}
	at := rapid.IntRange(0, sum-1).Draw(s.rt, label)
	for i, w := range weights {
		if at -= w; at < 0 {
			return i
		}
	}
	return len(weights) - 1
}

func (s *sequence) rarely(label string) bool {
	return rapid.IntRange(0, 5).Draw(s.rt, label) == 5
}

func (s *sequence) key() []byte {
	return []byte(rapid.SampledFrom([]string{"a", "b", "c", "d", "ab", "a\x00", "\x00", "\xff", ""}).Draw(s.rt, "key"))
}

func (s *sequence) rangeEnd() []byte {
	return []byte(rapid.SampledFrom([]string{"", "c", "z", "b", "\x00", "ab", "\xff"}).Draw(s.rt, "end"))
}

func (s *sequence) value() []byte {
	return []byte(rapid.SampledFrom([]string{"", "1", "2", "longer"}).Draw(s.rt, "value"))
}

// leaseID draws from few, so that they meet; offset 0 includes no lease.
func (s *sequence) leaseID(offset int64) int64 {
	return offset + rapid.Int64Range(0, 3).Draw(s.rt, "lease")
}

// revision draws one relative to the sequence's begin and its end: compacted,
// kept, current, future, unset.
func (s *sequence) revision() int64 {
	switch s.pick("revision from", 3, 5, 3, 1) {
	case 0:
		return 0
	case 1:
		return s.base + rapid.Int64Range(0, max(0, s.rev-s.base)).Draw(s.rt, "revision")
	case 2:
		return s.rev + rapid.Int64Range(-2, 2).Draw(s.rt, "revision near the head")
	default:
		return rapid.Int64Range(-1, 2).Draw(s.rt, "revision of old")
	}
}

func (s *sequence) put() *pb.PutRequest {
	r := &pb.PutRequest{Key: s.key(), Value: s.value(), PrevKv: s.rarely("prev_kv")}
	if s.rarely("leased") {
		r.Lease = s.leaseID(0)
	}
	if s.rarely("ignore value") {
		r.IgnoreValue = true
		if !s.rarely("and a value") {
			r.Value = nil
		}
	}
	if s.rarely("ignore lease") {
		r.IgnoreLease = true
		if !s.rarely("and a lease") {
			r.Lease = 0
		}
	}
	return r
}

func (s *sequence) del() *pb.DeleteRangeRequest {
	return &pb.DeleteRangeRequest{Key: s.key(), RangeEnd: s.rangeEnd(), PrevKv: s.rarely("prev_kv")}
}

func (s *sequence) rng() *pb.RangeRequest {
	r := &pb.RangeRequest{Key: s.key(), RangeEnd: s.rangeEnd()}
	if s.rarely("at a revision") {
		r.Revision = s.revision()
	}
	if s.rarely("limited") {
		r.Limit = rapid.Int64Range(-1, 4).Draw(s.rt, "limit")
	}
	if s.rarely("sorted") {
		r.SortOrder = pb.RangeRequest_SortOrder(rapid.Int32Range(0, 3).Draw(s.rt, "order"))
		// By key where it decides the order alone: etcd's sort is not stable.
		r.SortTarget = rapid.SampledFrom([]pb.RangeRequest_SortTarget{
			pb.RangeRequest_KEY, pb.RangeRequest_MOD, pb.RangeRequest_CREATE, 9,
			pb.RangeRequest_VERSION, pb.RangeRequest_VALUE,
		}).Draw(s.rt, "target")
	}
	r.Serializable = s.rarely("serializable")
	r.KeysOnly = s.rarely("keys only")
	r.CountOnly = s.rarely("count only")
	if s.rarely("filtered") {
		r.MinModRevision, r.MaxModRevision = s.bound("min mod"), s.bound("max mod")
		r.MinCreateRevision, r.MaxCreateRevision = s.bound("min create"), s.bound("max create")
	}
	return r
}

func (s *sequence) bound(label string) int64 {
	if !s.rarely(label) {
		return 0
	}
	return s.base + rapid.Int64Range(0, max(0, s.rev-s.base)).Draw(s.rt, label)
}

func (s *sequence) txn(depth int) *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for range rapid.IntRange(0, 2).Draw(s.rt, "compares") {
		r.Compare = append(r.Compare, s.compare())
	}
	for range rapid.IntRange(0, 4).Draw(s.rt, "success") {
		r.Success = append(r.Success, s.op(depth))
	}
	for range rapid.IntRange(0, 3).Draw(s.rt, "failure") {
		r.Failure = append(r.Failure, s.op(depth))
	}
	return r
}

func (s *sequence) op(depth int) *pb.RequestOp {
	nested := 0
	if depth > 0 {
		nested = 3
	}
	switch s.pick("op", 6, 4, 3, nested) {
	case 0:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: s.put()}}
	case 1:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: s.rng()}}
	case 2:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: s.del()}}
	default:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: s.txn(depth - 1)}}
	}
}

func (s *sequence) compare() *pb.Compare {
	c := &pb.Compare{
		Key:    s.key(),
		Result: pb.Compare_CompareResult(rapid.Int32Range(0, 3).Draw(s.rt, "result")),
		Target: pb.Compare_CompareTarget(rapid.Int32Range(0, 4).Draw(s.rt, "target")),
	}
	if s.rarely("compare a range") {
		c.RangeEnd = s.rangeEnd()
	}
	if s.rarely("compare with nothing") {
		return c
	}
	switch c.Target {
	case pb.Compare_VERSION:
		c.TargetUnion = &pb.Compare_Version{Version: rapid.Int64Range(0, 3).Draw(s.rt, "version")}
	case pb.Compare_CREATE:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: s.revision()}
	case pb.Compare_MOD:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: s.revision()}
	case pb.Compare_VALUE:
		c.TargetUnion = &pb.Compare_Value{Value: s.value()}
	case pb.Compare_LEASE:
		c.TargetUnion = &pb.Compare_Lease{Lease: s.leaseID(0)}
	}
	return c
}

// deletesToEnd says whether a txn deletes a range without end. etcd's check
// lets such a txn put a key that it deletes, and where that put is to keep what
// the key has, etcd ends itself, at each start anew.
func deletesToEnd(r *pb.TxnRequest) bool {
	return slices.ContainsFunc(slices.Concat(r.Success, r.Failure), func(op *pb.RequestOp) bool {
		if txn := op.GetRequestTxn(); txn != nil {
			return deletesToEnd(txn)
		}
		return bytes.Equal(op.GetRequestDeleteRange().GetRangeEnd(), []byte{0})
	})
}

func ignoreNothing(r *pb.TxnRequest) {
	for _, op := range slices.Concat(r.Success, r.Failure) {
		if txn := op.GetRequestTxn(); txn != nil {
			ignoreNothing(txn)
		}
		if put := op.GetRequestPut(); put != nil {
			put.IgnoreValue, put.IgnoreLease = false, false
		}
	}
}
