package cluster

import (
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/test/internal/faults"
)

const (
	ttl = 5 * time.Second

	// takeover is the longest that nobody expires leases: a leader that does
	// not know that it is no more waits for an election, and so do the others.
	takeover = 4 * election

	// slack is what everything may take longer on a busy machine.
	slack = faults.Patience
)

// TestLessor harms the leader, which expires leases: the next one does. No
// lease expires early, whichever node it was renewed through, each one expires
// once, and those that are not renewed do, also when the old leader is back.
func TestLessor(t *testing.T) {
	for _, h := range []struct {
		name        string
		begin, over func(c *cluster, leader *node)
	}{
		{
			"kill -9",
			func(_ *cluster, leader *node) { leader.Kill() },
			func(_ *cluster, leader *node) { leader.Restart() },
		},
		{
			"SIGTERM",
			func(c *cluster, leader *node) {
				if err := leader.Stop(); err != nil {
					c.t.Error(err)
				}
			},
			func(_ *cluster, leader *node) { leader.Restart() },
		},
		{
			"SIGSTOP",
			func(c *cluster, leader *node) { faults.Signal(c.t, leader.Server, syscall.SIGSTOP) },
			func(c *cluster, leader *node) { faults.Signal(c.t, leader.Server, syscall.SIGCONT) },
		},
		{
			"cut off",
			func(c *cluster, leader *node) {
				c.block(c.unless(func(a, b *node) bool { return a != leader && b != leader }))
			},
			func(c *cluster, _ *node) { c.heal(false) },
		},
	} {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel() // it waits, mostly
			testLessor(startCluster(t, 3), h.begin, h.over)
		})
	}
}

func testLessor(c *cluster, begin, over func(*cluster, *node)) {
	c.t.Helper()
	leader := c.leader()
	var clients []*clientv3.Client
	var endpoints []string
	for _, x := range c.nodes {
		clients = append(clients, x.client)
	}
	for _, x := range c.others(leader) {
		endpoints = append(endpoints, x.Endpoint)
	}
	faults.Lessor{
		Clients:  clients,
		Watching: faults.NewClient(c.t, endpoints...),
		TTL:      ttl,
		Within:   takeover + ttl + slack,
		Begin:    func() { begin(c, leader) },
		Over:     func() { over(c, leader) },
	}.Test(c.t)
	c.serve("the leader was harmed", c.nodes...)
}
