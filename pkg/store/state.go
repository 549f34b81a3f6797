package store

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/keelson-io/keelson/pkg/cowtree"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

// state is all that the log says, but for the values: a pure function of the
// records applied so far. Its trees are copy-on-write, so a copy of the struct
// is a snapshot.
//
// Invariant: a published state is never changed. Changes happen on a copy made
// by edit, and only through apply and trim.
type state struct {
	position  eventlog.Position // of the newest batch
	seq       int64             // of the newest record
	revision  int64             // current main revision
	compacted int64             // compact revision; -1 before the first compaction

	keys     cowtree.Tree[string, *entry]
	leases   cowtree.Tree[int64, grant]
	attached cowtree.Tree[attachment, attachment]
	alarms   []alarm // replaced as a whole, never changed in place

	mark    int64 // seq of the newest KindCompact record; 0 if none
	garbage garbage
}

func newState() state { return state{revision: 1, compacted: -1} }

// edit returns a copy of st for changing; st stays what it is.
func (st *state) edit() state {
	c := *st
	c.keys = st.keys.Edit()
	c.leases = st.leases.Edit()
	c.attached = st.attached.Edit()
	return c
}

// version is one revision of a key.
type version struct {
	main    int64
	seq     int64 // of the record, which has the value
	create  int64 // main revision of creation
	version int64
	lease   int64
	sub     int32
	size    int32 // of the value; -1 for a tombstone
}

func (v *version) tombstone() bool { return v.size < 0 }

// entry is a key with its revisions since compaction. Immutable but for the
// spare capacity of older, which only the newest entry of the key appends to.
type entry struct {
	key   string
	last  version
	older []version // in order
}

func (e *entry) Key() string            { return e.key }
func (e *entry) Compare(key string) int { return strings.Compare(e.key, key) }

// Weight counts a live key once and marks it with its newest main revision.
func (e *entry) Weight() (int, int64) {
	if e.last.tombstone() {
		return 0, e.last.main
	}
	return 1, e.last.main
}

// at returns the version of the key at main revision rev, if it is alive then.
func (e *entry) at(rev int64) (*version, bool) {
	v := &e.last
	if v.main > rev {
		i, _ := slices.BinarySearchFunc(e.older, rev+1, func(v version, rev int64) int { return cmp.Compare(v.main, rev) })
		if i == 0 {
			return nil, false
		}
		v = &e.older[i-1]
	}
	return v, !v.tombstone()
}

// countAt is 1 if the key is alive at rev, else 0.
func (e *entry) countAt(rev int64) int {
	if _, ok := e.at(rev); ok {
		return 1
	}
	return 0
}

// before returns the version that an event of main revision main has as its
// previous one: the one before the whole transaction, as etcd reads it, and
// none for a put that creates the key. e may be nil.
func (e *entry) before(main, create int64) (*version, bool) {
	if e == nil || create == main {
		return nil, false
	}
	return e.at(main - 1)
}

// kv fills kv with everything of version v of e's key but the value.
func (e *entry) kv(v *version, kv *mvccpb.KeyValue) {
	kv.Key = bytesOf(e.key)
	kv.CreateRevision = v.create
	kv.ModRevision = v.main
	kv.Version = v.version
	kv.Lease = v.lease
}

// grant is a lease.
type grant struct {
	id, ttl int64
	seq     int64
}

func (g grant) Key() int64           { return g.id }
func (g grant) Compare(id int64) int { return cmp.Compare(g.id, id) }
func (g grant) Weight() (int, int64) { return 1, 0 }

// attachment is a key attached to a lease; in order of lease, then key.
type attachment struct {
	lease int64
	key   string
}

func (a attachment) Key() attachment      { return a }
func (a attachment) Weight() (int, int64) { return 1, 0 }
func (a attachment) Compare(b attachment) int {
	if c := cmp.Compare(a.lease, b.lease); c != 0 {
		return c
	}
	return strings.Compare(a.key, b.key)
}

// alarm is a raised alarm.
type alarm struct {
	member uint64
	alarm  int32
	seq    int64
}

// keysOf returns the keys attached to a lease, in order.
func (st *state) keysOf(lease int64) []string {
	var keys []string
	st.attached.Ascend(attachment{lease: lease}, func(a attachment) bool {
		if a.lease == lease {
			keys = append(keys, a.key)
		}
		return a.lease == lease
	})
	return keys
}

func (st *state) alarmRaised(kind int32) bool {
	return slices.ContainsFunc(st.alarms, func(a alarm) bool { return a.alarm == kind })
}

// apply makes r part of st. It is the only way that a record changes a state,
// be it evaluated here, read at start or written by another instance. The
// records must come in order of seq; what compaction has taken may be missing.
func (st *state) apply(r *eventlog.Record) error {
	if r.Seq <= st.seq || r.Position < st.position {
		return fmt.Errorf("%w: record %d of position %d follows record %d of position %d", eventlog.ErrCorrupt, r.Seq, r.Position, st.seq, st.position)
	}
	st.seq, st.position = r.Seq, r.Position
	switch r.Kind {
	case eventlog.KindPut, eventlog.KindDelete:
		return st.applyEvent(r)
	case eventlog.KindLeaseGrant:
		st.leases.Set(grant{id: r.Lease, ttl: r.TTL, seq: r.Seq})
	case eventlog.KindLeaseRevoke:
		if g, ok := st.leases.Get(r.Lease); ok {
			st.garbage.retire(g.seq)
			st.leases.Delete(r.Lease)
		}
		st.garbage.retire(r.Seq)
	case eventlog.KindCompact:
		if st.mark != 0 {
			st.garbage.retire(st.mark)
		}
		st.mark = r.Seq
		st.compacted = max(st.compacted, r.Revision.Main)
		st.garbage.due = len(st.garbage.retired)
	case eventlog.KindAlarmRaise:
		st.alarms = append(slices.Clone(st.alarms), alarm{r.Member, r.Alarm, r.Seq})
	case eventlog.KindAlarmDisarm:
		st.garbage.retire(r.Seq)
		var rest []alarm
		for _, a := range st.alarms {
			if a.member == r.Member && a.alarm == r.Alarm {
				st.garbage.retire(a.seq)
			} else {
				rest = append(rest, a)
			}
		}
		st.alarms = rest
	default:
		return fmt.Errorf("%w: record %d has the unknown kind %d", eventlog.ErrCorrupt, r.Seq, r.Kind)
	}
	return nil
}

func (st *state) applyEvent(r *eventlog.Record) error {
	if r.Revision.Main < st.revision {
		return fmt.Errorf("%w: record %d has revision %s after revision %d", eventlog.ErrCorrupt, r.Seq, r.Revision, st.revision)
	}
	st.revision = r.Revision.Main
	e := &entry{last: version{
		main: r.Revision.Main, sub: int32(r.Revision.Sub), seq: r.Seq,
		create: r.CreateRevision, version: r.Version, lease: r.Lease,
		size: int32(min(len(r.Value)+r.ValueBytes, math.MaxInt32)),
	}}
	if r.Kind == eventlog.KindDelete {
		e.last.size = -1
	}
	if prev, ok := st.keys.Get(stringOf(r.Key)); ok {
		e.key = prev.key
		e.older = append(prev.older, prev.last)
		if !prev.last.tombstone() {
			st.garbage.supersede(r.Revision.Main, prev.last.seq, e.key)
			if prev.last.lease != 0 {
				st.attached.Delete(attachment{prev.last.lease, e.key})
			}
		}
	} else {
		e.key = string(r.Key)
	}
	if e.last.tombstone() {
		st.garbage.bury(r.Revision.Main, r.Seq, e.key)
	} else if _, granted := st.leases.Get(r.Lease); granted { // an import may have keys of leases that there are not
		st.attached.Set(attachment{r.Lease, e.key})
	}
	st.keys.Set(e)
	return nil
}
