package faults

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/test/internal/linearizable"
)

// The load is slow enough that the history can be checked, and that the clients
// of all servers get a turn on two processors.
const (
	Keys       = 6
	perServer  = 3 // clients of each server
	ClientRest = 4 * time.Millisecond
)

// Load is racing clients of several servers, requests and leases, and watches
// of everything through each of the servers.
type Load struct {
	Watchers *Watchers

	t       testing.TB
	rnd     *rand.Rand
	rec     *linearizable.Recorder
	ctx     context.Context //nolint:containedctx // ends the clients
	cancel  context.CancelFunc
	running sync.WaitGroup
	clients int
	servers []func() *clientv3.Client // each makes a client of one
}

// StartLoad returns one of no servers yet. It ends with the test.
func StartLoad(t testing.TB, rnd *rand.Rand) *Load {
	l := &Load{Watchers: NewWatchers(t), t: t, rnd: rnd, rec: linearizable.New(Keys)}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	t.Cleanup(l.End)
	return l
}

// Add lets clients race through one more server, or several of which each of
// them uses any, and watches everything from the first revision on through it,
// and through it and those before it in turn.
func (l *Load) Add(name string, endpoints ...string) {
	client := func() *clientv3.Client { return NewClient(l.t, endpoints...) }
	l.servers = append(l.servers, client)
	l.Watchers.Add(name, client(), 2)
	for range perServer {
		id, c := l.clients, client()
		l.clients++
		l.running.Go(func() { l.rec.Run(l.ctx, c, id, ClientRest) })
	}
	clients := []*clientv3.Client{client()}
	for _, other := range l.servers {
		clients = append(clients, other())
	}
	tenant := NewTenant(l.t, name, clients)
	l.running.Go(func() { tenant.Run(l.ctx, 10*ClientRest) })
	l.Watchers.AddWanderer(name+" and others in turn", clients, 2, l.rnd)
}

// Go runs f beside the clients; it ends with the context.
func (l *Load) Go(f func(context.Context)) { l.running.Go(func() { f(l.ctx) }) }

// Flows waits until requests are answered.
func (l *Load) Flows(when string) {
	l.t.Helper()
	before := l.rec.Answered()
	Eventually(l.t, "requests are answered "+when, func() bool { return l.rec.Answered() > before+200 })
}

// End ends the clients; watches go on.
func (l *Load) End() {
	l.cancel()
	l.running.Wait()
}

// Check compares, after End, what all were told with the log, which ends with
// revision last, and with each other.
func (l *Load) Check(log []Event, last int64) {
	t := l.t
	t.Helper()
	log = upTo(log, last) // a lease may have expired since
	CheckLog(t, log, last)
	events := l.Watchers.Check(log, last)
	answers := checkAnswers(t, l.rec, log)
	l.rec.Check(t, Patience)
	t.Logf("%d revisions; %d answers and %d watched events agree with the log", last, answers, events)
}
