package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/test/internal/faults"
)

// failed are seeds that have found something.
var failed = []uint64{}

func TestInstances(t *testing.T) {
	for _, n := range []int{2, 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			testInstances(t, startCluster(t, n), faults.NewRandom(t))
		})
	}
	for _, seed := range failed {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			testInstances(t, startCluster(t, 3), faults.Seeded(t, seed))
		})
	}
	t.Run("PgBouncer", func(t *testing.T) {
		t.Parallel()
		testInstances(t, startPooled(t, 2), faults.NewRandom(t))
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
		time.Sleep(faults.UpTo(rnd, time.Second))
		victim.Restart()
	}},
	{"SIGSTOP of an instance", func(t *testing.T, _ *cluster, victim *instance, rnd *rand.Rand) {
		faults.Signal(t, victim.Server, syscall.SIGSTOP)
		time.Sleep(faults.UpTo(rnd, 4*time.Second))
		faults.Signal(t, victim.Server, syscall.SIGCONT)
	}},
	{"kill -9 of PostgreSQL", func(t *testing.T, c *cluster, _ *instance, rnd *rand.Rand) {
		if err := c.db.Kill(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(faults.UpTo(rnd, time.Second))
		if err := c.db.Start(); err != nil {
			t.Fatal(err)
		}
	}},
	{"cut connections", func(_ *testing.T, _ *cluster, victim *instance, rnd *rand.Rand) {
		for range 5 {
			victim.proxy.Cut()
			time.Sleep(faults.UpTo(rnd, 300*time.Millisecond))
			victim.proxy.Resume()
			time.Sleep(faults.UpTo(rnd, 300*time.Millisecond))
		}
	}},
	{"answers that do not come", func(_ *testing.T, _ *cluster, victim *instance, rnd *rand.Rand) {
		victim.proxy.Stall()
		time.Sleep(faults.UpTo(rnd, 8*time.Second)) // more than keelson waits
		if rnd.IntN(2) == 0 {
			victim.proxy.Cut()
		}
		victim.proxy.Resume()
	}},
	{"a slow network", func(_ *testing.T, _ *cluster, victim *instance, rnd *rand.Rand) {
		victim.proxy.Delay(faults.UpTo(rnd, 100*time.Millisecond))
		time.Sleep(2 * time.Second)
		victim.proxy.Resume()
	}},
}

// testInstances lets clients race through all instances while things go wrong,
// and checks that their history is linearizable, that each answer fits the log,
// and that each watch was told what the log says.
func testInstances(t *testing.T, c *cluster, rnd *rand.Rand) {
	load := faults.StartLoad(t, rnd)
	for _, i := range c.instances {
		load.Add(i.name, i.Endpoint)
	}
	told := load.Watchers
	compacting := faults.NewClient(t, c.endpoints()...)
	load.Go(func(ctx context.Context) { compact(ctx, t, compacting, told) })

	for range faults.Rounds(t) {
		for _, at := range rnd.Perm(len(harms)) {
			harms[at].inflict(t, c, rnd, load)
			late := c.instances[rnd.IntN(len(c.instances))]
			told.Add(late.name+", started late,", late.client(t), max(2, told.Slowest()-rnd.Int64N(50)))
		}
	}
	load.End()
	last, err := c.instances[0].client(t).Put(t.Context(), "last", "")
	if err != nil {
		t.Fatal(err)
	}
	load.Check(readLog(t, c.db), last.Header.Revision)
}

// inflict does harm, and waits until every instance serves again: those that
// were not killed by it do so without a restart.
func (h harm) inflict(t *testing.T, c *cluster, rnd *rand.Rand, load *faults.Load) {
	t.Helper()
	load.Flows("before " + h.name)
	victim := c.instances[rnd.IntN(len(c.instances))]
	h.do(t, c, victim, rnd)
	for _, i := range c.instances {
		after := fmt.Sprintf("%s of %s", h.name, victim.name)
		took := faults.Serves(t, i.Server, i.client(t), i.name, after)
		t.Logf("%s: %s serves after %v", after, i.name, took.Round(time.Millisecond))
	}
}

// compact compacts through any instance, behind what all watches have seen.
func compact(ctx context.Context, t *testing.T, c *clientv3.Client, told *faults.Watchers) {
	for ctx.Err() == nil {
		time.Sleep(100 * time.Millisecond)
		rev := told.Slowest() - 200
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
