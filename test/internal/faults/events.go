package faults

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/test/internal/linearizable"
)

// Event is one change of one key.
type Event struct {
	Revision int64
	Kind     string // put or delete
	Key      string
	Value    string
}

// EventOf returns what a watch was told.
func EventOf(ev *clientv3.Event) Event {
	e := Event{ev.Kv.ModRevision, "put", string(ev.Kv.Key), string(ev.Kv.Value)}
	if ev.Type == clientv3.EventTypeDelete {
		e.Kind = "delete"
	}
	return e
}

// ReadLog reads the whole history, of which nothing was compacted, up to a
// revision from a server.
func ReadLog(t testing.TB, c *clientv3.Client, last int64) []Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	var log []Event
	for resp := range c.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(1)) {
		if err := resp.Err(); err != nil {
			t.Fatalf("reading the history: %v", err)
		}
		for _, ev := range resp.Events {
			log = append(log, EventOf(ev))
		}
		if n := len(log); n > 0 && log[n-1].Revision >= last {
			return log
		}
	}
	t.Fatal("the history could not be read")
	return nil
}

// CheckLog makes sure that a log has every revision from the first on.
func CheckLog(t testing.TB, log []Event, last int64) {
	t.Helper()
	revision := int64(1)
	for _, e := range log {
		if e.Revision != revision && e.Revision != revision+1 {
			t.Errorf("the log has revision %d after %d", e.Revision, revision)
		}
		revision = e.Revision
	}
	if revision != last {
		t.Errorf("the log ends at revision %d, the last write was acknowledged at %d", revision, last)
	}
}

// checkAnswers compares each answer with the log at the revision that it names,
// and tells rec what became of what was not answered. It returns how many were
// compared.
func checkAnswers(t testing.TB, rec *linearizable.Recorder, log []Event) (answers int) {
	t.Helper()
	revisions := map[string]int64{}  // of values
	versions := map[string][]Event{} // of keys
	for _, e := range log {
		if e.Kind == "put" && strings.HasPrefix(e.Key, linearizable.Prefix) {
			if before := revisions[e.Value]; before != 0 {
				t.Errorf("one request was done twice, at %d and %d: %+v", before, e.Revision, e)
			}
			revisions[e.Value] = e.Revision
		}
		versions[e.Key] = append(versions[e.Key], e)
	}
	rec.Answers(func(req linearizable.Request, resp linearizable.Response) {
		answers++
		key := linearizable.KeyName(req.Key)
		at := Event{}
		for _, e := range versions[key] {
			if e.Revision > resp.Revision {
				break
			}
			at = e
		}
		var wrong bool
		switch req.Kind {
		case linearizable.Get, linearizable.Stale:
			want := linearizable.Register{}
			if at.Kind == "put" {
				want = linearizable.Register{Value: at.Value, Mod: at.Revision}
			}
			wrong = resp.Register != want
		case linearizable.Delete:
			wrong = resp.Succeeded && (at.Kind != "delete" || at.Revision != resp.Revision)
		default:
			wrong = resp.Succeeded && (at.Value != req.Value || at.Revision != resp.Revision)
		}
		if wrong {
			t.Errorf("%+v was answered with %+v; the log at that revision: %+v", req, resp, at)
		}
	})
	rec.Resolve(revisions)
	return answers
}

// upTo returns the events of a revision and those before it.
func upTo(log []Event, revision int64) []Event {
	return log[:len(log)-len(From(log, revision+1))]
}

// From returns the events of a revision and those after it.
func From(log []Event, revision int64) []Event {
	at, _ := slices.BinarySearchFunc(log, revision, func(e Event, revision int64) int {
		return int(e.Revision - revision)
	})
	return log[at:]
}

// sameEvents compares what somebody was told with the log.
func sameEvents(t testing.TB, who string, got, want []Event) {
	t.Helper()
	for n := range max(len(got), len(want)) {
		if n < len(got) && n < len(want) && got[n] == want[n] {
			continue
		}
		show := func(events []Event) string {
			return fmt.Sprintf("%v", events[min(n, len(events)):min(n+5, len(events))])
		}
		t.Errorf("%s was told of %d events, the log has %d; from number %d on:\n%s\nthe log:\n%s", who, len(got), len(want), n, show(got), show(want))
		return
	}
}
