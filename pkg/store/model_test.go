package store

import (
	"cmp"
	"encoding/binary"
	"hash/crc32"
	"maps"
	"slices"
	"sort"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// model is etcd's data model at its most naive: a list of all changes there
// ever were, searched from end to end for every question. Nothing in it is
// ever compacted, only hidden.
type model struct {
	revision  int64
	compacted int64
	changes   []change
	leases    map[int64]int64 // id → TTL
	alarms    []*pb.AlarmMember
	records   []logged // one for each record of the log, from seq 1 on
	events    []*mvccpb.Event
}

// change is one version of a key.
type change struct {
	main, sub int64
	key       string
	value     string
	create    int64
	version   int64
	lease     int64
	deleted   bool
}

// logged is what the log must say of a record.
type logged struct {
	kind   eventlog.Kind
	change change // of put and delete
	id     int64  // of lease kinds; the revision of a compaction
	alarm  pb.AlarmType
	member uint64
}

func newModel() *model {
	return &model{revision: 1, compacted: -1, leases: map[int64]int64{}}
}

func (c change) kv() *mvccpb.KeyValue {
	return &mvccpb.KeyValue{
		Key: []byte(c.key), Value: []byte(c.value), CreateRevision: c.create,
		ModRevision: c.main, Version: c.version, Lease: c.lease,
	}
}

func within(k, key, end string) bool {
	switch end {
	case "":
		return k == key
	case "\x00":
		return k >= key
	}
	return k >= key && k < end
}

// at returns the version of key at revision rev, if it is alive then.
func (m *model) at(key string, rev int64) (change, bool) {
	for _, c := range slices.Backward(m.changes) {
		if c.key == key && c.main <= rev {
			return c, !c.deleted
		}
	}
	return change{}, false
}

// living returns what is alive in a range at rev, in order of keys.
func (m *model) living(key, end string, rev int64) []change {
	seen := map[string]change{}
	for _, c := range m.changes {
		if c.main <= rev && within(c.key, key, end) {
			seen[c.key] = c
		}
	}
	var alive []change
	for _, k := range slices.Sorted(maps.Keys(seen)) {
		if !seen[k].deleted {
			alive = append(alive, seen[k])
		}
	}
	return alive
}

// change appends a change of revision main to the history.
func (m *model) change(c change) {
	event := &mvccpb.Event{Kv: c.kv()}
	if prev, ok := m.at(c.key, c.main-1); ok && c.create != c.main {
		event.PrevKv = prev.kv() // the one before the txn
	}
	kind := eventlog.KindPut
	if c.deleted {
		kind = eventlog.KindDelete
		event.Type = mvccpb.Event_DELETE
	}
	m.changes = append(m.changes, c)
	m.records = append(m.records, logged{kind: kind, change: c})
	m.events = append(m.events, event)
	m.revision = c.main
}

// txnRun numbers the changes of one request.
type txnRun struct {
	*model
	begin int64
	subs  int64
}

func (m *model) begin() *txnRun { return &txnRun{model: m, begin: m.revision} }

func (x *txnRun) change(c change) {
	c.main, c.sub = x.begin+1, x.subs
	x.subs++
	x.model.change(c)
}

func (x *txnRun) header() *pb.ResponseHeader { return &pb.ResponseHeader{Revision: x.revision} }

func (m *model) raised(kind pb.AlarmType) bool {
	return slices.ContainsFunc(m.alarms, func(a *pb.AlarmMember) bool { return a.Alarm == kind })
}

func (m *model) put(r *pb.PutRequest) (proto.Message, error) {
	if m.raised(pb.AlarmType_NOSPACE) {
		return nil, ErrNoSpace
	}
	if err := m.checkPut(r); err != nil {
		return nil, err
	}
	return m.begin().put(r), nil
}

func (m *model) checkPut(r *pb.PutRequest) error {
	if _, ok := m.leases[r.Lease]; r.Lease != 0 && !ok {
		return ErrLeaseNotFound
	}
	if _, ok := m.at(string(r.Key), m.revision); (r.IgnoreValue || r.IgnoreLease) && !ok {
		return ErrKeyNotFound
	}
	return nil
}

func (x *txnRun) put(r *pb.PutRequest) *pb.PutResponse {
	c := change{key: string(r.Key), value: string(r.Value), lease: r.Lease, create: x.begin + 1, version: 1}
	resp := &pb.PutResponse{}
	if prev, ok := x.at(c.key, x.begin+1); ok {
		c.create, c.version = prev.create, prev.version+1
		if r.IgnoreValue {
			c.value = prev.value
		}
		if r.IgnoreLease {
			c.lease = prev.lease
		}
		if r.PrevKv {
			resp.PrevKv = prev.kv()
		}
	}
	x.change(c)
	resp.Header = x.header()
	return resp
}

func (x *txnRun) deleteRange(r *pb.DeleteRangeRequest) *pb.DeleteRangeResponse {
	resp := &pb.DeleteRangeResponse{}
	for _, c := range x.living(string(r.Key), string(r.RangeEnd), x.revision) {
		if r.PrevKv {
			resp.PrevKvs = append(resp.PrevKvs, c.kv())
		}
		resp.Deleted++
		x.change(change{key: c.key, deleted: true})
	}
	resp.Header = x.header()
	return resp
}

// fetch returns what etcd's index would: a range's matches, no more than limit
// if that is not 0.
func fetch(all []change, limit int64) []change {
	if limit > 0 && int64(len(all)) > limit {
		return all[:limit]
	}
	return all
}

func (m *model) rangeRequest(r *pb.RangeRequest) (*pb.RangeResponse, error) {
	rev := r.Revision
	switch {
	case rev > m.revision:
		return nil, ErrFutureRev
	case rev <= 0:
		rev = m.revision
	case rev < m.compacted:
		return nil, ErrCompacted
	}
	all := m.living(string(r.Key), string(r.RangeEnd), rev)
	resp := &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: m.revision}, Count: int64(len(all))}
	if r.CountOnly {
		return resp, nil
	}
	filters := r.MinModRevision != 0 || r.MaxModRevision != 0 || r.MinCreateRevision != 0 || r.MaxCreateRevision != 0
	byKey := r.SortOrder == pb.RangeRequest_NONE || r.SortTarget == pb.RangeRequest_KEY && r.SortOrder == pb.RangeRequest_ASCEND
	if r.Limit > 0 && byKey && !filters {
		all = fetch(all, r.Limit+1)
	}
	all = slices.DeleteFunc(slices.Clone(all), func(c change) bool {
		return r.MaxModRevision != 0 && c.main > r.MaxModRevision || r.MinModRevision != 0 && c.main < r.MinModRevision ||
			r.MaxCreateRevision != 0 && c.create > r.MaxCreateRevision || r.MinCreateRevision != 0 && c.create < r.MinCreateRevision
	})
	order := sort.Interface(changeSort{all, r.SortTarget})
	if r.SortOrder == pb.RangeRequest_DESCEND {
		order = sort.Reverse(order)
	}
	sort.Sort(order)
	if r.Limit > 0 && int64(len(all)) > r.Limit {
		all = all[:r.Limit]
		resp.More = true
	}
	for _, c := range all {
		kv := c.kv()
		if r.KeysOnly {
			kv.Value = nil
			if r.SortTarget != pb.RangeRequest_VALUE {
				kv.Lease = 0
			}
		}
		resp.Kvs = append(resp.Kvs, kv)
	}
	return resp, nil
}

// changeSort orders by a target; ties fall as etcd's sort.Sort lets them fall.
type changeSort struct {
	changes []change
	target  pb.RangeRequest_SortTarget
}

func (s changeSort) Len() int      { return len(s.changes) }
func (s changeSort) Swap(i, j int) { s.changes[i], s.changes[j] = s.changes[j], s.changes[i] }
func (s changeSort) Less(i, j int) bool {
	a, b := s.changes[i], s.changes[j]
	switch s.target {
	case pb.RangeRequest_VERSION:
		return a.version < b.version
	case pb.RangeRequest_CREATE:
		return a.create < b.create
	case pb.RangeRequest_MOD:
		return a.main < b.main
	case pb.RangeRequest_VALUE:
		return a.value < b.value
	}
	return a.key < b.key
}

func hasPut(r *pb.TxnRequest) bool {
	return slices.ContainsFunc(slices.Concat(r.Success, r.Failure), func(op *pb.RequestOp) bool {
		return op.GetRequestPut() != nil || op.GetRequestTxn() != nil && hasPut(op.GetRequestTxn())
	})
}

func (m *model) txn(r *pb.TxnRequest) (proto.Message, error) {
	if hasPut(r) && m.raised(pb.AlarmType_NOSPACE) {
		return nil, ErrNoSpace
	}
	taken := map[*pb.TxnRequest]bool{}
	m.decide(r, taken)
	if err := m.check(r, taken, new([]*pb.DeleteRangeRequest)); err != nil {
		return nil, err
	}
	x := m.begin()
	resp := x.txn(r, taken)
	resp.Header = x.header()
	return resp, nil
}

// decide evaluates the compares of r and of all nested transactions.
func (m *model) decide(r *pb.TxnRequest, taken map[*pb.TxnRequest]bool) {
	taken[r] = !slices.ContainsFunc(r.Compare, func(c *pb.Compare) bool { return !m.compare(c) })
	for _, op := range slices.Concat(r.Success, r.Failure) {
		if nested := op.GetRequestTxn(); nested != nil {
			m.decide(nested, taken)
		}
	}
}

func (m *model) compare(c *pb.Compare) bool {
	alive := m.living(string(c.Key), string(c.RangeEnd), m.revision)
	if len(alive) == 0 {
		if c.Target == pb.Compare_VALUE {
			return false
		}
		alive = []change{{}}
	}
	return !slices.ContainsFunc(alive, func(v change) bool {
		var result int
		switch c.Target {
		case pb.Compare_VERSION:
			result = cmp.Compare(v.version, c.GetVersion())
		case pb.Compare_CREATE:
			result = cmp.Compare(v.create, c.GetCreateRevision())
		case pb.Compare_MOD:
			result = cmp.Compare(v.main, c.GetModRevision())
		case pb.Compare_LEASE:
			result = cmp.Compare(v.lease, c.GetLease())
		case pb.Compare_VALUE:
			result = strings.Compare(v.value, string(c.GetValue()))
		}
		switch c.Result {
		case pb.Compare_EQUAL:
			return result != 0
		case pb.Compare_NOT_EQUAL:
			return result == 0
		case pb.Compare_GREATER:
			return result <= 0
		}
		return result >= 0
	})
}

func taken(r *pb.TxnRequest, succeeded bool) []*pb.RequestOp {
	if succeeded {
		return r.Success
	}
	return r.Failure
}

// check makes the prechecks of the path taken, all on the state before.
func (m *model) check(r *pb.TxnRequest, decided map[*pb.TxnRequest]bool, deletes *[]*pb.DeleteRangeRequest) error {
	for _, op := range taken(r, decided[r]) {
		var err error
		switch op := op.Request.(type) {
		case *pb.RequestOp_RequestPut:
			put := op.RequestPut
			err = m.checkPut(put)
			for _, del := range *deletes {
				if (put.IgnoreValue || put.IgnoreLease) && err == nil && within(string(put.Key), string(del.Key), string(del.RangeEnd)) {
					err = ErrKeyNotFound
				}
			}
		case *pb.RequestOp_RequestDeleteRange:
			*deletes = append(*deletes, op.RequestDeleteRange)
		case *pb.RequestOp_RequestTxn:
			err = m.check(op.RequestTxn, decided, deletes)
		case *pb.RequestOp_RequestRange:
			if rev := op.RequestRange.Revision; rev > m.revision {
				err = ErrFutureRev
			} else if rev != 0 && rev < m.compacted {
				err = ErrCompacted
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (x *txnRun) txn(r *pb.TxnRequest, decided map[*pb.TxnRequest]bool) *pb.TxnResponse {
	resp := &pb.TxnResponse{Succeeded: decided[r]}
	for _, op := range taken(r, decided[r]) {
		out := &pb.ResponseOp{}
		switch op := op.Request.(type) {
		case *pb.RequestOp_RequestPut:
			out.Response = &pb.ResponseOp_ResponsePut{ResponsePut: x.put(op.RequestPut)}
		case *pb.RequestOp_RequestDeleteRange:
			out.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: x.deleteRange(op.RequestDeleteRange)}
		case *pb.RequestOp_RequestRange:
			ranged, err := x.rangeRequest(op.RequestRange)
			if err != nil {
				panic(err) // checked
			}
			out.Response = &pb.ResponseOp_ResponseRange{ResponseRange: ranged}
		case *pb.RequestOp_RequestTxn:
			nested := x.txn(op.RequestTxn, decided)
			nested.Header = &pb.ResponseHeader{}
			out.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: nested}
		}
		resp.Responses = append(resp.Responses, out)
	}
	return resp
}

func (m *model) compact(rev int64) (proto.Message, error) {
	switch {
	case rev <= m.compacted:
		return nil, ErrCompacted
	case rev > m.revision:
		return nil, ErrFutureRev
	}
	m.compacted = rev
	m.records = append(m.records, logged{kind: eventlog.KindCompact, id: rev})
	return &pb.CompactionResponse{Header: &pb.ResponseHeader{Revision: m.revision}}, nil
}

func (m *model) grant(id, ttl int64) (proto.Message, error) {
	if m.raised(pb.AlarmType_NOSPACE) {
		return nil, ErrNoSpace
	}
	if _, ok := m.leases[id]; ok {
		return nil, ErrLeaseExists
	}
	m.leases[id] = ttl
	m.records = append(m.records, logged{kind: eventlog.KindLeaseGrant, id: id})
	return &pb.LeaseGrantResponse{ID: id, TTL: ttl}, nil
}

func (m *model) leaseKeys(id int64) []string {
	var keys []string
	for _, c := range m.living("\x00", "\x00", m.revision) {
		if c.lease == id {
			keys = append(keys, c.key)
		}
	}
	return keys
}

func (m *model) revoke(id int64) (proto.Message, error) {
	if _, ok := m.leases[id]; !ok {
		return nil, ErrLeaseNotFound
	}
	x := m.begin()
	for _, key := range m.leaseKeys(id) {
		x.change(change{key: key, deleted: true})
	}
	delete(m.leases, id)
	m.records = append(m.records, logged{kind: eventlog.KindLeaseRevoke, id: id})
	return &pb.LeaseRevokeResponse{}, nil
}

func (m *model) alarm(r *pb.AlarmRequest) (proto.Message, error) {
	resp := &pb.AlarmResponse{Header: &pb.ResponseHeader{Revision: m.revision}}
	about := &pb.AlarmMember{MemberID: r.MemberID, Alarm: r.Alarm}
	at := slices.IndexFunc(m.alarms, func(a *pb.AlarmMember) bool { return proto.Equal(a, about) })
	switch {
	case r.Action == pb.AlarmRequest_GET:
		for _, a := range m.alarms {
			if r.Alarm == pb.AlarmType_NONE || r.Alarm == a.Alarm {
				resp.Alarms = append(resp.Alarms, a)
			}
		}
		return resp, nil
	case r.Action == pb.AlarmRequest_ACTIVATE && r.Alarm == pb.AlarmType_NONE, r.Action == pb.AlarmRequest_DEACTIVATE && at < 0:
		return resp, nil
	case r.Action == pb.AlarmRequest_ACTIVATE && at < 0:
		m.alarms = append(m.alarms, about)
		m.records = append(m.records, logged{kind: eventlog.KindAlarmRaise, alarm: r.Alarm, member: r.MemberID})
	case r.Action == pb.AlarmRequest_DEACTIVATE:
		m.alarms = slices.Delete(slices.Clone(m.alarms), at, at+1)
		m.records = append(m.records, logged{kind: eventlog.KindAlarmDisarm, alarm: r.Alarm, member: r.MemberID})
	}
	resp.Alarms = []*pb.AlarmMember{about}
	return resp, nil
}

// kept returns the changes that a compaction at compacted keeps: of each key
// the newest at or before it, unless that is a tombstone before it, and all
// after.
func (m *model) kept(compacted int64) []change {
	newest := map[string]change{}
	for _, c := range m.changes {
		if c.main <= compacted {
			newest[c.key] = c
		}
	}
	var kept []change
	for _, c := range m.changes {
		if c.main > compacted || c == newest[c.key] && (!c.deleted || c.main == compacted) {
			kept = append(kept, c)
		}
	}
	return kept
}

// alive returns the seqs of the records that must be in the log once the
// newest compaction has been carried out, with what they must say.
func (m *model) alive() map[int64]logged {
	mark := -1
	for i, r := range m.records {
		if r.kind == eventlog.KindCompact {
			mark = i
		}
	}
	kept := m.kept(m.compacted)
	alive := map[int64]logged{}
	for i, r := range m.records {
		lives := i >= mark // nothing after the mark is gone
		undone := func(by eventlog.Kind) bool {
			return slices.ContainsFunc(m.records[i:max(mark, i)], func(l logged) bool {
				return l.kind == by && l.id == r.id && l.alarm == r.alarm && l.member == r.member
			})
		}
		switch r.kind {
		case eventlog.KindPut, eventlog.KindDelete:
			lives = slices.Contains(kept, r.change)
		case eventlog.KindLeaseGrant:
			lives = !undone(eventlog.KindLeaseRevoke)
		case eventlog.KindAlarmRaise:
			lives = !undone(eventlog.KindAlarmDisarm)
		}
		if lives {
			alive[int64(i+1)] = r
		}
	}
	return alive
}

// history returns the events in a range of revisions [from, to).
func (m *model) history(key, end string, from, to int64, prevKV bool) []*mvccpb.Event {
	kept := m.kept(m.compacted)
	var events []*mvccpb.Event
	for i, c := range m.changes {
		if c.main < from || c.main >= to || !within(c.key, key, end) {
			continue
		}
		event := proto.CloneOf(m.events[i])
		prev, ok := m.at(c.key, c.main-1)
		if !prevKV || !ok || !slices.Contains(kept, prev) {
			event.PrevKv = nil
		}
		events = append(events, event)
	}
	return events
}

// hash is etcd's hash at rev, without etcd's memory of hashes that it computed
// while compacting.
func (m *model) hash(rev int64) (HashKV, error) {
	switch {
	case rev > m.revision:
		return HashKV{}, ErrFutureRev
	case rev == 0:
		rev = m.revision
	case rev > 0 && rev < m.compacted:
		return HashKV{}, ErrCompacted
	}
	keep := m.living("\x00", "\x00", rev)
	if len(keep) == 0 {
		keep = m.kept(m.compacted)
	}
	buf := []byte("key")
	for _, c := range m.changes {
		if c.main > rev || c.main <= m.compacted && !slices.Contains(keep, c) || c.deleted && c.main == m.compacted {
			continue
		}
		buf = binary.BigEndian.AppendUint64(buf, uint64(c.main))
		buf = append(buf, '_')
		buf = binary.BigEndian.AppendUint64(buf, uint64(c.sub))
		kv := c.kv()
		if c.deleted {
			buf = append(buf, 't')
			kv = &mvccpb.KeyValue{Key: kv.Key}
		}
		b, err := proto.Marshal(kv)
		if err != nil {
			panic(err)
		}
		buf = append(buf, b...)
	}
	return HashKV{Hash: crc32.Checksum(buf, crc32.MakeTable(crc32.Castagnoli)), HashRevision: rev, CompactRevision: m.compacted, Revision: m.revision}, nil
}
