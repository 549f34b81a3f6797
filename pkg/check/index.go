package check

import (
	"fmt"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// index is what a server would have of the keys, leases and alarms, with what
// does not follow from each other.
type index struct {
	*checker
	records *records

	keys   map[string]key
	leases map[int64]struct{}
	alarms map[alarm]struct{}

	// suspects are wrong unless compaction has come to their revision, which
	// is known at the end.
	suspects []suspect
	jumps    []jump
}

// jump is between two revisions of which nothing is there.
type jump struct{ from, to int64 }

// key is the newest version of a key.
type key struct {
	seq, main       int64
	create, version int64
	lease           int64
	deleted         bool
	doubtful        bool // a version of it could not be decoded
}

type alarm struct {
	member uint64
	alarm  int32
}

// suspect is kept small: of a snapshot that was restored every key may be one,
// until the compaction mark at the end.
type suspect struct {
	what            suspicion
	key             string
	seq             int64
	revision, last  eventlog.Revision
	create, version int64
}

type suspicion uint8

const (
	partMissing   suspicion = iota // of a transaction
	beforeMissing                  // the versions before
	nothingGone                    // deleted, and was not there
)

func (s *suspect) finding() (Kind, string) {
	switch s.what {
	case partMissing:
		return KindOrder, fmt.Sprintf("revision %v of key %q follows revision %v: a part of a transaction is not there", s.revision, s.key, s.last)
	case beforeMissing:
		return KindIndex, fmt.Sprintf("key %q has version %d, created at %d, and the versions before are not there", s.key, s.version, s.create)
	default:
		return KindIndex, fmt.Sprintf("key %q is deleted at revision %v, and was not there", s.key, s.revision)
	}
}

func newIndex(c *checker, rs *records) *index {
	return &index{checker: c, records: rs, keys: make(map[string]key), leases: make(map[int64]struct{}), alarms: make(map[alarm]struct{})}
}

// lost notes that a record could not be decoded; what is in the column of the
// key may be damaged, too.
func (ix *index) lost(name []byte) {
	k := ix.keys[string(name)]
	k.doubtful = true
	ix.keys[string(name)] = k
}

// suspect notes what only a compaction explains; last is the revision before.
func (ix *index) suspect(what suspicion, r *eventlog.Record, last eventlog.Revision) {
	ix.suspects = append(ix.suspects, suspect{
		what: what, key: string(r.Key), seq: r.Seq, revision: r.Revision, last: last, create: r.CreateRevision, version: r.Version,
	})
}

// jumped notes that there is nothing of the revisions between two.
func (ix *index) jumped(from, to int64) { ix.jumps = append(ix.jumps, jump{from, to}) }

func (ix *index) add(r *eventlog.Record) {
	switch r.Kind {
	case eventlog.KindPut:
		ix.put(r)
	case eventlog.KindDelete:
		ix.remove(r)
	case eventlog.KindLeaseGrant:
		if _, ok := ix.leases[r.Lease]; ok {
			ix.found(KindLease, where(r.Seq), "lease %x is granted, which there is already", r.Lease)
		}
		if r.Lease == 0 || r.TTL <= 0 {
			ix.found(KindLease, where(r.Seq), "lease %x is granted for %d s", r.Lease, r.TTL)
		}
		ix.leases[r.Lease] = struct{}{}
	case eventlog.KindLeaseRevoke:
		if _, ok := ix.leases[r.Lease]; !ok && ix.records.complete() {
			ix.found(KindLease, where(r.Seq), "lease %x is revoked, which there is not", r.Lease)
		}
		delete(ix.leases, r.Lease)
	case eventlog.KindAlarmRaise:
		if _, ok := ix.alarms[alarm{r.Member, r.Alarm}]; ok {
			ix.found(KindAlarm, where(r.Seq), "alarm %d of member %x is raised, which it is already", r.Alarm, r.Member)
		}
		ix.alarms[alarm{r.Member, r.Alarm}] = struct{}{}
	case eventlog.KindAlarmDisarm:
		if _, ok := ix.alarms[alarm{r.Member, r.Alarm}]; !ok && ix.records.complete() {
			ix.found(KindAlarm, where(r.Seq), "alarm %d of member %x is disarmed, which is not raised", r.Alarm, r.Member)
		}
		delete(ix.alarms, alarm{r.Member, r.Alarm})
	case eventlog.KindCompact:
		if r.Revision.Main < 1 {
			ix.found(KindCompact, where(r.Seq), "it compacts up to revision %d", r.Revision.Main)
		}
	}
}

// complete reports whether every record up to here is there and was decoded.
func (rs *records) complete() bool { return rs.n == rs.prev && rs.at == rs.prev && rs.bad() == 0 }

// bad is how many headers were damaged.
func (rs *records) bad() (n int) {
	for i := range rs.Findings {
		if rs.Findings[i].Kind == KindHeader {
			n++
		}
	}
	return n
}

func (ix *index) put(r *eventlog.Record) {
	k, known := ix.keys[string(r.Key)]
	next := key{seq: r.Seq, main: r.Revision.Main, create: r.CreateRevision, version: r.Version, lease: r.Lease}
	ix.keys[string(r.Key)] = next
	created := r.Version == 1 && r.CreateRevision == r.Revision.Main
	switch {
	case r.Version < 1 || r.CreateRevision < 1 || r.CreateRevision > r.Revision.Main || r.Version == 1 && !created:
		ix.found(KindIndex, where(r.Seq), "key %q has version %d and create revision %d at revision %v", r.Key, r.Version, r.CreateRevision, r.Revision)
	case k.doubtful:
	case known && !k.deleted && (r.Version != k.version+1 || r.CreateRevision != k.create):
		ix.found(KindIndex, where(r.Seq), "key %q has version %d, created at %d, after version %d, created at %d (record %d)",
			r.Key, r.Version, r.CreateRevision, k.version, k.create, k.seq)
	case !created && (!known || k.deleted):
		ix.suspect(beforeMissing, r, eventlog.Revision{})
	}
}

func (ix *index) remove(r *eventlog.Record) {
	k, known := ix.keys[string(r.Key)]
	ix.keys[string(r.Key)] = key{seq: r.Seq, main: r.Revision.Main, deleted: true}
	if !k.doubtful && (!known || k.deleted) {
		ix.suspect(nothingGone, r, eventlog.Revision{})
	}
}

// effectOf says what an alarm does.
func effectOf(kind pb.AlarmType) string {
	switch kind {
	case pb.AlarmType_NOSPACE:
		return "writes are refused until there is room for them and the alarm is disarmed"
	case pb.AlarmType_CORRUPT:
		return "reads and writes are refused, since the nodes did not have the same data: check each node, and remove the one that differs before the alarm is disarmed"
	}
	return "this version does not know it"
}

// finish looks at what there is at the end.
func (ix *index) finish(compacted int64) {
	for i := range ix.suspects {
		if s := &ix.suspects[i]; s.revision.Main > compacted {
			kind, problem := s.finding()
			ix.found(kind, where(s.seq), "%s, although compaction has come to revision %d only", problem, compacted)
		}
	}
	jumps := slices.DeleteFunc(ix.jumps, func(j jump) bool { return j.to-1 <= compacted })
	if n := len(jumps); n > 0 {
		ix.note("there is nothing of some revisions, such as those between %d and %d (%d times): an import from kine leaves such gaps", jumps[0].from, jumps[0].to, n)
	}
	for name, k := range ix.keys {
		if k.deleted || k.seq == 0 {
			continue
		}
		ix.Keys++
		if _, ok := ix.leases[k.lease]; k.lease != 0 && !ok {
			ix.found(KindLease, where(k.seq), "key %q is attached to lease %x, which there is not", name, k.lease)
		}
	}
	ix.Leases = int64(len(ix.leases))
	for a := range ix.alarms {
		ix.note("the alarm %v of member %x is raised: %s", pb.AlarmType(a.alarm), a.member, effectOf(pb.AlarmType(a.alarm)))
	}
}
