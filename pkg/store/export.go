package store

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"math"
	"slices"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

// Export is the data of a state as a snapshot.Source. It keeps 16 bytes for each
// version.
type Export struct {
	scan     eventlog.Scan
	state    snapshot.State
	newest   int64      // main revision of a version
	versions []exported // in order
}

// exported is a version: its record, and how large it is in etcd's encoding.
type exported struct {
	seq       int64
	size      int32
	tombstone bool
}

var _ snapshot.Source = (*Export)(nil)

// Export returns the data as it is now. Writes go on, but until the source is
// closed what compactions free stays in the log.
func (s *Store) Export(ctx context.Context) (*Export, error) {
	scan, st, err := s.scan(ctx)
	if err != nil {
		return nil, err
	}
	e := &Export{scan: scan, state: snapshot.State{Revision: st.revision, Compacted: max(st.compacted, 0)}}
	st.leases.Ascend(math.MinInt64, func(g grant) bool {
		e.state.Leases = append(e.state.Leases, snapshot.Lease{ID: g.id, TTL: g.ttl})
		return true
	})
	for _, a := range st.alarms {
		e.state.Alarms = append(e.state.Alarms, snapshot.Alarm{Member: a.member, Alarm: a.alarm})
	}
	e.list(st)
	return e, nil
}

// scan returns what shows the records of the state that it returns.
func (s *Store) scan(ctx context.Context) (scan eventlog.Scan, st *state, err error) {
	scan, err = s.log.Scan(ctx, func(head eventlog.Position) (int64, error) {
		if err := s.reachPosition(ctx, head); err != nil {
			return 0, err
		}
		st = s.now()
		return st.seq, nil
	})
	if err != nil {
		return nil, nil, logError(err)
	}
	return scan, st, nil
}

// list notes the versions that st has: without what is compacted and was not
// taken out of the index yet.
func (e *Export) list(st *state) {
	e.versions = make([]exported, 0, st.keys.Count())
	st.ascend(span{unbounded: true}, 0, func(entry *entry) bool {
		for i := 0; i <= len(entry.older); i++ {
			if !entry.kept(i, st.compacted) {
				continue
			}
			ref := revisionRef{entry, i}
			v, record := ref.version(), ref.record()
			bytes := int(max(v.size, 0))
			e.versions = append(e.versions, exported{v.seq, int32(snapshot.SizeKeyValue(&record, bytes)), v.tombstone()})
			e.state.Bytes += int64(len(entry.key) + bytes)
			e.newest = max(e.newest, v.main)
		}
		return true
	})
	slices.SortFunc(e.versions, func(a, b exported) int { return cmp.Compare(a.seq, b.seq) })
	e.state.Records = int64(len(e.versions))
}

// Sizes implements etcdfile.Sized.
func (e *Export) Sizes() (newest int64, each iter.Seq2[int, int]) {
	return e.newest, func(yield func(int, int) bool) {
		for _, v := range e.versions {
			if !yield(snapshot.SizeRevision(v.tombstone), int(v.size)) {
				return
			}
		}
	}
}

// State implements snapshot.Source.
func (e *Export) State() snapshot.State { return e.state }

// Records implements snapshot.Source. The log must have exactly the versions of
// the index, but for those that are compacted and wait for being deleted.
func (e *Export) Records(ctx context.Context, fn func(*eventlog.Record) error) error {
	wanted := e.versions
	var refused error
	err := e.scan.Records(ctx, func(records []eventlog.Record) error {
		for i := range records {
			r := &records[i]
			event := r.Kind == eventlog.KindPut || r.Kind == eventlog.KindDelete
			switch {
			case len(wanted) > 0 && wanted[0].seq < r.Seq || len(wanted) > 0 && wanted[0].seq == r.Seq && !event:
				return missing(wanted[0].seq)
			case !event:
				continue
			case len(wanted) > 0 && wanted[0].seq == r.Seq:
				wanted = wanted[1:]
			case r.Revision.Main > e.state.Compacted:
				return fmt.Errorf("%w: record %d of revision %v is in the log, and not in the index", eventlog.ErrCorrupt, r.Seq, r.Revision)
			default:
				continue
			}
			r.Seq, r.Position = 0, 0
			if refused = fn(r); refused != nil {
				return refused
			}
		}
		return nil
	})
	switch {
	case refused != nil:
		return refused
	case err != nil:
		return logError(err)
	case len(wanted) > 0:
		return missing(wanted[0].seq)
	}
	return nil
}

func missing(seq int64) error {
	return fmt.Errorf("%w: record %d is in the index, and not in the log", eventlog.ErrCorrupt, seq)
}

// Close implements snapshot.Source.
func (e *Export) Close() error { return e.scan.Close() }
