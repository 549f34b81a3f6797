package contract

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// noProgressBeforeStart has a watcher that wants progress and starts in the
// future, beside one that gets it.
func noProgressBeforeStart(e *env) {
	w := e.watch()
	future, now := all(), all()
	future.WatchId, future.ProgressNotify, future.StartRevision = 1, true, 4
	now.WatchId, now.ProgressNotify = 2, true
	w.create(future)
	w.create(now)
	quiet := func(n int) {
		e.Helper()
		for range n {
			resp := w.next()
			equal(e, "id of the progress", resp.WatchId, 2)
			equal(e, "events", len(resp.Events), 0)
		}
	}
	quiet(4)
	e.put("a", "2")
	e.put("a", "3")
	for seen := 0; seen < 2; {
		resp := w.next()
		equal(e, "id before the start", resp.WatchId, 2)
		seen += len(resp.Events)
	}
	quiet(4)
	e.put("a", "4")
	for seen := false; !seen; {
		resp := w.next()
		if resp.WatchId == 1 {
			equal(e, "the first of the watcher in the future", show(resp.Events[0].Kv), "a=4 create=2 mod=4 version=3")
			seen = true
		}
	}
	for {
		if resp := w.next(); resp.WatchId == 1 {
			equal(e, "events of its progress", len(resp.Events), 0)
			equal(e, "its progress", resp.Header.Revision, 4)
			return
		}
	}
}

// progressAfterEvents: the progress that is due after an event is left out. By
// then every other watcher of the stream, which saw none, has been told of its own.
func progressAfterEvents(e *env) {
	const first, others = 1, 9
	w := e.watch()
	req := all()
	req.WatchId, req.ProgressNotify = first, true
	w.ask(req)
	for i := range others {
		w.ask(&pb.WatchCreateRequest{Key: []byte("quiet"), WatchId: int64(first + 1 + i), ProgressNotify: true})
	}
	for created := 0; created < 1+others; { // those that are may have progress before the next one is
		if w.next().Created {
			created++
		}
	}
	var between []int // how many of them were told between an event and the progress
	for i := range 5 {
		e.put("k", fmt.Sprint(i))
		for len(w.next().Events) == 0 {
		}
		told := 0
		for w.next().WatchId != first {
			told++
		}
		between = append(between, told)
	}
	slices.Sort(between)
	if between[2] < others { // one that was on its way may come after the event
		e.Errorf("between events and progress so many of %d other watchers were told of theirs: %v", others, between)
	}
}

// oneLargeEvent is above the limit of a fragment with nothing to split.
func oneLargeEvent(e *env) {
	w := e.watch()
	req := all()
	req.PrevKv, req.Fragment = true, true
	w.create(req)
	for i := range 2 {
		e.put("k", strings.Repeat(fmt.Sprint(i), 1400<<10))
		resp := w.next()
		equal(e, "events", len(resp.Events), 1)
		equal(e, "fragment", resp.Fragment, false)
	}
}

// watchCanceled looks at what the server says of a stream that its client has
// cancelled: the client itself hears only its own.
func watchCanceled(e *env) {
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	stream, err := e.watches.Watch(ctx)
	must(e, err)
	must(e, stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: all()}}))
	_, err = stream.Recv()
	must(e, err)
	cancel()
	const want = `grpc_server_handled_total{grpc_code="Canceled",grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"} 1`
	must(e, e.srv.WaitReady(30*time.Second, func(ctx context.Context) error {
		_, body, err := e.srv.Get(ctx, "/metrics")
		if err == nil && !strings.Contains(body, want) {
			err = fmt.Errorf("the metrics do not have %s", want)
		}
		return err
	}))
}
