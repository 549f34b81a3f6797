package hostile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// millionKeys starts a server with a million keys of 50 bytes each.
func millionKeys(t *testing.T) (*server, int) {
	t.Helper()
	n := scaled(t, 1_000_000)
	s := start(t, "--max-txn-ops", "5000")
	s.fill(t, "/registry/pods/", n, []byte("a small value of about thirty bytes"), 5000)
	return s, n
}

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
		{"one", 1000, func(t *testing.T) {
			resp, err := pb.NewKVClient(s.conn(t)).Range(patient(t), everything())
			if err != nil {
				t.Fatal(err)
			}
			if len(resp.Kvs) < n || int64(len(resp.Kvs)) != resp.Count {
				t.Errorf("%d keys and a count of %d, of %d", len(resp.Kvs), resp.Count, n)
			}
		}},
		{"twenty", 2000, func(t *testing.T) {
			answered, turnedAway := 0, 0
			results := make(chan error, 20)
			for range 20 {
				kv := pb.NewKVClient(s.conn(t))
				go func() {
					resp, err := kv.Range(patient(t), everything())
					if err == nil && len(resp.Kvs) < n {
						err = fmt.Errorf("%d keys of %d", len(resp.Kvs), n)
					}
					results <- err
				}()
			}
			for range 20 {
				switch err := <-results; {
				case err == nil:
					answered++
				case refused(err):
					turnedAway++
				default:
					t.Error(err)
				}
			}
			t.Logf("%d answered, %d turned away", answered, turnedAway)
			if answered == 0 {
				t.Error("nobody was answered")
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
		{"streams never read", 500, func(t *testing.T) {
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
		t.Run(load.name, func(t *testing.T) { (&server{s.Server, t}).under(load.limit, load.run) })
	}
}
