package postgres

import (
	"context"
	"strings"
	"sync"
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
	slack = 15 * time.Second
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
	var renewing, watching sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		renewing.Wait()
		watching.Wait()
	})
	g := faults.NewGone()
	watcher := faults.NewClient(t, c.without(first)...)
	watching.Go(func() { g.Follow(ctx, watcher) })

	renew := func(name string) (*faults.Renter, context.CancelFunc) {
		clients := []*clientv3.Client{faults.NewClient(t, c.endpoints()...)}
		for _, i := range c.instances {
			clients = append(clients, i.client(t))
		}
		r := faults.NewRenter(t, name, clients, ttl)
		ctx, cancel := context.WithCancel(ctx)
		renewing.Go(func() { r.Renew(ctx) })
		return r, cancel
	}
	kept, endKept := renew("kept")
	dropped, endDropped := renew("dropped")
	defer endKept()
	time.Sleep(2 * ttl) // both live longer than their TTL by their renewals only
	begin(t, first)
	endDropped()
	g.Expires(t, dropped, takeover+ttl+slack)
	second := c.lessor()
	while, endWhile := renew("while")
	over(t, first)
	t.Logf("%s expired leases, then %s", first.name, second.name)
	// The first one is back, with deadlines that are over.
	after, endAfter := renew("after")
	time.Sleep(2 * ttl)
	g.Lives(t, kept, while, after)
	endKept()
	endWhile()
	endAfter()
	g.Expires(t, kept, takeover+ttl+slack)
	g.Expires(t, while, takeover+ttl+slack)
	g.Expires(t, after, takeover+ttl+slack)
}
