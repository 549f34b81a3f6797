package contract

import (
	"errors"
	"fmt"
	"io"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// rangeStreamChunks checks how many keys the chunks have: 10, then twice as
// many while a chunk is below half of 1.5 MiB, half as many above its double.
func rangeStreamChunks(e *env) {
	fill := func(prefix string, n, size int) {
		e.Helper()
		for i := range n {
			e.put(fmt.Sprintf("%s%04d", prefix, i), strings.Repeat("v", size))
		}
	}
	sizes := func(prefix string, limit int64) string {
		e.Helper()
		var out []string
		for _, c := range e.stream(&pb.RangeRequest{Key: []byte(prefix), RangeEnd: []byte(prefix + "z"), Limit: limit}) {
			out = append(out, fmt.Sprint(len(c.Kvs)))
		}
		return strings.Join(out, " ")
	}
	fill("small", 155, 10)
	fill("middle", 40, 100<<10)
	fill("large", 24, 400<<10)
	equal(e, "small values", sizes("small", 0), "10 20 40 80 5")
	equal(e, "small values with a limit", sizes("small", 35), "10 20 5")
	equal(e, "the chunks are as large as they should be", sizes("middle", 0), "10 10 10 10")
	equal(e, "large values", sizes("large", 0), "10 5 5 4")
	equal(e, "a limit below the first chunk", sizes("large", 3), "3")
	equal(e, "a limit of whole chunks", sizes("small", 30), "10 20")
	equal(e, "nothing", sizes("none", 0), "0")
}

// rangeStreamPinned changes and deletes what a stream has still to send. What
// the stream has is more than any window of gRPC holds.
func rangeStreamPinned(e *env) {
	const n = 60
	for i := range n {
		e.put(fmt.Sprintf("k%02d", i), strings.Repeat("v", 200<<10))
	}
	req := &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}
	want := e.rng(req)
	s, err := e.kv.RangeStream(e.ctx, req)
	must(e, err)
	first, err := s.Recv()
	must(e, err)
	e.del("k2", "k4")
	e.put("k50", "changed")
	e.put("k99", "new")
	merged := first.RangeResponse
	for {
		resp, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		must(e, err)
		proto.Merge(merged, resp.RangeResponse)
	}
	if !proto.Equal(merged, want) {
		e.Errorf("%d kvs, count %d, header %v; when it began there were %d, count %d, header %v",
			len(merged.Kvs), merged.Count, merged.Header, len(want.Kvs), want.Count, want.Header)
	}
}
