package postgres_test

import (
	"context"
	"testing"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// TestReopen: a log that is opened again knows whether the database still has
// what it had seen before, though nobody has found out meanwhile.
func TestReopen(t *testing.T) {
	for name, tt := range map[string]struct {
		meanwhile func(t *testing.T, head eventlog.Head)
		jumps     bool
	}{
		"nothing": {func(*testing.T, eventlog.Head) {}, false},
		"written by others": {func(t *testing.T, head eventlog.Head) {
			appendPut(t, opened(t, t.Name()), &head, "other")
		}, false},
		"behind": {func(t *testing.T, _ eventlog.Head) { fallBack(t, t.Name(), 3) }, true},
		"overwritten in place": {func(t *testing.T, _ eventlog.Head) {
			fallBack(t, t.Name(), 4)
			appendPut(t, opened(t, t.Name()), &eventlog.Head{Position: 4, Seq: 4, Revision: 4}, "other")
		}, true},
		"overwritten": {func(t *testing.T, _ eventlog.Head) {
			fallBack(t, t.Name(), 3)
			log, head := opened(t, t.Name()), eventlog.Head{Position: 3, Seq: 3, Revision: 3}
			for range 4 {
				appendPut(t, log, &head, "other")
			}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			log, head := opened(t, t.Name()), eventlog.Head{}
			for range 5 {
				appendPut(t, log, &head, "a")
			}
			if err := log.Close(); err != nil {
				t.Fatal(err)
			}
			tt.meanwhile(t, head)
			again, err := log.Reopen(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			after, records := load(t, again)
			last := records[len(records)-1]
			if jumped := after.Revision > head.Revision+1000; jumped != tt.jumps || jumped != (last.Kind == eventlog.KindCompact) {
				t.Fatalf("the head was %+v and is %+v, the last record is a %v; a jump: want %v", head, after, last.Kind, tt.jumps)
			}
			appendPut(t, again, &after, "b")

			// The next one does not do it once more, although it knows as much.
			if err := again.Close(); err != nil {
				t.Fatal(err)
			}
			third, err := again.Reopen(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			defer third.Close()
			if got, _ := load(t, third); got != after {
				t.Fatalf("the head is %+v after another Reopen, want %+v", got, after)
			}
		})
	}
}

// TestReopenBeforeLoad: what was seen is remembered across logs that could not
// be loaded.
func TestReopenBeforeLoad(t *testing.T) {
	log, head := opened(t, t.Name()), eventlog.Head{}
	for range 5 {
		appendPut(t, log, &head, "a")
	}
	for range 2 {
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
		var err error
		if log, err = log.Reopen(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	defer log.Close()
	fallBack(t, t.Name(), 3)
	if after, _ := load(t, log); after.Revision <= head.Revision+1000 {
		t.Fatalf("the head was %+v and is %+v, want a jump", head, after)
	}
}
