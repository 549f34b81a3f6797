package hostile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// millionKeys starts a server with a million keys of 50 bytes each.
func millionKeys(t *testing.T) (*server, int) {
	t.Helper()
	n := scaled(t, 1_000_000)
	s := start(t, "--max-txn-ops", "5000")
	s.fill(t, "/registry/pods/", n, []byte("a small value of about thirty bytes"), 5000)
	return s, n
}

// sizeCodec decodes a message into its size: what decoding takes is not the
// server's.
type sizeCodec struct{}

func (sizeCodec) Marshal(v any) (mem.BufferSlice, error) {
	data, err := proto.Marshal(v.(proto.Message))
	return mem.BufferSlice{mem.SliceBuffer(data)}, err
}

func (sizeCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*int) = data.Len()
	return nil
}

func (sizeCodec) Name() string { return "proto" }

// refused says whether the server has turned a request away for its size or
// for those that are under way, which it may.
func refused(err error) bool { return status.Code(err) == codes.ResourceExhausted }

// TestRanges lists a million keys, whole: once, by 20 clients at once, by
// clients that read nothing, and 128 times in one transaction.
func TestRanges(t *testing.T) {
	s, n := millionKeys(t)
	for _, load := range []struct {
		name  string
		limit int
		run   func(t *testing.T)
	}{
		{"one", 1200, func(t *testing.T) {
			resp, err := pb.NewKVClient(s.conn(t)).Range(patient(t), everything())
			if err != nil {
				t.Fatal(err)
			}
			if len(resp.Kvs) < n || int64(len(resp.Kvs)) != resp.Count {
				t.Errorf("%d keys and a count of %d, of %d", len(resp.Kvs), resp.Count, n)
			}
		}},
		{"twenty", 2000, func(t *testing.T) {
			start := time.Now()
			err := parallel(20, func(int) error {
				var size int
				err := s.conn(t).Invoke(patient(t), rangeMethod, everything(), &size, grpc.ForceCodecV2(sizeCodec{}))
				if err == nil && size < 50*n {
					err = fmt.Errorf("%d bytes for %d keys", size, n)
				}
				t.Logf("%d MiB after %v", size/mib, time.Since(start).Round(time.Second))
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}},
		{"canceled", 2000, func(t *testing.T) {
			kv := pb.NewKVClient(s.conn(t))
			err := parallel(500, func(int) error {
				ctx, cancel := context.WithCancel(patient(t))
				context.AfterFunc(ctx, cancel)
				go cancel()
				_, err := kv.Range(ctx, everything())
				if err != nil && status.Code(err) != codes.Canceled && !refused(err) {
					return err
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}},
		{"txn of 128", 2000, func(t *testing.T) {
			txn := &pb.TxnRequest{}
			for range 128 {
				txn.Success = append(txn.Success, opRange(everything()))
			}
			_, err := pb.NewKVClient(s.conn(t)).Txn(patient(t), txn)
			if !refused(err) {
				t.Errorf("128 ranges over a million keys: %v", err)
			}
		}},
		{"writing txn of 128", 2000, func(t *testing.T) {
			txn := &pb.TxnRequest{Success: []*pb.RequestOp{opPut([]byte("a"), nil)}}
			for range 127 {
				txn.Success = append(txn.Success, opRange(everything()))
			}
			_, err := pb.NewKVClient(s.conn(t)).Txn(patient(t), txn)
			if !refused(err) {
				t.Errorf("127 ranges over a million keys: %v", err)
			}
		}},
		{"streams never read", 2000, func(t *testing.T) {
			var streams []pb.KV_RangeStreamClient
			for range 50 {
				stream, err := pb.NewKVClient(s.conn(t)).RangeStream(patient(t), everything())
				if err != nil {
					t.Fatal(err)
				}
				streams = append(streams, stream)
			}
			// One of them in the end is read: it holds everything.
			keys := 0
			for {
				resp, err := streams[0].Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				keys += len(resp.RangeResponse.Kvs)
			}
			if keys < n {
				t.Errorf("%d keys of %d", keys, n)
			}
		}},
	} {
		t.Run(load.name, func(t *testing.T) { s.under(t, load.limit, load.run) })
	}
}

// TestLargeValues asks for what has to go through large values and brings
// nearly nothing: hashes, orders by value, comparisons of values.
func TestLargeValues(t *testing.T) {
	s := start(t)
	n := scaled(t, 300)
	s.fill(t, "large/", n, make([]byte, maxRequest-4096), 1)
	kv, maintenance := pb.NewKVClient(s.conn(t)), pb.NewMaintenanceClient(s.conn(t))
	key, end := []byte("large/"), []byte("large0")
	for _, load := range []struct {
		name string
		do   func() error
	}{
		{"hashes", func() error {
			_, err := maintenance.HashKV(patient(t), &pb.HashKVRequest{})
			return err
		}},
		{"orders", func() error {
			_, err := kv.Range(patient(t), &pb.RangeRequest{Key: key, RangeEnd: end, Limit: 1, SortTarget: pb.RangeRequest_VALUE, SortOrder: pb.RangeRequest_DESCEND})
			return err
		}},
		{"comparisons", func() error {
			_, err := kv.Txn(patient(t), &pb.TxnRequest{
				Compare: []*pb.Compare{{Key: key, RangeEnd: end, Target: pb.Compare_VALUE, Result: pb.Compare_GREATER, TargetUnion: &pb.Compare_Value{}}},
				Success: []*pb.RequestOp{opPut([]byte("a"), nil)},
			})
			return err
		}},
	} {
		t.Run(load.name, func(t *testing.T) {
			s.under(t, 1500, func(t *testing.T) {
				if err := parallel(10, func(int) error { return load.do() }); err != nil && !refused(err) {
					t.Error(err)
				}
			})
		})
	}
}
