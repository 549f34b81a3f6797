package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/test/internal/linearizable"
)

// The load: slow enough that the history can be checked, and that the clients
// of all instances get a turn on two processors.
const (
	keys       = 6
	perClient  = 3 // clients of each instance
	clientRest = 4 * time.Millisecond
)

// failed are seeds that have found something.
var failed = []uint64{}

func TestInstances(t *testing.T) {
	for _, n := range []int{2, 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			testInstances(t, startCluster(t, n), newRandom(t, uint64(time.Now().UnixNano())))
		})
	}
	for _, seed := range failed {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			testInstances(t, startCluster(t, 3), newRandom(t, seed))
		})
	}
	t.Run("PgBouncer", func(t *testing.T) {
		t.Parallel()
		testInstances(t, startPooled(t, 2), newRandom(t, uint64(time.Now().UnixNano())))
	})
}

// harm is something that goes wrong. It returns when that is over.
type harm struct {
	name string
	do   func(t *testing.T, c *cluster, victim *instance, rnd *rand.Rand)
}

var harms = []harm{
	{"kill -9 of an instance", func(t *testing.T, _ *cluster, victim *instance, rnd *rand.Rand) {
		victim.Kill()
		time.Sleep(upTo(rnd, time.Second))
		victim.Restart()
	}},
	{"SIGSTOP of an instance", func(t *testing.T, _ *cluster, victim *instance, rnd *rand.Rand) {
		signal(t, victim, syscall.SIGSTOP)
		time.Sleep(upTo(rnd, 4*time.Second))
		signal(t, victim, syscall.SIGCONT)
	}},
	{"kill -9 of PostgreSQL", func(t *testing.T, c *cluster, _ *instance, rnd *rand.Rand) {
		if err := c.db.Kill(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(upTo(rnd, time.Second))
		if err := c.db.Start(); err != nil {
			t.Fatal(err)
		}
	}},
	{"cut connections", func(_ *testing.T, _ *cluster, victim *instance, rnd *rand.Rand) {
		for range 5 {
			victim.proxy.Cut()
			time.Sleep(upTo(rnd, 300*time.Millisecond))
			victim.proxy.Resume()
			time.Sleep(upTo(rnd, 300*time.Millisecond))
		}
	}},
	{"answers that do not come", func(_ *testing.T, _ *cluster, victim *instance, rnd *rand.Rand) {
		victim.proxy.Stall()
		time.Sleep(upTo(rnd, 8*time.Second)) // more than keelson waits
		if rnd.IntN(2) == 0 {
			victim.proxy.Cut()
		}
		victim.proxy.Resume()
	}},
	{"a slow network", func(_ *testing.T, _ *cluster, victim *instance, rnd *rand.Rand) {
		victim.proxy.Delay(upTo(rnd, 100*time.Millisecond))
		time.Sleep(2 * time.Second)
		victim.proxy.Resume()
	}},
}

func upTo(rnd *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(rnd.Int64N(int64(d)))
}

func signal(t *testing.T, victim *instance, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(victim.PID(), s); err != nil {
		t.Fatal(err)
	}
}

// testInstances lets clients race through all instances while things go wrong,
// and checks that their history is linearizable, that each answer fits the log,
// and that each watch was told what the log says.
func testInstances(t *testing.T, c *cluster, rnd *rand.Rand) {
	n := len(c.instances)
	rec := linearizable.New(keys)
	told := newWatchers(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running sync.WaitGroup
	for id, i := range c.instances {
		told.add(i.name, i.client(t), 2)
		for client := range perClient {
			con := i.client(t)
			running.Go(func() { rec.Run(ctx, con, id*perClient+client, clientRest) })
		}
		others := append([]*instance{i}, c.instances...)
		tenant := &tenant{t: t, name: i.name}
		for _, other := range others {
			tenant.clients = append(tenant.clients, other.client(t))
		}
		running.Go(func() { tenant.run(ctx) })
		t.Cleanup(func() { t.Logf("%d leases came and went through %s", tenant.leases.Load(), i.name) })
	}
	compacting := newClient(t, c.endpoints()...)
	running.Go(func() { compact(ctx, t, compacting, told) })

	for range number(t, "KEELSON_CRASH_ROUNDS", 1) {
		for _, at := range rnd.Perm(len(harms)) {
			harms[at].inflict(t, c, rnd, rec)
			late := c.instances[rnd.IntN(n)]
			told.add(late.name+", started late,", late.client(t), max(2, told.slowest()-rnd.Int64N(50)))
		}
	}
	cancel()
	running.Wait()
	last, err := c.instances[0].client(t).Put(t.Context(), "last", "")
	if err != nil {
		t.Fatal(err)
	}
	log := readLog(t, c.db)
	events := told.check(log, last.Header.Revision)
	checkLog(t, log, last.Header.Revision)
	answers := checkAnswers(t, rec, log)
	rec.Check(t, patience)
	t.Logf("%d instances, %d revisions; %d answers and %d watched events agree with the log", n, last.Header.Revision, answers, events)
}

// inflict does harm, and waits until every instance serves again: those that
// were not killed by it do so without a restart.
func (h harm) inflict(t *testing.T, c *cluster, rnd *rand.Rand, rec *linearizable.Recorder) {
	t.Helper()
	before := rec.Answered()
	eventually(t, "requests are answered before "+h.name, func() bool { return rec.Answered() > before+200 })
	victim := c.instances[rnd.IntN(len(c.instances))]
	h.do(t, c, victim, rnd)
	for _, i := range c.instances {
		client := i.client(t)
		took := retry(t, "a put through "+i.name+" after "+h.name, func(ctx context.Context) error {
			select {
			case <-i.Done():
				t.Fatalf("%s of %s has ended %s:\n%s", h.name, victim.name, i.name, i.LogTail(5))
			default:
			}
			_, err := client.Put(ctx, "alive", i.name)
			return err
		})
		t.Logf("%s of %s: %s serves after %v", h.name, victim.name, i.name, took.Round(time.Millisecond))
	}
}

// compact compacts through any instance, behind what all watches have seen.
func compact(ctx context.Context, t *testing.T, c *clientv3.Client, told *watchers) {
	for ctx.Err() == nil {
		time.Sleep(100 * time.Millisecond)
		rev := told.slowest() - 200
		if rev < 2 {
			continue
		}
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := c.Compact(try, rev)
		cancel()
		if errors.Is(err, rpctypes.ErrFutureRev) {
			t.Errorf("compacting at %d, which was watched: %v", rev, err)
		}
	}
}

// checkLog: every revision from the first on is there.
func checkLog(t *testing.T, log []event, last int64) {
	t.Helper()
	revision := int64(1)
	for _, e := range log {
		if e.revision != revision && e.revision != revision+1 {
			t.Errorf("the log has revision %d after %d", e.revision, revision)
		}
		revision = e.revision
	}
	if revision != last {
		t.Errorf("the log ends at revision %d, the last write was acknowledged at %d", revision, last)
	}
}

// checkAnswers compares each answer with the log at the revision that it names,
// and tells rec what became of what was not answered. It returns how many were
// compared.
func checkAnswers(t *testing.T, rec *linearizable.Recorder, log []event) (answers int) {
	t.Helper()
	revisions := map[string]int64{}  // of values
	versions := map[string][]event{} // of keys
	for _, e := range log {
		if e.kind == "put" && strings.HasPrefix(e.key, "register/") {
			if before := revisions[e.value]; before != 0 {
				t.Errorf("one request was done twice, at %d and %d: %+v", before, e.revision, e)
			}
			revisions[e.value] = e.revision
		}
		versions[e.key] = append(versions[e.key], e)
	}
	rec.Answers(func(req linearizable.Request, resp linearizable.Response) {
		answers++
		key := linearizable.KeyName(req.Key)
		at := event{}
		for _, e := range versions[key] {
			if e.revision > resp.Revision {
				break
			}
			at = e
		}
		var wrong bool
		switch req.Kind {
		case linearizable.Get, linearizable.Stale:
			want := linearizable.Register{}
			if at.kind == "put" {
				want = linearizable.Register{Value: at.value, Mod: at.revision}
			}
			wrong = resp.Register != want
		case linearizable.Delete:
			wrong = resp.Succeeded && (at.kind != "delete" || at.revision != resp.Revision)
		default:
			wrong = resp.Succeeded && (at.value != req.Value || at.revision != resp.Revision)
		}
		if wrong {
			t.Errorf("%+v was answered with %+v; the log at that revision: %+v", req, resp, at)
		}
	})
	rec.Resolve(revisions)
	return answers
}

// tenant has leases, a key on each, and sends each request about them through
// another instance.
type tenant struct {
	t       *testing.T
	name    string
	clients []*clientv3.Client
	leases  atomic.Int64
}

func (x *tenant) run(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		time.Sleep(10 * clientRest)
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		if x.once(try, n) == nil {
			x.leases.Add(1)
		}
		cancel()
	}
}

// once is the life of one lease. An error says that a request was not
// answered: then nothing is known of the lease.
func (x *tenant) once(ctx context.Context, n int) error {
	next := func() *clientv3.Client { n++; return x.clients[n%len(x.clients)] }
	lease, err := next().Grant(ctx, 600)
	if err != nil {
		return err
	}
	key := fmt.Sprintf("tenant/%s/%d", x.name, n)
	if _, err := next().Put(ctx, key, "", clientv3.WithLease(lease.ID)); err != nil {
		return x.unexpected(err, "a put with a lease that was granted")
	}
	if _, err := next().KeepAliveOnce(ctx, lease.ID); err != nil {
		return x.unexpected(err, "a renewal")
	}
	if _, err := next().Revoke(ctx, lease.ID); err != nil {
		return err // it may have been done when the client tried again
	}
	resp, err := next().Get(ctx, key)
	if err != nil {
		return err
	}
	if len(resp.Kvs) != 0 {
		x.t.Errorf("%s is there at revision %d after its lease was revoked", key, resp.Header.Revision)
	}
	if _, err := next().KeepAliveOnce(ctx, lease.ID); err == nil {
		x.t.Errorf("a lease of %s was renewed after it was revoked", x.name)
	} else if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return err
	}
	return nil
}

// unexpected: until a lease is revoked it is known to all.
func (x *tenant) unexpected(err error, what string) error {
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		x.t.Errorf("%s: %v", what, err)
	}
	return err
}
