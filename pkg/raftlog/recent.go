package raftlog

import (
	"bytes"
	"sync"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// recentBytes is about how much of the newest batches is kept.
const recentBytes = 4 << 20

// recent has the newest batches that this node has applied for others, so that
// its store, which comes for them at once, need not read back what was just
// written.
type recent struct {
	mu      sync.Mutex
	batches []*eventlog.Batch // mu; without gaps
	bytes   int               // mu
}

// add takes a batch that was applied and that nobody will change.
func (r *recent) add(b *eventlog.Batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.batches); n > 0 && r.batches[n-1].Position() != b.Base {
		r.batches, r.bytes = nil, 0
	}
	r.batches = append(r.batches, b)
	r.bytes += batchBytes(b)
	for r.bytes > recentBytes && len(r.batches) > 1 {
		r.bytes -= batchBytes(r.batches[0])
		r.batches[0] = nil
		r.batches = r.batches[1:]
	}
}

// drop forgets them all.
func (r *recent) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.batches, r.bytes = nil, 0
}

// tail is eventlog.Log's Tail as far as it can be had here; false if it cannot.
func (r *recent) tail(after eventlog.Position, limit int) ([]eventlog.Batch, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.batches) == 0 {
		return nil, false
	}
	at := int64(after) - int64(r.batches[0].Base)
	if at < 0 || at >= int64(len(r.batches)) {
		return nil, false
	}
	var found []eventlog.Batch
	for _, b := range r.batches[at:] {
		found = append(found, copyBatch(b))
		if limit -= len(b.Records); limit <= 0 {
			break
		}
	}
	return found, true
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

func batchBytes(b *eventlog.Batch) int {
	n := 0
	for i := range b.Records {
		n += len(b.Records[i].Key) + len(b.Records[i].Value)
	}
	return n
}
