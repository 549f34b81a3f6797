package server

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

func opPut(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key)}}}
}

func opDelete(key, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)}}}
}

func opRange(r *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
}

func opTxn(success, failure []*pb.RequestOp) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: success, Failure: failure}}}
}

func list(ops ...*pb.RequestOp) []*pb.RequestOp { return ops }

// manyPuts returns n puts of different keys.
func manyPuts(n int) []*pb.RequestOp {
	var ops []*pb.RequestOp
	for i := range n {
		ops = append(ops, opPut(fmt.Sprintf("k%d", i)))
	}
	return ops
}

// What is wrong with a request decides the answer, and what comes first where
// several things are wrong.
func TestValidation(t *testing.T) {
	m := startMember(t, memberOptions{})
	ctx := short(t)
	a := []byte("a")
	for _, tc := range []struct {
		name string
		req  proto.Message
		want error
	}{
		{"range", &pb.RangeRequest{Key: a}, nil},
		{"range without key", &pb.RangeRequest{SortOrder: 9}, rpctypes.ErrGRPCEmptyKey},
		{"sort order", &pb.RangeRequest{Key: a, SortOrder: 3}, rpctypes.ErrGRPCInvalidSortOption},
		{"sort target", &pb.RangeRequest{Key: a, SortTarget: 5}, rpctypes.ErrGRPCInvalidSortOption},
		{"negative sort order", &pb.RangeRequest{Key: a, SortOrder: -1}, rpctypes.ErrGRPCInvalidSortOption},
		{"future", &pb.RangeRequest{Key: a, Revision: 1 << 40}, rpctypes.ErrGRPCFutureRev},

		{"put without key", &pb.PutRequest{IgnoreValue: true, Value: a}, rpctypes.ErrGRPCEmptyKey},
		{"ignore_value with value", &pb.PutRequest{Key: a, IgnoreValue: true, Value: a, IgnoreLease: true, Lease: 1}, rpctypes.ErrGRPCValueProvided},
		{"ignore_lease with lease", &pb.PutRequest{Key: a, IgnoreLease: true, Lease: 1}, rpctypes.ErrGRPCLeaseProvided},
		{"ignore_value on absent key", &pb.PutRequest{Key: a, IgnoreValue: true}, rpctypes.ErrGRPCKeyNotFound},
		{"ignore_lease on absent key", &pb.PutRequest{Key: a, IgnoreLease: true}, rpctypes.ErrGRPCKeyNotFound},
		{"unknown lease", &pb.PutRequest{Key: a, Lease: 77}, rpctypes.ErrGRPCLeaseNotFound},

		{"delete without key", &pb.DeleteRangeRequest{RangeEnd: a}, rpctypes.ErrGRPCEmptyKey},

		{"empty txn", &pb.TxnRequest{}, nil},
		{"128 ops", &pb.TxnRequest{Success: manyPuts(128)}, nil},
		{"129 ops", &pb.TxnRequest{Success: manyPuts(129)}, rpctypes.ErrGRPCTooManyOps},
		{"129 ops in failure", &pb.TxnRequest{Failure: manyPuts(129)}, rpctypes.ErrGRPCTooManyOps},
		{"129 compares", &pb.TxnRequest{Compare: slices.Repeat([]*pb.Compare{{Key: a}}, 129)}, rpctypes.ErrGRPCTooManyOps},
		{"too many before empty key", &pb.TxnRequest{Compare: slices.Repeat([]*pb.Compare{{}}, 129)}, rpctypes.ErrGRPCTooManyOps},
		{"nested gets what is left", &pb.TxnRequest{Success: list(opTxn(manyPuts(127), nil))}, nil},
		{"nested beyond what is left", &pb.TxnRequest{Success: list(opTxn(manyPuts(128), nil))}, rpctypes.ErrGRPCTooManyOps},
		{"failure counts for nested", &pb.TxnRequest{Success: list(opTxn(manyPuts(101), nil)), Failure: manyPuts(28)}, rpctypes.ErrGRPCTooManyOps},
		{"two levels down", &pb.TxnRequest{Success: list(opTxn(list(opTxn(manyPuts(127), nil)), nil))}, rpctypes.ErrGRPCTooManyOps},
		{"compare without key", &pb.TxnRequest{Compare: []*pb.Compare{{}}, Success: list(opPut(""))}, rpctypes.ErrGRPCEmptyKey},
		{"unset op", &pb.TxnRequest{Success: list(&pb.RequestOp{})}, rpctypes.ErrGRPCKeyNotFound},
		{"unset op in the branch not taken", &pb.TxnRequest{Failure: list(&pb.RequestOp{})}, rpctypes.ErrGRPCKeyNotFound},
		{"op without key", &pb.TxnRequest{Success: list(opDelete("", "z"))}, rpctypes.ErrGRPCEmptyKey},
		{"op with bad sort", &pb.TxnRequest{Failure: list(opRange(&pb.RangeRequest{Key: a, SortOrder: 7}))}, rpctypes.ErrGRPCInvalidSortOption},
		{"bad op before duplicate", &pb.TxnRequest{Success: list(opPut("a"), opPut("a"), &pb.RequestOp{})}, rpctypes.ErrGRPCKeyNotFound},
		{"success before failure", &pb.TxnRequest{Success: list(&pb.RequestOp{}), Failure: list(opPut(""))}, rpctypes.ErrGRPCKeyNotFound},

		{"two puts", &pb.TxnRequest{Success: list(opPut("a"), opPut("a"))}, rpctypes.ErrGRPCDuplicateKey},
		{"two puts in failure", &pb.TxnRequest{Failure: list(opPut("a"), opPut("a"))}, rpctypes.ErrGRPCDuplicateKey},
		{"one put in each branch", &pb.TxnRequest{Success: list(opPut("a")), Failure: list(opPut("a"))}, nil},
		{"put and delete", &pb.TxnRequest{Success: list(opPut("a"), opDelete("a", ""))}, rpctypes.ErrGRPCDuplicateKey},
		{"put in interval", &pb.TxnRequest{Success: list(opDelete("a", "c"), opPut("b"))}, rpctypes.ErrGRPCDuplicateKey},
		{"put at end of interval", &pb.TxnRequest{Success: list(opDelete("a", "c"), opPut("c"))}, nil},
		{"put in joined intervals", &pb.TxnRequest{Success: list(opDelete("c", "e"), opDelete("a", "d"), opPut("b"), opDelete("x", "y"))}, rpctypes.ErrGRPCDuplicateKey},
		{"put between intervals", &pb.TxnRequest{Success: list(opDelete("a", "c"), opDelete("d", "e"), opPut("c"))}, nil},
		{"overlapping deletes", &pb.TxnRequest{Success: list(opDelete("a", "c"), opDelete("b", "d"))}, nil},
		{"delete upwards without bound", &pb.TxnRequest{Success: list(opDelete("a", "\x00"), opPut("b"))}, nil},
		{"inverted interval", &pb.TxnRequest{Success: list(opDelete("c", "a"), opPut("b"))}, nil},
		{"put in child and parent", &pb.TxnRequest{Success: list(opTxn(list(opPut("a")), nil), opPut("a"))}, rpctypes.ErrGRPCDuplicateKey},
		{"delete in child, put in parent", &pb.TxnRequest{Success: list(opPut("b"), opTxn(nil, list(opDelete("a", "c"))))}, rpctypes.ErrGRPCDuplicateKey},
		{"delete in parent, put in child", &pb.TxnRequest{Success: list(opTxn(nil, list(opPut("b"))), opDelete("a", "c"))}, rpctypes.ErrGRPCDuplicateKey},
		{"puts in two children", &pb.TxnRequest{Success: list(opTxn(list(opPut("a")), nil), opTxn(nil, list(opPut("a"))))}, rpctypes.ErrGRPCDuplicateKey},
		{"put in both branches of a child", &pb.TxnRequest{Success: list(opTxn(list(opPut("a")), list(opPut("a"))))}, nil},
		{"delete, then put in a later child", &pb.TxnRequest{Success: list(opTxn(list(opDelete("a", "")), nil), opTxn(list(opPut("a")), nil))}, rpctypes.ErrGRPCDuplicateKey},
		{"put, then delete in a later child", &pb.TxnRequest{Success: list(opTxn(list(opPut("a")), nil), opTxn(list(opDelete("a", "")), nil))}, nil},
		{"grandchild", &pb.TxnRequest{Success: list(opTxn(nil, list(opTxn(list(opPut("a")), nil))), opPut("a"))}, rpctypes.ErrGRPCDuplicateKey},

		{"compact the future", &pb.CompactionRequest{Revision: 1 << 40}, rpctypes.ErrGRPCFutureRev},
		{"compact below", &pb.CompactionRequest{Revision: -1}, rpctypes.ErrGRPCCompacted},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var err error
			switch r := tc.req.(type) {
			case *pb.RangeRequest:
				_, err = m.kv.Range(ctx, r)
			case *pb.PutRequest:
				_, err = m.kv.Put(ctx, r)
			case *pb.DeleteRangeRequest:
				_, err = m.kv.DeleteRange(ctx, r)
			case *pb.TxnRequest:
				_, err = m.kv.Txn(ctx, r)
			case *pb.CompactionRequest:
				_, err = m.kv.Compact(ctx, r)
			default:
				t.Fatalf("no such request: %T", r)
			}
			wantError(t, err, tc.want)
		})
		// Writes that succeed must not be found by the cases after them.
		if _, err := m.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRangeStreamValidation(t *testing.T) {
	m := startMember(t, memberOptions{})
	ctx := short(t)
	const sort, filter = "RangeStream does not support custom sort orders", "RangeStream does not support revision filters"
	a := []byte("a")
	for _, tc := range []struct {
		name string
		req  *pb.RangeRequest
		code codes.Code
		text string
	}{
		{"no key", &pb.RangeRequest{SortOrder: 1}, codes.InvalidArgument, "etcdserver: key is not provided"},
		{"bad sort", &pb.RangeRequest{Key: a, SortOrder: 4}, codes.InvalidArgument, "etcdserver: invalid sort option"},
		{"descending", &pb.RangeRequest{Key: a, SortOrder: pb.RangeRequest_DESCEND, MinModRevision: 1}, codes.Unimplemented, sort},
		{"by value", &pb.RangeRequest{Key: a, SortOrder: pb.RangeRequest_ASCEND, SortTarget: pb.RangeRequest_VALUE}, codes.Unimplemented, sort},
		{"min mod", &pb.RangeRequest{Key: a, MinModRevision: 1}, codes.Unimplemented, filter},
		{"max mod", &pb.RangeRequest{Key: a, MaxModRevision: 1}, codes.Unimplemented, filter},
		{"min create", &pb.RangeRequest{Key: a, MinCreateRevision: 1}, codes.Unimplemented, filter},
		{"max create", &pb.RangeRequest{Key: a, MaxCreateRevision: 1}, codes.Unimplemented, filter},
		{"future", &pb.RangeRequest{Key: a, Revision: 99}, codes.OutOfRange, "etcdserver: mvcc: required revision is a future revision"},
		{"ascending", &pb.RangeRequest{Key: a, SortOrder: pb.RangeRequest_ASCEND}, codes.OK, ""},
		{"by value without order", &pb.RangeRequest{Key: a, SortTarget: pb.RangeRequest_VALUE}, codes.OK, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			stream, err := m.kv.RangeStream(ctx, tc.req)
			if err != nil {
				t.Fatal(err)
			}
			_, err = stream.Recv()
			wantStatus(t, err, tc.code, tc.text)
		})
	}
}

func TestRequestSize(t *testing.T) {
	m := startMember(t, memberOptions{})
	ctx := short(t)
	value := func(n int) []byte { return bytes.Repeat([]byte{'v'}, n) }
	key := []byte("k")
	txn := func(n int) *pb.TxnRequest {
		return &pb.TxnRequest{Success: list(&pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: value(n)}}})}
	}
	if _, err := m.kv.Put(ctx, &pb.PutRequest{Key: key, Value: value(DefaultMaxRequestBytes - 64)}); err != nil {
		t.Errorf("a put just below the limit: %v", err)
	}
	if _, err := m.kv.Txn(ctx, txn(DefaultMaxRequestBytes-64)); err != nil {
		t.Errorf("a txn just below the limit: %v", err)
	}
	_, err := m.kv.Put(ctx, &pb.PutRequest{Key: key, Value: value(DefaultMaxRequestBytes)})
	wantError(t, err, rpctypes.ErrGRPCRequestTooLarge)
	_, err = m.kv.Txn(ctx, txn(DefaultMaxRequestBytes))
	wantError(t, err, rpctypes.ErrGRPCRequestTooLarge)
	_, err = m.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: value(DefaultMaxRequestBytes)})
	wantError(t, err, rpctypes.ErrGRPCRequestTooLarge)
	// Reads are not logged and so not limited, except by gRPC.
	if _, err := m.kv.Range(ctx, &pb.RangeRequest{Key: value(DefaultMaxRequestBytes + 1000)}); err != nil {
		t.Errorf("a large range: %v", err)
	}
	read := &pb.TxnRequest{Success: list(opRange(&pb.RangeRequest{Key: value(DefaultMaxRequestBytes + 1000)}))}
	if _, err := m.kv.Txn(ctx, read); err != nil {
		t.Errorf("a large read-only txn: %v", err)
	}
	_, err = m.kv.Put(ctx, &pb.PutRequest{Key: key, Value: value(DefaultMaxRequestBytes + requestOverheadBytes)})
	if got := codeOf(err); got != codes.ResourceExhausted {
		t.Errorf("beyond what gRPC receives: %v, want ResourceExhausted", err)
	}
	// What a client gets back may be larger than what it may send.
	for i := range 3 {
		if _, err := m.kv.Put(ctx, &pb.PutRequest{Key: []byte{'x', byte('0' + i)}, Value: value(1 << 20)}); err != nil {
			t.Fatal(err)
		}
	}
	resp, err := m.kv.Range(ctx, &pb.RangeRequest{Key: []byte("x"), RangeEnd: []byte("y")})
	if err != nil || len(resp.Kvs) != 3 {
		t.Errorf("a 3 MiB answer: %d keys, %v", len(resp.GetKvs()), err)
	}
}

// naiveWrites is collectWrites as its comment puts it, without the sorting.
func naiveWrites(ops []*pb.RequestOp) (puts []string, dels []interval, ok bool) {
	deleted := func(key string) bool {
		return slices.ContainsFunc(dels, func(iv interval) bool { return iv.from <= key && key < iv.to })
	}
	for _, op := range ops {
		if d := op.GetRequestDeleteRange(); d != nil {
			dels = append(dels, intervalOf(d))
		}
	}
	for _, op := range ops {
		txn := op.GetRequestTxn()
		if txn == nil {
			continue
		}
		before := slices.Clone(puts)
		thenPuts, thenDels, ok1 := naiveWrites(txn.Success)
		elsePuts, elseDels, ok2 := naiveWrites(txn.Failure)
		for _, key := range slices.Concat(thenPuts, elsePuts) {
			if slices.Contains(before, key) || deleted(key) {
				return nil, nil, false
			}
			puts = append(puts, key)
		}
		if !ok1 || !ok2 {
			return nil, nil, false
		}
		dels = slices.Concat(dels, thenDels, elseDels)
	}
	for _, op := range ops {
		if p := op.GetRequestPut(); p != nil {
			if slices.Contains(puts, string(p.Key)) || deleted(string(p.Key)) {
				return nil, nil, false
			}
			puts = append(puts, string(p.Key))
		}
	}
	return puts, dels, true
}

func TestCollectWritesAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.StringMatching(`[a-e]{1,2}`)
		var ops func(depth int) []*pb.RequestOp
		ops = func(depth int) []*pb.RequestOp {
			var out []*pb.RequestOp
			for range rapid.IntRange(0, 3).Draw(t, "ops") {
				switch rapid.IntRange(0, 2+min(depth, 1)).Draw(t, "kind") {
				case 0:
					out = append(out, opPut(key.Draw(t, "key")))
				case 1:
					out = append(out, opDelete(key.Draw(t, "key"), ""))
				case 2:
					out = append(out, opDelete(key.Draw(t, "from"), key.Draw(t, "to")))
				case 3:
					out = append(out, opTxn(ops(depth-1), ops(depth-1)))
				}
			}
			return out
		}
		list := ops(2)
		_, err := collectWrites(list)
		if _, _, ok := naiveWrites(list); ok != (err == nil) {
			t.Fatalf("%v: %v, the model says valid=%t", list, err, ok)
		}
	})
}
