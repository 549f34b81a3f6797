package embed

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus/hooks/test"
)

// TestHandOver: when the leader is stopped, another node leads before it has
// gone, and writes go on within less than an election timeout: nobody had to
// miss it, or to notice that its process has ended.
func TestHandOver(t *testing.T) {
	t.Parallel()
	const election = 10 * time.Second
	dir := shortDir(t)
	var nodes []clusterNode
	hooks := make(map[*Server]*test.Hook)
	for i := 1; i <= 3; i++ {
		cfg := nodeConfig(dir, i, ClusterStateNew, 1, 2, 3)
		cfg.Cluster.ElectionTimeout = election
		s, hook := start(t, cfg)
		nodes, hooks[s] = append(nodes, clusterNode{s, clientOf(t, s)}), hook
	}
	leader, follower := leaderAmong(t, nodes)
	for _, n := range nodes { // one that has a change of the members to apply does not take the leadership
		awaitNames(t.Context(), t, n, len(nodes))
	}
	term := leader.backend.cluster.newest().Status().Term

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	acknowledged := make(chan time.Time, 1<<20)
	go func() {
		defer close(acknowledged)
		for i := 0; ctx.Err() == nil; i++ {
			if _, err := follower.client.Put(ctx, fmt.Sprint("k", i), "v"); err == nil { // some may be refused meanwhile
				acknowledged <- time.Now()
			}
		}
	}()
	last := <-acknowledged
	go func() { _ = leader.Close() }() // start's cleanup waits for it, and looks at the error
	var longest time.Duration
	for moved := 0; moved < 10; { // writes that another leader has taken
		at, more := <-acknowledged
		if !more {
			t.Fatal("no more writes")
		}
		longest, last = max(longest, at.Sub(last)), at
		if follower.backend.cluster.newest().Status().Term > term {
			moved++
		}
	}
	cancel()
	t.Logf("the longest pause between two writes was %v", longest)
	if longest >= election {
		t.Errorf("no write was acknowledged for %v, which an election takes that nobody has handed over", longest)
	}
	for _, n := range nodes {
		for _, e := range hooks[n.Server].AllEntries() {
			if strings.Contains(e.Message, "the leader has ended") || strings.Contains(e.Message, "not handed over") {
				t.Errorf("a node says %q", e.Message)
			}
		}
	}
}
