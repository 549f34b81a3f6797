package store

import "context"

// A get whose value is not in memory has that read from the log, and lets the
// values of the keys after it be read, too: clients that ask for one object of a
// resource ask for others, and many values at once take a third of the time
// for each. That is only for what would be empty otherwise, half of the cache;
// then only what was asked for comes in.

const (
	aheadKeys  = 64        // that are read at once
	aheadBytes = 128 << 10 // likewise, of values
)

// ahead asks for the values after that of e, unless other ones are being read,
// or the cache has much already. It does not block.
func (s *Store) ahead(e *entry) {
	if s.values.cache.size() >= s.opt.CacheBytes/2 {
		return
	}
	select {
	case s.aheadOf <- e.key:
	default:
	}
}

// readAhead reads until ctx ends. Records that are damaged are found once, and
// left alone from then on, lest those beside them be read in vain each time.
func (s *Store) readAhead(ctx context.Context) {
	damaged := make(map[int64]bool)
	skip := func(seq int64) bool { return damaged[seq] || s.values.cache.has(seq) }
	for {
		select {
		case <-ctx.Done():
			return
		case key := <-s.aheadOf:
			seqs := s.now().valuesFrom(key, skip)
			if _, err := s.values.read(ctx, seqs); !isDamage(err) {
				continue // who asks for them hears what else is wrong
			}
			for _, seq := range seqs {
				if _, err := s.values.read(ctx, []int64{seq}); isDamage(err) {
					damaged[seq] = true
				}
			}
		}
	}
}

// valuesFrom returns the records with the values of the keys from key on, but
// those to skip.
func (st *state) valuesFrom(key string, skip func(seq int64) bool) (seqs []int64) {
	seen, room := 0, aheadBytes
	st.ascend(span{from: key, unbounded: true}, 0, func(e *entry) bool {
		if v := &e.last; !v.tombstone() && !skip(v.seq) {
			seqs = append(seqs, v.seq)
			room -= int(v.size)
		}
		seen++
		return len(seqs) < aheadKeys && room > 0 && seen < 4*aheadKeys
	})
	return seqs
}
