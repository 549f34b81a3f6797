package crash

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/test/harness"
)

// request is one request of one client for one key.
type request struct {
	key   int
	kind  string // get, put, delete or swap: a put if the mod revision is expect
	value string

	expect int64
}

// response is its answer. Known is false if none came: then it may have taken
// effect at any time since, or never.
type response struct {
	known     bool
	succeeded bool
	register
	revision int64 // of the answer's header
}

// register is the state of one key.
type register struct {
	value string
	mod   int64 // 0 if there is no such key
}

// model says that a key is a register: reads see the newest write, and the
// revisions of its writes grow.
var model = porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[int][]porcupine.Operation{}
		for _, op := range history {
			k := op.Input.(request).key
			byKey[k] = append(byKey[k], op)
		}
		var parts [][]porcupine.Operation
		for _, part := range byKey {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() []any { return []any{register{}} },
	Step: func(state, input, output any) []any {
		return step(state.(register), input.(request), output.(response))
	},
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(input, output any) string {
		return fmt.Sprintf("%+v -> %+v", input, output)
	},
}

// unknownRevision is the mod revision of a write that got no answer, until a
// read shows it.
const unknownRevision = -1

func step(state register, req request, resp response) []any {
	matches := req.kind != "swap" || state.mod == req.expect || state.mod == unknownRevision
	if !resp.known {
		next := []any{state}
		switch {
		case req.kind == "delete":
			next = append(next, register{})
		case req.kind != "get" && matches:
			next = append(next, register{req.value, unknownRevision})
		}
		return next
	}
	switch req.kind {
	case "get":
		if resp.value != state.value || (resp.mod != state.mod && state.mod != unknownRevision) ||
			(resp.mod == 0) != (state.mod == 0) {
			return nil
		}
		return []any{resp.register}
	case "delete":
		if resp.succeeded != (state.mod != 0) {
			return nil
		}
		return []any{register{}}
	case "swap":
		if !resp.succeeded {
			if state.mod == req.expect {
				return nil
			}
			return []any{state}
		}
		if !matches {
			return nil
		}
	}
	if resp.revision <= state.mod {
		return nil
	}
	return []any{register{req.value, resp.revision}}
}

func TestLinearizable(t *testing.T) {
	for _, backend := range harness.Backends(t) {
		t.Run(string(backend), func(t *testing.T) { linearizable(t, backend) })
	}
}

const (
	clients = 5
	keys    = 4
)

func linearizable(t *testing.T, backend harness.Backend) {
	srv := harness.StartServer(t, backend)
	rec := &recorder{began: time.Now()}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running sync.WaitGroup
	for id := range clients {
		c := newClient(t, srv)
		running.Go(func() { rec.run(ctx, c, id) })
	}
	wait := func() {
		target := rec.answered.Load() + 400
		deadline := time.After(patience)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for rec.answered.Load() < target {
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
	result, info := porcupine.CheckOperationsVerbose(model.ToModel(), rec.operations, patience)
	if result != porcupine.Ok {
		t.Fatalf("the history of %d operations is %s: see %s", len(rec.operations), result, visualize(t, info))
	}
	t.Logf("%d operations, %d of them answered", len(rec.operations), rec.answered.Load())
}

// visualize writes the history to a file that outlives the test.
func visualize(t *testing.T, info porcupine.LinearizationInfo) string {
	t.Helper()
	f, err := os.CreateTemp("", "keelson-history-*.html") //nolint:usetesting // it is to be looked at afterwards
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(porcupine.Visualize(model.ToModel(), info, f), f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// recorder holds the history.
type recorder struct {
	began    time.Time
	answered atomic.Int64

	mu         sync.Mutex
	operations []porcupine.Operation // guarded by mu
}

func (r *recorder) run(ctx context.Context, c *clientv3.Client, id int) {
	last := map[int]int64{}
	for n := 0; ctx.Err() == nil; n++ {
		req := request{key: (n*7 + id) % keys, value: fmt.Sprintf("%d-%d", id, n)}
		switch n % 5 {
		case 0, 2:
			req.kind = "get"
		case 1:
			req.kind = "put"
		case 3:
			req.kind, req.expect = "swap", last[req.key]
		case 4:
			if req.kind = "get"; n%35 == 4 {
				req.kind = "delete"
			}
		}
		call := time.Since(r.began)
		resp := send(ctx, c, req)
		op := porcupine.Operation{ClientId: id, Input: req, Call: int64(call), Output: resp, Return: int64(time.Since(r.began))}
		if resp.known {
			r.answered.Add(1)
			if req.kind == "get" {
				last[req.key] = resp.mod
			}
		} else {
			op.Return = math.MaxInt64
		}
		if !resp.known && req.kind == "get" {
			continue
		}
		r.mu.Lock()
		r.operations = append(r.operations, op)
		r.mu.Unlock()
	}
}

func send(ctx context.Context, c *clientv3.Client, req request) response {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	key := fmt.Sprint("register/", req.key)
	switch req.kind {
	case "get":
		resp, err := c.Get(ctx, key)
		if err != nil {
			return response{}
		}
		out := response{known: true, revision: resp.Header.Revision}
		if len(resp.Kvs) == 1 {
			out.register = register{string(resp.Kvs[0].Value), resp.Kvs[0].ModRevision}
		}
		return out
	case "put":
		resp, err := c.Put(ctx, key, req.value)
		if err != nil {
			return response{}
		}
		return response{known: true, succeeded: true, revision: resp.Header.Revision}
	case "delete":
		resp, err := c.Delete(ctx, key)
		if err != nil {
			return response{}
		}
		return response{known: true, succeeded: resp.Deleted == 1, revision: resp.Header.Revision}
	default:
		resp, err := c.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(key), "=", req.expect)).
			Then(clientv3.OpPut(key, req.value)).Commit()
		if err != nil {
			return response{}
		}
		return response{known: true, succeeded: resp.Succeeded, revision: resp.Header.Revision}
	}
}

// TestModel checks that the model refuses what it is there to refuse.
func TestModel(t *testing.T) {
	answered := func(value string, mod, revision int64) response {
		return response{known: true, succeeded: true, register: register{value, mod}, revision: revision}
	}
	op := func(at int64, req request, resp response) porcupine.Operation {
		return porcupine.Operation{Input: req, Call: at, Output: resp, Return: at + 1}
	}
	one := op(0, request{kind: "put", value: "1"}, answered("", 0, 2))
	two := op(10, request{kind: "put", value: "2"}, answered("", 0, 3))
	lost := op(10, request{kind: "put", value: "2"}, response{})
	lost.Return = math.MaxInt64
	read := func(at int64, value string, mod int64) porcupine.Operation {
		return op(at, request{kind: "get"}, answered(value, mod, mod))
	}
	for name, c := range map[string]struct {
		want    bool
		history []porcupine.Operation
	}{
		"a read of the newest":                 {true, []porcupine.Operation{one, two, read(20, "2", 3)}},
		"a stale read":                         {false, []porcupine.Operation{one, two, read(20, "1", 2)}},
		"a lost write":                         {false, []porcupine.Operation{one, read(20, "", 0)}},
		"an unanswered write seen":             {true, []porcupine.Operation{one, lost, read(20, "2", 3)}},
		"an unanswered write never seen":       {true, []porcupine.Operation{one, lost, read(20, "1", 2)}},
		"an unanswered write that goes away":   {false, []porcupine.Operation{one, lost, read(20, "2", 3), read(30, "1", 2)}},
		"a revision that goes backwards":       {false, []porcupine.Operation{two, op(20, request{kind: "put"}, answered("", 0, 2))}},
		"a swap of an old revision that works": {false, []porcupine.Operation{one, two, op(20, request{kind: "swap", expect: 2}, answered("", 0, 4))}},
	} {
		if got := porcupine.CheckOperations(model.ToModel(), c.history); got != c.want {
			t.Errorf("%s: linearizable is %v", name, got)
		}
	}
}
