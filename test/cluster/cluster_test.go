// Package cluster runs three or five keelsons that replicate their data, harms
// them, their disks and clocks and what is between them, and checks what
// clients were told against each other and against the log.
//
// What is random follows from a seed, which a failing test ends with:
// KEELSON_SEED repeats it. KEELSON_CRASH_ROUNDS sets how often each kind of
// harm is done (default 1).
package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/test/harness"
	"github.com/keelson-io/keelson/test/internal/faults"
)

// election is the nodes' --election-timeout.
const election = 500 * time.Millisecond

// node is one keelson; the others reach it through proxy.
type node struct {
	*harness.Server
	name   string
	proxy  *harness.Proxy
	client *clientv3.Client
}

// cluster is nodes, some of which may be members no more.
type cluster struct {
	t     *testing.T
	dir   string // of the sockets that the proxies lead to
	nodes []*node
}

// startCluster starts a new cluster of n.
func startCluster(t *testing.T, n int) *cluster {
	t.Helper()
	return startClusterOf(t, n, func(int) string { return harness.KeelsonBinary(t) })
}

// startClusterOf starts a new cluster of n, each of which is another program.
func startClusterOf(t *testing.T, n int, program func(i int) string) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: harness.TempDir(t)}
	for range n {
		c.newNode()
	}
	initial := c.urls(c.nodes...)
	var starting sync.WaitGroup
	for i, x := range c.nodes {
		starting.Go(func() { // a node is healthy once there is a leader
			x.Server = c.server(x, "--initial-cluster", initial)
			x.Program = program(i)
			if err := x.TryRestart(); err != nil {
				t.Error(err)
			}
		})
	}
	starting.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, x := range c.nodes {
		x.client = faults.NewClient(t, x.Endpoint)
	}
	return c
}

// newNode makes the place of one more node.
func (c *cluster) newNode() *node {
	name := fmt.Sprint("n", len(c.nodes))
	x := &node{name: name, proxy: harness.StartProxyTo(c.t, filepath.Join(c.dir, name))}
	c.nodes = append(c.nodes, x)
	return x
}

// server returns the process of x, to be started.
func (c *cluster) server(x *node, args ...string) *harness.Server {
	c.t.Helper()
	return harness.NewServer(c.t, harness.Keelson, harness.KeelsonBinary(c.t), append([]string{
		"--name", x.name, "--listen-peer-urls", "unix://" + filepath.Join(c.dir, x.name),
		"--heartbeat-interval", "50", "--election-timeout", fmt.Sprint(election.Milliseconds()), "--snapshot-count", "500",
	}, args...)...)
}

// peerURL is where the others reach x.
func (x *node) peerURL() string { return "unix://" + x.proxy.Socket() }

// urls is nodes as --initial-cluster.
func (c *cluster) urls(nodes ...*node) string {
	var urls []string
	for _, x := range nodes {
		urls = append(urls, x.name+"="+x.peerURL())
	}
	return strings.Join(urls, ",")
}

func (x *node) status(ctx context.Context) (*clientv3.StatusResponse, error) {
	try, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return x.client.Status(try, x.Endpoint)
}

func (x *node) leads(ctx context.Context) bool {
	status, err := x.status(ctx)
	return err == nil && status.Leader == status.Header.MemberId
}

// leader waits for one that a majority of the nodes follows.
func (c *cluster) leader() *node {
	c.t.Helper()
	var found *node
	faults.Eventually(c.t, "there is a leader", func() bool {
		for _, x := range c.nodes {
			try, cancel := context.WithTimeout(c.t.Context(), time.Second)
			_, err := x.client.Get(try, "leader")
			cancel()
			if err == nil && x.leads(c.t.Context()) {
				found = x
				return true
			}
		}
		return false
	})
	return found
}

// others returns the nodes without those of one.
func (c *cluster) others(of ...*node) []*node { return without(c.nodes, of...) }

func without(nodes []*node, of ...*node) []*node {
	var rest []*node
	for _, x := range nodes {
		if !contains(of, x) {
			rest = append(rest, x)
		}
	}
	return rest
}

func contains(nodes []*node, x *node) bool {
	for _, other := range nodes {
		if other == x {
			return true
		}
	}
	return false
}

func names(nodes []*node) string {
	var all []string
	for _, x := range nodes {
		all = append(all, x.name)
	}
	return strings.Join(all, " ")
}

// serve waits until each of nodes answers a write and a linearizable read.
func (c *cluster) serve(after string, nodes ...*node) {
	c.t.Helper()
	var took []string
	for _, x := range nodes {
		took = append(took, fmt.Sprint(x.name, " ", faults.Serves(c.t, x.Server, x.client, x.name, after).Round(time.Millisecond)))
	}
	c.t.Logf("after %s serve %s", after, strings.Join(took, ", "))
}

// startLoad lets clients race through nodes.
func (c *cluster) startLoad(load *faults.Load, nodes ...*node) *faults.Load {
	for _, x := range nodes {
		load.Add(x.name, x.Endpoint)
	}
	return load
}

// finish ends the load, and compares what its clients were told with the log,
// and the data of nodes with each other.
func (c *cluster) finish(load *faults.Load, nodes ...*node) {
	t := c.t
	t.Helper()
	load.End()
	var last int64
	faults.Retry(t, "the last put", func(ctx context.Context) error {
		resp, err := nodes[0].client.Put(ctx, "last", "")
		if err == nil {
			last = resp.Header.Revision
		}
		return err
	})
	c.sameData(nodes...)
	load.Check(faults.ReadLog(t, nodes[0].client, last), last)
}

// sameData compares the hashes of nodes at one revision.
func (c *cluster) sameData(nodes ...*node) {
	t := c.t
	t.Helper()
	var hashes []uint32
	var revision int64 // there may be more: leases expire
	for _, x := range nodes {
		faults.Retry(t, "the hash of "+x.name, func(ctx context.Context) error {
			resp, err := x.client.Get(ctx, "last") // catches up
			if err != nil {
				return err
			}
			if revision == 0 {
				revision = resp.Header.Revision
			}
			h, err := x.client.HashKV(ctx, x.Endpoint, revision)
			if err == nil {
				hashes = append(hashes, h.Hash)
			}
			return err
		})
		if hashes[len(hashes)-1] != hashes[0] {
			t.Errorf("the data of %s differs: %x", x.name, hashes)
		}
	}
}
