package contract

import (
	"fmt"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
)

var validation = []statement{
	{name: "01_empty_key", run: emptyKey},
	{name: "02_sort_option", run: sortOption},
	{name: "03_ignore_flags", run: ignoreFlags},
	{name: "01_order_of_checks", run: orderOfChecks},
	{name: "04_txn_limit", run: txnLimit},
	{name: "04_nested_txn_limit", run: nestedTxnLimit},
	{name: "05_duplicate_key", run: duplicateKey},
	{name: "06_request_size", run: requestSize},
	{name: "06_response_size", run: responseSize},
	{name: "07_unmapped_errors", run: unmappedErrors},
}

func emptyKey(e *env) {
	_, err := e.kv.Range(e.ctx, &pb.RangeRequest{})
	e.fails("range", err, codes.InvalidArgument, textNoKey)
	_, err = e.kv.Put(e.ctx, &pb.PutRequest{Value: []byte("v")})
	e.fails("put", err, codes.InvalidArgument, textNoKey)
	_, err = e.kv.DeleteRange(e.ctx, &pb.DeleteRangeRequest{RangeEnd: []byte("z")})
	e.fails("delete", err, codes.InvalidArgument, textNoKey)
	for name, req := range map[string]*pb.TxnRequest{
		"compare":          {Compare: []*pb.Compare{cmpMod("", pb.Compare_EQUAL, 0)}},
		"range in a txn":   {Success: []*pb.RequestOp{opGet("")}},
		"put in a txn":     {Success: []*pb.RequestOp{opPut("", "v")}},
		"delete in a txn":  {Failure: []*pb.RequestOp{opDel("", "")}},
		"in a nested txn":  {Failure: []*pb.RequestOp{opTxn(&pb.TxnRequest{Success: []*pb.RequestOp{opPut("", "")}})}},
		"nested comparing": {Success: []*pb.RequestOp{opTxn(&pb.TxnRequest{Compare: []*pb.Compare{cmpMod("", 0, 0)}})}},
	} {
		_, err = e.kv.Txn(e.ctx, req)
		e.fails(name, err, codes.InvalidArgument, textNoKey)
	}
	equal(e, "revision after nothing but errors", e.rev(), 1)
}

func sortOption(e *env) {
	const text = "etcdserver: invalid sort option"
	order := &pb.RangeRequest{Key: []byte("a"), SortOrder: 7}
	target := &pb.RangeRequest{Key: []byte("a"), SortTarget: -1}
	for name, req := range map[string]*pb.RangeRequest{"order": order, "target": target} {
		_, err := e.kv.Range(e.ctx, req)
		e.fails(name, err, codes.InvalidArgument, text)
		_, err = e.kv.Txn(e.ctx, &pb.TxnRequest{Success: []*pb.RequestOp{opRange(req)}})
		e.fails(name+" in a txn", err, codes.InvalidArgument, text)
	}
	_, err := e.kv.Range(e.ctx, &pb.RangeRequest{SortOrder: 7})
	e.fails("the key is checked first", err, codes.InvalidArgument, textNoKey)
}

func ignoreFlags(e *env) {
	const valueProvided, leaseProvided = "etcdserver: value is provided", "etcdserver: lease is provided"
	e.put("have", "old")
	e.grant(77, 100)
	for _, c := range []struct {
		name, text string
		req        *pb.PutRequest
	}{
		{"a value with ignore_value", valueProvided, &pb.PutRequest{Key: []byte("have"), Value: []byte("v"), IgnoreValue: true}},
		{"a lease with ignore_lease", leaseProvided, &pb.PutRequest{Key: []byte("have"), Lease: 77, IgnoreLease: true}},
		{"both: the value first", valueProvided, &pb.PutRequest{Key: []byte("have"), Value: []byte("v"), Lease: 77, IgnoreValue: true, IgnoreLease: true}},
		{"ignore_value, absent", textNotFound, &pb.PutRequest{Key: []byte("none"), IgnoreValue: true}},
		{"ignore_lease, absent", textNotFound, &pb.PutRequest{Key: []byte("none"), IgnoreLease: true}},
	} {
		_, err := e.kv.Put(e.ctx, c.req)
		e.fails(c.name, err, codes.InvalidArgument, c.text)
		_, err = e.kv.Txn(e.ctx, &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: c.req}}}})
		e.fails(c.name+", in a txn", err, codes.InvalidArgument, c.text)
	}
	equal(e, "revision", e.rev(), 2)

	_, err := e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte("have"), Lease: 77, IgnoreValue: true})
	must(e, err)
	kv := e.get("have").Kvs[0]
	equal(e, "value kept", string(kv.Value), "old")
	equal(e, "lease set", kv.Lease, 77)
	_, err = e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte("have"), Value: []byte("new"), IgnoreLease: true})
	must(e, err)
	kv = e.get("have").Kvs[0]
	equal(e, "value set", string(kv.Value), "new")
	equal(e, "lease kept", kv.Lease, 77)
	equal(e, "version", kv.Version, 3)
}

func puts(from, n int) []*pb.RequestOp {
	ops := make([]*pb.RequestOp, n)
	for i := range ops {
		ops[i] = opPut(fmt.Sprintf("k%04d", from+i), "v")
	}
	return ops
}

const textTooMany = "etcdserver: too many operations in txn request"

func txnLimit(e *env) {
	e.txn(&pb.TxnRequest{Success: puts(0, 128), Failure: puts(0, 128)})
	equal(e, "revision", e.rev(), 2)
	_, err := e.kv.Txn(e.ctx, &pb.TxnRequest{Success: puts(0, 129)})
	e.fails("success", err, codes.InvalidArgument, textTooMany)
	_, err = e.kv.Txn(e.ctx, &pb.TxnRequest{Failure: puts(0, 129)})
	e.fails("failure", err, codes.InvalidArgument, textTooMany)
	compares := make([]*pb.Compare, 129)
	for i := range compares {
		compares[i] = cmpMod("", pb.Compare_EQUAL, 0)
	}
	_, err = e.kv.Txn(e.ctx, &pb.TxnRequest{Compare: compares})
	e.fails("compare, before the empty keys", err, codes.InvalidArgument, textTooMany)
	_, err = e.kv.Txn(e.ctx, &pb.TxnRequest{Success: []*pb.RequestOp{{}}})
	e.fails("an unset op", err, codes.InvalidArgument, textNotFound)
	equal(e, "revision", e.rev(), 2)
}

func nestedTxnLimit(e *env) {
	nest := func(outer, inner int) *pb.TxnRequest {
		child := opTxn(&pb.TxnRequest{Success: puts(1000, inner)})
		return &pb.TxnRequest{Success: append(puts(0, outer-1), child)}
	}
	e.txn(nest(28, 100))
	_, err := e.kv.Txn(e.ctx, nest(28, 101))
	e.fails("a child gets what its parent left", err, codes.InvalidArgument, textTooMany)
	// The parent's larger branch counts, whichever holds the child.
	_, err = e.kv.Txn(e.ctx, &pb.TxnRequest{
		Success: []*pb.RequestOp{opTxn(&pb.TxnRequest{Success: puts(0, 29)})},
		Failure: puts(0, 100),
	})
	e.fails("the larger branch counts", err, codes.InvalidArgument, textTooMany)
	// Level by level: 128-10, then what that child leaves, and so on.
	deep := func(leaf int) *pb.TxnRequest {
		r := &pb.TxnRequest{Success: puts(3000, leaf)}
		for level := range 3 {
			r = &pb.TxnRequest{Success: append(puts(100*level, 9), opTxn(r))}
		}
		return r
	}
	_, err = e.kv.Txn(e.ctx, deep(99))
	e.fails("three levels down", err, codes.InvalidArgument, textTooMany)
	child := &pb.TxnRequest{}
	for range 128 {
		child.Compare = append(child.Compare, cmpMod("none", pb.Compare_EQUAL, 0))
	}
	_, err = e.kv.Txn(e.ctx, &pb.TxnRequest{Success: []*pb.RequestOp{opTxn(child)}})
	e.fails("compares of a child", err, codes.InvalidArgument, textTooMany)
	// Siblings do not share.
	sibling := func(from int) *pb.RequestOp { return opTxn(&pb.TxnRequest{Success: puts(from, 126)}) }
	e.txn(&pb.TxnRequest{Success: []*pb.RequestOp{sibling(0), sibling(1000)}})
	e.txn(deep(98))
	equal(e, "revision", e.rev(), 4)
}

func duplicateKey(e *env) {
	then := func(ops ...*pb.RequestOp) *pb.TxnRequest { return &pb.TxnRequest{Success: ops} }
	forbidden := map[string]*pb.TxnRequest{
		"two puts":                         then(opPut("a", "1"), opPut("a", "2")),
		"in the branch not taken":          {Failure: []*pb.RequestOp{opPut("a", "1"), opPut("a", "2")}},
		"a put in a delete":                then(opDel("a", "c"), opPut("b", "1")),
		"a put before the delete":          then(opPut("b", "1"), opDel("a", "c")),
		"a put of the key deleted":         then(opDel("b", ""), opPut("b", "1")),
		"a put and a child's put":          then(opPut("a", "1"), opTxn(then(opPut("a", "2")))),
		"a child's delete":                 then(opPut("b", "1"), opTxn(then(opDel("a", "c")))),
		"puts of two children":             then(opTxn(then(opPut("a", "1"))), opTxn(then(opPut("a", "2")))),
		"within a child":                   then(opTxn(then(opPut("a", "1"), opPut("a", "2")))),
		"a grandchild's":                   then(opPut("a", ""), opTxn(then(opTxn(&pb.TxnRequest{Failure: []*pb.RequestOp{opPut("a", "")}})))),
		"a child's put under a delete":     then(opDel("a", "c"), opTxn(then(opPut("b", "2")))),
		"a child's branch beside a delete": then(opTxn(&pb.TxnRequest{Failure: []*pb.RequestOp{opPut("b", "")}}), opDel("b", "")),
	}
	for name, req := range forbidden {
		_, err := e.kv.Txn(e.ctx, req)
		e.fails(name, err, codes.InvalidArgument, textDuplicate)
	}
	equal(e, "revision after the forbidden", e.rev(), 1)

	allowed := map[string]*pb.TxnRequest{
		"then and else":           {Success: []*pb.RequestOp{opPut("a", "1")}, Failure: []*pb.RequestOp{opPut("a", "2")}},
		"a child's then and else": then(opTxn(&pb.TxnRequest{Success: []*pb.RequestOp{opPut("a", "")}, Failure: []*pb.RequestOp{opPut("a", "")}})),
		// A range_end of one zero byte is no bound to this check, only to the delete.
		"a put in a delete to the end": then(opDel("a", "\x00"), opPut("zz", "1")),
		"overlapping deletes":          then(opDel("a", "m"), opDel("c", "z"), opDel("d", "")),
		"a put at a delete's end":      then(opDel("a", "b"), opPut("b", "1")),
		"a put of a key ranged over":   then(opRange(&pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("z")}), opPut("b", "1"), opGet("b")),
		"overlapping nested deletes":   then(opDel("a", "m"), opTxn(then(opDel("c", "z")))),
		"a put outside an empty span":  then(opDel("b", "a"), opPut("b", "2")),
	}
	for name, req := range allowed {
		if _, err := e.kv.Txn(e.ctx, req); err != nil {
			e.Errorf("%s: %v", name, err)
		}
	}
}

func requestSize(e *env) {
	const text = "etcdserver: request is too large"
	limit := 3 << 19
	_, err := e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte("k"), Value: []byte(strings.Repeat("v", limit+1000))})
	e.fails("a put", err, codes.InvalidArgument, text)
	half := strings.Repeat("v", limit/2+1000)
	_, err = e.kv.Txn(e.ctx, &pb.TxnRequest{Success: []*pb.RequestOp{opPut("a", half), opPut("b", half)}})
	e.fails("a txn", err, codes.InvalidArgument, text)
	_, err = e.kv.DeleteRange(e.ctx, &pb.DeleteRangeRequest{Key: make([]byte, limit+1000)})
	e.fails("a delete", err, codes.InvalidArgument, text)
	_, err = e.kv.Txn(e.ctx, &pb.TxnRequest{
		Success: []*pb.RequestOp{opGet("a")}, Failure: []*pb.RequestOp{opPut("b", strings.Repeat("v", limit+1000))},
	})
	e.fails("the branch not taken", err, codes.InvalidArgument, text)
	_, err = e.kv.Put(e.ctx, &pb.PutRequest{Value: make([]byte, limit+1000)})
	e.fails("what is wrong otherwise is checked first", err, codes.InvalidArgument, textNoKey)
	// It is about writes.
	equal(e, "a read", e.get(strings.Repeat("k", limit+1000)).Count, 0)
	e.txn(&pb.TxnRequest{Success: []*pb.RequestOp{opGet(strings.Repeat("k", limit+1000))}})
	e.put("k", strings.Repeat("v", limit-1000))
	equal(e, "revision", e.rev(), 2)
	_, err = e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte("k"), Value: make([]byte, 3<<20)})
	if err == nil {
		e.Fatal("a message above the receive limit was taken")
	}
	e.fails("above the receive limit", err, codes.ResourceExhausted,
		"grpc: received message larger than max (3145736 vs. 2097152)")
}

// orderOfChecks sends requests that are wrong in several ways, and expects
// what is checked first.
func orderOfChecks(e *env) {
	put := func(r *pb.PutRequest) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: r}}
	}
	everything := &pb.PutRequest{Value: []byte("v"), Lease: 404, IgnoreValue: true, IgnoreLease: true}
	_, err := e.kv.Put(e.ctx, everything)
	e.fails("the key, then the flags", err, codes.InvalidArgument, textNoKey)
	_, err = e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte("none"), Lease: 404, IgnoreValue: true})
	e.fails("the lease, then the key that is to be kept", err, codes.NotFound, textNoLease)
	txn := func(what, text string, r *pb.TxnRequest) {
		e.Helper()
		_, err := e.kv.Txn(e.ctx, r)
		e.fails(what, err, codes.InvalidArgument, text)
	}
	twice := []*pb.RequestOp{opPut("a", ""), opPut("a", "")}
	txn("the number, then the ops", textTooMany, &pb.TxnRequest{Success: append(puts(0, 128), opPut("", ""))})
	txn("compares, then success", textNoKey, &pb.TxnRequest{
		Compare: []*pb.Compare{cmpMod("", 0, 0)}, Success: []*pb.RequestOp{put(&pb.PutRequest{Key: []byte("a"), Value: []byte("v"), IgnoreValue: true})},
	})
	txn("success, then failure", textNotFound, &pb.TxnRequest{Success: []*pb.RequestOp{{}}, Failure: []*pb.RequestOp{opPut("", "")}})
	txn("each op, then duplicates", textNoKey, &pb.TxnRequest{Success: twice, Failure: []*pb.RequestOp{opPut("", "")}})
	txn("duplicates, then revisions", textDuplicate, &pb.TxnRequest{
		Success: append(slices.Clone(twice), opRange(&pb.RangeRequest{Key: []byte("a"), Revision: 99})),
	})
	_, err = e.kv.Range(e.ctx, &pb.RangeRequest{Key: []byte("a"), SortTarget: 9, Revision: 99})
	e.fails("the order, then the revision", err, codes.InvalidArgument, "etcdserver: invalid sort option")
	equal(e, "revision", e.rev(), 1)
}

// responseSize reads more than any default limit of gRPC at once.
func responseSize(e *env) {
	const n, size = 30, 1 << 20
	for i := range n {
		e.put(fmt.Sprintf("k%02d", i), strings.Repeat("v", size))
	}
	resp := e.rng(&pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")})
	equal(e, "keys", len(resp.Kvs), n)
	for _, kv := range resp.Kvs {
		equal(e, "size", len(kv.Value), size)
	}
}

// unmappedErrors are those that have no code of their own.
func unmappedErrors(e *env) {
	_, err := e.maint.Downgrade(e.ctx, &pb.DowngradeRequest{Action: 9, Version: "3.6"})
	e.fails("an unknown action", err, codes.Unknown, "etcdserver: unknown method")
	equal(e, "a lock without a lease", e.post("/v3/lock/lock", `{"name":"bA==","lease":"404"}`),
		`500 {"code":2,"message":"`+textNoLease+`"}`)
	equal(e, "an election without a leader", e.post("/v3/election/leader", `{"name":"ZQ=="}`),
		`500 {"code":2,"message":"election: no leader"}`)
}
