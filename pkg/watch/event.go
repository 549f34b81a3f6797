package watch

import (
	"sync"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// changeOverhead is what an event costs in memory beside its keys and values.
const changeOverhead = 256

// change is one event in both of its forms, shared by everyone who is to see
// it. Each is allocated on its own, so that a slow reader of one event does
// not keep the rest of its batch alive.
type change struct {
	full  *mvccpb.Event
	plain atomic.Pointer[mvccpb.Event]
	size  int
}

func newChange(ev *mvccpb.Event) *change {
	size := changeOverhead + len(ev.Kv.Key) + len(ev.Kv.Value)
	if ev.PrevKv != nil {
		size += len(ev.PrevKv.Key) + len(ev.PrevKv.Value)
	}
	return &change{full: ev, size: size}
}

func (c *change) revision() int64 { return c.full.Kv.ModRevision }

// event returns the event with or without its previous key-value pair; the
// latter is made by whoever needs it first.
func (c *change) event(prevKV bool) *mvccpb.Event {
	if prevKV || c.full.PrevKv == nil {
		return c.full
	}
	if ev := c.plain.Load(); ev != nil {
		return ev
	}
	c.plain.CompareAndSwap(nil, &mvccpb.Event{Type: c.full.Type, Kv: c.full.Kv})
	return c.plain.Load()
}

// filter is a set of event types that a watcher does not want.
type filter uint8

const (
	noPut filter = 1 << iota
	noDelete
)

func (f filter) drops(c *change) bool {
	if c.full.Type == mvccpb.Event_DELETE {
		return f&noDelete != 0
	}
	return f&noPut != 0
}

// run is a sequence of changes for one key range: what one batch holds for it,
// or one page of the past. It is the unit that watchers share: all that want
// the same events get the same run, and from it the same slice of events.
//
// Invariant: a run holds whole revisions in order, and does not change once
// the hub's lock was released.
type run struct {
	changes   []*change
	revisions int
	bytes     int
	deletes   int
	partial   bool // its previous key-value pairs were left out

	// The filtered forms, by filter; owned by whoever holds the hub's lock.
	filtered [noPut | noDelete]*run

	forms [2]struct { // without and with the previous key-value pair
		once   sync.Once
		events []*mvccpb.Event
	}
}

func newRun(events []*mvccpb.Event) *run {
	r := &run{}
	for _, ev := range events {
		r.add(newChange(ev))
	}
	return r
}

func (r *run) add(c *change) {
	if n := len(r.changes); n == 0 || r.changes[n-1].revision() != c.revision() {
		r.revisions++
	}
	r.changes = append(r.changes, c)
	r.bytes += c.size
	if c.full.Type == mvccpb.Event_DELETE {
		r.deletes++
	}
}

func (r *run) empty() bool  { return len(r.changes) == 0 }
func (r *run) first() int64 { return r.changes[0].revision() }
func (r *run) last() int64  { return r.changes[len(r.changes)-1].revision() }

// narrow returns the part of r at or after revision from that passes f. The
// caller holds the hub's lock, or r is its own.
func (r *run) narrow(f filter, from int64) *run {
	if r.empty() {
		return r
	}
	if r.first() < from {
		late := &run{partial: r.partial}
		for _, c := range r.changes {
			if c.revision() >= from && !f.drops(c) {
				late.add(c)
			}
		}
		return late
	}
	if f == 0 || f == noPut && r.deletes == len(r.changes) || f == noDelete && r.deletes == 0 {
		return r
	}
	if r.filtered[f-1] == nil {
		kept := &run{partial: r.partial}
		for _, c := range r.changes {
			if !f.drops(c) {
				kept.add(c)
			}
		}
		r.filtered[f-1] = kept
	}
	return r.filtered[f-1]
}

// events returns all events of r in the wanted form. The slice is shared.
func (r *run) events(prevKV bool) []*mvccpb.Event {
	form := &r.forms[0]
	if prevKV {
		form = &r.forms[1]
	}
	form.once.Do(func() { form.events = eventsOf(r.changes, prevKV) })
	return form.events
}

func eventsOf(changes []*change, prevKV bool) []*mvccpb.Event {
	events := make([]*mvccpb.Event, len(changes))
	for i, c := range changes {
		events[i] = c.event(prevKV)
	}
	return events
}
