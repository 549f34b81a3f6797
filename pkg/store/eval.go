package store

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// evaluation evaluates requests one after the other on a copy of the state,
// and collects the records that make their effects durable. It is pure: no
// clock, no I/O, no randomness; values that are not in memory are asked for by
// failing with a needValues, before the request has changed anything.
type evaluation struct {
	state   state
	base    eventlog.Position
	records []eventlog.Record
	events  []*mvccpb.Event
	fills   []fill // values that responses of this batch wait for
	prevs   []fill // values that its events wait for as their previous ones
	noPrev  bool   // nobody wants to know the events' previous values
	unsaid  bool   // the events would take too much memory: see maxPrevBytes

	prevBytes int64 // of the values that prevs waits for, cached ones too

	superseded []int64 // seqs of versions that are not their key's newest any more

	firstSeq int64            // of records[0]
	known    map[int64][]byte // values that its requests were evaluated with
	lent     map[int64][]byte // values read for the request at hand
	cached   func(seq int64) ([]byte, bool)

	quota quota

	main int64 // the revision of the request at hand if it changes anything
	sub  int64 // changes it has made so far
}

// quota is what the evaluation must know of the space left.
type quota struct {
	limit  int64 // 0 is no limit
	inUse  int64 // when the batch began, and what the batch has added
	member uint64
}

// What a change is reckoned to cost, as etcd reckons it.
const (
	putOverhead = 256
	leaseCost   = 64
)

func newEvaluation(st *state, cached func(int64) ([]byte, bool), q quota) *evaluation {
	return &evaluation{
		state:    st.edit(),
		base:     st.position,
		firstSeq: st.seq + 1,
		cached:   cached,
		quota:    q,
	}
}

// expect makes room for the effects of n requests, most of which change one
// key.
func (ev *evaluation) expect(n int) {
	ev.records = make([]eventlog.Record, 0, n)
	ev.events = make([]*mvccpb.Event, 0, n)
	ev.prevs = make([]fill, 0, n)
	ev.superseded = make([]int64, 0, n)
}

// begin starts the next request.
func (ev *evaluation) begin() {
	ev.main = ev.state.revision + 1
	ev.sub = 0
}

// emit makes r a record of the batch and part of the state.
func (ev *evaluation) emit(r eventlog.Record) {
	r.Seq = ev.state.seq + 1
	r.Position = ev.base + 1
	switch r.Kind {
	case eventlog.KindPut:
		ev.quota.inUse += putOverhead + int64(len(r.Key)+len(r.Value))
	case eventlog.KindLeaseGrant:
		ev.quota.inUse += leaseCost
	}
	ev.records = append(ev.records, r)
	if err := ev.state.apply(&r); err != nil {
		panic("store: an evaluated record does not apply: " + err.Error())
	}
}

// emitEvent is emit for a put or delete. prev is the key's entry before, or
// nil.
func (ev *evaluation) emitEvent(r eventlog.Record, prev *entry) {
	r.Revision = eventlog.Revision{Main: ev.main, Sub: ev.sub}
	ev.sub++
	ev.emit(r)
	ev.addEvent(&r, prev)
}

// addEvent adds the event that r is to watchers.
func (ev *evaluation) addEvent(r *eventlog.Record, prev *entry) {
	event := &mvccpb.Event{
		Type: mvccpb.Event_PUT,
		Kv: &mvccpb.KeyValue{
			Key: r.Key, Value: r.Value, Lease: r.Lease, Version: r.Version,
			CreateRevision: r.CreateRevision, ModRevision: r.Revision.Main,
		},
	}
	if r.Kind == eventlog.KindDelete {
		event.Type = mvccpb.Event_DELETE
	}
	if prev != nil && !prev.last.tombstone() {
		ev.superseded = append(ev.superseded, prev.last.seq)
	}
	if v, ok := prev.before(r.Revision.Main, r.CreateRevision); ok && !ev.noPrev {
		event.PrevKv = &mvccpb.KeyValue{}
		prev.kv(v, event.PrevKv)
		ev.prevs = append(ev.prevs, fill{v.seq, event.PrevKv})
		ev.prevBytes += int64(v.size)
	}
	ev.events = append(ev.events, event)
}

// values is a valueFunc over the batch, what was read for it, and the cache.
// What it returns stays known to the batch, even where a reader pushes it out
// of the cache before the request that was checked with it is applied.
func (ev *evaluation) values(seqs []int64) ([][]byte, error) {
	read := make([][]byte, len(seqs))
	var missing []int64
	for i, seq := range seqs {
		value, ok := ev.value(seq)
		switch {
		case !ok:
			missing = append(missing, seq)
		case seq < ev.firstSeq:
			ev.know(seq, value)
		}
		read[i] = value
	}
	if missing != nil {
		return nil, &needValues{missing}
	}
	return read, nil
}

func (ev *evaluation) value(seq int64) ([]byte, bool) {
	if seq >= ev.firstSeq {
		return ev.records[seq-ev.firstSeq].Value, true
	}
	if value, ok := ev.known[seq]; ok {
		return value, true
	}
	if value, ok := ev.lent[seq]; ok {
		return value, true
	}
	return ev.cached(seq)
}

func (ev *evaluation) know(seq int64, value []byte) {
	if ev.known == nil {
		ev.known = map[int64][]byte{}
	}
	ev.known[seq] = value
}

// living returns the entry of key, which is nil if it never was, and whether
// the key is alive.
func (ev *evaluation) living(key string) (*entry, bool) {
	e, ok := ev.state.keys.Get(key)
	if !ok {
		return nil, false
	}
	return e, !e.last.tombstone()
}

func (ev *evaluation) header() *pb.ResponseHeader {
	return &pb.ResponseHeader{Revision: ev.state.revision}
}

// charge fails with ErrNoSpace if a request of this cost does not fit, and
// raises the alarm that says so.
func (ev *evaluation) charge(cost int64) error {
	if err := ev.serving(); err != nil || cost == 0 {
		return err
	}
	if ev.state.alarmRaised(int32(pb.AlarmType_NOSPACE)) {
		return ErrNoSpace
	}
	q := ev.quota
	if q.limit > 0 && q.inUse+cost >= q.limit {
		ev.emit(eventlog.Record{Kind: eventlog.KindAlarmRaise, Member: q.member, Alarm: int32(pb.AlarmType_NOSPACE)})
		return ErrNoSpace
	}
	return nil
}

// serving fails if the CORRUPT alarm is raised.
func (ev *evaluation) serving() error {
	if ev.state.alarmRaised(int32(pb.AlarmType_CORRUPT)) {
		return ErrCorruptAlarm
	}
	return nil
}

// put evaluates a put request.
func (ev *evaluation) put(r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := ev.charge(putCost(r)); err != nil {
		return nil, err
	}
	if err := ev.checkPut(r); err != nil {
		return nil, err
	}
	return ev.applyPut(r), nil
}

func putCost(r *pb.PutRequest) int64 { return putOverhead + int64(len(r.Key)+len(r.Value)) }

// checkPut fails if r cannot be applied to the state as it is.
func (ev *evaluation) checkPut(r *pb.PutRequest) error {
	if r.Lease != 0 {
		if _, ok := ev.state.leases.Get(r.Lease); !ok {
			return ErrLeaseNotFound
		}
	}
	if r.IgnoreValue || r.IgnoreLease {
		e, alive := ev.living(stringOf(r.Key))
		if !alive {
			return ErrKeyNotFound
		}
		if r.IgnoreValue {
			if _, err := ev.values([]int64{e.last.seq}); err != nil {
				return err
			}
		}
	}
	return nil
}

// applyPut applies a put that checkPut has let through.
func (ev *evaluation) applyPut(r *pb.PutRequest) *pb.PutResponse {
	record := eventlog.Record{Kind: eventlog.KindPut, Key: r.Key, Value: r.Value, Lease: r.Lease, CreateRevision: ev.main, Version: 1}
	resp := &pb.PutResponse{}
	prev, alive := ev.living(stringOf(r.Key))
	if alive {
		record.CreateRevision = prev.last.create
		record.Version = prev.last.version + 1
		if r.IgnoreValue {
			record.Value, _ = ev.value(prev.last.seq) // known since checkPut
		}
		if r.IgnoreLease {
			record.Lease = prev.last.lease
		}
		if r.PrevKv {
			resp.PrevKv = ev.filledKV(prev, &prev.last)
		}
	}
	if record.Value == nil {
		record.Value = []byte{}
	}
	ev.emitEvent(record, prev)
	resp.Header = ev.header()
	return resp
}

// filledKV returns version v of e, its value to be filled in.
func (ev *evaluation) filledKV(e *entry, v *version) *mvccpb.KeyValue {
	kv := &mvccpb.KeyValue{}
	e.kv(v, kv)
	ev.fills = append(ev.fills, fill{v.seq, kv})
	return kv
}

// deleteRange evaluates a delete request; it cannot fail but for an alarm.
func (ev *evaluation) deleteRange(r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if err := ev.serving(); err != nil {
		return nil, err
	}
	return ev.applyDelete(r), nil
}

func (ev *evaluation) applyDelete(r *pb.DeleteRangeRequest) *pb.DeleteRangeResponse {
	resp := &pb.DeleteRangeResponse{}
	var entries []*entry
	if s := newSpan(r.Key, r.RangeEnd); !s.empty() {
		ev.state.ascend(s, 0, func(e *entry) bool {
			if !e.last.tombstone() {
				entries = append(entries, e)
			}
			return true
		})
	}
	for _, e := range entries {
		if r.PrevKv {
			resp.PrevKvs = append(resp.PrevKvs, ev.filledKV(e, &e.last))
		}
		ev.emitEvent(eventlog.Record{Kind: eventlog.KindDelete, Key: bytesOf(e.key)}, e)
	}
	resp.Deleted = int64(len(entries))
	resp.Header = ev.header()
	return resp
}

// leaseGrant evaluates the grant of lease id.
func (ev *evaluation) leaseGrant(id, ttl int64) error {
	if err := ev.charge(leaseCost); err != nil {
		return err
	}
	if _, ok := ev.state.leases.Get(id); ok {
		return ErrLeaseExists
	}
	ev.emit(eventlog.Record{Kind: eventlog.KindLeaseGrant, Lease: id, TTL: ttl})
	return nil
}

// leaseRevoke evaluates the revocation of lease id: its keys are deleted in
// one revision, in order.
func (ev *evaluation) leaseRevoke(id int64) error {
	if err := ev.serving(); err != nil {
		return err
	}
	if _, ok := ev.state.leases.Get(id); !ok {
		return ErrLeaseNotFound
	}
	for _, key := range ev.state.keysOf(id) {
		e, _ := ev.state.keys.Get(key)
		ev.emitEvent(eventlog.Record{Kind: eventlog.KindDelete, Key: bytesOf(key)}, e)
	}
	ev.emit(eventlog.Record{Kind: eventlog.KindLeaseRevoke, Lease: id})
	return nil
}

// compact evaluates a compaction at revision rev.
func (ev *evaluation) compact(rev int64) error {
	switch {
	case ev.state.alarmRaised(int32(pb.AlarmType_CORRUPT)):
		return ErrCorruptAlarm
	case rev <= ev.state.compacted:
		return ErrCompacted
	case rev > ev.state.revision:
		return ErrFutureRev
	}
	ev.emit(eventlog.Record{Kind: eventlog.KindCompact, Revision: eventlog.Revision{Main: rev}})
	return nil
}

// alarm evaluates raising or disarming an alarm and returns the alarms that
// the request is about.
//
// Source: etcd's applierV3backend.Alarm and its AlarmStore.
func (ev *evaluation) alarm(r *pb.AlarmRequest) []*pb.AlarmMember {
	raised := false
	for _, a := range ev.state.alarms {
		raised = raised || a.member == r.MemberID && a.alarm == int32(r.Alarm)
	}
	record := eventlog.Record{Member: r.MemberID, Alarm: int32(r.Alarm)}
	switch {
	case r.Action == pb.AlarmRequest_ACTIVATE && r.Alarm == pb.AlarmType_NONE:
		return nil
	case r.Action == pb.AlarmRequest_ACTIVATE && !raised:
		record.Kind = eventlog.KindAlarmRaise
		ev.emit(record)
	case r.Action == pb.AlarmRequest_DEACTIVATE && raised:
		record.Kind = eventlog.KindAlarmDisarm
		ev.emit(record)
	case r.Action == pb.AlarmRequest_DEACTIVATE:
		return nil
	}
	return []*pb.AlarmMember{{MemberID: r.MemberID, Alarm: r.Alarm}}
}
