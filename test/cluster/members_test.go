package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/keelson-io/keelson/test/harness"
	"github.com/keelson-io/keelson/test/internal/faults"
)

// TestMembers grows a node that has data to a cluster of three, then of five,
// replaces one that is lost, restarts them all one after the other and shrinks
// them to one again, while clients race through all of them. While each of
// those that join receives its first snapshot something else happens.
func TestMembers(t *testing.T) {
	t.Parallel() // it waits, mostly
	rnd := faults.NewRandom(t)
	c := startCluster(t, 1)
	first := c.nodes[0]
	for i := range 32 { // of a size that takes a while to send
		value := strings.Repeat(fmt.Sprint(i, " "), (256<<10)/3)
		if _, err := first.client.Put(t.Context(), fmt.Sprint("ballast/", i), value); err != nil {
			t.Fatal(err)
		}
	}
	load := c.startLoad(faults.StartLoad(t, rnd), first)
	for range faults.Rounds(t) {
		c.growAndShrink(load, first, rnd)
	}
	c.finish(load, first)
}

func (c *cluster) growAndShrink(load *faults.Load, first *node, rnd *rand.Rand) {
	members := []*node{first}
	add := func(disturb func(joining *node) (killed bool)) *node {
		load.Flows("before a node joins")
		x := c.join(members, disturb)
		members = append(members, x)
		c.serve(x.name+" has joined", members...)
		return x
	}
	some := func(nodes []*node) *node { return nodes[rnd.IntN(len(nodes))] }

	c.joinInVain(members)
	undisturbed := func(*node) bool { return false }
	x := add(c.killJoining)
	load.Add(x.name+" or "+first.name, x.Endpoint, first.Endpoint)
	x = add(undisturbed)
	load.Add(x.name+" or "+first.name, x.Endpoint, first.Endpoint)
	add(func(*node) bool {
		c.moveLeader(members, rnd)
		return false
	})
	add(func(*node) bool {
		leader := c.leaderOf(members)
		leader.Kill()
		leader.Restart()
		return false
	})

	lost := some(members[1:])
	lost.Kill()
	members = without(members, lost)
	c.serve(lost.name+" is lost", members...)
	c.remove(members, lost)
	add(func(*node) bool {
		gone := some(members[1:])
		members = without(members, gone)
		c.remove(members, gone)
		return false
	})

	for _, x := range members {
		load.Flows("before a restart")
		if err := x.Stop(); err != nil {
			c.t.Errorf("%s: %v", x.name, err)
		}
		x.Restart()
	}
	c.serve("a restart of one after the other", members...)
	for len(members) > 1 {
		load.Flows("before a node is removed")
		gone := some(members[1:])
		if leader := c.leaderOf(members); leader != first && len(members)%2 == 0 {
			gone = leader
		}
		members = without(members, gone)
		c.remove(members, gone)
		c.serve(gone.name+" was removed", members...)
	}
}

// leaderOf is leader among nodes that are members.
func (c *cluster) leaderOf(members []*node) *node {
	c.t.Helper()
	return (&cluster{t: c.t, nodes: members}).leader()
}

// change asks for a change of the members until it is seen to be made: an
// answer may be lost.
func (c *cluster) change(what string, through []*node, ask func(context.Context, *node) error, made func([]*etcdserverpb.Member) bool) {
	c.t.Helper()
	n := 0
	faults.Retry(c.t, what, func(ctx context.Context) error {
		x := through[n%len(through)]
		n++
		err := ask(ctx, x)
		list, listed := x.client.MemberList(ctx)
		switch {
		case listed != nil:
			return errors.Join(err, listed)
		case !made(list.Members):
			return errors.Join(err, errors.New("it is not made"))
		}
		return nil
	})
}

// find returns the member that is x.
func find(members []*etcdserverpb.Member, x *node) *etcdserverpb.Member {
	at := slices.IndexFunc(members, func(m *etcdserverpb.Member) bool { return m.PeerURLs[0] == x.peerURL() })
	if at < 0 {
		return nil
	}
	return members[at]
}

// learn adds a node to members as a learner, starts it and returns when it
// receives its first snapshot, slowly. What TryRestart returns is still to come.
func (c *cluster) learn(members []*node) (*node, <-chan error) {
	t := c.t
	t.Helper()
	x := c.newNode()
	c.change(x.name+" is added", members, func(ctx context.Context, by *node) error {
		_, err := by.client.MemberAddAsLearner(ctx, []string{x.peerURL()})
		return err
	}, func(list []*etcdserverpb.Member) bool { return find(list, x) != nil })
	x.Server = c.server(x, "--initial-cluster", c.urls(append(slices.Clone(members), x)...), "--initial-cluster-state", "existing")
	x.client = faults.NewClient(t, x.Endpoint)
	x.proxy.Delay(15 * time.Millisecond) // of each piece of the snapshot
	ready := make(chan error, 1)
	go func() { ready <- x.TryRestart() }()
	faults.Eventually(t, x.name+" receives a snapshot", func() bool { return strings.Contains(x.output(), "receiving a snapshot") })
	return x, ready
}

// joinInVain removes a node while it receives its first snapshot: it ends.
func (c *cluster) joinInVain(members []*node) {
	c.t.Helper()
	x, ready := c.learn(members)
	c.dismiss(members, x)
	x.proxy.Resume()
	if err := <-ready; err != nil && !strings.Contains(x.output(), "this node was removed from the cluster") {
		c.t.Error(err)
	}
	select {
	case <-x.Done():
	case <-time.After(faults.Patience):
		c.t.Errorf("%s was removed and goes on:\n%s", x.name, x.LogTail(10))
	}
	c.serve(x.name+" was removed before it had joined", members...)
}

// join adds a node to members, as a learner first. disturb is called when it
// receives its first snapshot, and says whether it has killed the node; whatever
// it does the node joins.
func (c *cluster) join(members []*node, disturb func(joining *node) (killed bool)) *node {
	t := c.t
	t.Helper()
	x, ready := c.learn(members)
	killed := disturb(x)
	x.proxy.Resume()
	if err := <-ready; err != nil && !killed {
		t.Fatal(err)
	}
	if killed { // before it was ready, or a moment after
		x.Restart()
	}
	c.change(x.name+" is promoted", members, func(ctx context.Context, by *node) error {
		list, err := by.client.MemberList(ctx)
		if err != nil {
			return err
		}
		_, err = by.client.MemberPromote(ctx, find(list.Members, x).ID)
		if errors.Is(err, rpctypes.ErrMemberLearnerNotReady) {
			time.Sleep(50 * time.Millisecond)
		}
		return err
	}, func(list []*etcdserverpb.Member) bool { return !find(list, x).IsLearner })
	return x
}

// output is what a node that is being started has written.
func (x *node) output() string {
	log, err := os.ReadFile(filepath.Join(x.Dir, string(harness.Keelson)+".log"))
	if err != nil {
		return ""
	}
	return string(log)
}

// killJoining kills a node that is being started.
func (c *cluster) killJoining(x *node) (killed bool) {
	c.t.Helper()
	_, rest, found := strings.Cut(x.output(), `"pid":`)
	var pid int
	if _, err := fmt.Sscan(strings.FieldsFunc(rest, func(r rune) bool { return r == ',' })[0], &pid); err != nil || !found {
		c.t.Fatalf("%s does not say its pid: %v", x.name, err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		c.t.Fatal(err)
	}
	return true
}

// dismiss removes a node, through one of those that stay.
func (c *cluster) dismiss(stay []*node, gone *node) {
	c.t.Helper()
	c.change(gone.name+" is removed", stay, func(ctx context.Context, by *node) error {
		list, err := by.client.MemberList(ctx)
		if err != nil {
			return err
		}
		m := find(list.Members, gone)
		if m == nil {
			return nil // an answer was lost
		}
		_, err = by.client.MemberRemove(ctx, m.ID)
		return err
	}, func(list []*etcdserverpb.Member) bool { return find(list, gone) == nil })
}

// remove removes a node, through one of those that stay, and waits until it has
// ended by itself, if it runs.
func (c *cluster) remove(stay []*node, gone *node) {
	t := c.t
	t.Helper()
	c.dismiss(stay, gone)
	select {
	case <-gone.Done():
	case <-time.After(faults.Patience):
		t.Fatalf("%s was removed and goes on:\n%s", gone.name, gone.LogTail(10))
	}
}

// moveLeader hands the leadership over to another member that votes.
func (c *cluster) moveLeader(members []*node, rnd *rand.Rand) {
	c.t.Helper()
	faults.Retry(c.t, "the leadership is moved", func(ctx context.Context) error {
		leader := c.leaderOf(members)
		rest := without(members, leader)
		to, err := rest[rnd.IntN(len(rest))].status(ctx)
		if err != nil {
			return err
		}
		if _, err := leader.client.MoveLeader(ctx, to.Header.MemberId); err != nil {
			return err
		}
		now, err := leader.status(ctx)
		if err == nil && now.Leader != to.Header.MemberId {
			err = fmt.Errorf("%x leads", now.Leader)
		}
		return err
	})
}
