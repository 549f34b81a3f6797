// Package backup makes snapshots of the data by the clock and keeps some of
// them, in a directory or in S3-compatible storage:
//
//	schedule ─▶ write to a temporary file ─▶ read it back and compare
//	               ─▶ keep it under its name, durably ─▶ remove older ones
//
// One is made at a time. Until it was verified nothing is removed for its sake,
// and nothing in a directory has a backup's name. (In S3 an object has it from
// the end of the upload on. One that could not be verified is removed, and until
// that succeeds the process takes it for none.)
package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sirupsen/logrus"
)

var (
	// ErrUsage: a setting cannot be understood; the message says why.
	ErrUsage = errors.New("backup")

	// ErrMismatch: what was read back is not what was written.
	ErrMismatch = errors.New("what was read back is not what was written")

	// ErrNotRemoved: the place takes backups, and removes none.
	ErrNotRemoved = errors.New("what is there cannot be removed")

	// errSlow: the snapshot was not written in the time that its size allows.
	errSlow = errors.New("it took too long")
)

// Contents is what a snapshot has.
type Contents struct {
	Revision  int64 // the current one
	Compacted int64
	Records   int64 // versions of keys
	Leases    int
	Hash      uint32
}

// Place is where backups are kept. Its methods are for one goroutine.
type Place interface {
	// String names the place, without anything secret.
	String() string

	// Try finds out whether backups can be kept, and removed again: it is
	// ErrNotRemoved if only that fails.
	Try(ctx context.Context) error

	// List returns the names of what is there that begins with prefix.
	List(ctx context.Context, prefix string) ([]string, error)

	// Keep makes the file at path, which may be gone after that, a part of the
	// place. On return it is there under name, whole and durable. After an
	// error what is there under name, if it could not be removed, is no backup.
	Keep(ctx context.Context, path, name string) error

	// Remove removes a backup; that it is not there is no error.
	Remove(ctx context.Context, name string) error

	// Tidy removes what ended processes have left of backups whose names
	// begin with prefix.
	Tidy(ctx context.Context, prefix string) error
}

// Options of Backups. All but FirstPause and Reserve must be set.
type Options struct {
	Schedule  Schedule
	Retention Retention
	Place     Place

	// ID names the data in the names of its backups: 16 hexadecimal digits,
	// others once the data is another. Backups of another ID are never removed.
	ID func(ctx context.Context) (string, error)

	// Dir is a directory for snapshots that are being made. Processes share it.
	Dir string

	// Write writes a snapshot to a new file at path, durably.
	Write func(ctx context.Context, path string) (Contents, error)

	// Verify reads all of a snapshot, and fails if its checksums do not match.
	Verify func(ctx context.Context, path string) (Contents, error)

	// Size is about how large the next snapshot will be, in bytes.
	Size func() int64

	// Mine says whether this process is the one that makes the backups now; the
	// error is why none can.
	Mine func() (bool, error)

	// Doubt says why older backups may be better than a new one, so that they
	// must stay; empty if there is no reason.
	Doubt func() string

	Metrics *Metrics
	Log     *logrus.Entry

	FirstPause time.Duration // before the second try: 10 s
	Reserve    int64         // bytes that must stay free beside the snapshot: 64 MiB
}

const (
	defaultFirstPause = 10 * time.Second
	maxPause          = 10 * time.Minute
	defaultReserve    = 64 << 20

	// lookAgain is how often the clock is looked at while waiting, since it may
	// be set, and the machine may sleep; and whether another process has ceased
	// to make the backups.
	lookAgain = time.Minute
	// lateAfter is how late a backup is that something has held up.
	lateAfter = 2 * lookAgain
	// settleTime is how long after the start an overdue backup is made at
	// the latest.
	settleTime = time.Minute

	// skew is how far the clocks of two servers may be apart.
	skew = time.Hour

	// A snapshot must be written in writeTime, and a second for each
	// writeRate bytes.
	writeTime = 10 * time.Minute
	writeRate = 1 << 20
)

// Backups makes backups.
type Backups struct {
	opt Options
	log *logrus.Entry

	id      string    // of the data, when it was asked for last
	last    time.Time // of the newest backup known
	recalls bool      // last is known, as far as it can be
	doubted bool      // that it is not known was logged

	// failed are the names that Keep has failed for: what is there under them
	// is removed, and until then it is no backup.
	failed map[string]bool
}

// New returns Backups that Run makes.
func New(opt Options) *Backups {
	if opt.FirstPause == 0 {
		opt.FirstPause = defaultFirstPause
	}
	if opt.Reserve == 0 {
		opt.Reserve = defaultReserve
	}
	return &Backups{opt: opt, log: opt.Log.WithField("place", opt.Place.String()), failed: make(map[string]bool)}
}

// Run makes backups until ctx ends; the result is nil. One that was due while
// the process did not run, the machine slept or another process should have made
// it is made later. One that was due while another was under way is not.
func (b *Backups) Run(ctx context.Context) error {
	b.prepare(ctx)
	b.recall(ctx)
	next := b.first()
	now := wallClock()
	b.log.WithFields(logrus.Fields{"schedule": b.opt.Schedule.String(), "next": next.Format(time.RFC3339)}).Info("backups are scheduled")
	b.opt.Metrics.next.Set(seconds(next))
	if !next.After(now) && !b.sleep(ctx, min(settleTime, b.opt.Schedule.Next(now).Sub(now))) {
		return nil
	}
	for {
		var ok bool
		if next, ok = b.wait(ctx, next); !ok {
			return nil
		}
		begin := next
		if now := wallClock(); now.Sub(next) > lateAfter {
			b.log.WithField("due", next.Format(time.RFC3339)).Warn("a backup is late: this was not running, the machine slept, or its clock was set")
			begin = now
		}
		b.due(ctx, next, b.opt.Schedule.Next(begin))
		next = b.after(ctx, begin)
		b.opt.Metrics.next.Set(seconds(next))
	}
}

// prepare notices at the start what would make the first backup fail.
func (b *Backups) prepare(ctx context.Context) {
	if err := clearWork(b.opt.Dir); err != nil {
		b.log.WithError(err).Warn(notCleared)
	}
	err := b.opt.Place.Try(ctx)
	switch {
	case err == nil || ctx.Err() != nil:
	case errors.Is(err, ErrNotRemoved):
		b.log.WithError(err).Warn("backups cannot be removed from the place for them")
	default:
		b.opt.Metrics.failures.Inc()
		b.log.WithError(err).Error("backups will fail: the place for them cannot be used")
	}
}

// wallClock is the time of day, and not the monotonic one: it follows the machine's
// clock when that is set.
func wallClock() time.Time { return time.Now().Round(0) }

// first returns when the first backup is due. One is overdue if its time has
// passed since the newest there is, or if there is none.
func (b *Backups) first() time.Time {
	now := wallClock()
	switch {
	case !b.recalls:
		return b.opt.Schedule.Next(now)
	case b.last.IsZero():
		return now
	}
	next := b.opt.Schedule.Next(b.last)
	if !next.After(now) {
		b.log.WithFields(logrus.Fields{"due": next.Format(time.RFC3339), "newest": b.last.Format(time.RFC3339)}).Info("a backup is overdue")
	}
	return next
}

// recall looks for the newest backup there is.
func (b *Backups) recall(ctx context.Context) {
	found, err := b.list(ctx)
	if err != nil {
		if ctx.Err() == nil && !b.doubted {
			b.doubted = true
			b.log.WithError(err).Warn("which backups there are is not known yet")
		}
		return
	}
	b.recalls, b.doubted = true, false
	future, limit := 0, wallClock().Add(skew)
	for _, n := range found {
		switch {
		case n.at.After(limit): // by a clock that was wrong, or this one is
			future++
		case n.at.After(b.last) || b.last.After(limit):
			b.last = n.at
			b.opt.Metrics.setLast(b.last)
		}
	}
	b.opt.Metrics.future.Set(float64(future))
	if future > 0 {
		b.log.WithField("backups", future).Warn("there are backups of the future: the clock is wrong, or it was")
	}
}

// wait waits until next, which may become earlier if the clock is set back. It
// returns false when ctx has ended.
func (b *Backups) wait(ctx context.Context, next time.Time) (time.Time, bool) {
	for {
		if !b.recalls {
			if b.recall(ctx); b.recalls {
				if first := b.first(); first.Before(next) {
					next = first
				}
			}
		}
		now := wallClock()
		if earlier := b.opt.Schedule.Next(now); earlier.Before(next) && next.After(now) {
			next = earlier
		}
		b.opt.Metrics.next.Set(seconds(next))
		left := next.Sub(now)
		if left <= 0 {
			return next, ctx.Err() == nil
		}
		if !b.sleep(ctx, min(left, lookAgain)) {
			return next, false
		}
	}
}

func (b *Backups) sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// after returns the time after t that is still to come, or has just passed.
func (b *Backups) after(ctx context.Context, t time.Time) time.Time {
	now := wallClock()
	next := b.opt.Schedule.Next(t)
	if now.Sub(next) <= lateAfter || ctx.Err() != nil {
		return next
	}
	b.log.WithField("due", next.Format(time.RFC3339)).Warn("a backup was missed: it was due while the one before was under way")
	return b.opt.Schedule.Next(now)
}

// due makes the backup of time at, once that is for this process to do and
// unless another has made it, and tries again until the next one is due.
func (b *Backups) due(ctx context.Context, at, until time.Time) {
	for pause, other := b.opt.FirstPause, false; ; {
		b.removeFailed(ctx)
		mine, err := b.opt.Mine()
		b.opt.Metrics.active.Set(truth(mine && err == nil))
		if err == nil && !mine {
			if !other {
				b.log.Debug("a backup is due, which is another server's to make unless it ends before")
			}
			other = true
			left := until.Sub(wallClock())
			if left <= 0 || !b.sleep(ctx, min(left, lookAgain)) {
				return
			}
			continue
		}
		if err == nil {
			if b.recall(ctx); !b.last.Before(at) && !b.last.After(wallClock().Add(skew)) {
				return // another has made it
			}
			err = b.backup(ctx)
		}
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			b.log.Info("a backup was given up, since the server stops")
			return
		}
		b.opt.Metrics.failures.Inc()
		log := b.log.WithError(err)
		if !wallClock().Add(pause).Before(until) {
			log.Error("backup failed; the next one is tried at its time")
			return
		}
		log.WithField("again", pause.String()).Error("backup failed; it is tried again")
		if !b.sleep(ctx, pause) {
			return
		}
		pause = min(2*pause, maxPause)
	}
}

// list returns the backups of this data, the oldest first.
func (b *Backups) list(ctx context.Context) ([]backupName, error) {
	if err := b.identify(ctx); err != nil {
		return nil, err
	}
	names, err := b.opt.Place.List(ctx, b.prefix())
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(name string) bool { return b.failed[name] })
	return parseNames(names, b.id), nil
}

// identify asks what the data is called now.
func (b *Backups) identify(ctx context.Context) error {
	id, err := b.opt.ID(ctx)
	if err != nil {
		return fmt.Errorf("the name of the data is not known: %w", err)
	}
	if b.id != "" && id != b.id {
		b.log.WithFields(logrus.Fields{"id": id, "before": b.id}).Warn("the data is another than before, as after a restore: backups get another name, and those before are not removed")
	}
	b.id = id
	return nil
}

// prefix is how the names of the data's backups begin.
func (b *Backups) prefix() string { return namePrefix + b.id + "-" }
