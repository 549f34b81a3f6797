package server

import (
	"bytes"
	"fmt"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"
)

// encoded are the messages that the codec encodes itself.
var encoded = []proto.Message{
	&pb.RangeResponse{}, &pb.RangeStreamResponse{}, &pb.PutResponse{},
	&pb.DeleteRangeResponse{}, &pb.TxnResponse{}, &pb.WatchResponse{},
}

// drawMessage sets fields of m, which go to depth levels.
func drawMessage(t *rapid.T, m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		nested := f.Kind() == protoreflect.MessageKind
		switch {
		case rapid.IntRange(0, 2).Draw(t, "leave") == 0 || nested && depth == 0:
		case f.IsList():
			list := m.Mutable(f).List()
			for range rapid.IntRange(0, 4).Draw(t, f.TextName()) {
				element := list.NewElement()
				drawMessage(t, element.Message(), depth-1)
				list.Append(element)
			}
		case nested:
			drawMessage(t, m.Mutable(f).Message(), depth-1)
		default:
			m.Set(f, drawScalar(t, f))
		}
	}
}

func drawScalar(t *rapid.T, f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BytesKind:
		size := rapid.OneOf(rapid.IntRange(0, 40), rapid.IntRange(sharedBytes-1, sharedBytes+1), rapid.IntRange(0, 3*chunkBytes)).Draw(t, f.TextName())
		return protoreflect.ValueOf(bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, size))
	case protoreflect.StringKind:
		return protoreflect.ValueOf(rapid.String().Draw(t, f.TextName()))
	case protoreflect.BoolKind:
		return protoreflect.ValueOf(rapid.Bool().Draw(t, f.TextName()))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOf(rapid.Uint64().Draw(t, f.TextName()))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOf(rapid.Int64().Draw(t, f.TextName()))
	case protoreflect.EnumKind:
		return protoreflect.ValueOf(protoreflect.EnumNumber(rapid.Int32().Draw(t, f.TextName())))
	}
	panic("the codec does not know fields such as " + string(f.FullName()))
}

func marshaled(t rapid.TB, m any) []byte {
	t.Helper()
	counted := &traffic{}
	data, err := newCodec(counted).Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	defer data.Free()
	if counted.sent.Load() != int64(data.Len()) {
		t.Fatalf("%d bytes counted of %d", counted.sent.Load(), data.Len())
	}
	return data.Materialize()
}

// TestCodec draws all fields that the messages have, so that one that is new
// in etcd fails here.
func TestCodec(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := rapid.SampledFrom(encoded).Draw(t, "type").ProtoReflect().New()
		drawMessage(t, m, rapid.IntRange(1, 6).Draw(t, "depth"))
		if sizeOf(m.Interface()) < 0 {
			t.Fatalf("%s is not encoded here", m.Descriptor().Name())
		}
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.Interface())
		if err != nil {
			t.Fatal(err)
		}
		if got := marshaled(t, m.Interface()); !bytes.Equal(got, want) {
			t.Fatalf("%v\nis %x\nnot %x", m, got, want)
		}
	})
}

// TestCodecNil has what drawMessage cannot make.
func TestCodecNil(t *testing.T) {
	kv := &mvccpb.KeyValue{Key: []byte("k"), Value: []byte{}}
	for _, m := range []proto.Message{
		(*pb.RangeResponse)(nil), (*pb.RangeStreamResponse)(nil), (*pb.PutResponse)(nil),
		(*pb.DeleteRangeResponse)(nil), (*pb.TxnResponse)(nil), (*pb.WatchResponse)(nil),
		&pb.RangeResponse{Kvs: []*mvccpb.KeyValue{nil, kv, nil}},
		&pb.DeleteRangeResponse{PrevKvs: []*mvccpb.KeyValue{nil, kv}},
		&pb.WatchResponse{Events: []*mvccpb.Event{nil, {Kv: kv}, {PrevKv: &mvccpb.KeyValue{}}}},
		&pb.TxnResponse{Responses: []*pb.ResponseOp{nil, {}}},
		&pb.TxnResponse{Responses: []*pb.ResponseOp{
			{Response: &pb.ResponseOp_ResponseRange{}}, {Response: &pb.ResponseOp_ResponsePut{}},
			{Response: &pb.ResponseOp_ResponseDeleteRange{}}, {Response: &pb.ResponseOp_ResponseTxn{}},
		}},
	} {
		want, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if got := marshaled(t, m); !bytes.Equal(got, want) {
			t.Errorf("%T %v is %x, not %x", m, m, got, want)
		}
	}
}

// TestCodecOther gives the messages to gRPC's codec that it leaves alone.
func TestCodecOther(t *testing.T) {
	status := &pb.StatusResponse{Version: "3", DbSize: 7}
	want, err := proto.Marshal(status)
	if err != nil {
		t.Fatal(err)
	}
	if got := marshaled(t, status); !bytes.Equal(got, want) {
		t.Errorf("%x, not %x", got, want)
	}
	if _, err := newCodec(&traffic{}).Marshal(&pb.WatchResponse{CancelReason: "\xff"}); err == nil {
		t.Error("a text that is not UTF-8 is no error")
	}
	if _, err := newCodec(&traffic{}).Marshal("text"); err == nil {
		t.Error("what is no message is no error")
	}
}

// TestCodecShares shows that a large response refers to its values.
func TestCodecShares(t *testing.T) {
	value := make([]byte, copiedBytes)
	data, err := newCodec(&traffic{}).Marshal(&pb.RangeResponse{Kvs: []*mvccpb.KeyValue{{Key: []byte("k"), Value: value}}})
	if err != nil {
		t.Fatal(err)
	}
	if len(data) != 2 || &data[1].ReadOnlyData()[0] != &value[0] {
		t.Fatalf("the value was copied, into one of %d parts", len(data))
	}
}

func BenchmarkCodec(b *testing.B) {
	for _, size := range []int{256, 512, 1 << 10, 8 << 10} {
		for _, keys := range []int{1, 15, 500, 20_000} {
			resp := &pb.RangeResponse{Header: &pb.ResponseHeader{ClusterId: 1 << 60, MemberId: 1 << 61, Revision: 1e6, RaftTerm: 1}, Count: int64(keys)}
			for i := range keys {
				resp.Kvs = append(resp.Kvs, &mvccpb.KeyValue{
					Key: fmt.Appendf(nil, "/registry/pods/default/%08d", i), Value: make([]byte, size),
					CreateRevision: 1e6, ModRevision: 2e6, Version: 2,
				})
			}
			for _, c := range []struct {
				name    string
				marshal func(any) (mem.BufferSlice, error)
			}{
				{"proto", newCodec(&traffic{}).CodecV2.Marshal},
				{"keelson", newCodec(&traffic{}).Marshal},
			} {
				b.Run(fmt.Sprintf("bytes=%d/keys=%d/%s", size, keys, c.name), func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						data, err := c.marshal(resp)
						if err != nil {
							b.Fatal(err)
						}
						data.Free()
					}
				})
			}
		}
	}
}
