// Package floor is a server that keeps nothing: it answers etcd's KV requests
// at once, with what it has encoded before. What it reaches is what gRPC and
// the client leave to a server on the machine.
package floor

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"os"
	"sort"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	goproto "google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/bench/internal/workload"
)

// Serve serves on the socket until ctx ends. The file holds a workload.Data as
// JSON: the keys that a range finds, each of revision 1.
func Serve(ctx context.Context, dataFile, socket string) error {
	b, err := os.ReadFile(dataFile)
	if err != nil {
		return err
	}
	var data workload.Data
	if err := json.Unmarshal(b, &data); err != nil {
		return fmt.Errorf("%s: %w", dataFile, err)
	}
	f, err := newFloor(data)
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.ForceServerCodecV2(codec{encoding.GetCodecV2(proto.Name)}), grpc.UnaryInterceptor(f.answer),
		grpc.MaxSendMsgSize(math.MaxInt32), grpc.MaxConcurrentStreams(math.MaxUint32))
	pb.RegisterKVServer(server, pb.UnimplementedKVServer{})
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	return server.Serve(l)
}

// encoded is a response in its wire format.
type encoded mem.BufferSlice

// codec is gRPC's, but for responses that are encoded already.
type codec struct{ encoding.CodecV2 }

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if e, ok := v.(encoded); ok {
		return mem.BufferSlice(e), nil
	}
	return c.CodecV2.Marshal(v)
}

// floor has the answers.
type floor struct {
	names    []string // of the keys, sorted
	kvs      []byte   // the pairs as they stand in a range response
	starts   []int    // where each begins, and where the last one ends
	head     []byte   // a response's header
	put, txn encoded
}

var header = &pb.ResponseHeader{ClusterId: 1, MemberId: 1, Revision: 1, RaftTerm: 1}

func newFloor(data workload.Data) (*floor, error) {
	f := &floor{}
	for i := range data.Keys {
		name := workload.Key(i)
		kv, err := goproto.Marshal(&mvccpb.KeyValue{
			Key: []byte(name), CreateRevision: 1, ModRevision: 1, Version: 1, Value: []byte(workload.Value(data.Size)),
		})
		if err != nil {
			return nil, err
		}
		f.names, f.starts = append(f.names, name), append(f.starts, len(f.kvs))
		f.kvs = protowire.AppendTag(f.kvs, 2, protowire.BytesType)
		f.kvs = protowire.AppendBytes(f.kvs, kv)
	}
	if !sort.StringsAreSorted(f.names) {
		return nil, fmt.Errorf("the keys of %s are not in order", data)
	}
	f.starts = append(f.starts, len(f.kvs))
	put := &pb.PutResponse{Header: header}
	txn := &pb.TxnResponse{Header: header, Succeeded: true, Responses: []*pb.ResponseOp{
		{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{Header: header}}},
	}}
	head, err := goproto.Marshal(&pb.RangeResponse{Header: header})
	if err != nil {
		return nil, err
	}
	f.head = head
	for answer, message := range map[*encoded]goproto.Message{&f.put: put, &f.txn: txn} {
		b, err := goproto.Marshal(message)
		if err != nil {
			return nil, err
		}
		*answer = encoded{mem.SliceBuffer(b)}
	}
	return f, nil
}

// answer answers instead of the handlers, which could not return what is
// encoded.
func (f *floor) answer(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	switch r := req.(type) {
	case *pb.RangeRequest:
		return f.find(r), nil
	case *pb.PutRequest:
		return f.put, nil
	case *pb.TxnRequest:
		return f.txn, nil
	default:
		return handler(ctx, req)
	}
}

// find answers ranges with ascending keys of the newest revision.
func (f *floor) find(r *pb.RangeRequest) any {
	from := sort.SearchStrings(f.names, string(r.Key))
	end := from
	switch {
	case string(r.RangeEnd) == "\x00": // all from the key on
		end = len(f.names)
	case len(r.RangeEnd) > 0:
		end = max(from, sort.SearchStrings(f.names, string(r.RangeEnd)))
	case from < len(f.names) && f.names[from] == string(r.Key):
		end++
	}
	count := int64(end - from)
	if r.CountOnly {
		return &pb.RangeResponse{Header: header, Count: count}
	}
	if r.KeysOnly {
		resp := &pb.RangeResponse{Header: header, Count: count}
		for _, name := range f.names[from:end] {
			resp.Kvs = append(resp.Kvs, &mvccpb.KeyValue{Key: []byte(name), CreateRevision: 1, ModRevision: 1, Version: 1})
		}
		return resp
	}
	more := r.Limit > 0 && count > r.Limit
	if more {
		end = from + int(r.Limit)
	}
	tail := append([]byte(nil), f.head...)
	tail = protowire.AppendTag(tail, 3, protowire.VarintType)
	tail = protowire.AppendVarint(tail, protowire.EncodeBool(more))
	tail = protowire.AppendTag(tail, 4, protowire.VarintType)
	tail = protowire.AppendVarint(tail, uint64(count))
	return encoded{mem.SliceBuffer(tail), mem.SliceBuffer(f.kvs[f.starts[from]:f.starts[end]])}
}
