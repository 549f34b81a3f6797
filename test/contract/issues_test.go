package contract

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// noTimeTravel kills the server while one client writes and another watches:
// the watch goes on where it was, with nothing twice and nothing left out.
func noTimeTravel(e *env) {
	c := e.client()
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	var writers sync.WaitGroup
	defer writers.Wait()
	defer cancel()
	writers.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			_, _ = e.kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: []byte(fmt.Sprint(i))}) // its end may be unknown
		}
	})
	next := int64(2)
	for resp := range c.Watch(ctx, "k", clientv3.WithRev(2), clientv3.WithProgressNotify()) {
		must(e, resp.Err())
		for _, ev := range resp.Events {
			if ev.Kv.ModRevision != next {
				e.Fatalf("revision %d, want %d", ev.Kv.ModRevision, next)
			}
			if next++; next%400 == 0 {
				e.srv.Restart()
			}
		}
		if next > 1300 {
			return
		}
	}
}

// crashWhileCompacting compacts at a tombstone, which is the newest revision
// and the last record of its key, and kills the server at once.
func crashWhileCompacting(e *env) {
	const keys = 300
	for i := range 6 {
		for from := 0; from < keys; from += 100 {
			e.txn(&pb.TxnRequest{Success: puts(from, 100)})
		}
		rev := e.del("k", "l").Header.Revision
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = e.kv.Compact(e.ctx, &pb.CompactionRequest{Revision: rev, Physical: i%2 == 0}) // killed, most of the times
		}()
		if i%3 == 0 {
			<-done
		}
		e.srv.Restart()
		<-done
		equal(e, fmt.Sprint("revision after crash ", i), e.rev(), rev)
		equal(e, "what is left", e.rng(&pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), CountOnly: true}).Count, 0)
		w := e.watch()
		w.create(&pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l"), StartRevision: rev})
		for range keys {
			ev := w.nextEvent()
			if ev.Type != mvccpb.Event_DELETE || ev.Kv.ModRevision != rev {
				e.Fatalf("after crash %d: %v, want the deletes of revision %d", i, ev, rev)
			}
		}
		must(e, w.stream.CloseSend())
	}
}

// futureWatchAcrossRestart lets a client lose its connection when it has been
// told of progress: it must not come back for less than it asked for.
func futureWatchAcrossRestart(e *env) {
	c := e.client()
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	watch := c.Watch(ctx, "k", clientv3.WithRev(6), clientv3.WithProgressNotify(), clientv3.WithCreatedNotify())
	created := <-watch
	equal(e, "created", created.Created, true)
	quiet := e.watch()
	req := all()
	req.ProgressNotify = true
	quiet.create(req)
	for range 3 { // intervals in which the other watcher could be told, too
		equal(e, "events", len(quiet.next().Events), 0)
	}
	e.put("k", "2")
	e.put("k", "3")
	e.srv.Restart()
	for i := 4; i < 8; i++ {
		e.put("k", fmt.Sprint(i))
	}
	for want := int64(6); want < 8; {
		resp := <-watch
		must(e, resp.Err())
		if len(resp.Events) == 0 && resp.Header.Revision < want-1 {
			e.Errorf("progress %d before the start", resp.Header.Revision)
		}
		for _, ev := range resp.Events {
			equal(e, "revision", ev.Kv.ModRevision, want)
			want++
		}
	}
}

// pausedServer stops the process for longer than an election takes, again and
// again: what is read is never older than what was acknowledged before.
func pausedServer(e *env) {
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	var acknowledged atomic.Int64
	var clients sync.WaitGroup
	e.grant(1, 4)
	e.attach("leased", 1)
	clients.Go(func() {
		for ctx.Err() == nil {
			resp, err := e.kv.Put(ctx, &pb.PutRequest{Key: []byte("k")})
			if err == nil {
				acknowledged.Store(resp.Header.Revision)
			}
		}
	})
	for range 3 {
		clients.Go(func() {
			for ctx.Err() == nil {
				least := acknowledged.Load()
				resp, err := e.kv.Range(ctx, &pb.RangeRequest{Key: []byte("k")})
				if err == nil && resp.Header.Revision < least {
					e.Errorf("read revision %d when %d was acknowledged", resp.Header.Revision, least)
				}
			}
		})
	}
	for range 3 {
		must(e, syscall.Kill(e.srv.PID(), syscall.SIGSTOP))
		time.Sleep(1500 * time.Millisecond) // nothing of a stopped process can be waited for
		must(e, syscall.Kill(e.srv.PID(), syscall.SIGCONT))
		before := acknowledged.Load()
		must(e, e.srv.WaitReady(patience, func(context.Context) error {
			if now := acknowledged.Load(); now < before+20 {
				return fmt.Errorf("acknowledged %d, then %d", before, now)
			}
			return nil
		}))
	}
	cancel()
	clients.Wait()
	must(e, e.srv.WaitReady(patience, func(context.Context) error {
		if e.get("leased").Count != 0 {
			return fmt.Errorf("the lease has not expired")
		}
		return nil
	}))
}
