package check

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// row is a row of any driver.
type row struct {
	seq                       int64
	position                  *int64 // nil if the driver has no such column
	revision                  int64
	header, key, batch, value []byte // nil is NULL
}

// maxRevision is the largest one that an import makes. No server comes so far.
const maxRevision = 1 << 62

// counters are what a driver counts apart from its rows.
type counters struct {
	floor, deleted int64
	revision       int64 // newest main revision, 0 if none; at least
}

// records takes the rows in order of seq.
type records struct {
	*checker
	counters

	n      int64 // rows
	unread int   // ranges that could not be read
	prev   int64 // seq of the row before
	at     int64 // seq of the last row that could be decoded
	pos    eventlog.Position
	floors bool // there is a row whose seq is the floor

	last   eventlog.Revision // of the last put or delete
	broken bool              // something between last and this row is not there, or not known

	mark      int64 // seq of the newest compaction
	compacted int64

	index   *index
	newest  eventlog.Record // without key and value
	batchID []byte          // of the newest batch, or nil
}

func newRecords(c *checker, k counters) *records {
	r := &records{checker: c, counters: k}
	r.index = newIndex(c, r)
	return r
}

func where(seq int64) string { return fmt.Sprintf("record %d", seq) }

func span(from, to int64) string {
	switch to {
	case from:
		return where(from)
	case unknown:
		return fmt.Sprintf("records from %d on", from)
	}
	return fmt.Sprintf("records %d to %d", from, to)
}

// add takes the next row.
func (rs *records) add(r *row) {
	rs.n++
	if rs.n%pageRows == 0 {
		rs.progress(rs.n, rs.of)
	}
	if r.seq != rs.prev+1 {
		rs.broken = true
		if from := max(rs.prev, rs.floor) + 1; from < r.seq {
			rs.missing(from, r.seq-1)
		}
	}
	rs.prev = r.seq
	rs.floors = rs.floors || r.seq == rs.floor
	rec := eventlog.Record{Seq: r.seq, Key: r.key}
	h, err := eventlog.DecodeHeader(r.header, &rec)
	if err != nil {
		rs.found(KindHeader, where(r.seq), "%s%s", problem(err), ofKey(r.key))
		rs.index.lost(r.key)
		rs.broken = true
		return
	}
	rs.value(r, &rec, h)
	rs.columns(r, &rec)
	rs.position(r, &rec)
	rs.at, rs.pos = rec.Seq, rec.Position
	rs.newest = eventlog.Record{Seq: rec.Seq, Position: rec.Position}
	if rec.Kind == eventlog.KindPut || rec.Kind == eventlog.KindDelete {
		rs.order(&rec)
	}
	if rec.Kind == eventlog.KindCompact {
		rs.mark = rec.Seq
		rs.compacted = max(rs.compacted, rec.Revision.Main)
	}
	rs.index.add(&rec)
}

// skip takes a range of rows that cannot be read.
func (rs *records) skip(from, to int64) {
	rs.found(KindRead, span(from, to), "what is there of them cannot be read")
	rs.unread++
	rs.prev, rs.broken = to, true
}

// problem is an error without the sentinel before it.
func problem(err error) string {
	return strings.TrimPrefix(err.Error(), eventlog.ErrCorrupt.Error()+": ")
}

func ofKey(key []byte) string {
	if len(key) == 0 {
		return ""
	}
	return fmt.Sprintf(", which seems to be of key %q", key)
}

// missing notes that rows are not there.
func (rs *records) missing(from, to int64) {
	rs.found(KindMissing, span(from, to), "not there, and no compaction has deleted so late ones (up to %d)", rs.floor)
}

func (rs *records) value(r *row, rec *eventlog.Record, h eventlog.Header) {
	switch {
	case (r.value != nil) != (rec.Kind == eventlog.KindPut):
		state := "has no value"
		if r.value != nil {
			state = "has a value"
		}
		rs.found(KindValue, where(r.seq), "the %v of key %q %s", rec.Kind, rec.Key, state)
	default:
		if err := h.VerifyValue(r.value); err != nil {
			rs.found(KindValue, where(r.seq), "key %q at revision %v: %s", rec.Key, rec.Revision, problem(err))
		}
	}
}

// columns compares what the row says beside the header.
func (rs *records) columns(r *row, rec *eventlog.Record) {
	if r.position != nil && *r.position != int64(rec.Position) {
		rs.found(KindColumn, where(r.seq), "the column position says %d, the header %d", *r.position, rec.Position)
	}
	event := rec.Kind == eventlog.KindPut || rec.Kind == eventlog.KindDelete
	if event && r.revision != rec.Revision.Main {
		rs.found(KindColumn, where(r.seq), "the column revision says %d, the header %d", r.revision, rec.Revision.Main)
	}
	if event == (len(rec.Key) == 0) {
		rs.found(KindIndex, where(r.seq), "a %v with the key %q", rec.Kind, rec.Key)
	}
}

// position compares a row's position with the one before, and looks at the
// batch's id, which the first record of each has.
func (rs *records) position(r *row, rec *eventlog.Record) {
	steps := eventlog.Position(rec.Seq - rs.at)
	if rec.Position < rs.pos || rec.Position > rs.pos+steps || rec.Position < 1 {
		rs.found(KindOrder, where(r.seq), "it is of position %d and follows one of position %d", rec.Position, rs.pos)
		return
	}
	first := rec.Position > rs.pos
	switch {
	case r.batch != nil && !first:
		rs.found(KindBatch, where(r.seq), "it has a batch's id in the middle of a batch")
	case r.batch == nil && first && steps == 1:
		rs.found(KindBatch, where(r.seq), "it begins a batch and has no id for it")
	case r.batch != nil && !validBatchID(r.seq, r.batch):
		rs.found(KindBatch, where(r.seq), "the checksum of the batch's id does not match")
	}
	if first {
		rs.batchID = r.batch
	}
}

func validBatchID(seq int64, stored []byte) bool {
	var id eventlog.BatchID
	return len(stored) > len(id) && bytes.Equal(eventlog.EncodeBatchID(seq, eventlog.BatchID(stored[:len(id)])), stored)
}

// order compares a put's or delete's revision with the one before.
func (rs *records) order(rec *eventlog.Record) {
	last, broken := rs.last, rs.broken
	rs.broken = false
	rev := rec.Revision
	if rev.Main < 1 || rev.Sub < 0 || !last.Less(rev) {
		rs.found(KindOrder, where(rec.Seq), "revision %v of key %q follows revision %v", rev, rec.Key, last)
		return
	}
	rs.last = rev
	switch {
	case broken:
	case rev.Main == last.Main && rev.Sub != last.Sub+1, rev.Main > last.Main && rev.Sub != 0:
		rs.index.suspect(partMissing, rec, last)
	case rev.Main > last.Main+1 && last.Main > 0:
		rs.index.jumped(last.Main, rev.Main)
	}
}

// finish compares the rows with what is counted, now that all are there.
func (rs *records) finish(newest int64) {
	rs.progress(rs.n, rs.of)
	rs.Records = rs.n
	rs.Revision = max(rs.revision, rs.last.Main, 1)
	rs.Compacted = rs.compacted
	rs.index.finish(rs.compacted)

	if rs.floor < 0 || rs.deleted < 0 || rs.floor > newest || rs.deleted > rs.floor || (rs.floor == 0) != (rs.deleted == 0) {
		rs.found(KindCounters, "kept", "%d records are said to be deleted up to %d, and the newest is %d", rs.deleted, rs.floor, newest)
	} else {
		if rs.floors {
			rs.found(KindCounters, "kept", "record %d is there, which is said to be the last one deleted", rs.floor)
		}
		if rs.n != newest-rs.deleted && rs.unread == 0 {
			rs.found(KindCounters, "kept", "%d records up to %d are there, and %d are said to be deleted: %d are missing or too many",
				rs.n, newest, rs.deleted, newest-rs.deleted-rs.n)
		}
	}
	if rs.revision > max(rs.last.Main, 1) && rs.revision > rs.compacted {
		rs.note("the newest revision is %d, and the newest record's is %d: an import from kine leaves such a gap; without one the newest records are lost: compare with a backup", rs.revision, rs.last.Main)
	}
	if rs.Revision > maxRevision {
		rs.found(KindOrder, "the newest revision", "it is %d: there are none left for writes", rs.Revision)
	}
	if rs.compacted > rs.Revision {
		rs.found(KindCompact, where(rs.mark), "compacted up to revision %d, and the newest is %d", rs.compacted, rs.Revision)
	}
}
