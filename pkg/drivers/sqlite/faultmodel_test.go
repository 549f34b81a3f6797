package sqlite_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

// model is what the log has to have.
type model struct {
	batches []eventlog.Batch  // acknowledged
	doubt   []*eventlog.Batch // under way together, or their fate is unknown
	doomed  []int64           // records that were given to Compact, in its order
	deleted int               // so many of doomed are deleted for good
}

// all returns the records of the batches.
func (m *model) all() []eventlog.Record {
	var all []eventlog.Record
	for _, b := range m.batches {
		all = append(all, b.Records...)
	}
	return all
}

func (m *model) head() eventlog.Head {
	head := eventlog.Head{Position: eventlog.Position(len(m.batches))}
	for _, r := range m.all() {
		head.Seq = r.Seq
		if r.Kind == eventlog.KindPut || r.Kind == eventlog.KindDelete {
			head.Revision = r.Revision.Main
		}
	}
	return head
}

// next makes the batch that puts n values of size bytes; 0 puts are a
// compaction mark.
func (m *model) next(n, size int) *eventlog.Batch {
	head := m.head()
	b := &eventlog.Batch{Base: head.Position}
	b.ID[0], b.ID[15] = byte(head.Position), 0xa5
	if n == 0 {
		b.Records = []eventlog.Record{{
			Seq: head.Seq + 1, Position: b.Position(), Kind: eventlog.KindCompact, Revision: eventlog.Revision{Main: head.Revision},
		}}
	}
	for i := range n {
		value := make([]byte, size)
		for j := range value {
			value[j] = byte(int(head.Seq) + i + j*j>>3)
		}
		b.Records = append(b.Records, eventlog.Record{
			Seq: head.Seq + 1 + int64(i), Position: b.Position(), Kind: eventlog.KindPut,
			Revision: eventlog.Revision{Main: head.Revision + 1, Sub: int64(i)},
			Key:      fmt.Appendf(nil, "/registry/%d/%d", i, head.Seq), Value: value, CreateRevision: 1, Version: 1, Lease: int64(i % 2),
		})
	}
	return b
}

// take adds batches that are there.
func (m *model) take(batches ...*eventlog.Batch) {
	m.batches = slices.Clip(m.batches)
	for _, b := range batches {
		m.batches = append(m.batches, *b)
	}
}

// toCompact are the records before the newest mark that keep does not name.
func (m *model) toCompact(keep func(seq int64) bool) []int64 {
	mark := int64(0)
	var seqs []int64
	for _, r := range m.all() {
		if r.Kind == eventlog.KindCompact {
			mark = r.Seq
		}
	}
	for seq := int64(1); seq < mark; seq++ {
		if !keep(seq) && !slices.Contains(m.doomed, seq) {
			seqs = append(seqs, seq)
		}
	}
	return seqs
}

// resolve compares the log, just opened, with the model, and settles what was
// in doubt.
func (m *model) resolve(log *sqlite.Log) error {
	var records []eventlog.Record
	head, err := log.Load(context.Background(), func(r *eventlog.Record) error { records = append(records, *r); return nil })
	if err != nil {
		return err
	}
	if n := len(m.doubt); n > 0 && head.Position == m.doubt[n-1].Position() {
		m.take(m.doubt...)
	}
	m.doubt = nil
	if want := m.head(); head != want {
		return fmt.Errorf("the head is %+v, want %+v", head, want)
	}
	all := m.all()
	left := make(map[int64]bool)
	for _, r := range records {
		want := all[r.Seq-1]
		want.ValueBytes, want.Value = len(want.Value), nil
		if left[r.Seq] || !reflect.DeepEqual(r, want) {
			return fmt.Errorf("record %d is %+v, want %+v", r.Seq, r, want)
		}
		left[r.Seq] = true
	}
	// Compaction may be undone by a crash, from its end.
	n := len(all) - len(records)
	if n < m.deleted || n > len(m.doomed) {
		return fmt.Errorf("%d records are deleted, want %d to %d", n, m.deleted, len(m.doomed))
	}
	for i, seq := range m.doomed {
		if left[seq] != (i >= n) {
			return fmt.Errorf("of the %d deleted records %v, %d is there: %t", n, m.doomed, seq, left[seq])
		}
	}
	m.deleted = n
	if err := m.read(log, left); err != nil {
		return err
	}
	m.doomed = m.doomed[:n] // the rest is to be asked for again
	return nil
}

// read compares what Values and Tail give with the model; left are the records
// that are there.
func (m *model) read(log *sqlite.Log, left map[int64]bool) error {
	ctx := context.Background()
	var seqs []int64
	all := m.all()
	for _, r := range all {
		if left[r.Seq] {
			seqs = append(seqs, r.Seq)
		} else if _, err := log.Values(ctx, []int64{r.Seq}); r.Seq%7 == 0 && !errors.Is(err, eventlog.ErrCompacted) {
			return fmt.Errorf("the value of the deleted record %d: %w", r.Seq, err)
		}
	}
	values, err := log.Values(ctx, seqs)
	if err != nil {
		return err
	}
	for i, seq := range seqs {
		if string(values[i]) != string(all[seq-1].Value) {
			return fmt.Errorf("the value of record %d is not the one that was written", seq)
		}
	}
	// Whole batches follow the last deleted record.
	after := eventlog.Position(0)
	for _, r := range all {
		if !left[r.Seq] {
			after = r.Position
		}
	}
	if after > 0 {
		if _, err := log.Tail(ctx, after-1, 1); !errors.Is(err, eventlog.ErrCompacted) {
			return fmt.Errorf("the batch of a deleted record: %w", err)
		}
	}
	for int(after) < len(m.batches) {
		got, err := log.Tail(ctx, after, 20)
		if err != nil || len(got) == 0 {
			return fmt.Errorf("after %d: %d batches, %w", after, len(got), err)
		}
		for _, b := range got {
			if !reflect.DeepEqual(b, m.batches[after]) {
				return fmt.Errorf("batch %d is %+v, want %+v", after+1, b, m.batches[after])
			}
			after++
		}
	}
	return nil
}

// readNewest reads the newest batch of a log that may have failed: what it
// gives is right, or the log says that it has failed.
func (m *model) readNewest(log *sqlite.Log) error {
	if len(m.batches) == 0 {
		return nil
	}
	want := m.batches[len(m.batches)-1]
	got, err := log.Tail(context.Background(), want.Base, 1)
	switch {
	case errors.Is(err, eventlog.ErrFailed):
		return nil
	case err != nil:
		return err
	case len(got) != 1 || !reflect.DeepEqual(got[0], want):
		return fmt.Errorf("the newest batch is %+v, want %+v", got, want)
	}
	return nil
}
