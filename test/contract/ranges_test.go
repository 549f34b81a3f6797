package contract

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

var ranges = []statement{
	{name: "14_range_end", run: rangeEnd},
	{name: "15_range_revision", run: rangeRevision},
	{name: "16_count_and_more", run: countAndMore},
	{name: "17_filters_and_sort", run: filtersAndSort},
	{name: "18_keys_only", run: keysOnly},
	{name: "19_delete_and_prev_kv", run: deleteAndPrevKV},
	{name: "20_range_stream", run: rangeStream},
	{name: "20_range_stream_chunks", run: rangeStreamChunks},
	{name: "20_range_stream_is_pinned", run: rangeStreamPinned},
	{name: "20_range_stream_errors", run: rangeStreamErrors},
}

func rangeEnd(e *env) {
	for _, k := range []string{"\x00", "a", "a\x00", "ab", "b", "c", "\xff", "\xff\xff"} {
		e.put(k, "v")
	}
	for _, c := range []struct{ key, end, want string }{
		{"a", "", "a"},
		{"none", "", ""},
		{"a", "b", "a a\x00 ab"},
		{"a", "a\x00", "a"},
		{"a", "\x00", "a a\x00 ab b c \xff \xff\xff"},
		{"\x00", "\x00", "\x00 a a\x00 ab b c \xff \xff\xff"},
		{"\x00", "", "\x00"},
		{"b", "\x00", "b c \xff \xff\xff"},
		{"\xff", "\x00", "\xff \xff\xff"},
		{"b", "b", ""},
		{"c", "a", ""},
		{"aa", "bb", "ab b"},
	} {
		resp := e.rng(&pb.RangeRequest{Key: []byte(c.key), RangeEnd: []byte(c.end)})
		equal(e, fmt.Sprintf("range [%q, %q)", c.key, c.end), keys(resp.Kvs), c.want)
		want := int64(0)
		if c.want != "" {
			want = int64(strings.Count(c.want, " ")) + 1
		}
		equal(e, fmt.Sprintf("count of [%q, %q)", c.key, c.end), resp.Count, want)
	}
	equal(e, "an inverted delete", e.del("c", "a").Deleted, 0)
	equal(e, "a delete to the end", e.del("b", "\x00").Deleted, 4)
	equal(e, "a delete of all", e.del("\x00", "\x00").Deleted, 4)
}

func rangeRevision(e *env) {
	e.put("k", "1")
	e.put("k", "2")
	e.del("k", "")
	e.put("k", "3")
	at := func(rev int64) *pb.RangeResponse {
		return e.rng(&pb.RangeRequest{Key: []byte("k"), Revision: rev})
	}
	for rev, want := range map[int64]string{-5: "3", 0: "3", 1: "", 2: "1", 3: "2", 4: "", 5: "3"} {
		resp := at(rev)
		got := ""
		for _, kv := range resp.Kvs {
			got += string(kv.Value)
		}
		equal(e, fmt.Sprint("value at ", rev), got, want)
		equal(e, fmt.Sprint("header at ", rev), resp.Header.Revision, 5)
	}
	_, err := e.kv.Range(e.ctx, &pb.RangeRequest{Key: []byte("k"), Revision: 6})
	e.fails("future", err, codes.OutOfRange, textFuture)
	e.compact(3)
	equal(e, "at the compact revision", string(at(3).Kvs[0].Value), "2")
	for _, rev := range []int64{1, 2} {
		_, err = e.kv.Range(e.ctx, &pb.RangeRequest{Key: []byte("k"), Revision: rev})
		e.fails("compacted", err, codes.OutOfRange, textCompacted)
	}
	_, err = e.kv.Range(e.ctx, &pb.RangeRequest{Key: []byte("k"), Revision: 2, Serializable: true})
	e.fails("compacted, serializable", err, codes.OutOfRange, textCompacted)
}

func countAndMore(e *env) {
	for i := range 10 {
		e.put(fmt.Sprintf("k%d", i), "v")
	}
	e.del("k9", "")
	all := &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}
	check := func(what string, change func(*pb.RangeRequest), kvs int, count int64, more bool) {
		e.Helper()
		req := proto.Clone(all).(*pb.RangeRequest)
		change(req)
		resp := e.rng(req)
		equal(e, what+": kvs", len(resp.Kvs), kvs)
		equal(e, what+": count", resp.Count, count)
		equal(e, what+": more", resp.More, more)
	}
	check("all", func(*pb.RangeRequest) {}, 9, 9, false)
	check("limit 3", func(r *pb.RangeRequest) { r.Limit = 3 }, 3, 9, true)
	check("limit 9", func(r *pb.RangeRequest) { r.Limit = 9 }, 9, 9, false)
	check("limit 10", func(r *pb.RangeRequest) { r.Limit = 10 }, 9, 9, false)
	check("a negative limit", func(r *pb.RangeRequest) { r.Limit = -1 }, 9, 9, false)
	check("count_only", func(r *pb.RangeRequest) { r.CountOnly = true }, 0, 9, false)
	check("count_only with a limit", func(r *pb.RangeRequest) { r.CountOnly, r.Limit = true, 2 }, 0, 9, false)
	check("count_only in the past", func(r *pb.RangeRequest) { r.CountOnly, r.Revision = true, 11 }, 0, 10, false)
	check("count_only with a filter", func(r *pb.RangeRequest) { r.CountOnly, r.MinModRevision = true, 5 }, 0, 9, false)
	check("a filter", func(r *pb.RangeRequest) { r.MinModRevision = 6 }, 5, 9, false)
	check("a filter with a limit", func(r *pb.RangeRequest) { r.MinModRevision, r.Limit = 6, 4 }, 4, 9, true)
	check("a filter with its limit", func(r *pb.RangeRequest) { r.MinModRevision, r.Limit = 6, 5 }, 5, 9, false)
	check("a filter from above", func(r *pb.RangeRequest) { r.MaxModRevision, r.Limit = 5, 3 }, 3, 9, true)
	check("a filter by creation", func(r *pb.RangeRequest) { r.MinCreateRevision, r.MaxCreateRevision = 4, 6 }, 3, 9, false)
	check("a filter that matches nothing", func(r *pb.RangeRequest) { r.MinModRevision, r.Limit = 99, 5 }, 0, 9, false)
	const most, least = 1<<63 - 1, -1 << 63
	check("the largest limit", func(r *pb.RangeRequest) { r.Limit = most }, 9, 9, false)
	check("the smallest limit", func(r *pb.RangeRequest) { r.Limit = least }, 9, 9, false)
	check("the widest filters", func(r *pb.RangeRequest) {
		r.MinModRevision, r.MinCreateRevision, r.MaxModRevision, r.MaxCreateRevision = least, least, most, most
	}, 9, 9, false)
	check("negative filters from above", func(r *pb.RangeRequest) { r.MaxModRevision = least }, 0, 9, false)
	for _, limit := range []int64{most, least} {
		req := proto.Clone(all).(*pb.RangeRequest)
		req.Limit = limit
		resp := e.txn(&pb.TxnRequest{Success: []*pb.RequestOp{opRange(req), opPut("z", "")}})
		equal(e, fmt.Sprint("in a txn, limit ", limit), len(resp.Responses[0].GetResponseRange().Kvs), 9)
	}
	check("sorted with a limit", func(r *pb.RangeRequest) { r.SortOrder, r.Limit = pb.RangeRequest_DESCEND, 4 }, 4, 9, true)
}

func filtersAndSort(e *env) {
	e.put("a", "3") // 2
	e.put("b", "1") // 3
	e.put("c", "2") // 4
	e.put("a", "0") // 5: a create 2 mod 5 version 2
	e.put("c", "9") // 6
	e.put("c", "2") // 7: c create 4 mod 7 version 3
	list := func(change func(*pb.RangeRequest)) string {
		req := &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("z")}
		change(req)
		return keys(e.rng(req).Kvs)
	}
	equal(e, "min mod", list(func(r *pb.RangeRequest) { r.MinModRevision = 5 }), "a c")
	equal(e, "max mod", list(func(r *pb.RangeRequest) { r.MaxModRevision = 5 }), "a b")
	equal(e, "min create", list(func(r *pb.RangeRequest) { r.MinCreateRevision = 3 }), "b c")
	equal(e, "max create", list(func(r *pb.RangeRequest) { r.MaxCreateRevision = 3 }), "a b")
	equal(e, "min and max", list(func(r *pb.RangeRequest) { r.MinModRevision, r.MaxModRevision = 4, 6 }), "a")
	for target, want := range map[pb.RangeRequest_SortTarget]string{
		pb.RangeRequest_KEY: "a b c", pb.RangeRequest_VERSION: "b a c", pb.RangeRequest_CREATE: "a b c",
		pb.RangeRequest_MOD: "b a c", pb.RangeRequest_VALUE: "a b c",
	} {
		sorted := func(order pb.RangeRequest_SortOrder, limit int64) string {
			return list(func(r *pb.RangeRequest) { r.SortTarget, r.SortOrder, r.Limit = target, order, limit })
		}
		reverse := strings.Fields(want)
		slices.Reverse(reverse)
		equal(e, fmt.Sprint(target, " ascending"), sorted(pb.RangeRequest_ASCEND, 0), want)
		equal(e, fmt.Sprint(target, " descending"), sorted(pb.RangeRequest_DESCEND, 0), strings.Join(reverse, " "))
		equal(e, fmt.Sprint(target, " with no order"), sorted(pb.RangeRequest_NONE, 0), want)
		equal(e, fmt.Sprint(target, " limited after sorting"), sorted(pb.RangeRequest_DESCEND, 2), strings.Join(reverse[:2], " "))
	}
	equal(e, "limited after filtering", list(func(r *pb.RangeRequest) { r.MinModRevision, r.Limit = 5, 1 }), "a")
	equal(e, "limited after filtering and sorting", list(func(r *pb.RangeRequest) {
		r.MinModRevision, r.Limit, r.SortOrder = 5, 1, pb.RangeRequest_DESCEND
	}), "c")
}

func keysOnly(e *env) {
	e.grant(5, 100)
	_, err := e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte("a"), Value: []byte("2"), Lease: 5})
	must(e, err)
	e.put("b", "1")
	req := &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("z"), KeysOnly: true}
	resp := e.rng(req)
	equal(e, "keys", keys(resp.Kvs), "a b")
	equal(e, "count", resp.Count, 2)
	equal(e, "revisions", show(resp.Kvs[0]), "a= create=2 mod=2 version=1")
	equal(e, "lease", resp.Kvs[0].Lease, 0)
	req.SortTarget = pb.RangeRequest_VALUE
	resp = e.rng(req)
	equal(e, "by value", keys(resp.Kvs), "b a")
	equal(e, "by value", show(resp.Kvs[1]), "a= create=2 mod=2 version=1")
	equal(e, "lease, by value", resp.Kvs[1].Lease, 5)
}

func deleteAndPrevKV(e *env) {
	resp, err := e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte("b"), Value: []byte("1"), PrevKv: true})
	must(e, err)
	equal(e, "prev_kv of a create", show(resp.PrevKv), "none")
	resp, err = e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte("b"), Value: []byte("2"), PrevKv: true})
	must(e, err)
	equal(e, "prev_kv of an update", show(resp.PrevKv), "b=1 create=2 mod=2 version=1")
	resp, err = e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte("b"), Value: []byte("3")})
	must(e, err)
	equal(e, "prev_kv not asked for", show(resp.PrevKv), "none")
	e.put("a", "1")
	e.put("c", "1")
	del, err := e.kv.DeleteRange(e.ctx, &pb.DeleteRangeRequest{Key: []byte("a"), RangeEnd: []byte("c"), PrevKv: true})
	must(e, err)
	equal(e, "deleted", del.Deleted, 2)
	equal(e, "prev_kvs in key order", keys(del.PrevKvs), "a b")
	equal(e, "whole", show(del.PrevKvs[1]), "b=3 create=2 mod=4 version=3")
	del = e.del("c", "")
	equal(e, "deleted", del.Deleted, 1)
	equal(e, "prev_kvs not asked for", len(del.PrevKvs), 0)
	equal(e, "deleted again", e.del("c", "").Deleted, 0)
}

func (e *env) stream(req *pb.RangeRequest) []*pb.RangeResponse {
	e.Helper()
	s, err := e.kv.RangeStream(e.ctx, req)
	must(e, err)
	var chunks []*pb.RangeResponse
	for {
		resp, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return chunks
		}
		must(e, err)
		chunks = append(chunks, resp.RangeResponse)
	}
}

func rangeStream(e *env) {
	for i := range 300 {
		e.put(fmt.Sprintf("k%03d", i), strings.Repeat("v", 1+i*40))
	}
	all := func() *pb.RangeRequest { return &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")} }
	requests := map[string]*pb.RangeRequest{"all": all(), "one key": {Key: []byte("k007")}, "no key": {Key: []byte("none")}}
	for name, change := range map[string]func(*pb.RangeRequest){
		"limit":        func(r *pb.RangeRequest) { r.Limit = 77 },
		"small limit":  func(r *pb.RangeRequest) { r.Limit = 3 },
		"large limit":  func(r *pb.RangeRequest) { r.Limit = 3000 },
		"in the past":  func(r *pb.RangeRequest) { r.Revision = 100 },
		"keys only":    func(r *pb.RangeRequest) { r.KeysOnly = true },
		"count only":   func(r *pb.RangeRequest) { r.CountOnly = true },
		"serializable": func(r *pb.RangeRequest) { r.Serializable = true },
		"empty":        func(r *pb.RangeRequest) { r.RangeEnd = []byte("a") },
		"ascending":    func(r *pb.RangeRequest) { r.SortOrder = pb.RangeRequest_ASCEND },
	} {
		requests[name] = all()
		change(requests[name])
	}
	for name, req := range requests {
		chunks := e.stream(req)
		merged := &pb.RangeResponse{}
		for i, c := range chunks {
			last := i == len(chunks)-1
			if !last && (c.Header != nil || c.More || c.Count != 0) {
				e.Errorf("%s: chunk %d of %d has header %v, more %v, count %v", name, i, len(chunks), c.Header, c.More, c.Count)
			}
			proto.Merge(merged, c)
		}
		want := e.rng(req)
		if !proto.Equal(merged, want) {
			e.Errorf("%s: merged %d chunks with %d kvs, count %d, header %v; Range gives %d kvs, count %d, header %v",
				name, len(chunks), len(merged.Kvs), merged.Count, merged.Header, len(want.Kvs), want.Count, want.Header)
		}
	}
	chunks := e.stream(all())
	equal(e, "keys in the first chunk", len(chunks[0].Kvs), 10)
	equal(e, "keys in the second chunk", len(chunks[1].Kvs), 20)
	equal(e, "messages of count_only", len(e.stream(requests["count only"])), 1)
}

func rangeStreamErrors(e *env) {
	e.put("a", "1")
	e.put("a", "2")
	e.compact(3)
	fail := func(name string, code codes.Code, text string, change func(*pb.RangeRequest)) {
		e.Helper()
		req := &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("z")}
		change(req)
		s, err := e.kv.RangeStream(e.ctx, req)
		must(e, err)
		_, err = s.Recv()
		e.fails(name, err, code, text)
	}
	const noSort, noFilter = "RangeStream does not support custom sort orders", "RangeStream does not support revision filters"
	fail("no key", codes.InvalidArgument, textNoKey, func(r *pb.RangeRequest) { r.Key = nil })
	fail("bad order", codes.InvalidArgument, "etcdserver: invalid sort option", func(r *pb.RangeRequest) { r.SortOrder = 9 })
	fail("descending", codes.Unimplemented, noSort, func(r *pb.RangeRequest) { r.SortOrder = pb.RangeRequest_DESCEND })
	fail("by mod", codes.Unimplemented, noSort, func(r *pb.RangeRequest) {
		r.SortTarget, r.SortOrder = pb.RangeRequest_MOD, pb.RangeRequest_ASCEND
	})
	fail("min mod", codes.Unimplemented, noFilter, func(r *pb.RangeRequest) { r.MinModRevision = 1 })
	fail("max mod", codes.Unimplemented, noFilter, func(r *pb.RangeRequest) { r.MaxModRevision = 1 })
	fail("min create", codes.Unimplemented, noFilter, func(r *pb.RangeRequest) { r.MinCreateRevision = 1 })
	fail("max create", codes.Unimplemented, noFilter, func(r *pb.RangeRequest) { r.MaxCreateRevision = 1 })
	fail("future", codes.OutOfRange, textFuture, func(r *pb.RangeRequest) { r.Revision = 9 })
	fail("compacted", codes.OutOfRange, textCompacted, func(r *pb.RangeRequest) { r.Revision = 2 })
}
