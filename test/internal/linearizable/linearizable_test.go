package linearizable

import (
	"math"
	"testing"

	"github.com/anishathalye/porcupine"
)

// TestModel checks that the model refuses what it is there to refuse.
func TestModel(t *testing.T) {
	answered := func(value string, mod, revision int64) Response {
		return Response{Known: true, Succeeded: true, Register: Register{value, mod}, Revision: revision}
	}
	op := func(at int64, req Request, resp Response) porcupine.Operation {
		return porcupine.Operation{Input: req, Call: at, Output: resp, Return: at + 1}
	}
	one := op(0, Request{Kind: Put, Value: "1"}, answered("", 0, 2))
	two := op(10, Request{Kind: Put, Value: "2"}, answered("", 0, 3))
	lost := op(10, Request{Kind: Put, Value: "2"}, Response{})
	lost.Return = math.MaxInt64
	read := func(at int64, value string, mod int64) porcupine.Operation {
		return op(at, Request{Kind: Get}, answered(value, mod, mod))
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
		"a revision that goes backwards":       {false, []porcupine.Operation{two, op(20, Request{Kind: Put}, answered("", 0, 2))}},
		"a swap of an old revision that works": {false, []porcupine.Operation{one, two, op(20, Request{Kind: Swap, Expect: 2}, answered("", 0, 4))}},
	} {
		if got := porcupine.CheckOperations(model.ToModel(), c.history); got != c.want {
			t.Errorf("%s: linearizable is %v", name, got)
		}
	}
}
