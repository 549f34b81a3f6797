// Package linearizable records what clients ask for and are told, and checks
// with porcupine that there is an order of it all in which each answer is
// right, and which no answer contradicts in time.
package linearizable

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The kinds of requests.
const (
	Get    = "get"
	Put    = "put"
	Delete = "delete"
	Swap   = "swap"  // a put if the mod revision is Request.Expect
	Stale  = "stale" // a serializable get
)

// Request is one request of one client for one key.
type Request struct {
	Key   int
	Kind  string
	Value string // no two requests put the same

	Expect int64
}

// Response is its answer. Known is false if none came: then it may have taken
// effect at any time since, or never.
type Response struct {
	Known     bool
	Succeeded bool
	Register        // of Get and Stale
	Revision  int64 // of the answer's header
}

// Register is the state of one key.
type Register struct {
	Value string
	Mod   int64 // 0 if there is no such key
}

// Prefix is what the names of all keys begin with.
const Prefix = "register/"

// KeyName is the name of a key on the server.
func KeyName(key int) string { return fmt.Sprint(Prefix, key) }

// model says that a key is a register: reads see the newest write, and the
// revisions of its writes grow.
var model = porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[int][]porcupine.Operation{}
		for _, op := range history {
			k := op.Input.(Request).Key
			byKey[k] = append(byKey[k], op)
		}
		var parts [][]porcupine.Operation
		for _, part := range byKey {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() []any { return []any{Register{}} },
	Step: func(state, input, output any) []any {
		return step(state.(Register), input.(Request), output.(Response))
	},
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(input, output any) string {
		return fmt.Sprintf("%+v -> %+v", input, output)
	},
}

// unknownRevision is the mod revision of a write that got no answer, until a
// read shows it.
const unknownRevision = -1

func step(state Register, req Request, resp Response) []any {
	matches := req.Kind != Swap || state.Mod == req.Expect || state.Mod == unknownRevision
	if !resp.Known {
		next := []any{state}
		switch {
		case req.Kind == Delete:
			next = append(next, Register{})
		case req.Kind != Get && matches:
			next = append(next, Register{req.Value, unknownRevision})
		}
		return next
	}
	switch req.Kind {
	case Get:
		if resp.Value != state.Value || (resp.Mod != state.Mod && state.Mod != unknownRevision) ||
			(resp.Mod == 0) != (state.Mod == 0) {
			return nil
		}
		return []any{resp.Register}
	case Delete:
		if resp.Succeeded != (state.Mod != 0) {
			return nil
		}
		return []any{Register{}}
	case Swap:
		if !resp.Succeeded {
			if state.Mod == req.Expect {
				return nil
			}
			return []any{state}
		}
		if !matches {
			return nil
		}
	}
	if resp.Revision <= state.Mod {
		return nil
	}
	return []any{Register{req.Value, resp.Revision}}
}

// Recorder runs clients and holds the history.
type Recorder struct {
	keys     int
	began    time.Time
	answered atomic.Int64

	mu         sync.Mutex
	operations []porcupine.Operation // guarded by mu
	stale      []porcupine.Operation // guarded by mu; of kind Stale
}

// New returns a recorder for clients that share this many keys.
func New(keys int) *Recorder { return &Recorder{keys: keys, began: time.Now()} }

// Answered is how many requests were answered so far.
func (r *Recorder) Answered() int64 { return r.answered.Load() }

// Run sends requests, with a pause before each, until ctx ends. No two clients
// have the same id.
func (r *Recorder) Run(ctx context.Context, c *clientv3.Client, id int, pause time.Duration) {
	last := map[int]int64{}
	for n := 0; ctx.Err() == nil; n++ {
		time.Sleep(pause)
		req := Request{Key: (n*7 + id) % r.keys, Value: fmt.Sprintf("%d-%d", id, n), Kind: Get}
		switch {
		case n%35 == 4:
			req.Kind = Delete
		case n%5 == 1:
			req.Kind = Put
		case n%5 == 3:
			req.Kind, req.Expect = Swap, last[req.Key]
		case n%5 == 4:
			req.Kind = Stale
		}
		call := time.Since(r.began)
		resp := send(ctx, c, req)
		op := porcupine.Operation{ClientId: id, Input: req, Call: int64(call), Output: resp, Return: int64(time.Since(r.began))}
		if !resp.Known {
			op.Return = math.MaxInt64
		} else if r.answered.Add(1); req.Kind == Get {
			last[req.Key] = resp.Mod
		}
		r.add(op)
	}
}

func (r *Recorder) add(op porcupine.Operation) {
	req, resp := op.Input.(Request), op.Output.(Response)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !resp.Known && (req.Kind == Get || req.Kind == Stale): // says nothing
	case req.Kind == Stale:
		r.stale = append(r.stale, op)
	default:
		r.operations = append(r.operations, op)
	}
}

func send(ctx context.Context, c *clientv3.Client, req Request) Response {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	key := KeyName(req.Key)
	switch req.Kind {
	case Get, Stale:
		var opts []clientv3.OpOption
		if req.Kind == Stale {
			opts = append(opts, clientv3.WithSerializable())
		}
		resp, err := c.Get(ctx, key, opts...)
		if err != nil {
			return Response{}
		}
		out := Response{Known: true, Revision: resp.Header.Revision}
		if len(resp.Kvs) == 1 {
			out.Register = Register{string(resp.Kvs[0].Value), resp.Kvs[0].ModRevision}
		}
		return out
	case Put:
		resp, err := c.Put(ctx, key, req.Value)
		if err != nil {
			return Response{}
		}
		return Response{Known: true, Succeeded: true, Revision: resp.Header.Revision}
	case Delete:
		resp, err := c.Delete(ctx, key)
		if err != nil {
			return Response{}
		}
		return Response{Known: true, Succeeded: resp.Deleted == 1, Revision: resp.Header.Revision}
	default:
		resp, err := c.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(key), "=", req.Expect)).
			Then(clientv3.OpPut(key, req.Value)).Commit()
		if err != nil {
			return Response{}
		}
		return Response{Known: true, Succeeded: resp.Succeeded, Revision: resp.Header.Revision}
	}
}

// Answers calls f with every answer that came, those of serializable reads
// included, once all clients have ended.
func (r *Recorder) Answers(f func(Request, Response)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, op := range slices.Concat(r.operations, r.stale) {
		if resp := op.Output.(Response); resp.Known {
			f(op.Input.(Request), resp)
		}
	}
}

// Resolve says of the puts that were not answered what became of them:
// revisions has those that took effect, by value. What is left to guess is
// little, and the check is fast.
func (r *Recorder) Resolve(revisions map[string]int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.operations = slices.DeleteFunc(r.operations, func(op porcupine.Operation) bool {
		req := op.Input.(Request)
		return !op.Output.(Response).Known && req.Kind != Delete && revisions[req.Value] == 0
	})
	for i, op := range r.operations {
		if req := op.Input.(Request); !op.Output.(Response).Known && req.Kind != Delete {
			r.operations[i].Output = Response{Known: true, Succeeded: true, Revision: revisions[req.Value]}
		}
	}
}

// Check fails t unless the history is linearizable, which it has to find out
// within limit. Serializable reads are no part of it.
func (r *Recorder) Check(t testing.TB, limit time.Duration) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	result, info := porcupine.CheckOperationsVerbose(model.ToModel(), r.operations, limit)
	if result != porcupine.Ok {
		t.Fatalf("the history of %d operations is %s: see %s", len(r.operations), result, visualize(t, info))
	}
	t.Logf("%d operations are linearizable; %d requests were answered, %d of them serializable reads",
		len(r.operations), r.answered.Load(), len(r.stale))
}

// visualize writes the history to a file that outlives the test.
func visualize(t testing.TB, info porcupine.LinearizationInfo) string {
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
