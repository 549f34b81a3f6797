package raftlog_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/raftlog"
)

// seeds returns some to try, even and odd, or the one of KEELSON_SEED.
func seeds(t *testing.T, n int) []uint64 {
	t.Helper()
	if env := os.Getenv("KEELSON_SEED"); env != "" {
		seed, err := strconv.ParseUint(env, 10, 64)
		if err != nil {
			t.Fatalf("KEELSON_SEED=%q: it is a number", env)
		}
		return []uint64{seed}
	}
	var all []uint64
	for i := range uint64(n) {
		all = append(all, rand.Uint64()&^1|i%2)
	}
	return all
}

// TestBadNetwork: messages are lost, repeated, late and in any other order,
// pairs of nodes are cut off from each other, and nodes restart, while two
// writers and a reader ask whom they please. What was acknowledged is there
// once, at its position, what was refused is not, no fence is behind what was
// acknowledged before it, and all nodes end with the same. Between processes
// only the last of it happens: TCP has no such messages.
func TestBadNetwork(t *testing.T) {
	for _, seed := range seeds(t, 2) { // three nodes if it is even, otherwise five
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			b := &badNetwork{t: t, network: briskNetwork(), dir: t.TempDir(), size: 3 + 2*int(seed%2)}
			b.run(rand.New(rand.NewPCG(seed, 0)), 4*time.Second)
		})
	}
}

// briskNetwork returns one for nodes that elect their leaders themselves.
func briskNetwork() *network {
	net := newNetwork()
	net.election = 300 * time.Millisecond
	return net
}

// badNetwork is a cluster on one, and what its clients know.
type badNetwork struct {
	*network
	t    *testing.T
	dir  string
	size int

	know sync.Mutex
	// Guarded by know.
	acknowledged map[string]eventlog.Position // of each key
	refused      map[string]bool              // keys
	highest      eventlog.Position            // that was acknowledged
}

func (b *badNetwork) run(rnd *rand.Rand, d time.Duration) {
	b.acknowledged, b.refused = map[string]eventlog.Position{}, map[string]bool{}
	nodes := nodesOf(b.t, b.network, b.dir, b.size)
	leaderOf(b.t, nodes...)
	b.mu.Lock()
	b.fate = fates(rand.New(rand.NewPCG(rnd.Uint64(), 0)))
	b.mu.Unlock()

	ctx, cancel := context.WithCancel(b.t.Context())
	defer cancel()
	var running sync.WaitGroup
	for w := range 2 {
		source := rand.New(rand.NewPCG(rnd.Uint64(), 0))
		running.Go(func() { b.write(ctx, fmt.Sprint("writer", w), source) })
	}
	source := rand.New(rand.NewPCG(rnd.Uint64(), 0))
	running.Go(func() { b.read(ctx, source) })
	for begun := time.Now(); time.Since(begun) < d; {
		time.Sleep(time.Duration(rnd.IntN(400)) * time.Millisecond)
		b.harm(rnd)
	}
	b.mu.Lock()
	clear(b.cut)
	b.fate = nil
	b.mu.Unlock()
	await(b.t, "some batches are acknowledged", func() bool { // few, if the machine has other things to do
		b.know.Lock()
		defer b.know.Unlock()
		return len(b.acknowledged) >= 20
	})
	cancel()
	running.Wait()
	b.check()
}

// fates draws what becomes of messages.
func fates(rnd *rand.Rand) func() []time.Duration {
	var mu sync.Mutex
	return func() (copies []time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		if rnd.IntN(10) == 0 {
			return nil
		}
		for copies == nil || rnd.IntN(10) == 0 {
			late := time.Duration(rnd.IntN(5)) * time.Millisecond
			if rnd.IntN(20) == 0 {
				late *= 100
			}
			copies = append(copies, late)
		}
		return copies
	}
}

// harm cuts pairs of nodes off from each other, or restarts a node.
func (b *badNetwork) harm(rnd *rand.Rand) {
	if rnd.IntN(4) == 0 {
		id := uint64(rnd.IntN(b.size) + 1)
		if err := b.node(id).Close(); err != nil {
			b.t.Errorf("Close: %v", err)
		}
		startNode(b.t, b.network, b.dir, id, membersOf(b.size))
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.cut)
	for from := range b.size {
		for to := range b.size {
			b.cut[[2]uint64{uint64(from + 1), uint64(to + 1)}] = rnd.IntN(5) == 0
		}
	}
}

func (b *badNetwork) node(id uint64) *raftlog.Log {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.nodes[id]
}

// write appends through every node that believes to lead.
func (b *badNetwork) write(ctx context.Context, name string, rnd *rand.Rand) {
	var head eventlog.Head
	for i := 0; ctx.Err() == nil; i++ {
		time.Sleep(time.Duration(rnd.IntN(3)) * time.Millisecond)
		n := b.node(uint64(rnd.IntN(b.size) + 1))
		if !n.Status().Leads {
			continue
		}
		short, cancel := context.WithTimeout(ctx, 2*time.Second)
		if newer, err := n.Tail(short, head.Position, 1000); err == nil {
			for at := range newer {
				head = after(&newer[at])
			}
			key := fmt.Sprint(name, ".", i)
			batch := batchOn(head, key)
			b.answered(key, batch.Position(), n.Append(short, batch))
		}
		cancel()
	}
}

func (b *badNetwork) answered(key string, position eventlog.Position, err error) {
	b.know.Lock()
	defer b.know.Unlock()
	switch {
	case err == nil:
		b.acknowledged[key], b.highest = position, max(b.highest, position)
	case errors.Is(err, raftlog.ErrNotLeader) || errors.Is(err, eventlog.ErrStale):
		b.refused[key] = true
	}
}

// read fences on every node.
func (b *badNetwork) read(ctx context.Context, rnd *rand.Rand) {
	for ctx.Err() == nil {
		time.Sleep(time.Millisecond)
		n := b.node(uint64(rnd.IntN(b.size) + 1))
		b.know.Lock()
		before := b.highest
		b.know.Unlock()
		short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		if at, err := n.Head(short); err == nil && at < before {
			b.t.Errorf("Head of node %d is %d after %d was acknowledged", n.Status().ID, at, before)
		}
		cancel()
	}
}

// check compares all nodes with each other, and with what is known.
func (b *badNetwork) check() {
	t := b.t
	var first *raftlog.Log
	for id := range b.size {
		n := b.node(uint64(id + 1))
		await(t, "a fence on each node", func() bool {
			short, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			at, err := n.Head(short)
			return err == nil && at >= b.highest
		})
		if first == nil {
			first = n
		}
	}
	for id := range b.size {
		n := b.node(uint64(id + 1))
		if _, err := n.Head(t.Context()); err != nil {
			t.Fatalf("Head: %v", err)
		}
		sameBatches(t, first, n)
	}
	positions := map[string]eventlog.Position{}
	for _, batch := range dump(t, first) {
		key := string(batch.Records[0].Key)
		if before := positions[key]; before != 0 {
			t.Errorf("%s is there twice, at %d and %d", key, before, batch.Position())
		}
		if positions[key] = batch.Position(); b.refused[key] {
			t.Errorf("%s was refused, and is there at %d", key, batch.Position())
		}
	}
	for key, position := range b.acknowledged {
		if positions[key] != position {
			t.Errorf("%s was acknowledged at %d, and is there at %d", key, position, positions[key])
		}
	}
	t.Logf("%d nodes: %d batches, %d acknowledged, %d refused", b.size, len(positions), len(b.acknowledged), len(b.refused))
}
