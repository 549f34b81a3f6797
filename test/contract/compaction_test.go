package contract

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

var compaction = []statement{
	{name: "21_compact_errors", run: compactErrors},
	{name: "21_compact_keeps", run: compactKeeps},
	{name: "21_physical", run: physicalCompaction},
	{name: "22_hashkv_bounds", run: hashKVBounds},
	{name: "22_hashkv_value", run: hashKVValue},
}

func compactErrors(e *env) {
	compact := func(rev int64) error {
		_, err := e.kv.Compact(e.ctx, &pb.CompactionRequest{Revision: rev})
		return err
	}
	must(e, compact(0))
	e.fails("0 again", compact(0), codes.OutOfRange, textCompacted)
	e.fails("negative", compact(-1), codes.OutOfRange, textCompacted)
	e.fails("future", compact(2), codes.OutOfRange, textFuture)
	e.put("a", "1")
	e.put("a", "2")
	must(e, compact(2))
	e.fails("the same", compact(2), codes.OutOfRange, textCompacted)
	e.fails("older", compact(1), codes.OutOfRange, textCompacted)
	e.fails("future", compact(4), codes.OutOfRange, textFuture)
	resp, err := e.kv.Compact(e.ctx, &pb.CompactionRequest{Revision: 3, Physical: true})
	must(e, err)
	equal(e, "revision of the answer", resp.Header.Revision, 3)
	equal(e, "revision", e.rev(), 3)
}

func compactKeeps(e *env) {
	e.put("a", "1") // 2
	e.put("b", "1") // 3
	e.put("a", "2") // 4
	e.del("b", "")  // 5
	e.put("c", "1") // 6
	e.put("a", "3") // 7
	e.compact(5)
	state := func(rev int64) string {
		resp := e.rng(&pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("z"), Revision: rev})
		s := ""
		for _, kv := range resp.Kvs {
			s += show(kv) + "; "
		}
		return s
	}
	equal(e, "at 5", state(5), "a=2 create=2 mod=4 version=2; ")
	equal(e, "at 6", state(6), "a=2 create=2 mod=4 version=2; c=1 create=6 mod=6 version=1; ")
	equal(e, "at 7", state(0), "a=3 create=2 mod=7 version=3; c=1 create=6 mod=6 version=1; ")
	// The tombstone at the compact revision is still there for a watch.
	w := e.watch()
	w.create(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("z"), StartRevision: 5, PrevKv: true})
	ev := w.nextEvent()
	equal(e, "type", ev.Type, mvccpb.Event_DELETE)
	equal(e, "tombstone", show(ev.Kv), "b= create=0 mod=5 version=0")
	equal(e, "its compacted previous version", show(ev.PrevKv), "none")
	e.compact(7)
	equal(e, "after another compaction", state(0), "a=3 create=2 mod=7 version=3; c=1 create=6 mod=6 version=1; ")
	e.srv.Restart()
	equal(e, "after a crash", state(0), "a=3 create=2 mod=7 version=3; c=1 create=6 mod=6 version=1; ")
	_, err := e.kv.Range(e.ctx, &pb.RangeRequest{Key: []byte("a"), Revision: 6})
	e.fails("still compacted after a crash", err, codes.OutOfRange, textCompacted)
}

// physicalCompaction looks at the size in use as soon as it is answered.
func physicalCompaction(e *env) {
	for i := range 100 {
		e.put(fmt.Sprint("k", i%5), strings.Repeat("v", 100<<10))
	}
	inUse := func() int64 {
		e.Helper()
		status, err := e.maint.Status(e.ctx, &pb.StatusRequest{})
		must(e, err)
		return status.DbSizeInUse
	}
	full := inUse()
	e.compact(e.rev())
	if left := inUse(); left > full/4 {
		e.Errorf("%d bytes were in use, %d after 95 of 100 values are compacted", full, left)
	}
}

func hashKVBounds(e *env) {
	e.put("a", "1")
	e.put("a", "2")
	e.put("b", "1")
	hash := func(rev int64) *pb.HashKVResponse {
		e.Helper()
		resp, err := e.maint.HashKV(e.ctx, &pb.HashKVRequest{Revision: rev})
		must(e, err)
		return resp
	}
	equal(e, "hash revision of 0", hash(0).HashRevision, 4)
	equal(e, "0 is the current revision", hash(0).Hash, hash(4).Hash)
	equal(e, "hash revision of 3", hash(3).HashRevision, 3)
	equal(e, "header", hash(3).Header.Revision, 4)
	equal(e, "never compacted", hash(3).CompactRevision, -1)
	_, err := e.maint.HashKV(e.ctx, &pb.HashKVRequest{Revision: 5})
	e.fails("future", err, codes.OutOfRange, textFuture)
	equal(e, "a negative revision", hash(-7).HashRevision, -7)
	equal(e, "a negative revision has nothing", hash(-7).Hash, hashOf(e, nil))
	e.compact(3)
	equal(e, "compacted", hash(0).CompactRevision, 3)
	equal(e, "at the compact revision", hash(3).HashRevision, 3)
	_, err = e.maint.HashKV(e.ctx, &pb.HashKVRequest{Revision: 2})
	e.fails("compacted", err, codes.OutOfRange, textCompacted)
}

// record is one revision as the test knows that it is stored.
type record struct {
	sub       int64
	tombstone bool
	kv        *mvccpb.KeyValue
}

// hashOf is the documented hash, computed from the records it covers.
func hashOf(e *env, records []record) uint32 {
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	write := func(b []byte) {
		_, err := h.Write(b)
		must(e, err)
	}
	write([]byte("key"))
	for _, r := range records {
		key := binary.BigEndian.AppendUint64(nil, uint64(r.kv.ModRevision))
		key = append(key, '_')
		key = binary.BigEndian.AppendUint64(key, uint64(r.sub))
		kv := r.kv
		if r.tombstone {
			key = append(key, 't')
			kv = &mvccpb.KeyValue{Key: r.kv.Key}
		}
		value, err := proto.Marshal(kv)
		must(e, err)
		write(key)
		write(value)
	}
	return h.Sum32()
}

func hashKVValue(e *env) {
	kv := func(key, value string, create, mod, version int64) *mvccpb.KeyValue {
		return &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), CreateRevision: create, ModRevision: mod, Version: version}
	}
	e.put("a", "1")
	e.txn(&pb.TxnRequest{Success: []*pb.RequestOp{opPut("b", "1"), opDel("a", "")}})
	e.put("c", "1")
	e.del("b", "")
	e.put("c", "2")
	records := []record{
		{0, false, kv("a", "1", 2, 2, 1)},
		{0, false, kv("b", "1", 3, 3, 1)},
		{1, true, kv("a", "", 0, 3, 0)},
		{0, false, kv("c", "1", 4, 4, 1)},
		{0, true, kv("b", "", 0, 5, 0)},
		{0, false, kv("c", "2", 4, 6, 2)},
	}
	check := func(what string, rev int64, records []record) {
		e.Helper()
		resp, err := e.maint.HashKV(e.ctx, &pb.HashKVRequest{Revision: rev})
		must(e, err)
		equal(e, fmt.Sprintf("hash at %d, %s", rev, what), resp.Hash, hashOf(e, records))
	}
	check("whole", 0, records)
	check("whole", 5, records[:5])
	check("whole", 3, records[:3])
	check("whole", 1, nil)
	e.compact(5)
	check("compacted", 0, []record{records[5]})
	// etcd remembers the hash that it computed while compacting, over what was
	// there before, until it is restarted.
	must(e, e.srv.Stop())
	e.srv.Restart()
	check("after a restart", 0, []record{records[5]})
	check("after a restart", 5, []record{records[3]})
	e.put("d", "1")
	last := record{0, false, kv("d", "1", 7, 7, 1)}
	check("of what is kept at 7", 7, []record{records[5], last})
	check("of what is kept at 6", 6, []record{records[5]})
	e.compact(6)
	check("compacted again", 7, []record{records[5], last})
}
