// Package snapshottest is what tests of sources have in common.
package snapshottest

import (
	"context"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

// Hash returns what HashKV of a store with the data of src would be at its
// revision: it covers all after the compact revision, and before it what is
// alive; or, where nothing is alive, all but a tombstone at the compact revision.
// It reads src up to three times and remembers the keys that were changed since
// the compact revision.
func Hash(ctx context.Context, src snapshot.Source) (uint32, error) {
	compacted := src.State().Compacted
	changed := make(map[string]bool) // since compaction; whether the key is alive
	if compacted > 0 {
		if err := src.Records(ctx, func(r *eventlog.Record) error {
			if r.Revision.Main > compacted {
				changed[string(r.Key)] = r.Kind == eventlog.KindPut
			}
			return nil
		}); err != nil {
			return 0, err
		}
	}
	alive := compacted == 0 // else all is hashed anyhow
	for _, put := range changed {
		alive = alive || put
	}
	last := func(r *eventlog.Record) bool {
		_, later := changed[string(r.Key)]
		return r.Kind == eventlog.KindPut && !later
	}
	if !alive {
		if err := src.Records(ctx, func(r *eventlog.Record) error {
			alive = alive || r.Revision.Main <= compacted && last(r)
			return nil
		}); err != nil {
			return 0, err
		}
	}
	h := snapshot.NewHasher()
	err := src.Records(ctx, func(r *eventlog.Record) error {
		switch main := r.Revision.Main; {
		case main == compacted && r.Kind == eventlog.KindDelete:
		case main > compacted || !alive || last(r):
			h.Add(r)
		}
		return nil
	})
	return h.Sum(), err
}
