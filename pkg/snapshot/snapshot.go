// Package snapshot is how whole data moves: from a [Source], which has it as of
// one revision, to a [Sink]. Keelson's logs, files in etcd's format, a live
// etcd and kine's table are sources, sinks or both, each in a package below
// this one, so that every way from one to another is the same [Copy].
package snapshot

import (
	"context"
	"errors"
	"fmt"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// MaxTTL is that of a lease, in seconds, as etcd has it: 285 years.
const MaxTTL = 9_000_000_000

// ErrInvalid: what a Source has is not the data of a store; or a file is not
// what it should be, was cut off, or is damaged. Nothing may be made of it.
var ErrInvalid = errors.New("snapshot: invalid")

// State is what there is at a snapshot's revision beside the versions of keys.
type State struct {
	// Revision is the current main revision; 1 if nothing was ever written.
	// No record may have it any more: compaction has taken it.
	Revision int64

	// Compacted is the compact revision; 0 before the first compaction. Of
	// what is at or below it each key has at most one version.
	Compacted int64

	Leases []Lease // in order of their ids
	Alarms []Alarm

	// Records is how many versions Source.Records gives, and Bytes about how
	// many bytes of keys and values, for the display of progress only; 0 is
	// not known.
	Records, Bytes int64
}

// Lease is a lease that there is.
type Lease struct {
	ID        int64
	TTL       int64 // as granted, in seconds
	Remaining int64 // in seconds; 0 is not known
}

// Alarm is an alarm that is raised.
type Alarm struct {
	Member uint64
	Alarm  int32 // the number of etcdserverpb.AlarmType
}

// Source is data as of one revision. It is used by one goroutine.
type Source interface {
	// State returns the same each time.
	State() State

	// Records calls fn with every version of every key, tombstones included,
	// in order of revision: records of KindPut with their values and of
	// KindDelete, without Seq and Position. A record and what it refers to
	// are valid only until fn returns. An error of fn ends it and is
	// returned. It may be called again.
	Records(ctx context.Context, fn func(*eventlog.Record) error) error

	// Close releases what the source holds.
	Close() error
}

// Sink is a place that data is written to. It is used by one goroutine. After a
// Begin that succeeds, either Finish or Abort is called at the end.
type Sink interface {
	// Begin is the first call. It refuses a place that must not be written, and
	// has changed nothing if it fails.
	Begin(ctx context.Context, state State) error

	// Add adds the next record of the source; it does not keep it.
	Add(ctx context.Context, r *eventlog.Record) error

	// Finish makes what was added the data of the place: it is durable on
	// return. After an error nothing was changed, or what was begun is refused
	// by every later use until it is done again.
	Finish(ctx context.Context) error

	// Abort removes what was added.
	Abort() error
}

// Progress is how far a Copy is.
type Progress struct{ Records, Bytes int64 }

// reportEvery is after how many records Copy reports.
const reportEvery = 256

// Copy copies everything from src to dst and returns how much it was, which
// report (unless nil) is told now and then. It either finishes dst, or aborts
// it and returns an error: one that wraps ErrInvalid if the source breaks the
// order that makes it the history of a store.
func Copy(ctx context.Context, dst Sink, src Source, report func(Progress)) (Progress, error) {
	if report == nil {
		report = func(Progress) {}
	}
	state := src.State()
	if err := dst.Begin(ctx, state); err != nil {
		return Progress{}, err
	}
	done, err := add(ctx, dst, src, state.Revision, report)
	if err == nil {
		err = dst.Finish(ctx)
	} else {
		err = errors.Join(err, dst.Abort())
	}
	if err != nil {
		return done, err
	}
	report(done)
	return done, nil
}

func add(ctx context.Context, dst Sink, src Source, newest int64, report func(Progress)) (done Progress, err error) {
	var c checker
	err = src.Records(ctx, func(r *eventlog.Record) error {
		if err := c.check(r, newest); err != nil {
			return err
		}
		done.Records++
		done.Bytes += int64(len(r.Key) + len(r.Value))
		if done.Records%reportEvery == 0 {
			report(done)
			if err := context.Cause(ctx); err != nil {
				return err
			}
		}
		return dst.Add(ctx, r)
	})
	return done, err
}

// checker refuses records that no store can have written.
type checker struct{ last eventlog.Revision }

func (c *checker) check(r *eventlog.Record, newest int64) error {
	last := c.last
	c.last = r.Revision
	switch {
	case r.Kind != eventlog.KindPut && r.Kind != eventlog.KindDelete:
		return fmt.Errorf("%w: a %v record among the versions of keys", ErrInvalid, r.Kind)
	case len(r.Key) == 0:
		return fmt.Errorf("%w: revision %v has no key", ErrInvalid, r.Revision)
	case !last.Less(r.Revision):
		return fmt.Errorf("%w: revision %v follows %v", ErrInvalid, r.Revision, last)
	case r.Revision.Main > newest:
		return fmt.Errorf("%w: revision %v is after the newest, %d", ErrInvalid, r.Revision, newest)
	case r.Kind == eventlog.KindPut && (r.Version < 1 || r.CreateRevision < 1 || r.CreateRevision > r.Revision.Main):
		return fmt.Errorf("%w: revision %v of key %q has version %d and create revision %d", ErrInvalid, r.Revision, r.Key, r.Version, r.CreateRevision)
	}
	return nil
}
