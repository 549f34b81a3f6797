// Package memlog is the reference driver: the log contract in memory, in the
// plainest code that keeps it. It is durable for as long as its [Disk] is
// referenced, and several handles on one Disk behave as several processes on
// one database.
package memlog

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// Disk holds what is durable. The zero Disk is an empty log.
type Disk struct {
	deleting sync.RWMutex // held, before mu, by who deletes, and read-held by who begins a Scan

	mu      sync.Mutex
	records []eventlog.Record // in order of seq, less what Compact deleted
	commits []commit          // of position i+1
	head    eventlog.Head
	bytes   int64 // of the keys and values of records
	watch   []func(eventlog.Position)
}

// commit remembers a batch whatever compaction takes of it.
type commit struct {
	id           eventlog.BatchID
	first, count int64 // seqs
}

// Fault is what happens to the next Append of a handle.
type Fault int

// The two forms of a write fault, and none.
const (
	NoFault Fault = iota
	// FailUnpersisted: nothing is written, ErrUnknown is returned.
	FailUnpersisted
	// FailPersisted: the batch is written, ErrUnknown is returned.
	FailPersisted
	// FailFinal: nothing is written, ErrFailed is returned now and ever after.
	FailFinal
)

// Log is a handle on a Disk.
type Log struct {
	disk *Disk

	mu     sync.Mutex
	fault  Fault
	closed error
}

var _ eventlog.Log = (*Log)(nil)

// Open returns a new handle. notify, if not nil, is called with the new head
// after every Append through any handle; it must not call back into the log.
func (d *Disk) Open(notify func(eventlog.Position)) *Log {
	d.mu.Lock()
	defer d.mu.Unlock()
	if notify != nil {
		d.watch = append(d.watch, notify)
	}
	return &Log{disk: d}
}

// InjectFault arranges what happens to the next Append.
func (l *Log) InjectFault(f Fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault = f
}

// check returns why the handle cannot be used, if so.
func (l *Log) check(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed != nil {
		return l.closed
	}
	return ctx.Err()
}

// Load implements eventlog.Log.
func (l *Log) Load(ctx context.Context, fn func(*eventlog.Record) error) (eventlog.Head, error) {
	if err := l.check(ctx); err != nil {
		return eventlog.Head{}, err
	}
	l.disk.mu.Lock()
	defer l.disk.mu.Unlock()
	for _, r := range l.disk.records {
		r.Key = slices.Clone(r.Key)
		r.ValueBytes, r.Value = len(r.Value), nil
		if err := fn(&r); err != nil {
			return eventlog.Head{}, err
		}
	}
	return l.disk.head, nil
}

// Head implements eventlog.Log.
func (l *Log) Head(ctx context.Context) (eventlog.Position, error) {
	if err := l.check(ctx); err != nil {
		return 0, err
	}
	l.disk.mu.Lock()
	defer l.disk.mu.Unlock()
	return l.disk.head.Position, nil
}

// Append implements eventlog.Log.
func (l *Log) Append(ctx context.Context, b *eventlog.Batch) error {
	if err := l.check(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	fault := l.fault
	l.fault = NoFault
	if fault == FailFinal {
		l.closed = eventlog.ErrFailed
	}
	l.mu.Unlock()
	switch fault {
	case FailUnpersisted:
		return eventlog.ErrUnknown
	case FailFinal:
		return eventlog.ErrFailed
	case NoFault, FailPersisted:
	}
	if err := l.disk.append(b); err != nil {
		return err
	}
	if fault == FailPersisted {
		return eventlog.ErrUnknown
	}
	return nil
}

func (d *Disk) append(b *eventlog.Batch) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.head.Position != b.Base {
		return eventlog.ErrStale
	}
	for i, r := range b.Records {
		if r.Seq != d.head.Seq+1+int64(i) || r.Position != b.Position() {
			return fmt.Errorf("memlog: record %d of position %d does not follow head %+v", r.Seq, r.Position, d.head)
		}
	}
	for _, r := range b.Records {
		r.Key = slices.Clone(r.Key)
		if r.Kind == eventlog.KindPut {
			r.Value = append([]byte{}, r.Value...)
		}
		d.records = append(d.records, r)
		d.bytes += size(r)
		if r.Kind != eventlog.KindCompact {
			d.head.Revision = max(d.head.Revision, r.Revision.Main)
		}
	}
	d.commits = append(d.commits, commit{id: b.ID, first: d.head.Seq + 1, count: int64(len(b.Records))})
	d.head.Position = b.Position()
	d.head.Seq += int64(len(b.Records))
	for _, notify := range d.watch {
		notify(d.head.Position)
	}
	return nil
}

// Tail implements eventlog.Log.
func (l *Log) Tail(ctx context.Context, after eventlog.Position, limit int) ([]eventlog.Batch, error) {
	if err := l.check(ctx); err != nil {
		return nil, err
	}
	d := l.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	var batches []eventlog.Batch
	for n, p := 0, after+1; p <= d.head.Position && (n == 0 || n < limit); p++ {
		commit := d.commits[p-1]
		from, _ := slices.BinarySearchFunc(d.records, commit.first, bySeq)
		to, _ := slices.BinarySearchFunc(d.records, commit.first+commit.count, bySeq)
		if int64(to-from) != commit.count {
			return nil, fmt.Errorf("position %d: %w", p, eventlog.ErrCompacted)
		}
		b := eventlog.Batch{ID: commit.id, Base: p - 1}
		for _, r := range d.records[from:to] {
			r.Key, r.Value = slices.Clone(r.Key), slices.Clone(r.Value)
			b.Records = append(b.Records, r)
		}
		batches = append(batches, b)
		n += to - from
	}
	return batches, nil
}

func bySeq(r eventlog.Record, seq int64) int { return cmp.Compare(r.Seq, seq) }

// Values implements eventlog.Log.
func (l *Log) Values(ctx context.Context, seqs []int64) ([][]byte, error) {
	if err := l.check(ctx); err != nil {
		return nil, err
	}
	d := l.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	values := make([][]byte, len(seqs))
	for i, seq := range seqs {
		at, ok := slices.BinarySearchFunc(d.records, seq, bySeq)
		if !ok {
			return nil, fmt.Errorf("record %d: %w", seq, eventlog.ErrCompacted)
		}
		values[i] = append([]byte{}, d.records[at].Value...)
	}
	return values, nil
}

// Compact implements eventlog.Log.
func (l *Log) Compact(ctx context.Context, seqs []int64) error {
	if err := l.check(ctx); err != nil {
		return err
	}
	d := l.disk
	d.deleting.Lock()
	defer d.deleting.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	dead := make(map[int64]bool, len(seqs))
	for _, seq := range seqs {
		dead[seq] = true
	}
	d.records = slices.DeleteFunc(d.records, func(r eventlog.Record) bool {
		if dead[r.Seq] {
			d.bytes -= size(r)
		}
		return dead[r.Seq]
	})
	return nil
}

// Scan implements eventlog.Log, on a copy.
func (l *Log) Scan(ctx context.Context, begin func(eventlog.Position) (int64, error)) (eventlog.Scan, error) {
	if err := l.check(ctx); err != nil {
		return nil, err
	}
	d := l.disk
	d.deleting.RLock() // until there is the copy
	defer d.deleting.RUnlock()
	d.mu.Lock()
	head := d.head.Position
	d.mu.Unlock()
	through, err := begin(head)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	end, _ := slices.BinarySearchFunc(d.records, through+1, bySeq)
	return &scan{log: l, records: slices.Clone(d.records[:end])}, nil
}

type scan struct {
	log     *Log
	records []eventlog.Record
	closed  bool
}

// Records implements eventlog.Scan, one by one.
func (s *scan) Records(ctx context.Context, fn func([]eventlog.Record) error) error {
	if s.closed {
		return eventlog.ErrClosed
	}
	for _, r := range s.records {
		if err := s.log.check(ctx); err != nil {
			return err
		}
		r.Key, r.Value = slices.Clone(r.Key), slices.Clone(r.Value)
		if err := fn([]eventlog.Record{r}); err != nil {
			return err
		}
		clear(r.Key) // which nobody may keep
		clear(r.Value)
	}
	return nil
}

// Close implements eventlog.Scan.
func (s *scan) Close() error {
	s.closed = true
	return nil
}

// Size implements eventlog.Log; it counts keys and values.
func (l *Log) Size() eventlog.Size {
	d := l.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	return eventlog.Size{Total: d.bytes, InUse: d.bytes}
}

func size(r eventlog.Record) int64 { return int64(len(r.Key) + len(r.Value)) }

// Defragment implements eventlog.Log. There is nothing to give back.
func (l *Log) Defragment(ctx context.Context) error { return l.check(ctx) }

// Close implements eventlog.Log. The Disk stays.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed == nil {
		l.closed = eventlog.ErrClosed
	}
	return nil
}

// Records returns how many records compaction has left.
func (d *Disk) Records() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.records)
}
