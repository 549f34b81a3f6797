package embed

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelson-io/keelson/pkg/listen/certtest"
)

// TestClusterChangesToTLS: nodes that were all stopped go on with TLS, and then
// say so in their peer URLs.
func TestClusterChangesToTLS(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	nodes := startNodes(t, dir)
	leader, _ := leaderAmong(t, nodes)
	if _, err := leader.client.Put(ctx, "k", "before"); err != nil {
		t.Fatalf("Put: %v", err)
	}
	awaitNames(ctx, t, leader, len(nodes))
	for _, n := range nodes {
		if err := n.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
	}
	ca := certtest.New(t)
	ca.Write(t, filepath.Join(dir, "ca.crt"))
	ca.Issue(t, dir, "localhost")
	secure := func(url string) string { return strings.ReplaceAll(url, "unix://", "unixs://") }
	for i := range nodes {
		cfg := nodeConfig(dir, i+1, ClusterStateNew, 1, 2, 3)
		cfg.Cluster.InitialCluster = secure(cfg.Cluster.InitialCluster)
		cfg.Cluster.PeerTLS = TLS{
			CertFile: filepath.Join(dir, "localhost.crt"), KeyFile: filepath.Join(dir, "localhost.key"), TrustedCAFile: filepath.Join(dir, "ca.crt"),
		}
		nodes[i] = startNode(t, cfg)
	}
	leader, follower := leaderAmong(t, nodes)
	list, err := follower.client.MemberList(ctx)
	if err != nil {
		t.Fatalf("MemberList: %v", err)
	}
	for _, m := range list.Members {
		if _, err := leader.client.MemberUpdate(ctx, m.ID, []string{secure(m.PeerURLs[0])}); err != nil {
			t.Fatalf("MemberUpdate of %s: %v", m.Name, err)
		}
	}
	if got, err := follower.client.Get(ctx, "k"); err != nil || len(got.Kvs) != 1 {
		t.Errorf("Get: %v, %v", got, err)
	}
	list, err = follower.client.MemberList(ctx)
	if err != nil {
		t.Fatalf("MemberList: %v", err)
	}
	for _, m := range list.Members {
		if !strings.HasPrefix(m.PeerURLs[0], "unixs://") {
			t.Errorf("%s has %v", m.Name, m.PeerURLs)
		}
	}
	sameHash(ctx, t, nodes)
}
