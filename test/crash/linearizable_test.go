package crash

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/keelson-io/keelson/test/harness"
	"github.com/keelson-io/keelson/test/internal/faults"
	"github.com/keelson-io/keelson/test/internal/linearizable"
)

func TestLinearizable(t *testing.T) {
	for _, backend := range harness.Backends(t) {
		t.Run(string(backend), func(t *testing.T) { testLinearizable(t, backend) })
	}
}

const (
	clients = 5
	keys    = 4
)

func testLinearizable(t *testing.T, backend harness.Backend) {
	srv := harness.StartServer(t, backend)
	rec := linearizable.New(keys)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running sync.WaitGroup
	for id := range clients {
		c := newClient(t, srv)
		running.Go(func() { rec.Run(ctx, c, id, 0) })
	}
	wait := func() {
		target := rec.Answered() + 400
		deadline := time.After(patience)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for rec.Answered() < target {
			select {
			case <-deadline:
				t.Fatal("no progress")
			case <-tick.C:
			}
		}
	}
	for range min(max(1, rounds(t)/2), 40) { // a longer history takes too long to check
		wait()
		srv.Restart()
	}
	wait()
	cancel()
	running.Wait()
	c := newClient(t, srv)
	last, err := c.Put(t.Context(), "last", "")
	if err != nil {
		t.Fatal(err)
	}
	// Of what was not answered the log says what became of it: what is left to
	// guess is little.
	revisions := map[string]int64{}
	for _, e := range faults.ReadLog(t, c, last.Header.Revision) {
		revisions[e.Value] = e.Revision
	}
	rec.Resolve(revisions)
	rec.Check(t, patience)
}
