package server

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	// maxLargeBytes is what large requests that are under way may hold
	// together. One that does not fit is refused, so that those that wait for
	// the disk are no more than it takes in a few seconds: the others, which
	// queue up behind them, are served in time.
	maxLargeBytes = 256 << 20

	// largeRequest is the size from which a request counts. Clients cannot
	// keep out each other's small ones.
	largeRequest = 64 << 10

	// opBytes is about what an operation or a comparison of a transaction takes
	// with its response, however few bytes it had on the wire.
	opBytes = 512
)

// admit hands req to handler if it is small or there is room for it.
func (s *Server) admit(ctx context.Context, req any, handler grpc.UnaryHandler) (any, error) {
	if n := int64(requestBytes(req)); n >= largeRequest {
		n = min(n, maxLargeBytes)
		if !s.large.TryAcquire(n) {
			return nil, rpctypes.ErrGRPCRequestTooManyRequests
		}
		defer s.large.Release(n)
	}
	return withHold(ctx, req, handler)
}

// requestBytes is about the memory that a request of any size takes.
func requestBytes(req any) int {
	switch r := req.(type) {
	case *pb.PutRequest:
		return len(r.Key) + len(r.Value)
	case *pb.RangeRequest:
		return len(r.Key) + len(r.RangeEnd)
	case *pb.DeleteRangeRequest:
		return len(r.Key) + len(r.RangeEnd)
	case *pb.TxnRequest:
		return txnBytes(r)
	}
	return 0
}

func txnBytes(r *pb.TxnRequest) int {
	n := opBytes * (len(r.GetCompare()) + len(r.GetSuccess()) + len(r.GetFailure()))
	for _, c := range r.GetCompare() {
		n += len(c.GetKey()) + len(c.GetRangeEnd()) + len(c.GetValue())
	}
	for _, branch := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, op := range branch {
			switch o := op.GetRequest().(type) {
			case *pb.RequestOp_RequestRange:
				n += requestBytes(o.RequestRange)
			case *pb.RequestOp_RequestPut:
				n += requestBytes(o.RequestPut)
			case *pb.RequestOp_RequestDeleteRange:
				n += requestBytes(o.RequestDeleteRange)
			case *pb.RequestOp_RequestTxn:
				n += txnBytes(o.RequestTxn)
			}
		}
	}
	return n
}

// The fields of transactions on the wire.
const (
	txnCompare protowire.Number = 1
	txnSuccess protowire.Number = 2
	txnFailure protowire.Number = 3
	opNested   protowire.Number = 4
)

// skipTxn reports whether data is a transaction with more operations than
// maxOps allows, and then makes v one that is refused for that. Two bytes can
// be an operation that takes a hundred in memory: what will be refused anyway
// is not decoded.
func skipTxn(data mem.BufferSlice, v any, maxOps int) bool {
	txn, ok := v.(*pb.TxnRequest)
	if !ok || data.Len() < largeRequest || !tooManyOps([][]byte{data.Materialize()}, maxOps) {
		return false
	}
	txn.Compare = make([]*pb.Compare, maxOps+1)
	return true
}

// tooManyOps counts as checkTxnOps does. A message may come in parts. What is
// not valid counts up to there, for the decoder makes that much of it.
func tooManyOps(parts [][]byte, maxOps int) bool {
	var counts [txnFailure + 1]int
	var ops [][]byte
	for _, part := range parts {
		fields(part, func(n protowire.Number, value []byte) {
			if n >= txnCompare && n <= txnFailure {
				counts[n]++
			}
			if (n == txnSuccess || n == txnFailure) && len(value) > 2 {
				ops = append(ops, value)
			}
		})
	}
	longest := max(counts[txnCompare], counts[txnSuccess], counts[txnFailure])
	if longest > maxOps {
		return true
	}
	for _, op := range ops {
		var nested [][]byte
		fields(op, func(n protowire.Number, value []byte) {
			if n == opNested {
				nested = append(nested, value)
			}
		})
		if len(nested) > 0 && tooManyOps(nested, maxOps-longest) {
			return true
		}
	}
	return false
}

// fields calls see for the fields of a message that are messages or bytes, as
// far as it can be read.
func fields(message []byte, see func(n protowire.Number, value []byte)) {
	for len(message) > 0 {
		n, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return
		}
		message = message[size:]
		if kind == protowire.BytesType {
			value, size := protowire.ConsumeBytes(message)
			if size < 0 {
				return
			}
			see(n, value)
			message = message[size:]
			continue
		}
		if size = protowire.ConsumeFieldValue(n, kind, message); size < 0 {
			return
		}
		message = message[size:]
	}
}
