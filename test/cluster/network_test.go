package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-io/keelson/test/internal/faults"
)

// link is one way between two nodes.
type link struct{ from, to *node }

// block lets nothing pass on links until heal. Nobody is told: connections stay
// open, and new ones are not answered. What was sent meanwhile comes late, or
// not at all if the connection is given up before.
func (c *cluster) block(links map[link]bool) {
	c.t.Helper()
	if runtime.GOOS != "linux" {
		c.t.Skip("a proxy knows from /proc who connects, which only Linux has")
	}
	for _, to := range c.nodes {
		blocked := map[int]bool{}
		for _, from := range c.nodes {
			if links[link{from, to}] {
				blocked[from.PID()] = true
			}
		}
		to.proxy.Block(func(pid int) bool { return blocked[pid] })
	}
}

// heal lets everything pass again, on new connections only if it is told so.
func (c *cluster) heal(anew bool) {
	for _, x := range c.nodes {
		if anew {
			x.proxy.Cut()
		}
		x.proxy.Resume()
	}
}

// unless returns the links of nodes that do not reach each other, nor are
// reached.
func (c *cluster) unless(reaches func(a, b *node) bool) map[link]bool {
	links := map[link]bool{}
	for _, a := range c.nodes {
		for _, b := range c.nodes {
			if a != b && !reaches(a, b) {
				links[link{a, b}], links[link{b, a}] = true, true
			}
		}
	}
	return links
}

// partition is a network that is not whole. The nodes are those of the cluster
// in random order, but that the leader is the first.
type partition struct {
	name  string
	links func(c *cluster, order []*node) map[link]bool
	// majority returns nodes that reach each other and have to serve; nil if
	// it is only asked that none of them is wrong.
	majority func(order []*node) []*node
}

// half is how many nodes a majority can do without.
func half(order []*node) int { return (len(order) - 1) / 2 }

// split puts the nodes from number at on on another side than those before it.
func split(name string, at func([]*node) int, majority func([]*node) []*node) partition {
	return partition{name, func(c *cluster, order []*node) map[link]bool {
		side := order[:at(order)]
		return c.unless(func(a, b *node) bool { return contains(side, a) == contains(side, b) })
	}, majority}
}

// oneWay blocks what the leader sends, or what it is sent, but not the other.
func oneWay(name string, out bool) partition {
	return partition{name, func(_ *cluster, order []*node) map[link]bool {
		links := map[link]bool{}
		for _, x := range order[1:] {
			if out {
				links[link{order[0], x}] = true
			} else {
				links[link{x, order[0]}] = true
			}
		}
		return links
	}, nil}
}

var partitions = []partition{
	split("the leader with a minority", half, func(order []*node) []*node { return order[half(order):] }),
	split("the leader with a majority", func(order []*node) int { return len(order) - half(order) },
		func(order []*node) []*node { return order[:len(order)-half(order)] }),
	split("the leader alone", func([]*node) int { return 1 }, func(order []*node) []*node { return order[1:] }),
	{"each node alone", func(c *cluster, _ []*node) map[link]bool {
		return c.unless(func(a, b *node) bool { return false })
	}, nil},
	{"a bridge, which is the leader", func(c *cluster, order []*node) map[link]bool { return bridge(c, order, 0) }, nil},
	{"a bridge, which is another node", func(c *cluster, order []*node) map[link]bool { return bridge(c, order, len(order)-1) }, nil},
	{"each node reaches its neighbours", func(c *cluster, order []*node) map[link]bool {
		at := map[*node]int{}
		for i, x := range order {
			at[x] = i
		}
		return c.unless(func(a, b *node) bool { d := at[a] - at[b]; return d == 1 || d == -1 })
	}, nil},
	oneWay("nothing from the leader arrives", true),
	oneWay("nothing arrives at the leader", false),
}

// bridge makes two sides that reach only one node in common.
func bridge(c *cluster, order []*node, at int) map[link]bool {
	rest := without(order, order[at])
	side := rest[:len(rest)/2]
	return c.unless(func(a, b *node) bool {
		return a == order[at] || b == order[at] || contains(side, a) == contains(side, b)
	})
}

// shuffled returns the nodes in random order, the leader first.
func (c *cluster) shuffled(rnd *rand.Rand) []*node {
	leader := c.leader()
	order := []*node{leader}
	rest := c.others(leader)
	for _, i := range rnd.Perm(len(rest)) {
		order = append(order, rest[i])
	}
	return order
}

// TestPartitions lets clients race through all nodes while the network falls
// apart in each of these ways: what has a majority serves, and what any client
// was told is true.
func TestPartitions(t *testing.T) {
	for _, n := range []int{3, 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel() // it waits, mostly
			rnd := faults.NewRandom(t)
			c := startCluster(t, n)
			load := c.startLoad(faults.StartLoad(t, rnd), c.nodes...)
			for range faults.Rounds(t) {
				for _, at := range rnd.Perm(len(partitions)) {
					load.Flows("before " + partitions[at].name)
					c.part(partitions[at], rnd)
				}
				load.Flows("before the network changes")
				c.flap(rnd)
			}
			c.finish(load, c.nodes...)
		})
	}
}

func (c *cluster) part(p partition, rnd *rand.Rand) {
	c.t.Helper()
	order := c.shuffled(rnd)
	c.block(p.links(c, order))
	if p.majority != nil {
		c.serve(fmt.Sprintf("%s (%s), meanwhile", p.name, names(order)), p.majority(order)...)
	}
	time.Sleep(faults.UpTo(rnd, 4*time.Second))
	c.heal(rnd.IntN(2) == 0)
	c.serve(fmt.Sprintf("%s (%s)", p.name, names(order)), c.nodes...)
}

// flap blocks some links at random, and others soon after.
func (c *cluster) flap(rnd *rand.Rand) {
	c.t.Helper()
	for range 12 {
		links := map[link]bool{}
		for _, from := range c.nodes {
			for _, to := range c.nodes {
				links[link{from, to}] = rnd.IntN(3) == 0
			}
		}
		c.block(links)
		time.Sleep(faults.UpTo(rnd, 600*time.Millisecond))
	}
	c.heal(false)
	c.serve("a network that changes", c.nodes...)
}

// TestCutOffLeader: a leader that is cut off says so, within a bounded time, to
// requests and to watches that require a leader, so that clients go on with
// another node; serializable reads it answers.
func TestCutOffLeader(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	var old *node
	var watching clientv3.WatchChan
	for leads := false; !leads; leads = old.leads(t.Context()) { // another may by now
		old = c.leader()
		faults.Retry(t, "a write", func(ctx context.Context) error {
			_, err := old.client.Put(ctx, "k", "before")
			return err
		})
		watching = old.client.Watch(clientv3.WithRequireLeader(t.Context()), "k", clientv3.WithCreatedNotify())
		if resp := <-watching; !resp.Created {
			t.Fatalf("a new watch: %+v", resp)
		}
	}
	c.block(split("", func([]*node) int { return 1 }, nil).links(c, append([]*node{old}, c.others(old)...)))
	began := time.Now()
	ended := make(chan time.Duration, 1)
	go func() {
		if resp := <-watching; resp.Err() == nil || resp.Err().Error() != rpctypes.ErrNoLeader.Error() {
			t.Errorf("the watch that requires a leader gives %+v, %v", resp, resp.Err())
		}
		ended <- time.Since(began)
	}()
	c.serve("the leader is cut off", c.others(old)...)
	raw := pb.NewKVClient(old.client.ActiveConnection()) // which does not try again
	for name, request := range map[string]func(context.Context) error{
		"a read": func(ctx context.Context) error {
			_, err := raw.Range(ctx, &pb.RangeRequest{Key: []byte("k")})
			return err
		},
		"a write": func(ctx context.Context) error {
			_, err := raw.Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: []byte("lost")})
			return err
		},
	} {
		try, cancel := context.WithTimeout(t.Context(), faults.Patience)
		if err := request(try); status.Code(err) != codes.Unavailable {
			t.Errorf("%s through a node that is cut off: %v", name, err)
		}
		cancel()
	}
	select {
	case took := <-ended:
		t.Logf("the watch that requires a leader ended after %v", took.Round(time.Millisecond))
	case <-time.After(faults.Patience):
		t.Error("the watch that requires a leader goes on without one")
	}
	stale, err := old.client.Get(t.Context(), "k", clientv3.WithSerializable())
	if err != nil || len(stale.Kvs) != 1 {
		t.Errorf("a serializable read through a node that is cut off: %v, %v", stale, err)
	}
	c.heal(true)
	c.serve("the leader was cut off", c.nodes...)
	if resp, err := old.client.Get(t.Context(), "k"); err != nil || len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != "before" {
		t.Errorf("after that the key is %v, %v", resp, err)
	}
}
