package contract

import (
	"context"
	"fmt"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
)

// history holds a test for each bug that etcd once had and a reader of its
// API was hurt by; the numbers are those of etcd's issues.
var history = []statement{
	{name: "issue_14370_acknowledged_write_survives", run: acknowledgedSurvives},
	{name: "issue_15220_progress_not_ahead", run: progressNotAhead},
	{name: "issue_15271_no_time_travel", run: noTimeTravel},
	{name: "issue_17529_slow_watcher", run: slowWatcher},
	{name: "issue_17780_crash_in_compaction", run: crashWhileCompacting},
	{name: "issue_18089_delete_at_compaction", run: deleteAtCompaction},
	{name: "issue_18667_compacted_in_txn", run: compactedInTxn},
	{name: "issue_20221_watch_of_the_future", run: futureWatchAcrossRestart, args: []string{"--watch-progress-notify-interval=100ms"}},
	{name: "issue_20418_paused_process", run: pausedServer},
	{name: "clientv3_errors", run: clientErrors},
}

func acknowledgedSurvives(e *env) {
	for i := range 20 {
		rev := e.put("k", fmt.Sprint(i))
		e.srv.Restart()
		resp := e.get("k")
		equal(e, "value after a crash", string(resp.Kvs[0].Value), fmt.Sprint(i))
		equal(e, "mod revision after a crash", resp.Kvs[0].ModRevision, rev)
		equal(e, "revision after a crash", resp.Header.Revision, rev)
		if i == 4 {
			return
		}
	}
}

func progressNotAhead(e *env) {
	w := e.watch()
	w.create(all())
	const writes = 2000
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := range writes {
			if _, err := e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte(fmt.Sprint("k", i%7))}); err != nil {
				e.Errorf("put: %v", err)
				return
			}
		}
	})
	writer.Go(func() {
		for range writes / 4 {
			if err := w.stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}); err != nil {
				e.Errorf("progress request: %v", err)
				return
			}
		}
	})
	seen := int64(1)
	for seen < writes+1 {
		resp := w.next()
		if resp.WatchId == -1 && resp.Header.Revision > seen {
			e.Fatalf("progress %d when the events of %d had come", resp.Header.Revision, seen)
		}
		for _, ev := range resp.Events {
			if ev.Kv.ModRevision != seen+1 {
				e.Fatalf("event %d after %d", ev.Kv.ModRevision, seen)
			}
			seen = ev.Kv.ModRevision
		}
	}
	writer.Wait()
}

// slowWatcher does not read while more is written than any buffer holds.
func slowWatcher(e *env) {
	slow, quick := e.watch(), e.watch()
	slow.create(all())
	quick.create(all())
	value := string(make([]byte, 64<<10))
	const writes = 1500
	var reader sync.WaitGroup
	reader.Go(func() {
		for n := 0; n < writes; {
			resp, err := quick.stream.Recv()
			if err != nil {
				e.Errorf("quick watcher: %v", err)
				return
			}
			n += len(resp.Events)
		}
	})
	for range writes {
		e.put("k", value)
	}
	reader.Wait()
	for want := int64(2); want < 2+writes; want++ {
		if got := slow.nextEvent().Kv.ModRevision; got != want {
			e.Fatalf("the slow watcher got revision %d, want %d", got, want)
		}
	}
}

func deleteAtCompaction(e *env) {
	e.put("a", "1") // 2
	e.put("b", "1") // 3
	e.del("a", "")  // 4
	e.put("b", "2") // 5
	w := e.watch()
	e.compact(4)
	w.create(&pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: 4})
	ev := w.nextEvent()
	equal(e, "type", ev.Type, mvccpb.Event_DELETE)
	equal(e, "key", string(ev.Kv.Key), "a")
	e.srv.Restart()
	late := e.watch()
	late.create(&pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: 4})
	ev = late.nextEvent()
	equal(e, "type after a crash", ev.Type, mvccpb.Event_DELETE)
	equal(e, "key after a crash", string(ev.Kv.Key), "a")
	equal(e, "next after a crash", string(late.nextEvent().Kv.Value), "2")
}

func compactedInTxn(e *env) {
	e.put("a", "1")
	e.put("a", "2")
	e.put("a", "3")
	e.compact(3)
	_, err := e.kv.Txn(e.ctx, &pb.TxnRequest{Success: []*pb.RequestOp{
		opPut("b", "1"),
		opRange(&pb.RangeRequest{Key: []byte("a"), Revision: 2}),
	}})
	e.fails("a compacted revision in a writing txn", err, codes.OutOfRange, textCompacted)
	_, err = e.kv.Txn(e.ctx, &pb.TxnRequest{Success: []*pb.RequestOp{opRange(&pb.RangeRequest{Key: []byte("a"), Revision: 2})}})
	e.fails("a compacted revision in a reading txn", err, codes.OutOfRange, textCompacted)
	equal(e, "revision", e.rev(), 4)
	equal(e, "revision of the next put", e.put("c", "1"), 5)
}

// clientErrors checks that clientv3 recognizes what the server says.
func clientErrors(e *env) {
	c := e.client()
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	for range 3 {
		_, err := c.Put(ctx, "k", "v")
		must(e, err)
	}
	_, err := c.Compact(ctx, 3)
	must(e, err)
	_, err = c.Get(ctx, "k", clientv3.WithRev(2))
	equal(e, "compacted", err, rpctypes.ErrCompacted)
	_, err = c.Get(ctx, "k", clientv3.WithRev(99))
	equal(e, "future", err, rpctypes.ErrFutureRev)
	_, err = c.Put(ctx, "k", "v", clientv3.WithLease(99))
	equal(e, "lease", err, rpctypes.ErrLeaseNotFound)
	_, err = c.Revoke(ctx, 99)
	equal(e, "revoke", err, rpctypes.ErrLeaseNotFound)
	_, err = c.Put(ctx, "", "v")
	equal(e, "empty key", err, rpctypes.ErrEmptyKey)
	_, err = c.Put(ctx, "none", "", clientv3.WithIgnoreValue())
	equal(e, "no such key", err, rpctypes.ErrKeyNotFound)
	_, err = c.Txn(ctx).Then(clientv3.OpPut("a", ""), clientv3.OpPut("a", "")).Commit()
	equal(e, "duplicate", err, rpctypes.ErrDuplicateKey)
	resp := <-c.Watch(ctx, "k", clientv3.WithRev(1))
	equal(e, "compacted watch", resp.Err(), rpctypes.ErrCompacted)
	equal(e, "its compact revision", resp.CompactRevision, 3)
}
