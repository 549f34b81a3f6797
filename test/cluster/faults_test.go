package cluster

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keelson-io/keelson/test/internal/faults"
)

// failed are seeds that have found something, of clusters of so many nodes.
var failed = []struct {
	seed  uint64
	nodes int
}{}

// harm is something that goes wrong with one node. It returns when it is over.
type harm struct {
	name string
	do   func(t *testing.T, victim *node, rnd *rand.Rand)
}

var harms = []harm{
	{"kill -9", func(_ *testing.T, victim *node, rnd *rand.Rand) {
		victim.Kill()
		time.Sleep(faults.UpTo(rnd, 2*time.Second))
		victim.Restart()
	}},
	{"SIGTERM", func(t *testing.T, victim *node, _ *rand.Rand) {
		if err := victim.Stop(); err != nil {
			t.Error(err)
		}
		victim.Restart()
	}},
	{"SIGSTOP", func(t *testing.T, victim *node, rnd *rand.Rand) {
		faults.Signal(t, victim.Server, syscall.SIGSTOP)
		time.Sleep(faults.UpTo(rnd, 4*time.Second))
		faults.Signal(t, victim.Server, syscall.SIGCONT)
	}},
	{"no connections to it", func(_ *testing.T, victim *node, rnd *rand.Rand) {
		victim.proxy.Cut()
		time.Sleep(faults.UpTo(rnd, 4*time.Second))
		victim.proxy.Resume()
	}},
	{"cut connections", func(_ *testing.T, victim *node, rnd *rand.Rand) {
		for range 5 {
			victim.proxy.Cut()
			victim.proxy.Resume()
			time.Sleep(faults.UpTo(rnd, 300*time.Millisecond))
		}
	}},
	{"a slow network", func(_ *testing.T, victim *node, rnd *rand.Rand) {
		victim.proxy.Delay(faults.UpTo(rnd, 200*time.Millisecond))
		time.Sleep(3 * time.Second)
		victim.proxy.Resume()
	}},
}

// TestFaults lets clients race through all nodes while each kind of harm is
// done to the leader and to another node, and checks that their history is
// linearizable, that all watches were told the log, in order and without a
// gap, and that all nodes end with the same data.
func TestFaults(t *testing.T) {
	for _, n := range []int{3, 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel() // it waits, mostly
			testFaults(t, n, faults.NewRandom(t))
		})
	}
	for _, f := range failed {
		t.Run(fmt.Sprint("seed ", f.seed), func(t *testing.T) {
			t.Parallel()
			testFaults(t, f.nodes, faults.Seeded(t, f.seed))
		})
	}
}

func testFaults(t *testing.T, nodes int, rnd *rand.Rand) {
	c := startCluster(t, nodes)
	load := c.startLoad(faults.StartLoad(t, rnd), c.nodes...)
	for range faults.Rounds(t) {
		for _, at := range rnd.Perm(len(harms)) {
			for _, ofLeader := range []bool{true, false} {
				load.Flows("before " + harms[at].name)
				victim := c.leader()
				if !ofLeader {
					others := c.others(victim)
					victim = others[rnd.IntN(len(others))]
				}
				harms[at].do(t, victim, rnd)
				c.serve(fmt.Sprintf("%s of %s (leader: %v)", harms[at].name, victim.name, ofLeader), c.nodes...)
			}
		}
		order := c.shuffled(rnd)
		c.killTogether(load, order[:half(order)]...)
		c.killTogether(load, order...)
	}
	c.finish(load, c.nodes...)
}

// killTogether kills nodes at the same time, and starts them again together:
// when they are all or most of them, none is healthy before others are.
func (c *cluster) killTogether(load *faults.Load, nodes ...*node) {
	c.t.Helper()
	load.Flows("before nodes are killed together")
	for _, x := range nodes {
		faults.Signal(c.t, x.Server, syscall.SIGKILL)
	}
	var starting sync.WaitGroup
	for _, x := range nodes {
		starting.Go(func() {
			if err := x.TryRestart(); err != nil {
				c.t.Errorf("%s: %v", x.name, err)
			}
		})
	}
	starting.Wait()
	c.serve("kill -9 of "+names(nodes)+" together", c.nodes...)
}
