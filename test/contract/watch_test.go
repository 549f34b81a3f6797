package contract

import (
	"context"
	"fmt"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

var watches = []statement{
	{name: "23_create_errors", run: watchCreateErrors},
	{name: "23_watch_ids", run: watchIDs},
	{name: "23_empty_key", run: watchEmptyKey},
	{name: "24_created_first_and_cancel", run: watchCancel},
	{name: "25_compacted", run: watchCompacted},
	{name: "26_future", run: watchFuture},
	{name: "26_no_progress_before_start", run: noProgressBeforeStart, args: []string{"--watch-progress-notify-interval=100ms"}},
	{name: "27_whole_revisions", run: watchWholeRevisions},
	{name: "27_catching_up", run: watchCatchUp},
	{name: "28_fragments", run: watchFragments},
	{name: "28_one_large_event", run: oneLargeEvent},
	{name: "29_filters_and_prev_kv", run: watchFilters},
	{name: "29_prev_kv_of_a_txn", run: watchPrevKVOfTxn},
	{name: "30_progress_notify", run: watchProgressNotify, args: []string{"--watch-progress-notify-interval=300ms"}},
	{name: "30_progress_after_events", run: progressAfterEvents, args: []string{"--watch-progress-notify-interval=300ms"}},
	{name: "30_progress_request", run: watchProgressRequest},
	{name: "31_stream_end", run: watchStreamEnd},
	{name: "31_watch_canceled", run: watchCanceled},
}

// watcher is one watch stream.
type watcher struct {
	e      *env
	stream pb.Watch_WatchClient
	events []*mvccpb.Event // received and not yet handed out by nextEvent
}

func (e *env) watch() *watcher {
	e.Helper()
	stream, err := e.watches.Watch(e.ctx)
	must(e, err)
	return &watcher{e: e, stream: stream}
}

func (w *watcher) send(req *pb.WatchRequest) {
	w.e.Helper()
	must(w.e, w.stream.Send(req))
}

func (w *watcher) ask(req *pb.WatchCreateRequest) {
	w.e.Helper()
	w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}})
}

func (w *watcher) cancel(id int64) {
	w.e.Helper()
	w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
}

func (w *watcher) requestProgress() {
	w.e.Helper()
	w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
}

// next returns the next response.
func (w *watcher) next() *pb.WatchResponse {
	w.e.Helper()
	resp, err := w.stream.Recv()
	must(w.e, err)
	return resp
}

// create creates a watcher and returns the response that says so.
func (w *watcher) create(req *pb.WatchCreateRequest) *pb.WatchResponse {
	w.e.Helper()
	w.ask(req)
	resp := w.next()
	if !resp.Created || resp.Canceled || len(resp.Events) != 0 {
		w.e.Fatalf("created: got %v", resp)
	}
	return resp
}

// nextEvent returns the next event of the stream, whatever watcher it is for.
func (w *watcher) nextEvent() *mvccpb.Event {
	w.e.Helper()
	for len(w.events) == 0 {
		w.events = w.next().Events
	}
	ev := w.events[0]
	w.events = w.events[1:]
	return ev
}

func all() *pb.WatchCreateRequest {
	return &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}}
}

func watchCreateErrors(e *env) {
	w := e.watch()
	refused := func(what, reason string, req *pb.WatchCreateRequest) {
		e.Helper()
		w.ask(req)
		resp := w.next()
		if !resp.Created || !resp.Canceled || resp.WatchId != -1 || resp.CancelReason != reason {
			e.Errorf("%s: got %v, want reason %q", what, resp, reason)
		}
		equal(e, what+": header", resp.Header.Revision, 1)
		equal(e, what+": compact revision", resp.CompactRevision, 0)
	}
	refused("a negative revision", textCompacted, &pb.WatchCreateRequest{Key: []byte("a"), StartRevision: -1})
	const empty = "mvcc: watcher range is empty"
	refused("an empty range", empty, &pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("b")})
	refused("an inverted range", empty, &pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("a")})
	w.create(&pb.WatchCreateRequest{Key: []byte("a"), WatchId: 7})
	refused("a duplicate id", "mvcc: duplicate watch ID provided on the WatchStream", &pb.WatchCreateRequest{Key: []byte("b"), WatchId: 7})
	// The stream and its watcher live on.
	e.put("a", "1")
	resp := w.next()
	equal(e, "watch id", resp.WatchId, 7)
	equal(e, "event", show(resp.Events[0].Kv), "a=1 create=2 mod=2 version=1")
}

func watchIDs(e *env) {
	w := e.watch()
	create := func(id int64) int64 {
		return w.create(&pb.WatchCreateRequest{Key: []byte("a"), WatchId: id}).WatchId
	}
	equal(e, "first", create(0), 0)
	equal(e, "chosen", create(2), 2)
	equal(e, "second", create(0), 1)
	equal(e, "third skips the chosen", create(0), 3)
	equal(e, "chosen", create(100), 100)
	equal(e, "fourth", create(0), 4)
	w.cancel(1)
	resp := w.next()
	equal(e, "canceled", resp.Canceled, true)
	equal(e, "a canceled id is free to choose", create(1), 1)
	equal(e, "and not given again", create(0), 5)
}

func watchEmptyKey(e *env) {
	w := e.watch()
	w.create(&pb.WatchCreateRequest{})
	w.create(&pb.WatchCreateRequest{RangeEnd: []byte{0}})
	e.put("a", "1")
	resp := w.next()
	equal(e, "the watcher of every key", resp.WatchId, 1)
	e.put("\x00", "2")
	ids := w.next().WatchId + w.next().WatchId
	equal(e, "both watch the key of one zero byte", ids, 1)
}

func watchCancel(e *env) {
	e.put("a", "1")
	w := e.watch()
	w.ask(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 2})
	first := w.next()
	if !first.Created || len(first.Events) != 0 {
		e.Errorf("the first response is %v, want created", first)
	}
	equal(e, "header of created", first.Header.Revision, 2)
	second := w.next()
	equal(e, "events", len(second.Events), 1)
	w.cancel(42) // unknown: silence
	w.cancel(0)
	resp := w.next()
	if !resp.Canceled || resp.Created || resp.WatchId != 0 || resp.CancelReason != "" || resp.CompactRevision != 0 {
		e.Errorf("canceled: got %v", resp)
	}
	equal(e, "header of canceled", resp.Header.Revision, 2)
	e.put("a", "2")
	w.cancel(0) // unknown now
	w.create(&pb.WatchCreateRequest{Key: []byte("b"), WatchId: 9})
	e.put("b", "1")
	equal(e, "nothing of the canceled one follows", w.next().WatchId, 9)
}

func watchCompacted(e *env) {
	e.put("a", "1") // 2
	e.put("a", "2") // 3
	e.del("a", "")  // 4
	e.put("a", "3") // 5
	e.compact(4)
	w := e.watch()
	created := w.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 3})
	equal(e, "created header", created.Header.Revision, 5)
	resp := w.next()
	if !resp.Canceled || resp.Created || resp.WatchId != created.WatchId || len(resp.Events) != 0 {
		e.Errorf("canceled: got %v", resp)
	}
	equal(e, "compact revision", resp.CompactRevision, 4)
	equal(e, "header revision", resp.Header.Revision, 0)
	equal(e, "cancel reason", resp.CancelReason, "")

	w.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 4})
	ev := w.nextEvent()
	equal(e, "the delete at the compact revision", ev.Type, mvccpb.Event_DELETE)
	equal(e, "its revision", ev.Kv.ModRevision, 4)
	equal(e, "the next", show(w.nextEvent().Kv), "a=3 create=5 mod=5 version=1")
}

func watchFuture(e *env) {
	w := e.watch()
	w.create(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("z"), StartRevision: 5})
	e.put("a", "2")
	e.put("b", "3")
	w.requestProgress() // not past the start: no answer
	e.put("c", "4")
	e.put("d", "5")
	resp := w.next()
	equal(e, "first event", show(resp.Events[0].Kv), "d=5 create=5 mod=5 version=1")
	equal(e, "header", resp.Header.Revision, 5)
	e.put("e", "6")
	equal(e, "second event", show(w.nextEvent().Kv), "e=6 create=6 mod=6 version=1")
}

func watchWholeRevisions(e *env) {
	w := e.watch()
	w.create(all())
	e.txn(&pb.TxnRequest{Success: puts(0, 100)})
	resp := w.next()
	equal(e, "events of one revision in one response", len(resp.Events), 100)
	equal(e, "header of a live event", resp.Header.Revision, 2)
	for i, ev := range resp.Events {
		equal(e, "order", string(ev.Kv.Key), fmt.Sprintf("k%04d", i))
	}
	e.put("z", "1")
	resp = w.next()
	equal(e, "events", len(resp.Events), 1)
	equal(e, "header", resp.Header.Revision, 3)
}

func watchCatchUp(e *env) {
	const revisions = 2500
	for range revisions {
		e.txn(&pb.TxnRequest{Success: []*pb.RequestOp{opPut("a", "1"), opPut("b", "1")}})
	}
	current := e.rev()
	w := e.watch()
	req := all()
	req.StartRevision = 2
	w.create(req)
	next := int64(2)
	for next <= current {
		resp := w.next()
		equal(e, "header of catching up", resp.Header.Revision, current)
		distinct := map[int64]int{}
		for _, ev := range resp.Events {
			if ev.Kv.ModRevision != next && ev.Kv.ModRevision != next-1 {
				e.Fatalf("revision %d, want %d", ev.Kv.ModRevision, next)
			}
			if ev.Kv.ModRevision == next {
				next++
			}
			distinct[ev.Kv.ModRevision]++
		}
		if len(distinct) > 1000 {
			e.Errorf("%d revisions in one response", len(distinct))
		}
		for rev, n := range distinct {
			if n != 2 {
				e.Fatalf("%d events of revision %d in one response, want both", n, rev)
			}
		}
	}
	e.put("c", "live")
	resp := w.next()
	equal(e, "after catching up", show(resp.Events[0].Kv), fmt.Sprintf("c=live create=%d mod=%d version=1", current+1, current+1))
}

func watchFragments(e *env) {
	// One revision that is too large for a response: a delete of 2.4 MiB, with
	// what it deleted.
	const n = 6
	for i := range n {
		e.put(fmt.Sprint("big", i), strings.Repeat("v", 400<<10))
	}
	whole, split := all(), all()
	whole.PrevKv, split.PrevKv, split.Fragment = true, true, true
	live := e.watch()
	live.create(split)
	deleted := e.del("big", "bih")
	equal(e, "deleted", deleted.Deleted, n)
	check := func(what string, w *watcher) {
		e.Helper()
		var got []string
		responses := 0
		for len(got) < n {
			resp := w.next()
			responses++
			if proto.Size(resp) > 2<<20 {
				e.Errorf("%s: a fragment has %d bytes", what, proto.Size(resp))
			}
			for _, ev := range resp.Events {
				if ev.Kv.ModRevision == deleted.Header.Revision {
					got = append(got, string(ev.Kv.Key))
				}
			}
			if len(got) < n && !resp.Fragment {
				e.Errorf("%s: a revision was split and the response does not say so", what)
			}
		}
		equal(e, what+": events", strings.Join(got, " "), "big0 big1 big2 big3 big4 big5")
		if responses < 2 {
			e.Errorf("%s: more than 2 MiB came in one response", what)
		}
	}
	check("live", live)
	e.put("small", "v")
	resp := live.next()
	equal(e, "a small response after the fragments", resp.Fragment, false)
	equal(e, "its event", string(resp.Events[0].Kv.Key), "small")

	split.StartRevision = deleted.Header.Revision
	late := e.watch()
	late.create(split)
	check("catching up", late)
	whole.StartRevision = deleted.Header.Revision
	late = e.watch()
	late.create(whole)
	resp = late.next()
	equal(e, "fragment, when not asked for", resp.Fragment, false)
	if len(resp.Events) < n {
		e.Errorf("%d events of one revision in a response, want all %d", len(resp.Events), n)
	}
}

func watchFilters(e *env) {
	w := e.watch()
	req := func(id int64, prev bool, filters ...pb.WatchCreateRequest_FilterType) {
		r := all()
		r.WatchId, r.PrevKv, r.Filters = id, prev, filters
		w.create(r)
	}
	const deletes, plain, changes, none = 1, 2, 3, 4
	req(deletes, true, pb.WatchCreateRequest_NOPUT)
	req(changes, true, pb.WatchCreateRequest_NODELETE)
	req(none, false, pb.WatchCreateRequest_NODELETE, pb.WatchCreateRequest_NOPUT)
	req(plain, false)
	want := map[int64][]string{
		deletes: {"DELETE a prev a=2 create=2 mod=3 version=2"},
		changes: {
			"PUT a prev none", "PUT a prev a=1 create=2 mod=2 version=1", "PUT a prev none",
			"PUT b prev none",
		},
		plain: {
			"PUT a prev none", "PUT a prev none", "DELETE a prev none", "PUT a prev none",
			"PUT b prev none", "DELETE a prev none",
		},
	}
	e.put("a", "1")
	e.put("a", "2")
	e.del("a", "")
	e.put("a", "3")
	e.txn(&pb.TxnRequest{Success: []*pb.RequestOp{opPut("b", "1"), opDel("a", "")}})
	want[deletes] = append(want[deletes], "DELETE a prev a=3 create=5 mod=5 version=1")
	got := map[int64][]string{}
	for events := 0; events < 12; {
		resp := w.next()
		if len(resp.Events) == 0 {
			e.Errorf("a response without events: %v", resp)
		}
		for _, ev := range resp.Events {
			got[resp.WatchId] = append(got[resp.WatchId], fmt.Sprintf("%v %s prev %s", ev.Type, ev.Kv.Key, show(ev.PrevKv)))
			events++
		}
	}
	for id, lines := range want {
		equal(e, fmt.Sprint("watch ", id), strings.Join(got[id], "\n"), strings.Join(lines, "\n"))
	}
	equal(e, "fully filtered", len(got[none]), 0)

	// Versions that were compacted away are nobody's previous version.
	e.put("p", "1") // 7
	e.put("p", "2") // 8
	e.put("p", "3") // 9
	e.compact(8)
	late := e.watch()
	late.create(&pb.WatchCreateRequest{Key: []byte("p"), StartRevision: 8, PrevKv: true})
	equal(e, "compacted away", show(late.nextEvent().PrevKv), "none")
	equal(e, "kept", show(late.nextEvent().PrevKv), "p=2 create=7 mod=8 version=2")
}

// watchPrevKVOfTxn changes keys twice in one txn, which nesting allows: the
// previous version is the one before the txn.
func watchPrevKVOfTxn(e *env) {
	e.put("old", "1")
	live := e.watch()
	req := all()
	req.PrevKv = true
	live.create(req)
	nested := func(op *pb.RequestOp) *pb.RequestOp { return opTxn(&pb.TxnRequest{Success: []*pb.RequestOp{op}}) }
	e.txn(&pb.TxnRequest{Success: []*pb.RequestOp{
		nested(opPut("new", "1")), nested(opPut("old", "2")), nested(opDel("a", "z")),
	}})
	past := e.watch()
	req.StartRevision = 3
	past.create(req)
	for what, w := range map[string]*watcher{"live": live, "past": past} {
		for _, want := range []string{
			"PUT new prev none",
			"PUT old prev old=1 create=2 mod=2 version=1",
			"DELETE new prev none",
			"DELETE old prev old=1 create=2 mod=2 version=1",
		} {
			ev := w.nextEvent()
			equal(e, what, fmt.Sprintf("%v %s prev %s", ev.Type, ev.Kv.Key, show(ev.PrevKv)), want)
		}
	}
}

func watchProgressNotify(e *env) {
	w := e.watch()
	quiet, notify := all(), all()
	quiet.WatchId, notify.WatchId, notify.ProgressNotify = 1, 2, true
	w.create(quiet)
	w.create(notify)
	e.put("a", "1")
	for seen := 0; seen < 2; { // there may be progress before the event
		seen += len(w.next().Events)
	}
	resp := w.next()
	equal(e, "id of the progress", resp.WatchId, 2)
	equal(e, "its events", len(resp.Events), 0)
	equal(e, "its revision", resp.Header.Revision, 2)
	if resp.Created || resp.Canceled {
		e.Errorf("progress is %v", resp)
	}
	resp = w.next()
	equal(e, "id of the next progress", resp.WatchId, 2)
	e.put("b", "1")
	for {
		resp = w.next()
		if len(resp.Events) != 0 {
			break
		}
		equal(e, "progress before the event", resp.Header.Revision, 2)
	}
	equal(e, "event", show(resp.Events[0].Kv), "b=1 create=3 mod=3 version=1")
}

func watchProgressRequest(e *env) {
	w := e.watch()
	w.create(&pb.WatchCreateRequest{Key: []byte("a")})
	w.create(&pb.WatchCreateRequest{Key: []byte("b")})
	e.put("x", "1")
	e.put("a", "1")
	equal(e, "event", show(w.nextEvent().Kv), "a=1 create=3 mod=3 version=1")
	w.requestProgress()
	resp := w.next()
	equal(e, "watch id", resp.WatchId, -1)
	equal(e, "revision", resp.Header.Revision, 3)
	equal(e, "events", len(resp.Events), 0)
	if resp.Created || resp.Canceled {
		e.Errorf("progress is %v", resp)
	}
	// A progress response promises that everything up to it was delivered.
	for i := range 50 {
		rev := e.put("b", fmt.Sprint(i))
		w.requestProgress()
		for seen := int64(0); ; {
			resp := w.next()
			if resp.WatchId == -1 {
				if resp.Header.Revision >= rev && seen < rev {
					e.Fatalf("progress %d came before the event of %d", resp.Header.Revision, rev)
				}
				if seen >= rev {
					break
				}
				w.requestProgress()
				continue
			}
			seen = resp.Events[len(resp.Events)-1].Kv.ModRevision
		}
	}
	// A watcher with its start in the future holds the stream's progress back.
	w.create(&pb.WatchCreateRequest{Key: []byte("c"), StartRevision: 1000})
	w.requestProgress()
	// The next response is not the progress.
	w.create(&pb.WatchCreateRequest{Key: []byte("d"), WatchId: 77})
}

func watchStreamEnd(e *env) {
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	stream, err := e.watches.Watch(metadata.AppendToOutgoingContext(ctx, "hasleader", "true"))
	must(e, err)
	must(e, stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: all()}}))
	resp, err := stream.Recv()
	must(e, err)
	equal(e, "created on a stream that requires a leader", resp.Created, true)
	e.put("a", "1")
	resp, err = stream.Recv()
	must(e, err)
	equal(e, "event", len(resp.Events), 1)
	must(e, stream.CloseSend())
	cancel()
	_, err = stream.Recv()
	e.fails("canceled by the client", err, codes.Canceled, "context canceled")
	// Unset and unknown requests leave the stream alone.
	w := e.watch()
	w.send(&pb.WatchRequest{})
	w.create(all())
	e.put("b", "1")
	equal(e, "event after an unset request", string(w.nextEvent().Kv.Key), "b")
}
