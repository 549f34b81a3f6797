package server

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// Large requests are refused while others fill the room, small ones never are,
// and one that is larger than the room gets in alone.
func TestLargeRequestsShareRoom(t *testing.T) {
	s := &Server{large: semaphore.NewWeighted(maxLargeBytes)}
	put := func(size int) *pb.PutRequest { return &pb.PutRequest{Key: []byte("a"), Value: make([]byte, size)} }
	nested := func(ctx context.Context, _ any) (any, error) {
		if _, err := s.admit(ctx, put(largeRequest), nil); !errors.Is(err, rpctypes.ErrGRPCRequestTooManyRequests) {
			t.Errorf("a large request beside one that takes all: %v", err)
		}
		return s.admit(ctx, put(largeRequest-2), func(context.Context, any) (any, error) { return "small", nil })
	}
	for range 2 { // the room is given back
		if resp, err := s.admit(t.Context(), put(maxLargeBytes+1), nested); resp != "small" || err != nil {
			t.Errorf("%v %v", resp, err)
		}
	}
}

// What a transaction costs goes by what it is in memory, not on the wire.
func TestTxnBytes(t *testing.T) {
	r := &pb.TxnRequest{Compare: []*pb.Compare{{}, {}}, Success: []*pb.RequestOp{{}}}
	for range 3 {
		r = &pb.TxnRequest{Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}}}
	}
	if n := requestBytes(r); n != 6*opBytes {
		t.Errorf("%d bytes, want %d", n, 6*opBytes)
	}
}

// Whether a transaction is worth decoding must agree with the check that
// follows.
func TestTooManyOps(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var draw func(depth int) *pb.TxnRequest
	draw = func(depth int) *pb.TxnRequest {
		r := &pb.TxnRequest{}
		for range random.IntN(4) {
			r.Compare = append(r.Compare, &pb.Compare{Key: []byte("k"), TargetUnion: &pb.Compare_Version{Version: 7}})
		}
		for _, branch := range []*[]*pb.RequestOp{&r.Success, &r.Failure} {
			for range random.IntN(4) {
				op := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("k"), Revision: 1}}}
				if depth > 0 && random.IntN(2) == 0 {
					op.Request = &pb.RequestOp_RequestTxn{RequestTxn: draw(depth - 1)}
				}
				*branch = append(*branch, op)
			}
		}
		return r
	}
	seen := map[bool]int{}
	for range 3000 {
		r := draw(3)
		data, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		maxOps := 3 + random.IntN(8)
		want := errors.Is(checkTxnOps(r, maxOps), rpctypes.ErrGRPCTooManyOps)
		if got := tooManyOps([][]byte{data}, maxOps); got != want {
			t.Fatalf("%v, want %v with at most %d operations: %v", got, want, maxOps, r)
		}
		seen[want]++
	}
	if seen[true] < 100 || seen[false] < 100 {
		t.Errorf("the draw has shown too little: %v", seen)
	}
}

// A list of a transaction may be spread over several fields of the same
// operation, which a decoder joins.
func TestTooManyOpsInParts(t *testing.T) {
	two, err := proto.Marshal(&pb.RequestOp{Request: &pb.RequestOp_RequestTxn{
		RequestTxn: &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("k")}, {Key: []byte("k")}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	four := &pb.RequestOp{}
	if err := (proto.UnmarshalOptions{Merge: true}).Unmarshal(append(two, two...), four); err != nil {
		t.Fatal(err)
	}
	if n := len(four.GetRequestTxn().GetCompare()); n != 4 {
		t.Fatalf("the decoder has %d comparisons", n)
	}
	whole := append([]byte{2<<3 | 2, byte(2 * len(two))}, append(two, two...)...)
	if tooManyOps([][]byte{whole}, 5) || !tooManyOps([][]byte{whole}, 4) {
		t.Error("parts are not counted together")
	}
}

// A message that is not valid at its end has been decoded up to there before
// anybody sees that.
func TestTooManyOpsInBrokenMessage(t *testing.T) {
	ops := bytes.Repeat([]byte{2<<3 | 2, 0}, 10)
	nested := append([]byte{2<<3 | 2, byte(2 + len(ops) + 1), 4<<3 | 2, byte(len(ops))}, append(ops, 0xff)...)
	for name, data := range map[string][]byte{"flat": append(ops, 0xff), "nested": nested} {
		if !tooManyOps([][]byte{data}, 9) || tooManyOps([][]byte{data}, 11) {
			t.Errorf("%s: not counted", name)
		}
	}
}

// A refused transaction is refused as if it had been decoded, and everything
// else is decoded.
func TestSkippedTxn(t *testing.T) {
	s := newTestServerCodec(128)
	for _, c := range []struct {
		compares int
		want     error
	}{{128, nil}, {129, rpctypes.ErrGRPCTooManyOps}, {100_000, rpctypes.ErrGRPCTooManyOps}} {
		r := &pb.TxnRequest{}
		for range c.compares {
			r.Compare = append(r.Compare, &pb.Compare{Key: make([]byte, 600)})
		}
		data, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var got pb.TxnRequest
		if err := s.Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, &got); err != nil {
			t.Fatal(err)
		}
		if err := checkTxn(&got, 128); !errors.Is(err, c.want) {
			t.Errorf("%d compares: %v, want %v", c.compares, err, c.want)
		}
		if len(got.Compare) > 129 {
			t.Errorf("%d compares were decoded", len(got.Compare))
		}
	}
}

func newTestServerCodec(maxTxnOps int) codec {
	c := newCodec(&traffic{})
	c.maxTxnOps = maxTxnOps
	return c
}
