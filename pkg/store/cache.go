package store

import (
	"sync"
	"sync/atomic"
)

// valueCache keeps values in memory up to a number of bytes, by the CLOCK
// algorithm: what was read since the hand came by last stays for another
// round. Readers take no lock: a list looks up every value that it has.
type valueCache struct {
	limit int64
	bytes atomic.Int64
	table atomic.Pointer[cacheTable]

	// mu is for what follows, and for every change of the above.
	mu    sync.Mutex
	taken int // slots of the table, those of values that are gone, too
	clock []*cachedValue
	hand  int
}

// cacheTable is a hash table by seq with linear probing, its length a power of
// two. Values do not move in it, so that a reader who finds none has missed
// none: what goes leaves goneValue behind, until another table takes the place
// of this one.
type cacheTable []atomic.Pointer[cachedValue]

// cachedValue does not change but for used and at.
type cachedValue struct {
	seq   int64
	value []byte
	at    int // in the clock; by valueCache.mu
	used  atomic.Bool
}

var goneValue = &cachedValue{seq: -1}

const (
	// firstSlots is the length of the first table.
	firstSlots = 1 << 10

	// slotOverhead is about what a value costs beside its bytes: cachedValue,
	// table, clock, and the allocator's rounding.
	slotOverhead = 128
)

func newValueCache(limit int64) *valueCache {
	c := &valueCache{limit: limit}
	c.table.Store(newTable(firstSlots))
	return c
}

func newTable(slots int) *cacheTable {
	t := make(cacheTable, slots)
	return &t
}

// find returns the value of seq, or nil, and the slot where it is or belongs.
// Neighbours are in one line of the processor's cache. There is always an empty
// slot to end at.
func (t cacheTable) find(seq int64) (*cachedValue, *atomic.Pointer[cachedValue]) {
	const line = 8
	mask := uint64(len(t) - 1)
	hash := uint64(seq) / line * 0x9e3779b97f4a7c15 >> 32
	var free *atomic.Pointer[cachedValue]
	for i := hash*line + uint64(seq)%line; ; i++ {
		slot := &t[i&mask]
		switch v := slot.Load(); {
		case v == nil && free != nil:
			return nil, free
		case v == nil:
			return nil, slot
		case v.seq == seq:
			return v, slot
		case v == goneValue && free == nil:
			free = slot
		}
	}
}

func (c *valueCache) get(seq int64) ([]byte, bool) { return c.table.Load().get(seq) }

// has reports whether there is a value, for nobody who reads it.
func (c *valueCache) has(seq int64) bool {
	v, _ := c.table.Load().find(seq)
	return v != nil
}

func (t cacheTable) get(seq int64) ([]byte, bool) {
	v, _ := t.find(seq)
	if v == nil {
		return nil, false
	}
	if !v.used.Load() { // so that readers need not share a line that is written
		v.used.Store(true)
	}
	return v.value, true
}

// getAll sets each of values that is there and returns the indexes of those
// that are not.
func (c *valueCache) getAll(seqs []int64, values [][]byte) (missing []int) {
	table := *c.table.Load()
	for i, seq := range seqs {
		value, ok := table.get(seq)
		if !ok {
			missing = append(missing, i)
		}
		values[i] = value
	}
	return missing
}

func (c *valueCache) put(seq int64, value []byte) {
	cost := int64(len(value)) + slotOverhead
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, _ := c.table.Load().find(seq); v != nil || cost > c.limit {
		return
	}
	for c.bytes.Load()+cost > c.limit {
		if c.hand >= len(c.clock) {
			c.hand = 0
		}
		if v := c.clock[c.hand]; v.used.Load() {
			v.used.Store(false)
			c.hand++
		} else {
			c.remove(v)
		}
	}
	if c.taken >= len(*c.table.Load())/4*3 {
		c.renew()
	}
	v := &cachedValue{seq: seq, value: value, at: len(c.clock)}
	_, slot := c.table.Load().find(seq)
	if slot.Load() == nil {
		c.taken++
	}
	slot.Store(v)
	c.clock = append(c.clock, v)
	c.bytes.Add(cost)
}

// renew gives the cache a table with the values that are there, and room for as
// many more. Who reads the old one misses at worst what is put from now on.
func (c *valueCache) renew() {
	slots := firstSlots
	for slots < 2*len(c.clock) {
		slots *= 2
	}
	table := newTable(slots)
	for _, v := range c.clock {
		_, slot := table.find(v.seq)
		slot.Store(v)
	}
	c.taken = len(c.clock)
	c.table.Store(table)
}

// drop forgets a value that is not the newest of its key any more.
func (c *valueCache) drop(seq int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, _ := c.table.Load().find(seq); v != nil {
		c.remove(v)
	}
}

// remove takes v out; the last of the clock gets its place there.
func (c *valueCache) remove(v *cachedValue) {
	_, slot := c.table.Load().find(v.seq)
	slot.Store(goneValue)
	c.bytes.Add(-int64(len(v.value)) - slotOverhead)
	last := c.clock[len(c.clock)-1]
	c.clock[v.at], last.at = last, v.at
	c.clock[len(c.clock)-1] = nil
	c.clock = c.clock[:len(c.clock)-1]
}

// size returns the bytes that the cache accounts for.
func (c *valueCache) size() int64 { return c.bytes.Load() }
