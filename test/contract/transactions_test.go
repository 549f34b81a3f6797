package contract

import (
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
)

var transactions = []statement{
	{name: "08_revisions", run: revisions},
	{name: "09_one_revision_per_txn", run: oneRevision},
	{name: "10_versions", run: versions},
	{name: "11_compare_targets", run: compareTargets},
	{name: "11_compare_ranges", run: compareRanges},
	{name: "11_all_compares", run: allCompares},
	{name: "12_prechecks", run: prechecks},
	{name: "13_read_only_txn", run: readOnlyTxn},
}

func revisions(e *env) {
	equal(e, "an empty store", e.rev(), 1)
	hash, err := e.maint.HashKV(e.ctx, &pb.HashKVRequest{})
	must(e, err)
	equal(e, "compact revision of an empty store", hash.CompactRevision, -1)
	equal(e, "put", e.put("a", "1"), 2)
	equal(e, "the same put again", e.put("a", "1"), 3)
	equal(e, "a delete that hits", e.del("a", "").Header.Revision, 4)
	equal(e, "a delete that hits nothing", e.del("a", "").Header.Revision, 4)
	equal(e, "a delete of a range that hits nothing", e.del("a", "z").Header.Revision, 4)
	equal(e, "an empty txn", e.txn(&pb.TxnRequest{}).Header.Revision, 4)
	resp := e.txn(&pb.TxnRequest{Success: []*pb.RequestOp{opGet("a"), opDel("a", "z")}})
	equal(e, "a txn that changes nothing", resp.Header.Revision, 4)
	e.grant(5, 100)
	equal(e, "a grant", e.rev(), 4)
	e.compact(3)
	equal(e, "a compaction", e.rev(), 4)
	resp = e.txn(&pb.TxnRequest{Success: []*pb.RequestOp{opPut("b", ""), opPut("c", "")}})
	equal(e, "a txn of two puts", resp.Header.Revision, 5)
	equal(e, "a read of the past", e.rng(&pb.RangeRequest{Key: []byte("b"), Revision: 4}).Header.Revision, 5)
}

func oneRevision(e *env) {
	e.put("old", "x")
	w := e.watch()
	w.create(&pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	resp := e.txn(&pb.TxnRequest{Success: []*pb.RequestOp{
		opPut("b", "1"), opGet("b"), opPut("a", "2"), opDel("old", ""),
		opTxn(&pb.TxnRequest{Success: []*pb.RequestOp{opPut("c", "3"), opRange(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})}}),
	}})
	equal(e, "revision", resp.Header.Revision, 3)
	equal(e, "ranged after the put", show(resp.Responses[1].GetResponseRange().Kvs[0]), "b=1 create=3 mod=3 version=1")
	last := resp.Responses[4].GetResponseTxn().Responses[1].GetResponseRange()
	equal(e, "ranged at the end", keys(last.Kvs), "a b c")
	for i, op := range resp.Responses[:4] {
		h := header(op)
		if h.Revision != 3 || h.ClusterId != 0 || h.MemberId != 0 || h.RaftTerm != 0 {
			e.Errorf("header of op %d is %v, want revision 3 and nothing else", i, h)
		}
	}
	if h := resp.Header; h.ClusterId == 0 || h.MemberId == 0 || h.RaftTerm == 0 {
		e.Errorf("the txn's header is not full: %v", h)
	}
	got := w.next()
	var events string
	for _, ev := range got.Events {
		events += fmt.Sprintf("%v %s@%d ", ev.Type, ev.Kv.Key, ev.Kv.ModRevision)
	}
	equal(e, "events in order of the ops", events, "PUT b@3 PUT a@3 DELETE old@3 PUT c@3 ")
}

func header(op *pb.ResponseOp) *pb.ResponseHeader {
	switch r := op.Response.(type) {
	case *pb.ResponseOp_ResponsePut:
		return r.ResponsePut.Header
	case *pb.ResponseOp_ResponseRange:
		return r.ResponseRange.Header
	case *pb.ResponseOp_ResponseDeleteRange:
		return r.ResponseDeleteRange.Header
	default:
		return op.GetResponseTxn().Header
	}
}

func versions(e *env) {
	w := e.watch()
	w.create(&pb.WatchCreateRequest{Key: []byte("k")})
	e.put("k", "1")
	e.put("k", "2")
	equal(e, "after two puts", show(e.get("k").Kvs[0]), "k=2 create=2 mod=3 version=2")
	e.del("k", "")
	equal(e, "after the delete", e.get("k").Count, 0)
	e.put("k", "3")
	equal(e, "after the next put", show(e.get("k").Kvs[0]), "k=3 create=5 mod=5 version=1")
	for _, want := range []string{
		"k=1 create=2 mod=2 version=1", "k=2 create=2 mod=3 version=2",
		"k= create=0 mod=4 version=0", "k=3 create=5 mod=5 version=1",
	} {
		equal(e, "event", show(w.nextEvent().Kv), want)
	}
}

func compareTargets(e *env) {
	e.grant(9, 100)
	e.attach("k", 9) // revision 2
	_, err := e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte("k"), Value: []byte("m"), Lease: 9})
	must(e, err)
	// k: version 2, create 2, mod 3, value m, lease 9.
	target := func(key string, target pb.Compare_CompareTarget, n int64) *pb.Compare {
		c := &pb.Compare{Key: []byte(key), Target: target}
		switch target {
		case pb.Compare_VERSION:
			c.TargetUnion = &pb.Compare_Version{Version: n}
		case pb.Compare_CREATE:
			c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: n}
		case pb.Compare_MOD:
			c.TargetUnion = &pb.Compare_ModRevision{ModRevision: n}
		case pb.Compare_LEASE:
			c.TargetUnion = &pb.Compare_Lease{Lease: n}
		case pb.Compare_VALUE:
			c.TargetUnion = &pb.Compare_Value{Value: []byte{byte(n)}}
		}
		return c
	}
	check := func(what string, c *pb.Compare, order int) {
		e.Helper()
		for result, want := range map[pb.Compare_CompareResult]bool{
			pb.Compare_EQUAL: order == 0, pb.Compare_NOT_EQUAL: order != 0,
			pb.Compare_GREATER: order > 0, pb.Compare_LESS: order < 0,
		} {
			c.Result = result
			resp := e.txn(&pb.TxnRequest{Compare: []*pb.Compare{c}})
			equal(e, fmt.Sprintf("%s %v", what, result), resp.Succeeded, want)
		}
	}
	actual := map[pb.Compare_CompareTarget]int64{
		pb.Compare_VERSION: 2, pb.Compare_CREATE: 2, pb.Compare_MOD: 3, pb.Compare_VALUE: 'm', pb.Compare_LEASE: 9,
	}
	for tgt, n := range actual {
		check(fmt.Sprintf("%v same", tgt), target("k", tgt, n), 0)
		check(fmt.Sprintf("%v above", tgt), target("k", tgt, n-1), 1)
		check(fmt.Sprintf("%v below", tgt), target("k", tgt, n+1), -1)
		if tgt == pb.Compare_VALUE {
			continue
		}
		check(fmt.Sprintf("%v of no key", tgt), target("none", tgt, 0), 0)
		check(fmt.Sprintf("%v of no key, 1", tgt), target("none", tgt, 1), -1)
	}
	for result := range pb.Compare_CompareResult_name {
		c := target("none", pb.Compare_VALUE, 'm')
		c.Result = pb.Compare_CompareResult(result)
		equal(e, "VALUE of no key", e.txn(&pb.TxnRequest{Compare: []*pb.Compare{c}}).Succeeded, false)
	}
	equal(e, "an unset target compares with zero", e.txn(&pb.TxnRequest{Compare: []*pb.Compare{
		{Key: []byte("none"), Target: pb.Compare_MOD},
	}}).Succeeded, true)
}

func compareRanges(e *env) {
	e.put("a", "x")
	e.put("b", "x")
	e.put("c", "y")
	holds := func(c *pb.Compare) bool {
		e.Helper()
		return e.txn(&pb.TxnRequest{Compare: []*pb.Compare{c}}).Succeeded
	}
	value := func(end string, v string) *pb.Compare {
		return &pb.Compare{
			Key: []byte("a"), RangeEnd: []byte(end), Target: pb.Compare_VALUE,
			TargetUnion: &pb.Compare_Value{Value: []byte(v)},
		}
	}
	equal(e, "all of [a, c)", holds(value("c", "x")), true)
	equal(e, "not all of [a, d)", holds(value("d", "x")), false)
	equal(e, "not all of [a, end)", holds(value("\x00", "x")), false)
	version := func(from, end string, n int64) *pb.Compare {
		return &pb.Compare{
			Key: []byte(from), RangeEnd: []byte(end), Target: pb.Compare_VERSION,
			TargetUnion: &pb.Compare_Version{Version: n},
		}
	}
	equal(e, "versions of [a, end)", holds(version("a", "\x00", 1)), true)
	equal(e, "an empty range compares with zero", holds(version("m", "p", 0)), true)
	equal(e, "an empty range does not equal one", holds(version("m", "p", 1)), false)
	equal(e, "an inverted range is empty", holds(version("z", "a", 0)), true)

	resp := e.txn(&pb.TxnRequest{
		Compare: []*pb.Compare{cmpMod("a", pb.Compare_EQUAL, 2)},
		Success: []*pb.RequestOp{
			opPut("a", "new"),
			opTxn(&pb.TxnRequest{
				Compare: []*pb.Compare{cmpMod("a", pb.Compare_EQUAL, 2)},
				Success: []*pb.RequestOp{opPut("nested", "before")},
				Failure: []*pb.RequestOp{opPut("nested", "after")},
			}),
		},
	})
	equal(e, "a nested compare sees the state before the txn", resp.Responses[1].GetResponseTxn().Succeeded, true)
	equal(e, "what it wrote", string(e.get("nested").Kvs[0].Value), "before")
}

func prechecks(e *env) {
	e.put("a", "1")
	e.put("a", "2")
	e.put("a", "3")
	e.compact(3)
	at := func(rev int64) *pb.RequestOp {
		return opRange(&pb.RangeRequest{Key: []byte("a"), Revision: rev})
	}
	leased := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("l"), Lease: 404}}}
	fail := func(name string, code codes.Code, text string, op *pb.RequestOp) {
		e.Helper()
		for place, req := range map[string]*pb.TxnRequest{
			"":                          {Success: []*pb.RequestOp{opPut("b", "1"), op}},
			" in a child":               {Success: []*pb.RequestOp{opPut("b", "1"), opTxn(&pb.TxnRequest{Success: []*pb.RequestOp{op}})}},
			" in the else branch":       {Compare: []*pb.Compare{cmpMod("a", 0, 1)}, Failure: []*pb.RequestOp{opPut("b", "1"), op}},
			" without another change":   {Success: []*pb.RequestOp{op}},
			" after a range of its own": {Success: []*pb.RequestOp{opGet("a"), op}},
		} {
			_, err := e.kv.Txn(e.ctx, req)
			e.fails(name+place, err, code, text)
		}
	}
	fail("future", codes.OutOfRange, textFuture, at(5))
	fail("compacted", codes.OutOfRange, textCompacted, at(2))
	fail("no lease", codes.NotFound, textNoLease, leased)
	equal(e, "nothing was applied", e.get("b").Count, 0)
	equal(e, "revision", e.rev(), 4)
	// The branch not taken is not checked.
	e.txn(&pb.TxnRequest{Success: []*pb.RequestOp{opPut("b", "1")}, Failure: []*pb.RequestOp{at(99), leased}})
	// The revision that the txn itself makes is the future to its prechecks.
	_, err := e.kv.Txn(e.ctx, &pb.TxnRequest{Success: []*pb.RequestOp{opPut("c", "1"), at(6)}})
	e.fails("its own revision", err, codes.OutOfRange, textFuture)
	_, err = e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte("l"), Lease: 404})
	e.fails("a put", err, codes.NotFound, textNoLease)
}

func readOnlyTxn(e *env) {
	e.put("a", "1")
	for _, serializable := range []bool{false, true} {
		op := opRange(&pb.RangeRequest{Key: []byte("a"), Serializable: serializable})
		resp := e.txn(&pb.TxnRequest{
			Compare: []*pb.Compare{cmpMod("a", pb.Compare_EQUAL, 2)},
			Success: []*pb.RequestOp{op, opTxn(&pb.TxnRequest{Success: []*pb.RequestOp{op}})},
			Failure: []*pb.RequestOp{op},
		})
		equal(e, "succeeded", resp.Succeeded, true)
		equal(e, "revision", resp.Header.Revision, 2)
		equal(e, "nested", keys(resp.Responses[1].GetResponseTxn().Responses[0].GetResponseRange().Kvs), "a")
	}
	_, err := e.kv.Txn(e.ctx, &pb.TxnRequest{Success: []*pb.RequestOp{opRange(&pb.RangeRequest{Key: []byte("a"), Revision: 9})}})
	e.fails("the future", err, codes.OutOfRange, textFuture)
}

// allCompares checks that every compare must hold, and what unknown ones do:
// an unknown target equals anything, an unknown result always holds.
func allCompares(e *env) {
	e.put("a", "1")
	e.put("b", "1")
	holds := func(compares ...*pb.Compare) bool {
		e.Helper()
		return e.txn(&pb.TxnRequest{Compare: compares}).Succeeded
	}
	yes, no := cmpMod("a", pb.Compare_EQUAL, 2), cmpMod("b", pb.Compare_EQUAL, 2)
	equal(e, "none", holds(), true)
	equal(e, "both hold", holds(yes, cmpMod("b", pb.Compare_GREATER, 2)), true)
	equal(e, "the first holds", holds(yes, no), false)
	equal(e, "the last holds", holds(no, yes), false)
	for result, want := range map[pb.Compare_CompareResult]bool{
		pb.Compare_EQUAL: true, pb.Compare_NOT_EQUAL: false, pb.Compare_GREATER: false, pb.Compare_LESS: false, 9: true, -1: true,
	} {
		equal(e, fmt.Sprint("an unknown target, ", result), holds(&pb.Compare{Key: []byte("a"), Target: 9, Result: result}), want)
	}
	equal(e, "an unknown result", holds(&pb.Compare{Key: []byte("a"), Target: pb.Compare_VERSION, Result: 9}), true)
	equal(e, "an unknown result of no value", holds(&pb.Compare{Key: []byte("none"), Target: pb.Compare_VALUE, Result: 9}), false)
	equal(e, "a value for another target", holds(&pb.Compare{
		Key: []byte("a"), Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Value{Value: []byte("1")},
	}), false)
}
