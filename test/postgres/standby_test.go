package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/test/harness"
	"github.com/keelson-io/keelson/test/internal/faults"
)

const (
	failoverInstances = 2
	failoverWriters   = 4
)

// pair is a primary with an asynchronous standby, and the instances that know
// of both.
type pair struct {
	*cluster
	primary, standby *harness.Postgres
}

func startPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{primary: harness.StartPostgres(t)}
	p.cluster = &cluster{t: t, db: p.primary}
	p.standby = p.primary.StartStandby(t)
	for n := range failoverInstances {
		i := &instance{name: string(rune('a' + n)), proxy: harness.StartProxy(t, p.primary.Dir)}
		url := harness.PostgresURL(i.proxy.Dir+","+p.standby.Dir, schema, "target_session_attrs=read-write")
		i.Server = startInstance(t, i.name, url)
		p.instances = append(p.instances, i)
	}
	keepLog(t, p.primary)
	return p
}

// caughtUp waits until the standby has all that the primary has committed.
func (p *pair) caughtUp() {
	p.t.Helper()
	position := query(p.t, p.primary, "SELECT pg_current_wal_flush_lsn()")[0]
	faults.Eventually(p.t, "the standby catches up", func() bool {
		return query(p.t, p.standby, "SELECT pg_last_wal_replay_lsn() >= '"+position+"'")[0] == "t"
	})
}

// disconnect ends the replication: what is committed from now on is lost if
// the primary is.
func (p *pair) disconnect() {
	p.t.Helper()
	query(p.t, p.standby, "ALTER SYSTEM SET primary_conninfo = ''")
	query(p.t, p.standby, "SELECT pg_reload_conf()")
	faults.Eventually(p.t, "the standby does not receive any more", func() bool {
		return query(p.t, p.standby, "SELECT count(*) FROM pg_stat_wal_receiver")[0] == "0"
	})
}

// failOver kills the primary for good and promotes the standby.
func (p *pair) failOver() {
	p.t.Helper()
	if err := p.primary.Kill(); err != nil {
		p.t.Fatal(err)
	}
	if done := query(p.t, p.standby, "SELECT pg_promote()"); done[0] != "t" {
		p.t.Fatalf("pg_promote: %q", done)
	}
	p.db = p.standby
}

// shown is all that clients were ever shown: what each revision has done.
type shown struct {
	t *testing.T

	mu sync.Mutex
	// Guarded by mu.
	byRevision map[int64]faults.Event
	answered   map[int64]string // keys of puts by the revision of their answers
	highest    int64

	puts atomic.Int64 // answered
}

func newShown(t *testing.T) *shown {
	return &shown{t: t, byRevision: map[int64]faults.Event{}, answered: map[int64]string{}}
}

// see notes what a client was shown. A revision is one thing, for ever.
func (s *shown) see(who string, e faults.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if before, ok := s.byRevision[e.Revision]; ok && before != e {
		s.t.Errorf("%s is shown %+v; before, that revision was shown as %+v", who, e, before)
	}
	s.byRevision[e.Revision] = e
	s.highest = max(s.highest, e.Revision)
}

func (s *shown) newest() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.highest
}

// write puts keys of its own until ctx ends.
func (s *shown) write(ctx context.Context, c *clientv3.Client, writer int) {
	for n := 0; ctx.Err() == nil; n++ {
		time.Sleep(faults.ClientRest)
		before := s.newest()
		e := faults.Event{Kind: "put", Key: fmt.Sprintf("key/%d", n%50), Value: fmt.Sprintf("%d-%d", writer, n)}
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		resp, err := c.Put(try, e.Key, e.Value)
		cancel()
		if err != nil {
			continue
		}
		if e.Revision = resp.Header.Revision; e.Revision <= before {
			s.t.Errorf("a put was answered with revision %d after %d had been shown", e.Revision, before)
		}
		s.see("a writer", e)
		s.mu.Lock()
		s.answered[e.Revision] = e.Value
		s.mu.Unlock()
		s.puts.Add(1)
	}
}

// read reads, linearizably, until ctx ends. What it is shown is never older
// than what anybody was shown before.
func (s *shown) read(ctx context.Context, c *clientv3.Client) {
	for ctx.Err() == nil {
		time.Sleep(faults.ClientRest)
		before := s.newest()
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		resp, err := c.Get(try, "key/", clientv3.WithPrefix())
		cancel()
		if err != nil {
			continue
		}
		if resp.Header.Revision < before {
			s.t.Errorf("a read was answered at revision %d after %d had been shown", resp.Header.Revision, before)
		}
		for _, kv := range resp.Kvs {
			s.see("a reader", faults.Event{Revision: kv.ModRevision, Kind: "put", Key: string(kv.Key), Value: string(kv.Value)})
		}
	}
}

// watch watches, and lists anew where it is told that it missed something, as
// an informer does, until ctx ends. It reports each time that it was told so.
func (s *shown) watch(ctx context.Context, who string, c *clientv3.Client, missed chan<- int64) {
	for next := int64(2); ctx.Err() == nil; {
		for resp := range c.Watch(clientv3.WithRequireLeader(ctx), "key/", clientv3.WithPrefix(), clientv3.WithRev(next)) {
			if err := resp.Err(); err != nil {
				if ctx.Err() == nil && !errors.Is(err, rpctypes.ErrCompacted) {
					s.t.Logf("the watch on %s ended: %v", who, err)
				}
				break
			}
			for _, ev := range resp.Events {
				s.see("the watch on "+who, faults.EventOf(ev))
				next = ev.Kv.ModRevision + 1
			}
		}
		resp, err := c.Get(ctx, "key/", clientv3.WithPrefix())
		if err != nil {
			continue
		}
		for _, kv := range resp.Kvs {
			s.see("a list on "+who, faults.Event{Revision: kv.ModRevision, Kind: "put", Key: string(kv.Key), Value: string(kv.Value)})
		}
		next = resp.Header.Revision + 1
		missed <- resp.Header.Revision
	}
}

// failover is the load of the tests below.
type failover struct {
	*pair
	*shown
	missed  []chan int64 // of each instance's watch
	cancel  context.CancelFunc
	running sync.WaitGroup
}

func startFailover(t *testing.T) *failover {
	f := &failover{pair: startPair(t), shown: newShown(t)}
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel = cancel
	t.Cleanup(f.end)
	for n, i := range f.instances {
		f.missed = append(f.missed, make(chan int64, 1000))
		for w := range failoverWriters {
			c := i.client(t)
			f.running.Go(func() { f.write(ctx, c, n*failoverWriters+w) })
		}
		reader, watcher := i.client(t), i.client(t)
		f.running.Go(func() { f.read(ctx, reader) })
		f.running.Go(func() { f.watch(ctx, i.name, watcher, f.missed[n]) })
	}
	return f
}

func (f *failover) end() {
	f.cancel()
	f.running.Wait()
}

// progress waits for n more puts to be answered.
func (f *failover) progress(n int64) {
	f.t.Helper()
	target := f.puts.Load() + n
	faults.Eventually(f.t, "puts are answered", func() bool { return f.puts.Load() >= target })
}

// TestFailover: a standby that has everything takes over. Nobody is restarted,
// nothing is lost, and no watch is interrupted.
func TestFailover(t *testing.T) {
	t.Parallel()
	f := startFailover(t)
	f.progress(200)
	// A moment without writes, so that what is acknowledged is replicated.
	f.end()
	f.caughtUp()
	before := f.newest()
	watching := faults.NewWatchers(t)
	for _, i := range f.instances {
		watching.Add(i.name, i.client(t), 2)
	}
	f.failOver()
	c := faults.NewClient(t, f.endpoints()...)
	took := faults.Retry(t, "a put after the failover", func(ctx context.Context) error {
		resp, err := c.Put(ctx, "last", "")
		if err == nil && resp.Header.Revision <= before {
			t.Errorf("revision %d after %d", resp.Header.Revision, before)
		}
		return err
	})
	for _, i := range f.instances {
		f.alive(t, i)
	}
	resp, err := c.Get(t.Context(), "last")
	if err != nil {
		t.Fatal(err)
	}
	log := readLog(t, f.db)
	faults.CheckLog(t, log, resp.Header.Revision)
	events := watching.Check(log, resp.Header.Revision)
	if lost := f.compare(t, log); lost != 0 {
		t.Errorf("%d of %d acknowledged puts are lost", lost, f.puts.Load())
	}
	t.Logf("%v after the failover the first put was answered; %d puts, none lost, %d watched events", took, f.puts.Load(), events)
}

func (f *failover) alive(t *testing.T, i *instance) {
	t.Helper()
	select {
	case <-i.Done():
		t.Fatalf("%s has ended:\n%s", i.name, i.LogTail(5))
	default:
	}
}

// compare checks that the log has all that was ever shown, and returns how much
// of what was answered it has not.
func (f *failover) compare(t *testing.T, log []faults.Event) (lost int) {
	t.Helper()
	committed := map[int64]faults.Event{}
	for _, e := range log {
		committed[e.Revision] = e
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for revision, e := range f.byRevision {
		if got, ok := committed[revision]; ok && got != e {
			t.Errorf("revision %d is %+v in the log and was shown as %+v", revision, got, e)
		}
	}
	for revision := range f.answered {
		if _, ok := committed[revision]; !ok {
			lost++
		}
	}
	return lost
}

// TestFailoverThatLoses: a standby that has not got the newest commits takes
// over, while clients write, read and watch. No revision is used again, every
// watch is told that it missed something, and keelson serves again, without a
// restart.
func TestFailoverThatLoses(t *testing.T) {
	t.Parallel()
	f := startFailover(t)
	f.progress(200)
	f.caughtUp()
	kept := f.newest() // at least up to here the standby has everything
	f.caughtUp()
	f.disconnect()
	f.progress(200)
	last := f.newest()
	f.failOver()
	began := time.Now()
	for _, i := range f.instances {
		f.serveAgain(t, i)
	}
	t.Logf("all instances serve %v after the failover", time.Since(began).Round(time.Millisecond))
	f.progress(200)
	for n, i := range f.instances {
		f.watchWasTold(t, i, f.missed[n], last)
	}
	f.end()
	log := readLog(t, f.db)
	lost := f.compare(t, log)
	if lost == 0 {
		t.Error("nothing was lost: the test did not test anything")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for revision := range f.answered {
		if revision <= kept && !contains(log, revision) {
			t.Errorf("revision %d was acknowledged and replicated, and is lost", revision)
		}
	}
	t.Logf("%d puts, %d of them lost; the revision went from %d to %d", f.puts.Load(), lost, last, f.highest)
}

func contains(log []faults.Event, revision int64) bool {
	at := faults.From(log, revision)
	return len(at) > 0 && at[0].Revision == revision
}

// serveAgain waits until an instance serves, without a restart.
func (f *failover) serveAgain(t *testing.T, i *instance) {
	t.Helper()
	c := i.client(t)
	faults.Retry(t, "a put through "+i.name+" after the failover", func(ctx context.Context) error {
		f.alive(t, i)
		_, err := c.Put(ctx, "alive", i.name)
		return err
	})
}

// watchWasTold waits until the watch on an instance has listed anew, above all
// that was shown before the failover.
func (f *failover) watchWasTold(t *testing.T, i *instance, missed <-chan int64, last int64) {
	t.Helper()
	limit := time.After(faults.Patience)
	for {
		select {
		case revision := <-missed:
			if revision > last {
				return
			}
		case <-limit:
			t.Fatalf("the watch on %s was not told that it missed something:\n%s", i.name, i.LogTail(10))
		}
	}
}
