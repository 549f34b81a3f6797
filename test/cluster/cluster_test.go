// Package cluster runs three or five keelsons that replicate their data, harms
// them and what is between them, and checks what clients were told against
// each other.
//
// What is random follows from a seed, which a failing test ends with:
// KEELSON_SEED repeats it. KEELSON_CRASH_ROUNDS sets how often each kind of
// harm is done (default 1).
package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/keelson-io/keelson/test/harness"
	"github.com/keelson-io/keelson/test/internal/linearizable"
)

const (
	// patience bounds every wait; nothing here takes it when all is well.
	patience = time.Minute

	keys       = 6
	perClient  = 3 // clients of each node
	clientRest = 4 * time.Millisecond
)

func number(t *testing.T, variable string, otherwise uint64) uint64 {
	t.Helper()
	env := os.Getenv(variable)
	if env == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(env, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q: it is a number", variable, env)
	}
	return n
}

// node is one keelson; the others reach it through proxy.
type node struct {
	*harness.Server
	name   string
	proxy  *harness.Proxy
	client *clientv3.Client
}

// startNodes starts a new cluster of n.
func startNodes(t *testing.T, n int) []*node {
	t.Helper()
	dir := harness.TempDir(t)
	var nodes []*node
	var initial []string
	for i := range n {
		name := fmt.Sprint("n", i)
		x := &node{name: name, proxy: harness.StartProxyTo(t, filepath.Join(dir, name))}
		nodes = append(nodes, x)
		initial = append(initial, name+"=unix://"+x.proxy.Socket())
	}
	var starting sync.WaitGroup
	for i, x := range nodes {
		starting.Go(func() { // a node is healthy once there is a leader
			x.Server = harness.NewServer(t, harness.Keelson, harness.KeelsonBinary(t),
				"--name", x.name, "--initial-cluster", strings.Join(initial, ","),
				"--listen-peer-urls", "unix://"+filepath.Join(dir, fmt.Sprint("n", i)),
				"--heartbeat-interval", "50", "--election-timeout", "500", "--snapshot-count", "500")
			if err := x.TryRestart(); err != nil {
				t.Error(err)
			}
		})
	}
	starting.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, x := range nodes {
		x.client = x.newClient(t)
	}
	return nodes
}

// newClient returns a client of this node alone.
func (x *node) newClient(t *testing.T) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{x.Endpoint}, DialTimeout: patience,
		DialKeepAliveTime: time.Second, DialKeepAliveTimeout: time.Second,
		Logger: zap.NewNop(), // it warns of every request that fails
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (x *node) leads(ctx context.Context) bool {
	try, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	status, err := x.client.Status(try, x.Endpoint)
	return err == nil && status.Leader == status.Header.MemberId
}

// harm is something that goes wrong with one node. It returns when it is over.
type harm struct {
	name string
	do   func(t *testing.T, victim *node, rnd *rand.Rand)
}

var harms = []harm{
	{"kill -9", func(_ *testing.T, victim *node, rnd *rand.Rand) {
		victim.Kill()
		time.Sleep(upTo(rnd, 2*time.Second))
		victim.Restart()
	}},
	{"SIGTERM", func(t *testing.T, victim *node, _ *rand.Rand) {
		if err := victim.Stop(); err != nil {
			t.Error(err)
		}
		victim.Restart()
	}},
	{"SIGSTOP", func(t *testing.T, victim *node, rnd *rand.Rand) {
		signal(t, victim, syscall.SIGSTOP)
		time.Sleep(upTo(rnd, 4*time.Second))
		signal(t, victim, syscall.SIGCONT)
	}},
	{"no messages to it", func(_ *testing.T, victim *node, rnd *rand.Rand) {
		victim.proxy.Cut()
		time.Sleep(upTo(rnd, 4*time.Second))
		victim.proxy.Resume()
	}},
	{"cut connections", func(_ *testing.T, victim *node, rnd *rand.Rand) {
		for range 5 {
			victim.proxy.Cut()
			victim.proxy.Resume()
			time.Sleep(upTo(rnd, 300*time.Millisecond))
		}
	}},
	{"a slow network", func(_ *testing.T, victim *node, rnd *rand.Rand) {
		victim.proxy.Delay(upTo(rnd, 200*time.Millisecond))
		time.Sleep(3 * time.Second)
		victim.proxy.Resume()
	}},
}

func upTo(rnd *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(rnd.Int64N(int64(d)))
}

func signal(t *testing.T, victim *node, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(victim.PID(), s); err != nil {
		t.Fatal(err)
	}
}

// TestFaults lets clients race through all nodes while each kind of harm is
// done to the leader and to another node, and checks that their history is
// linearizable, that all watches were told the same, in order and without a
// gap, and that all nodes end with the same data.
func TestFaults(t *testing.T) {
	for _, n := range []int{3, 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) { testFaults(t, startNodes(t, n)) })
	}
}

func testFaults(t *testing.T, nodes []*node) {
	seed := number(t, "KEELSON_SEED", uint64(time.Now().UnixNano()))
	rnd := rand.New(rand.NewPCG(seed, 0))
	defer func() {
		if t.Failed() {
			t.Logf("KEELSON_SEED=%d", seed)
		}
	}()
	rec := linearizable.New(keys)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running sync.WaitGroup
	watches := make([]*watch, len(nodes))
	for id, x := range nodes {
		watches[id] = startWatch(t, x)
		for c := range perClient {
			client := x.newClient(t)
			running.Go(func() { rec.Run(ctx, client, id*perClient+c, clientRest) })
		}
	}
	for range number(t, "KEELSON_CRASH_ROUNDS", 1) {
		for _, at := range rnd.Perm(len(harms)) {
			for _, ofLeader := range []bool{true, false} {
				before := rec.Answered()
				eventually(t, "requests are answered before "+harms[at].name, func() bool { return rec.Answered() > before+200 })
				victim := pick(t, nodes, ofLeader, rnd)
				harms[at].do(t, victim, rnd)
				serveAll(t, nodes, fmt.Sprintf("%s of %s (leader: %v)", harms[at].name, victim.name, ofLeader))
			}
		}
	}
	cancel()
	running.Wait()
	last := put(t, nodes[0], "last")
	sameData(t, nodes)
	var events [][]string
	for _, w := range watches {
		events = append(events, w.until(t, last))
	}
	compareEvents(t, events)
	rec.Resolve(valuesOf(t, nodes[0], last))
	rec.Check(t, patience)
	t.Logf("%d nodes, %d revisions, each seen by %d watches", len(nodes), last, len(watches))
}

// pick returns the leader, or another node.
func pick(t *testing.T, nodes []*node, leader bool, rnd *rand.Rand) *node {
	t.Helper()
	var found *node
	eventually(t, "there is a leader", func() bool {
		for _, at := range rnd.Perm(len(nodes)) {
			if nodes[at].leads(t.Context()) == leader {
				found = nodes[at]
				return true
			}
		}
		return false
	})
	return found
}

// serveAll waits until every node answers a write and a linearizable read.
func serveAll(t *testing.T, nodes []*node, after string) {
	t.Helper()
	for _, x := range nodes {
		start := time.Now()
		eventually(t, x.name+" serves after "+after, func() bool {
			select {
			case <-x.Done():
				t.Fatalf("%s has ended %s:\n%s", after, x.name, x.LogTail(5))
			default:
			}
			try, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, err := x.client.Put(try, "alive", x.name)
			if err == nil {
				_, err = x.client.Get(try, "alive")
			}
			return err == nil
		})
		t.Logf("after %s %s serves within %v", after, x.name, time.Since(start).Round(time.Millisecond))
	}
}

func put(t *testing.T, x *node, key string) int64 {
	t.Helper()
	var revision int64
	eventually(t, "a put", func() bool {
		resp, err := x.client.Put(t.Context(), key, "")
		if err == nil {
			revision = resp.Header.Revision
		}
		return err == nil
	})
	return revision
}

// sameData compares the hashes of all nodes at one revision.
func sameData(t *testing.T, nodes []*node) {
	t.Helper()
	var hashes []uint32
	for _, x := range nodes {
		if _, err := x.client.Get(t.Context(), "last"); err != nil { // catches up
			t.Fatalf("%s: %v", x.name, err)
		}
		h, err := x.client.HashKV(t.Context(), x.Endpoint, 0)
		if err != nil {
			t.Fatalf("%s: %v", x.name, err)
		}
		if hashes = append(hashes, h.Hash); h.Hash != hashes[0] {
			t.Errorf("the data of %s differs: %x", x.name, hashes)
		}
	}
}

// watch is a watch of everything through one node; clientv3 resumes it.
type watch struct {
	name string

	mu     sync.Mutex
	events []string // guarded by mu; those of one revision in one
	at     int64    // guarded by mu
	err    error    // guarded by mu
}

func startWatch(t *testing.T, x *node) *watch {
	w := &watch{name: x.name}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	client := x.newClient(t)
	running.Go(func() {
		for resp := range client.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(2)) {
			w.take(resp)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return w
}

func (w *watch) take(resp clientv3.WatchResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := resp.Err(); err != nil {
		w.err = err
	}
	for _, e := range resp.Events {
		if e.Kv.ModRevision < w.at || e.Kv.ModRevision > w.at+1 && w.at > 0 {
			w.err = fmt.Errorf("revision %d after %d", e.Kv.ModRevision, w.at)
		}
		w.at = e.Kv.ModRevision
		w.events = append(w.events, fmt.Sprintf("%d %v %s=%s", e.Kv.ModRevision, e.Type, e.Kv.Key, e.Kv.Value))
	}
}

// until returns the events up to a revision once it was seen.
func (w *watch) until(t *testing.T, revision int64) []string {
	t.Helper()
	var events []string
	eventually(t, fmt.Sprintf("the watch on %s sees revision %d", w.name, revision), func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.err != nil {
			t.Fatalf("the watch on %s: %v", w.name, w.err)
		}
		events = w.events
		return w.at >= revision
	})
	return events
}

func compareEvents(t *testing.T, all [][]string) {
	t.Helper()
	for i, events := range all {
		for at := range min(len(events), len(all[0])) {
			if events[at] != all[0][at] {
				t.Fatalf("watch %d was told %q where the first was told %q", i, events[at], all[0][at])
			}
		}
		if len(events) != len(all[0]) {
			t.Errorf("watch %d was told %d events, the first %d", i, len(events), len(all[0]))
		}
	}
}

// valuesOf reads the whole history and returns the revisions of the values
// that were put.
func valuesOf(t *testing.T, x *node, last int64) map[string]int64 {
	t.Helper()
	revisions := make(map[string]int64)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for resp := range x.client.Watch(ctx, linearizable.Prefix, clientv3.WithPrefix(), clientv3.WithRev(2), clientv3.WithProgressNotify()) {
		for _, e := range resp.Events {
			if e.Type == clientv3.EventTypePut {
				if before := revisions[string(e.Kv.Value)]; before != 0 {
					t.Errorf("one request was done twice, at %d and %d: %s", before, e.Kv.ModRevision, e.Kv)
				}
				revisions[string(e.Kv.Value)] = e.Kv.ModRevision
			}
		}
		if resp.Header.Revision >= last && len(resp.Events) == 0 {
			return revisions
		}
		if err := x.client.RequestProgress(ctx); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("the history could not be read")
	return nil
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}
