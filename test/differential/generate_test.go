package differential

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// request draws the next request, valid or not.
func (s *sequence) request() proto.Message {
	switch s.pick("kind", 24, 16, 10, 30, 5, 5, 4, 3, 2, 1, 4, 2, 2, 1) {
	case 0:
		return s.put()
	case 1:
		return s.rng()
	case 2:
		return s.del()
	case 3:
		r := s.txn(between(s, "depth", 0, 3))
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
		return s.grant()
	case 7:
		return &pb.LeaseRevokeRequest{ID: s.leaseID()}
	case 8:
		return &pb.LeaseTimeToLiveRequest{ID: s.leaseID(), Keys: s.flip("keys")}
	case 9:
		return &pb.LeaseLeasesRequest{}
	case 10:
		r := s.rng()
		if r.SortOrder == pb.RangeRequest_NONE {
			r.SortTarget = pb.RangeRequest_KEY // etcd lets others through and mixes the chunks up
		}
		return streamed{r}
	case 11:
		return &pb.LeaseKeepAliveRequest{ID: s.leaseID()}
	case 12:
		return s.many()
	default:
		return s.tooMany()
	}
}

// grant has no TTL that ends within a sequence.
func (s *sequence) grant() *pb.LeaseGrantRequest {
	r := &pb.LeaseGrantRequest{ID: s.leaseID(), TTL: sample(s, "ttl", []int64{
		1000, 5000, 9_000_000_000, 9_000_000_001, 1<<63 - 1,
	})}
	if r.ID == 0 {
		r.ID = 1 // both would pick one of their own
	}
	return r
}

// shortLease grants a lease with a TTL that is raised, and revokes it.
func (s *sequence) shortLease() {
	id := between[int64](s, "lease", 10, 12)
	s.short = time.Now()
	s.send(&pb.LeaseGrantRequest{ID: id, TTL: sample(s, "ttl", []int64{-1 << 63, -1, 0, 1, 2, 3})})
	if s.flip("attached") {
		s.send(&pb.PutRequest{Key: s.key(), Lease: id})
	}
	s.send(&pb.LeaseRevokeRequest{ID: id})
	s.short = time.Time{}
}

// pickedLease lets both servers pick the id of a lease.
func (s *sequence) pickedLease() {
	req := &pb.LeaseGrantRequest{TTL: sample(s, "ttl", []int64{-1, 5, 1000})}
	var granted [2]string
	for i, side := range s.sides() {
		resp, err := side.lease.LeaseGrant(s.ctx, req)
		if err != nil {
			s.fatalf("%v", err)
		}
		if _, err := side.lease.LeaseRevoke(s.ctx, &pb.LeaseRevokeRequest{ID: resp.ID}); err != nil || resp.ID <= 0 {
			s.fatalf("%s: revoking lease %d: %v", names[i], resp.ID, err)
		}
		resp.ID = 0
		granted[i] = answer(resp, nil)
	}
	if granted[0] != granted[1] {
		s.fatalf("LeaseGrantRequest %s\netcd:    %s\nkeelson: %s", text(req), granted[0], granted[1])
	}
}

// many puts enough keys for a stream to have several chunks.
func (s *sequence) many() *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for i := range between(s, "keys", 10, 128) {
		r.Success = append(r.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
			RequestPut: &pb.PutRequest{Key: fmt.Appendf(nil, "b/%03d", i), Value: s.value()},
		}})
	}
	return r
}

// tooMany has more operations than a transaction may have, at some depth.
func (s *sequence) tooMany() *pb.TxnRequest {
	r := s.many()
	for len(r.Success) < 100 {
		r.Success = append(r.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: s.rng()}})
	}
	child := s.txn(0)
	for range between(s, "compares", 0, 40) {
		child.Compare = append(child.Compare, s.compare())
	}
	r.Success = append(r.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: child}})
	if deletesToEnd(r) {
		ignoreNothing(r)
	}
	return r
}

// heap deletes values at once whose previous versions do not go into one
// fragment of a watch response.
func (s *sequence) heap() {
	value := bytes.Repeat([]byte("x"), sample(s, "large value", []int{500 << 10, 710 << 10}))
	for _, key := range []string{"ba", "bb", "bc"} {
		s.send(&pb.PutRequest{Key: []byte(key), Value: value})
	}
	s.send(streamed{&pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte{0}}})
	s.send(&pb.DeleteRangeRequest{Key: []byte("ba"), RangeEnd: []byte("bd"), PrevKv: s.flip("prev_kv")})
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

// uniform draws from [0, n), n up to 4096, and shrinks to 0. rapid's own
// ranges prefer small numbers, so that what is at the end of a list would
// hardly be drawn.
func uniform(n int) *rapid.Generator[int] {
	const bits = 16
	return rapid.Custom(func(t *rapid.T) int {
		v := 0
		for range bits {
			v *= 2
			if rapid.Bool().Draw(t, "bit") {
				v++
			}
		}
		return v * n >> bits
	})
}

// between draws from [low, high].
func between[T int | int32 | int64](s *sequence, label string, low, high T) T {
	return low + T(uniform(int(high-low)+1).Draw(s.rt, label))
}

// sample draws one of a list.
func sample[T any](s *sequence, label string, list []T) T {
	return list[uniform(len(list)).Draw(s.rt, label)]
}

// pick draws an index by weight.
func (s *sequence) pick(label string, weights ...int) int {
	sum := 0
	for _, w := range weights {
		sum += w
	}
	at := uniform(sum).Draw(s.rt, label)
	for i, w := range weights {
		if at -= w; at < 0 {
			return i
		}
	}
	return len(weights) - 1
}

func (s *sequence) rarely(label string) bool { return uniform(6).Draw(s.rt, label) == 5 }

func (s *sequence) flip(label string) bool { return rapid.Bool().Draw(s.rt, label) }

func (s *sequence) key() []byte {
	return []byte(sample(s, "key", []string{
		"a", "b", "c", "d", "ab", "a\x00", "\x00", "\x00\x00", "a\xff", "\xff", "\xff\xff", "b/010", "",
	}))
}

func (s *sequence) rangeEnd() []byte {
	return []byte(sample(s, "end", []string{
		"", "c", "z", "b", "\x00", "ab", "b0", "\xff", "\xff\xff", "a\x00", "\x00\x00", "a",
	}))
}

func (s *sequence) value() []byte {
	return []byte(sample(s, "value", []string{"", "1", "2", "longer"}))
}

// leaseID draws from few, so that they meet.
func (s *sequence) leaseID() int64 {
	return sample(s, "lease", []int64{1, 2, 3, 0, -1, 1<<63 - 1})
}

// odd are numbers at the borders of what a field holds.
func (s *sequence) odd(label string) int64 {
	return sample(s, label, []int64{-1, 1, 2, 1 << 32, 1<<63 - 1, -1 << 63})
}

// revision draws one relative to the sequence's begin and its end: compacted,
// kept, current, future, unset.
func (s *sequence) revision() int64 {
	switch s.pick("revision from", 3, 5, 3, 1) {
	case 0:
		return 0
	case 1:
		return s.base + between(s, "revision", 0, max(0, s.rev-s.base))
	case 2:
		return s.rev + between[int64](s, "revision near the head", -2, 2)
	default:
		return s.odd("odd revision")
	}
}

func (s *sequence) put() *pb.PutRequest {
	r := &pb.PutRequest{Key: s.key(), Value: s.value(), PrevKv: s.rarely("prev_kv")}
	if s.rarely("leased") {
		r.Lease = s.leaseID()
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
		r.Limit = between[int64](s, "limit", -1, 40)
		if s.rarely("odd limit") {
			r.Limit = s.odd("limit")
		}
	}
	if s.rarely("sorted") {
		r.SortOrder = pb.RangeRequest_SortOrder(between[int32](s, "order", -1, 3))
		// By key where it decides the order alone: etcd's sort is not stable.
		r.SortTarget = sample(s, "target", []pb.RangeRequest_SortTarget{
			pb.RangeRequest_KEY, pb.RangeRequest_MOD, pb.RangeRequest_CREATE, 9,
			pb.RangeRequest_VERSION, pb.RangeRequest_VALUE,
		})
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
	if !s.flip(label) {
		return 0
	}
	if s.rarely("odd " + label) {
		return s.odd(label)
	}
	return s.base + between(s, label, 0, max(0, s.rev-s.base))
}

func (s *sequence) txn(depth int) *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for range between(s, "compares", 0, 2) {
		r.Compare = append(r.Compare, s.compare())
	}
	for range between(s, "success", 0, 4) {
		r.Success = append(r.Success, s.op(depth))
	}
	for range between(s, "failure", 0, 3) {
		r.Failure = append(r.Failure, s.op(depth))
	}
	return r
}

func (s *sequence) op(depth int) *pb.RequestOp {
	nested := 0
	if depth > 0 {
		nested = 3
	}
	switch s.pick("op", 60, 40, 30, 10*nested, 1) {
	case 0:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: s.put()}}
	case 1:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: s.rng()}}
	case 2:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: s.del()}}
	case 4:
		return &pb.RequestOp{}
	default:
		if s.rarely("an empty child") {
			return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{}}
		}
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: s.txn(depth - 1)}}
	}
}

func (s *sequence) compare() *pb.Compare {
	c := &pb.Compare{
		Key:    s.key(),
		Result: pb.Compare_CompareResult(between[int32](s, "result", 0, 4)),
		Target: pb.Compare_CompareTarget(between[int32](s, "target", 0, 5)),
	}
	if s.rarely("compare a range") {
		c.RangeEnd = s.rangeEnd()
	}
	if s.rarely("compare with nothing") {
		return c
	}
	target := c.Target
	if s.rarely("value of another target") {
		target = pb.Compare_CompareTarget(between[int32](s, "its target", 0, 4))
	}
	switch target {
	case pb.Compare_VERSION:
		c.TargetUnion = &pb.Compare_Version{Version: between[int64](s, "version", -1, 3)}
	case pb.Compare_CREATE:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: s.revision()}
	case pb.Compare_MOD:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: s.revision()}
	case pb.Compare_VALUE:
		c.TargetUnion = &pb.Compare_Value{Value: s.value()}
	case pb.Compare_LEASE:
		c.TargetUnion = &pb.Compare_Lease{Lease: s.leaseID()}
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
