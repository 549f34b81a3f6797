package watch

import "sort"

// chunk holds the changes of one published batch.
type chunk struct {
	last    int64 // its newest revision
	before  int   // changes published before it, ever
	bytes   int
	changes []*change
}

// ring holds the newest batches, bounded by events and bytes.
//
// Invariant: every change at or above floor that was published is in it, and
// those above partial have their previous key-value pairs.
type ring struct {
	maxEvents, maxBytes int

	chunks  []*chunk
	floor   int64
	partial int64
	total   int // changes published, ever
	events  int
	bytes   int
}

// reset empties the ring; it is complete from revision floor on.
func (r *ring) reset(floor int64) {
	r.chunks, r.events, r.bytes, r.floor = nil, 0, 0, floor
}

func (r *ring) append(changes []*change, partial bool) {
	c := &chunk{last: changes[len(changes)-1].revision(), before: r.total, changes: changes}
	for _, ch := range changes {
		c.bytes += ch.size
	}
	if partial {
		r.partial = c.last
	}
	r.chunks = append(r.chunks, c)
	r.total += len(changes)
	r.events += len(changes)
	r.bytes += c.bytes
	drop := 0
	for drop < len(r.chunks) && (r.events > r.maxEvents || r.bytes > r.maxBytes) {
		old := r.chunks[drop]
		r.chunks[drop] = nil
		r.events -= len(old.changes)
		r.bytes -= old.bytes
		r.floor = old.last + 1
		drop++
	}
	r.chunks = r.chunks[drop:]
}

// since returns the chunks from revision from on and how many changes they
// hold, false if the ring does not reach back that far, with previous
// key-value pairs if prevKV is set. The slice is valid while the hub's lock is
// held.
func (r *ring) since(from int64, prevKV bool) (chunks []*chunk, events int, ok bool) {
	if from < r.floor || prevKV && from <= r.partial {
		return nil, 0, false
	}
	i := sort.Search(len(r.chunks), func(i int) bool { return r.chunks[i].last >= from })
	if i == len(r.chunks) {
		return nil, 0, true
	}
	return r.chunks[i:], r.total - r.chunks[i].before, true
}

// page is a bound on what one look at the past may bring.
type page struct{ revisions, bytes int }

// collect returns w's changes in chunks from revision from on, at most about
// one page of them, and the revision to go on from. As from the log, what
// compaction has taken is not shown: the version before the compacted
// revision's own event.
func (w *watcher) collect(chunks []*chunk, from, compacted int64, p page) (r *run, next int64) {
	r = &run{}
	for _, ck := range chunks {
		for _, c := range ck.changes {
			rev := c.revision()
			if rev < from || w.filter.drops(c) || !w.span.contains(c.full.Kv.Key) {
				continue
			}
			if !r.empty() && r.last() != rev && (r.revisions >= p.revisions || r.bytes >= p.bytes) {
				return r, rev
			}
			if rev <= compacted && c.full.PrevKv != nil {
				c = newChange(c.event(false))
			}
			r.add(c)
		}
		next = ck.last + 1
	}
	return r, next
}
