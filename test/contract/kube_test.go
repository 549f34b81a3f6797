package contract

import (
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/metadata"
)

// kube are the requests of a kube-apiserver, in its form; test/apiserver has
// the program itself.
var kube = []statement{
	{name: "kube_objects", run: kubeObjects},
	{name: "kube_lists", run: kubeLists},
	{name: "kube_watch", run: kubeWatch},
	{name: "kube_compaction", run: kubeCompaction},
}

// write is how an object is created (revision 0), updated or, without a value,
// deleted.
func (e *env) write(key, value string, revision int64) *pb.TxnResponse {
	e.Helper()
	op := opPut(key, value)
	if value == "" {
		op = opDel(key, "")
	}
	return e.txn(&pb.TxnRequest{
		Compare: []*pb.Compare{cmpMod(key, pb.Compare_EQUAL, revision)},
		Success: []*pb.RequestOp{op}, Failure: []*pb.RequestOp{opGet(key)},
	})
}

func kubeObjects(e *env) {
	const key = "/registry/pods/default/a"
	created := e.write(key, "1", 0)
	equal(e, "created", created.Succeeded, true)
	equal(e, "revision of the put", created.Responses[0].GetResponsePut().Header.Revision, created.Header.Revision)
	again := e.write(key, "1", 0)
	equal(e, "created again", again.Succeeded, false)
	equal(e, "what is there", show(again.Responses[0].GetResponseRange().Kvs[0]), key+"=1 create=2 mod=2 version=1")
	equal(e, "updated", e.write(key, "2", 2).Succeeded, true)
	stale := e.write(key, "3", 2)
	equal(e, "updated from an old version", stale.Succeeded, false)
	equal(e, "the new one", show(stale.Responses[0].GetResponseRange().Kvs[0]), key+"=2 create=2 mod=3 version=2")
	equal(e, "deleted from an old version", e.write(key, "", 2).Succeeded, false)
	gone := e.write(key, "", 3)
	equal(e, "deleted", gone.Succeeded, true)
	equal(e, "revision of the delete", gone.Responses[0].GetResponseDeleteRange().Header.Revision, 4)
	absent := e.write(key, "", 3)
	equal(e, "deleted again", absent.Succeeded, false)
	equal(e, "nothing there", absent.Responses[0].GetResponseRange().Count, 0)
	for _, rev := range []int64{0, 3} {
		resp := e.rng(&pb.RangeRequest{Key: []byte(key), Limit: 1, Revision: rev})
		equal(e, "header of a get", resp.Header.Revision, 4)
		equal(e, fmt.Sprint("found at ", rev), int64(len(resp.Kvs)), rev/3)
	}
	equal(e, "health", e.rng(&pb.RangeRequest{Key: []byte("/registry/health")}).Count, 0)
	// An event's lease, shared by many.
	lease := e.grant(0, 3600).ID
	for i := range 3 {
		e.attach(fmt.Sprint("/registry/events/", i), lease)
	}
	equal(e, "its lease", e.get("/registry/events/2").Kvs[0].Lease, lease)
}

// kubeLists reads in pages, at the revision of the first: more is what the
// client computes from count.
func kubeLists(e *env) {
	const prefix, end, n = "/registry/pods/", "/registry/pods0", 25
	for i := range n {
		e.write(fmt.Sprintf("%s%02d", prefix, i), "v", 0)
	}
	first := e.rev()
	key, seen, pages := prefix, 0, 0
	for revision := int64(0); ; revision = first {
		resp := e.rng(&pb.RangeRequest{Key: []byte(key), RangeEnd: []byte(end), Limit: 10, Revision: revision})
		equal(e, "count", resp.Count, int64(n-seen))
		equal(e, "more", resp.More, int64(len(resp.Kvs)) < resp.Count)
		pages++
		seen += len(resp.Kvs)
		if int64(len(resp.Kvs)) == resp.Count {
			break
		}
		key = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
		e.write(fmt.Sprintf("%snew%d", prefix, pages), "v", 0)
		e.del(prefix+"24", "")
	}
	equal(e, "pages", pages, 3)
	equal(e, "objects at the revision of the first page", seen, n)
	counted := e.rng(&pb.RangeRequest{Key: []byte(prefix), RangeEnd: []byte(end), CountOnly: true})
	equal(e, "count only", counted.Count, n+1)
	names := e.rng(&pb.RangeRequest{Key: []byte(prefix), RangeEnd: []byte(end), KeysOnly: true})
	equal(e, "keys only", len(names.Kvs), n+1)
	equal(e, "value of keys only", len(names.Kvs[0].Value), 0)
	status, err := e.maint.Status(e.ctx, &pb.StatusRequest{})
	must(e, err)
	if status.DbSize <= 0 || status.Version < "3.5.13" {
		e.Errorf("status: %v", status)
	}
}

// kubeWatch lists, watches from there on, and asks for progress while others
// write elsewhere, as consistent lists from the cache do.
func kubeWatch(e *env) {
	const prefix, end = "/registry/pods/", "/registry/pods0"
	e.write(prefix+"a", "1", 0)
	list := e.rng(&pb.RangeRequest{Key: []byte(prefix), RangeEnd: []byte(end), Limit: 10000})
	stream, err := e.watches.Watch(metadata.AppendToOutgoingContext(e.ctx, "hasleader", "true"))
	must(e, err)
	w := &watcher{e: e, stream: stream}
	w.create(&pb.WatchCreateRequest{
		Key: []byte(prefix), RangeEnd: []byte(end), StartRevision: list.Header.Revision + 1, PrevKv: true, ProgressNotify: true,
	})
	e.write(prefix+"a", "2", 2)
	e.write(prefix+"a", "", 3)
	e.write(prefix+"a", "4", 0)
	for _, want := range []string{
		"PUT " + prefix + "a=2 create=2 mod=3 version=2, was " + prefix + "a=1 create=2 mod=2 version=1",
		"DELETE " + prefix + "a= create=0 mod=4 version=0, was " + prefix + "a=2 create=2 mod=3 version=2",
		"PUT " + prefix + "a=4 create=5 mod=5 version=1, was none",
	} {
		ev := w.nextEvent()
		equal(e, "event", fmt.Sprintf("%s %s, was %s", ev.Type, show(ev.Kv), show(ev.PrevKv)), want)
	}
	for range 10 {
		rev := e.put("/registry/leases/x", "")
		w.requestProgress()
		resp := w.next()
		equal(e, "id of the progress", resp.WatchId, -1)
		equal(e, "progress", resp.Header.Revision, rev)
	}
}

// kubeCompaction is how several kube-apiservers agree on who compacts.
func kubeCompaction(e *env) {
	const key = "compact_rev_key"
	step := func(version int64, rev string) *pb.TxnResponse {
		e.Helper()
		return e.txn(&pb.TxnRequest{
			Compare: []*pb.Compare{{
				Key: []byte(key), Target: pb.Compare_VERSION, Result: pb.Compare_EQUAL,
				TargetUnion: &pb.Compare_Version{Version: version},
			}},
			Success: []*pb.RequestOp{opPut(key, rev)}, Failure: []*pb.RequestOp{opGet(key)},
		})
	}
	equal(e, "the first", step(0, "1").Succeeded, true)
	lost := step(0, "1")
	equal(e, "another", lost.Succeeded, false)
	found := lost.Responses[0].GetResponseRange().Kvs[0]
	equal(e, "what it finds", show(found), key+"=1 create=2 mod=2 version=1")
	rev := e.put("a", "1")
	equal(e, "five minutes later", step(found.Version, fmt.Sprint(rev)).Succeeded, true)
	_, err := e.kv.Compact(e.ctx, &pb.CompactionRequest{Revision: rev})
	must(e, err)
	hash, err := e.maint.HashKV(e.ctx, &pb.HashKVRequest{})
	must(e, err)
	equal(e, "compacted", hash.CompactRevision, rev)
}
