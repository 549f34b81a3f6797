package logtest

import (
	"fmt"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// model is a log kept naively: all batches ever appended, and which of their
// records were deleted.
type model struct {
	batches []eventlog.Batch
	deleted map[int64]bool
}

func newModel() model { return model{deleted: make(map[int64]bool)} }

func (m *model) records() []eventlog.Record {
	var all []eventlog.Record
	for _, b := range m.batches {
		all = append(all, b.Records...)
	}
	return all
}

// left returns the records that were not deleted.
func (m *model) left() []eventlog.Record {
	var left []eventlog.Record
	for _, r := range m.records() {
		if !m.deleted[r.Seq] {
			left = append(left, r)
		}
	}
	return left
}

func (m *model) head() eventlog.Head {
	head := eventlog.Head{Position: eventlog.Position(len(m.batches))}
	for _, r := range m.records() {
		head.Seq = r.Seq
		if r.Kind == eventlog.KindPut || r.Kind == eventlog.KindDelete {
			head.Revision = r.Revision.Main
		}
	}
	return head
}

// mark returns the seq of the newest compaction mark, 0 if there is none.
func (m *model) mark() int64 {
	mark := int64(0)
	for _, r := range m.records() {
		if r.Kind == eventlog.KindCompact {
			mark = r.Seq
		}
	}
	return mark
}

// next makes the batch of these records that continues the log: it fills in
// seqs, positions, and the revisions of puts and deletes, one main revision
// for the batch.
func (m *model) next(records ...eventlog.Record) eventlog.Batch {
	head := m.head()
	b := eventlog.Batch{ID: eventlog.NewBatchID(), Base: head.Position, Records: records}
	sub := int64(0)
	for i := range records {
		r := &records[i]
		r.Seq = head.Seq + 1 + int64(i)
		r.Position = b.Position()
		if r.Kind == eventlog.KindPut || r.Kind == eventlog.KindDelete {
			r.Revision = eventlog.Revision{Main: head.Revision + 1, Sub: sub}
			sub++
		}
	}
	return b
}

func (m *model) append(b eventlog.Batch) { m.batches = append(m.batches, b) }

func (m *model) compact(seqs ...int64) {
	newest := m.head().Seq
	for _, seq := range seqs {
		if seq >= 1 && seq <= newest {
			m.deleted[seq] = true
		}
	}
}

// tail returns the batches that Tail gives, or ErrCompacted if it cannot. If
// only a later batch has lost a record, a driver may say so at once: gone.
func (m *model) tail(after eventlog.Position, limit int) (tail []eventlog.Batch, gone bool, err error) {
	count := 0
	for _, b := range m.batches {
		if b.Base < after {
			continue
		}
		within := len(tail) == 0 || count < limit
		for _, r := range b.Records {
			gone = gone || m.deleted[r.Seq]
		}
		if gone && within {
			return nil, true, eventlog.ErrCompacted
		}
		if within {
			tail = append(tail, b)
			count += len(b.Records)
		}
	}
	return tail, gone, nil
}

func (m *model) values(seqs []int64) ([][]byte, error) {
	all := m.records()
	values := make([][]byte, len(seqs))
	for i, seq := range seqs {
		if seq < 1 || seq > int64(len(all)) || m.deleted[seq] {
			return nil, eventlog.ErrCompacted
		}
		values[i] = all[seq-1].Value
	}
	return values, nil
}

// The records that scripts are made of.

func put(key, value string) eventlog.Record {
	return eventlog.Record{Kind: eventlog.KindPut, Key: []byte(key), Value: []byte(value), CreateRevision: 1, Version: 1}
}

func del(key string) eventlog.Record {
	return eventlog.Record{Kind: eventlog.KindDelete, Key: []byte(key)}
}

func grant(id int64) eventlog.Record {
	return eventlog.Record{Kind: eventlog.KindLeaseGrant, Lease: id, TTL: 60}
}

func mark(revision int64) eventlog.Record {
	return eventlog.Record{Kind: eventlog.KindCompact, Revision: eventlog.Revision{Main: revision}}
}

// puts returns n puts of different keys with values of that many bytes.
func puts(n, size int) []eventlog.Record {
	records := make([]eventlog.Record, n)
	for i := range records {
		records[i] = put(fmt.Sprintf("/registry/pods/%06d", i), string(pattern(i, size)))
	}
	return records
}

// pattern returns bytes that tell one value, and one place in it, from another.
func pattern(seed, size int) []byte {
	b := make([]byte, size)
	x := uint32(seed)*2654435761 + 1
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}
