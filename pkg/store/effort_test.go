package store

import (
	"errors"
	"fmt"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
)

// What an operation costs is what it goes through: little for a single key, a
// count or a limited list, everything for the others, deleted keys too where
// they are in the way.
func TestEffort(t *testing.T) {
	f := open(t, &memlog.Disk{}, Options{})
	for i := range 100 {
		f.put(fmt.Sprintf("a%02d", i), "1")
	}
	past := f.now().revision
	if _, err := f.DeleteRange(t.Context(), &pb.DeleteRangeRequest{Key: []byte("a"), RangeEnd: []byte("a5")}); err != nil {
		t.Fatal(err)
	}
	st := f.now()
	all := func(r *pb.RangeRequest) *pb.RangeRequest {
		r.Key, r.RangeEnd = []byte("a"), []byte("b")
		return r
	}
	for _, c := range []struct {
		name string
		r    *pb.RangeRequest
		want effort
	}{
		{"one key", &pb.RangeRequest{Key: []byte("a77")}, 2},
		{"no key", &pb.RangeRequest{Key: []byte("b"), RangeEnd: []byte("a")}, 1},
		{"all", all(&pb.RangeRequest{}), 51},
		{"limited", all(&pb.RangeRequest{Limit: 5}), 6},
		{"limited and sorted", all(&pb.RangeRequest{Limit: 5, SortOrder: pb.RangeRequest_DESCEND}), 51},
		{"limited and filtered", all(&pb.RangeRequest{Limit: 5, MinModRevision: 1}), 51},
		{"counted", all(&pb.RangeRequest{CountOnly: true}), 1},
		{"past", all(&pb.RangeRequest{Revision: past, Limit: 5}), 101},
		{"past and counted", all(&pb.RangeRequest{Revision: past, CountOnly: true}), 101},
	} {
		left := effort(1000)
		if err := left.read(st, c.r); err != nil || 1000-left != c.want {
			t.Errorf("%s: %d, %v, want %d", c.name, 1000-left, err, c.want)
		}
	}
	left := effort(50)
	if err := left.walk(st, newSpan([]byte("a"), []byte{0})); !errors.Is(err, ErrTooManyKeys) || left < -10 {
		t.Errorf("%v, %d left: it should stop where nothing is left", err, left)
	}
}

// All parts of a transaction draw on the same effort, and one that is refused
// changes nothing.
func TestTooManyKeys(t *testing.T) {
	f := open(t, &memlog.Disk{}, Options{})
	const keys = 1000
	for i := range keys {
		f.put(fmt.Sprintf("a%04d", i), "1")
	}
	key, end := []byte("a"), []byte("b")
	past := f.now().revision - 1
	ops := map[string]func(r *pb.TxnRequest){
		"ranges": func(r *pb.TxnRequest) {
			r.Success = append(r.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key, RangeEnd: end}}})
		},
		"counts": func(r *pb.TxnRequest) {
			r.Success = append(r.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key, RangeEnd: end, Revision: past, CountOnly: true}}})
		},
		"deletes": func(r *pb.TxnRequest) {
			r.Success = append(r.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key, RangeEnd: end}}})
		},
		"compares": func(r *pb.TxnRequest) {
			r.Compare = append(r.Compare, &pb.Compare{Key: key, RangeEnd: end, Target: pb.Compare_VERSION, Result: pb.Compare_EQUAL, TargetUnion: &pb.Compare_Version{Version: 1}})
		},
	}
	put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("x")}}}
	for name, add := range ops {
		for _, writing := range []bool{false, true} {
			inner := &pb.TxnRequest{}
			for range maxTxnKeys/keys + 1 {
				add(inner)
			}
			r := inner
			if writing {
				r = &pb.TxnRequest{Success: []*pb.RequestOp{put, {Request: &pb.RequestOp_RequestTxn{RequestTxn: inner}}}}
			}
			before := f.now().revision
			if _, err := f.Txn(t.Context(), r); !errors.Is(err, ErrTooManyKeys) {
				t.Errorf("%s, with writes %v: %v", name, writing, err)
			}
			if after := f.now().revision; after != before {
				t.Errorf("%s, with writes %v: a refused transaction has changed something", name, writing)
			}
		}
	}
	r := &pb.TxnRequest{Success: []*pb.RequestOp{put}}
	for _, add := range ops {
		add(r)
	}
	if _, err := f.Txn(t.Context(), r); err != nil {
		t.Error(err)
	}
}
