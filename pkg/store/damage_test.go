package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
)

// damagedLog is a log in which the values of some records are damaged.
type damagedLog struct {
	*memlog.Log
	seqs   []int64
	failed atomic.Int64 // reads
}

func (l *damagedLog) Values(ctx context.Context, seqs []int64) ([][]byte, error) {
	for _, seq := range seqs {
		if slices.Contains(l.seqs, seq) {
			l.failed.Add(1)
			return nil, fmt.Errorf("%w: record %d", eventlog.ErrCorrupt, seq)
		}
	}
	return l.Log.Values(ctx, seqs)
}

// TestDamagedValue: a record whose value is damaged fails the requests that
// need that value, and no others; overwriting or deleting its key is the cure.
func TestDamagedValue(t *testing.T) {
	disk := new(memlog.Disk)
	l := &damagedLog{Log: disk.Open(nil), seqs: []int64{1, 3}}
	f := openOn(t, disk, l, Options{CacheBytes: 1})
	for _, key := range []string{"bad", "good", "worse"} {
		f.put(key, "old")
	}
	ctx := t.Context()
	get := func(key string) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key)}}}
	}
	compare := func(key string) *pb.Compare {
		return &pb.Compare{Key: []byte(key), Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: []byte("old")}}
	}
	put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("other")}}}
	for _, tt := range []struct {
		name string
		call func(key string) error
	}{
		{"range", func(key string) error {
			_, err := f.Range(ctx, &pb.RangeRequest{Key: []byte(key)})
			return err
		}},
		{"txn that compares", func(key string) error {
			_, err := f.Txn(ctx, &pb.TxnRequest{Compare: []*pb.Compare{compare(key)}, Success: []*pb.RequestOp{put}})
			return err
		}},
		{"txn that writes and reads", func(key string) error {
			_, err := f.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{put, get(key)}})
			return err
		}},
		{"txn that could write and only reads", func(key string) error {
			_, err := f.Txn(ctx, &pb.TxnRequest{
				Compare: []*pb.Compare{{Key: []byte("absent"), Target: pb.Compare_MOD, Result: pb.Compare_GREATER}},
				Success: []*pb.RequestOp{put}, Failure: []*pb.RequestOp{get(key)},
			})
			return err
		}},
		{"put with prev_kv", func(key string) error {
			_, err := f.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte("new"), PrevKv: true})
			return err
		}},
	} {
		if err := tt.call("bad"); !errors.Is(err, eventlog.ErrCorrupt) {
			t.Errorf("%s of the damaged key: %v", tt.name, err)
		}
		if err := tt.call("good"); err != nil {
			t.Errorf("%s of another key: %v", tt.name, err)
		}
	}
	// The last one has overwritten it, although its answer was an error.
	for _, key := range []string{"bad", "worse"} {
		if key == "worse" {
			f.put(key, "new")
		}
		resp, err := f.Range(ctx, &pb.RangeRequest{Key: []byte(key)})
		if err != nil || string(resp.Kvs[0].Value) != "new" {
			t.Errorf("%s after it was overwritten: %v, %v", key, resp, err)
		}
	}
	if err := f.stop(); err != nil {
		t.Errorf("the store has stopped: %v", err)
	}
	for _, e := range f.events {
		damaged := e.Kv.Version == 2 && string(e.Kv.Key) != "other" && string(e.Kv.Key) != "good"
		if e.Kv.Version > 1 && (e.PrevKv == nil) != damaged {
			t.Errorf("event %v", e)
		}
	}
}
