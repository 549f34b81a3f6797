package postgres

import (
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/test/internal/faults"
)

const (
	// takeover is the longest that nobody expires leases after the instance
	// that did is gone; then every lease starts in full.
	takeover = 15 * time.Second

	// ttl is shorter than takeover: whoever takes over has to give the leases
	// that are kept alive the time that they were promised.
	ttl = 5 * time.Second

	// slack is what everything may take longer on a busy machine.
	slack = faults.Patience
)

// lessor returns the instance that expires leases.
func (c *cluster) lessor() *instance {
	c.t.Helper()
	var found *instance
	faults.Eventually(c.t, "an instance expires leases", func() bool {
		for _, i := range c.instances {
			log := string(i.Log())
			if strings.LastIndex(log, `"this instance expires leases"`) > strings.LastIndex(log, `"this instance expires leases no more"`) {
				found = i
			}
		}
		return found != nil
	})
	return found
}

// TestLessor harms the instance that expires leases: another takes over. No
// lease expires early, whichever instance it was renewed through, and those
// that are not renewed do expire, also when the first one comes back.
func TestLessor(t *testing.T) {
	for _, h := range []struct {
		name        string
		begin, over func(t *testing.T, lessor *instance)
	}{
		{
			"kill -9",
			func(_ *testing.T, lessor *instance) { lessor.Kill() },
			func(_ *testing.T, lessor *instance) { lessor.Restart() },
		},
		{
			"SIGSTOP",
			func(t *testing.T, lessor *instance) { faults.Signal(t, lessor.Server, syscall.SIGSTOP) },
			func(t *testing.T, lessor *instance) { faults.Signal(t, lessor.Server, syscall.SIGCONT) },
		},
		{
			"cut off",
			func(_ *testing.T, lessor *instance) { lessor.proxy.Cut() },
			func(_ *testing.T, lessor *instance) { lessor.proxy.Resume() },
		},
		{
			"no answers",
			func(_ *testing.T, lessor *instance) { lessor.proxy.Stall() },
			func(_ *testing.T, lessor *instance) { lessor.proxy.Resume() },
		},
	} {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel() // it waits, mostly
			testLessor(t, h.begin, h.over)
		})
	}
}

func testLessor(t *testing.T, begin, over func(*testing.T, *instance)) {
	c := startCluster(t, 3)
	first := c.lessor()
	var clients []*clientv3.Client
	for _, i := range c.instances {
		clients = append(clients, i.client(t))
	}
	faults.Lessor{
		Clients:  clients,
		Watching: faults.NewClient(t, c.without(first)...),
		TTL:      ttl,
		Within:   takeover + ttl + slack,
		Begin:    func() { begin(t, first) },
		Over: func() {
			t.Logf("%s expired leases, then %s", first.name, c.lessor().name)
			over(t, first)
		},
	}.Test(t)
}
