package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
)

// TestNeed shows what Admit is told: of exactly the key-value pairs that a
// response has, also after the values were only loaded.
func TestNeed(t *testing.T) {
	disk := &memlog.Disk{}
	f := open(t, disk, Options{})
	for i := range 4 {
		f.put(fmt.Sprintf("k%d", i), strings.Repeat("v", 10*i)) // 2 + 0, 10, 20, 30
	}
	old := f.put("k3", "") // k3 was 30, is 0
	f.delete("k1", "")
	if err := f.stop(); err != nil {
		t.Fatal(err)
	}

	var needs []Need
	f = open(t, disk, Options{Admit: func(_ context.Context, n Need) error {
		needs = append(needs, n)
		return nil
	}})
	all := func(r *pb.RangeRequest) *pb.RangeRequest {
		r.Key, r.RangeEnd = []byte("k"), []byte("l")
		return r
	}
	list := func(r *pb.RangeRequest) func() error {
		return func() error { _, err := f.Range(t.Context(), all(r)); return err }
	}
	inTxn := func(ops ...*pb.RequestOp) func() error {
		return func() error { _, err := f.Txn(t.Context(), &pb.TxnRequest{Success: ops}); return err }
	}
	remove := func(r *pb.DeleteRangeRequest) func() error {
		return func() error { _, err := f.DeleteRange(t.Context(), r); return err }
	}
	ranged := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: all(&pb.RangeRequest{})}}
	put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("x")}}}
	get := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("k2")}}}
	putPrev := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k2"), PrevKv: true, IgnoreValue: true}}}
	within := func(op *pb.RequestOp) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: []*pb.RequestOp{op}}}}
	}
	nested := &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Failure: []*pb.RequestOp{ranged}}}}
	deleted := &pb.DeleteRangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}
	deletedPrev := &pb.DeleteRangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), PrevKv: true}
	for _, c := range []struct {
		name string
		do   func() error
		want []Need
	}{
		{"list", list(&pb.RangeRequest{}), []Need{{3, 26}}},
		{"past", list(&pb.RangeRequest{Revision: old - 1}), []Need{{4, 68}}},
		{"page", list(&pb.RangeRequest{Limit: 1}), []Need{{1, 2}}},
		{"keys", list(&pb.RangeRequest{KeysOnly: true}), []Need{{3, 6}}},
		{"count", list(&pb.RangeRequest{CountOnly: true}), []Need{{}}},
		{"by value", list(&pb.RangeRequest{SortTarget: pb.RangeRequest_VALUE, SortOrder: pb.RangeRequest_DESCEND, Limit: 1}), []Need{{3, 26}, {1, 22}}},
		{"keys by value", list(&pb.RangeRequest{SortTarget: pb.RangeRequest_VALUE, KeysOnly: true}), []Need{{3, 26}, {3, 6}}},
		{"read-only txn", inTxn(ranged, ranged), []Need{{6, 52}, {6, 52}}},
		{"txn", inTxn(ranged, put), []Need{{3, 26}}},
		{"nested", inTxn(put, nested), []Need{{3, 26}}},
		{"put", inTxn(put), []Need{{}}},
		{"get", inTxn(get), []Need{{}, {1, 22}}},
		{"gets", inTxn(get, get, put), []Need{{2, 44}}},
		{"nested gets", inTxn(within(get), within(get)), []Need{{2, 44}}},
		{"puts with the value before", inTxn(putPrev, put), []Need{{1, 22}}},
		{"delete", remove(&pb.DeleteRangeRequest{Key: []byte("x")}), []Need{{}}},
		{"delete in txn", inTxn(&pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: deletedPrev}}), []Need{{3, 26}}},
		{"nothing left", remove(deleted), []Need{{}}},
	} {
		needs = nil
		if err := c.do(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if fmt.Sprint(needs) != fmt.Sprint(c.want) {
			t.Errorf("%s: needs %v, want %v", c.name, needs, c.want)
		}
	}
}

// TestAdmitRefuses shows that a request ends with Admit's error, without an
// effect.
func TestAdmitRefuses(t *testing.T) {
	refused := errors.New("refused")
	f := open(t, &memlog.Disk{}, Options{Admit: func(_ context.Context, n Need) error {
		if n.Pairs > 0 {
			return refused
		}
		return nil
	}})
	f.put("k", "v")
	if _, err := f.Range(t.Context(), &pb.RangeRequest{Key: []byte("k")}); !errors.Is(err, refused) {
		t.Errorf("Range: %v", err)
	}
	if _, err := f.DeleteRange(t.Context(), &pb.DeleteRangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), PrevKv: true}); !errors.Is(err, refused) {
		t.Errorf("DeleteRange: %v", err)
	}
	if n := f.Keys(); n != 1 {
		t.Errorf("%d keys are left, want 1", n)
	}
}
