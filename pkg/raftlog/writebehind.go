package raftlog

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	// recentBytes is about how much is kept of batches that the database has.
	recentBytes = 4 << 20

	// writtenBytes are written in one transaction, about, and at once when so
	// much is pending.
	writtenBytes = 1 << 20

	// pendingBytes may be pending; then what is to be applied waits.
	pendingBytes = 8 << 20
)

// writeDelay is how long applied batches may collect before they are written.
const writeDelay = 50 * time.Millisecond

// writeBehind is the database and what it does not have yet. A batch is applied
// when it is the newest one here: nobody waits until it is in the database,
// since it is durable in the Raft log, which is read again from the newest mark
// after a crash. run writes what has collected, many batches at a time.
//
//	│ only in the database │ written │ pending │
//	└──────────────────────┴─────────┴─────────┘ head
//	                         batches
//
// What a follower has written is kept a while for its store, which comes for it
// (Tail) soon.
//
// Invariant: batches follow each other without a gap, and end at head.
type writeBehind struct {
	local   *sqlite.Log
	delay   time.Duration // writeDelay
	writing chan struct{} // holds the token of the one that writes
	wake    chan struct{} // buffered: something is pending
	full    chan struct{} // buffered: so much that it is to be written now
	stored  *progress     // the position of the database

	mu      sync.Mutex
	head    eventlog.Head   // mu; Revision is set by Load
	batches []*appliedBatch // mu
	written int             // mu; how many of batches the database has
	recent  int             // mu; bytes of these
	pending int             // mu; bytes of the others
}

// appliedBatch is one of the newest batches.
type appliedBatch struct {
	data        []byte          // its encoding: the entry of the Raft log
	batch       *eventlog.Batch // mu of writeBehind; data decoded, or nil
	base        eventlog.Position
	first, last int64 // seqs
	own         bool  // this node's store has made it, and does not come for it
}

func newWriteBehind(local *sqlite.Log, head eventlog.Head) *writeBehind {
	w := &writeBehind{
		local:   local,
		delay:   writeDelay,
		writing: make(chan struct{}, 1),
		wake:    make(chan struct{}, 1),
		full:    make(chan struct{}, 1),
		stored:  newProgress(uint64(head.Position)),
		head:    head,
	}
	w.writing <- struct{}{}
	return w
}

// load loads the database, before anything is applied.
func (w *writeBehind) load(ctx context.Context, fn func(*eventlog.Record) error) (eventlog.Head, error) {
	head, err := w.local.Load(ctx, fn)
	if err == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.head = head
	}
	return head, err
}

// now returns the head: what is applied.
func (w *writeBehind) now() eventlog.Head {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.head
}

// add applies batch, which is committed and whose encoding is data; own is that
// of its author, who gets it back. stale says that the head has moved past what
// the batch is based on, and nothing has changed. That the head is before it
// cannot be: whoever has proposed the batch had what the log has before it.
func (w *writeBehind) add(data []byte, batch *eventlog.Batch, own bool) (stale, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.head.Position > batch.Base:
		return fmt.Errorf("%w: it is at %d, the batch is based on %d", eventlog.ErrStale, w.head.Position, batch.Base), nil
	case w.head.Position < batch.Base:
		return nil, fmt.Errorf("%w: the database is at position %d, and the raft log goes on from position %d: it was replaced by an older one, or has lost what was durable",
			eventlog.ErrCorrupt, w.head.Position, batch.Base)
	}
	if err := batch.Check(w.head.Seq); err != nil {
		return nil, err
	}
	a := &appliedBatch{data: data, base: batch.Base, first: w.head.Seq + 1, last: w.head.Seq + int64(len(batch.Records)), own: own}
	if !own {
		a.batch = batch
	}
	w.batches = append(w.batches, a)
	w.pending += len(data)
	w.head.Position, w.head.Seq = batch.Position(), a.last
	for i := range batch.Records {
		if r := &batch.Records[i]; r.Kind == eventlog.KindPut || r.Kind == eventlog.KindDelete {
			w.head.Revision = max(w.head.Revision, r.Revision.Main)
		}
	}
	signal(w.wake)
	if w.pending >= writtenBytes {
		signal(w.full)
	}
	return nil, nil
}

// signal leaves a token in a channel that has room for one.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // there is one
	}
}

// room waits until more may be applied.
func (w *writeBehind) room(ctx context.Context) error {
	for {
		_, wrote := w.stored.now()
		w.mu.Lock()
		pending := w.pending
		w.mu.Unlock()
		if pending < pendingBytes {
			return nil
		}
		select {
		case <-wrote:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// run writes what is pending until ctx ends or the database fails.
func (w *writeBehind) run(ctx context.Context) error {
	for {
		select {
		case <-w.wake:
		case <-ctx.Done():
			return nil
		}
		select {
		case <-time.After(w.delay):
		case <-w.full:
		case <-ctx.Done():
			return nil
		}
		if err := w.flush(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// flush returns once the database has everything that was applied before. An
// error that is not that of ctx is final.
func (w *writeBehind) flush(ctx context.Context) error {
	to := w.now().Position
	select {
	case <-w.writing:
		defer func() { w.writing <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		batches, err := w.next(to)
		if err != nil || len(batches) == 0 {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		// Not with ctx: whoever comes next counts on the token of the database.
		if err := w.local.AppendAll(context.Background(), batches...); err != nil {
			return fmt.Errorf("write positions %d to %d to the database: %w", batches[0].Position(), batches[len(batches)-1].Position(), err)
		}
		w.wrote(len(batches))
	}
}

// next returns what is to be written in the next transaction, up to position
// to.
func (w *writeBehind) next(to eventlog.Position) ([]*eventlog.Batch, error) {
	w.mu.Lock()
	pending := slices.Clone(w.batches[w.written:])
	decoded := make([]*eventlog.Batch, len(pending))
	for i, a := range pending {
		decoded[i] = a.batch
	}
	w.mu.Unlock()
	size := 0
	for i, a := range pending {
		if a.base >= to || size >= writtenBytes {
			return decoded[:i], nil
		}
		size += len(a.data)
		if decoded[i] == nil {
			var err error
			if decoded[i], err = eventlog.DecodeBatch(a.data); err != nil {
				return nil, err
			}
		}
	}
	return decoded, nil
}

// wrote notes that the database has the first n that were pending. Of those
// that it has a few are kept, unless a store has made one of them: the leader's,
// which comes for nothing.
func (w *writeBehind) wrote(n int) {
	w.mu.Lock()
	own := false
	for _, a := range w.batches[w.written : w.written+n] {
		own = own || a.own
		w.pending -= len(a.data)
		w.recent += len(a.data)
	}
	w.written += n
	at := w.batches[w.written-1].base + 1
	drop := 0
	for drop < w.written && (own || w.recent > recentBytes) {
		w.recent -= len(w.batches[drop].data)
		drop++
	}
	w.batches = slices.Delete(w.batches, 0, drop)
	w.written -= drop
	w.mu.Unlock()
	w.stored.advance(uint64(at))
}

// decoded returns the batch of a. The caller holds mu.
func (a *appliedBatch) decoded() (_ *eventlog.Batch, err error) {
	if a.batch == nil {
		a.batch, err = eventlog.DecodeBatch(a.data)
	}
	return a.batch, err
}

// tail is eventlog.Log's Tail.
func (w *writeBehind) tail(ctx context.Context, after eventlog.Position, limit int) ([]eventlog.Batch, error) {
	w.mu.Lock()
	if len(w.batches) > 0 && after >= w.batches[0].base {
		defer w.mu.Unlock()
		return copyAfter(w.batches, after, limit)
	}
	newest := slices.Clone(w.batches) // what is written meanwhile may be gone from there
	w.mu.Unlock()
	found, err := w.local.Tail(ctx, after, limit)
	if err != nil || len(found) == 0 || len(newest) == 0 {
		return found, err
	}
	for i := range found {
		limit -= len(found[i].Records)
	}
	last := found[len(found)-1].Position()
	if limit <= 0 || last < newest[0].base {
		return found, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	more, err := copyAfter(newest, last, limit)
	return append(found, more...), err
}

// copyAfter is Tail on batches, whose first one's base is not after the position.
// The caller holds the mu that decoded needs.
func copyAfter(batches []*appliedBatch, after eventlog.Position, limit int) (found []eventlog.Batch, err error) {
	for _, a := range batches[min(after-batches[0].base, eventlog.Position(len(batches))):] {
		b, err := a.decoded()
		if err != nil {
			return nil, err
		}
		found = append(found, copyBatch(b))
		if limit -= len(b.Records); limit <= 0 {
			break
		}
	}
	return found, nil
}

// copyBatch copies keys and values each for itself: in a batch that was decoded
// they are parts of one piece of memory, which a single one would keep.
func copyBatch(b *eventlog.Batch) eventlog.Batch {
	c := eventlog.Batch{ID: b.ID, Base: b.Base, Records: make([]eventlog.Record, len(b.Records))}
	for i, r := range b.Records {
		r.Key, r.Value = bytes.Clone(r.Key), bytes.Clone(r.Value)
		c.Records[i] = r
	}
	return c
}

// values is eventlog.Log's Values. Nothing that is pending is deleted.
func (w *writeBehind) values(ctx context.Context, seqs []int64) ([][]byte, error) {
	values, rest, err := w.pendingValues(seqs)
	if err != nil {
		return nil, err
	}
	if values == nil {
		return w.local.Values(ctx, seqs)
	}
	if len(rest) == 0 {
		return values, nil
	}
	wanted := make([]int64, len(rest))
	for i, at := range rest {
		wanted[i] = seqs[at]
	}
	stored, err := w.local.Values(ctx, wanted)
	if err != nil {
		return nil, err
	}
	for i, at := range rest {
		values[at] = stored[i]
	}
	return values, nil
}

// pendingValues returns the values of those records that are pending, and which
// of seqs are not; nil if none is.
func (w *writeBehind) pendingValues(seqs []int64) (values [][]byte, rest []int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	pending := w.batches[w.written:]
	if len(pending) == 0 {
		return nil, nil, nil
	}
	for i, seq := range seqs {
		if seq < pending[0].first || seq > w.head.Seq {
			rest = append(rest, i)
			continue
		}
		if values == nil {
			values = make([][]byte, len(seqs))
		}
		a := pending[sort.Search(len(pending), func(j int) bool { return seq <= pending[j].last })]
		b, err := a.decoded()
		if err != nil {
			return nil, nil, err
		}
		values[i] = bytes.Clone(b.Records[seq-a.first].Value)
	}
	return values, rest, nil
}

// size is eventlog.Log's Size: what is pending is as good as in the database.
func (w *writeBehind) size() eventlog.Size {
	w.mu.Lock()
	pending := int64(w.pending)
	w.mu.Unlock()
	size := w.local.Size()
	return eventlog.Size{Total: size.Total + pending, InUse: size.InUse + pending}
}
