package cluster

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/keelson-io/keelson/test/harness"
	"github.com/keelson-io/keelson/test/internal/faults"
)

// TestEtcdctlMember lets a real etcdctl add a learner to a node, promote it, change
// its peer URL and remove it.
func TestEtcdctlMember(t *testing.T) {
	t.Parallel() // it waits, mostly
	c := startCluster(t, 1)
	first := c.nodes[0]
	etcdctl := func(args ...string) (string, error) {
		args = append([]string{"--endpoints", first.Endpoint, "--command-timeout", faults.Patience.String(), "member"}, args...)
		out, err := exec.CommandContext(t.Context(), harness.Tool(t, "etcdctl"), args...).CombinedOutput()
		return string(out), err
	}
	must := func(want string, args ...string) string {
		t.Helper()
		out, err := etcdctl(args...)
		if err != nil || !strings.Contains(out, want) {
			t.Fatalf("etcdctl member %v: %v\n%swant %q", args, err, out, want)
		}
		return out
	}
	// Two nodes may be without a leader for a moment, which is no answer yet.
	again := func(want string, args ...string) {
		t.Helper()
		faults.Retry(t, fmt.Sprintf("etcdctl member %v", args), func(context.Context) error {
			if out, err := etcdctl(args...); !regexp.MustCompile(want).MatchString(out) {
				return errors.Join(err, fmt.Errorf("%swant %s", out, want))
			}
			return nil
		})
	}

	x := c.newNode()
	// Members come in the order of their ids, which are not the nodes' own.
	added := must("added as learner", "add", x.name, "--learner", "--peer-urls", x.peerURL())
	if !strings.Contains(added, fmt.Sprintf("ETCD_INITIAL_CLUSTER=%q", c.urls(first, x))) &&
		!strings.Contains(added, fmt.Sprintf("ETCD_INITIAL_CLUSTER=%q", c.urls(x, first))) {
		t.Errorf("it does not say how to start %s:\n%s", x.name, added)
	}
	list, err := first.client.MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprintf("%x", find(list.Members, x).ID)
	must(id+", unstarted, , "+x.peerURL()+", , true", "list")
	x.Server = c.server(x, "--initial-cluster", c.urls(c.nodes...), "--initial-cluster-state", "existing")
	x.Restart()
	x.client = faults.NewClient(t, x.Endpoint)
	faults.Eventually(t, x.name+" is promoted", func() bool {
		out, err := etcdctl("promote", id)
		if err != nil && !strings.Contains(out, "in sync with leader") && !strings.Contains(out, "started") {
			t.Fatalf("promote: %v\n%s", err, out)
		}
		return err == nil
	})
	c.serve("promote", c.nodes...)

	elsewhere := "unix://" + filepath.Join(c.dir, x.name) // not through the proxy
	again("updated in cluster", "update", id, "--peer-urls", elsewhere)
	again(id+", started, "+x.name+", "+elsewhere+", "+x.Endpoint+", false", "list")
	c.serve("update", c.nodes...)

	again("removed from cluster|member not found", "remove", id)
	select {
	case <-x.Done():
	case <-time.After(faults.Patience):
		t.Errorf("%s was removed and goes on", x.name)
	}
	again(", started, "+first.name+", ", "list")
	c.serve("remove", first)
}
