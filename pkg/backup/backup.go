// Package backup makes snapshots of the data by the clock and keeps some of
// them, in a directory or in S3-compatible storage:
//
//	schedule ─▶ write to a temporary file ─▶ read it back and compare
//	               ─▶ keep it under its name, durably ─▶ remove older ones
//
// One is made at a time. Until it was verified nothing has a backup's name,
// and nothing is removed for its sake.
package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"
)

var (
	// ErrUsage: a setting cannot be understood; the message says why.
	ErrUsage = errors.New("backup")

	// ErrMismatch: what was read back is not what was written.
	ErrMismatch = errors.New("what was read back is not what was written")
)

// Contents is what a snapshot has.
type Contents struct {
	Revision int64 // the current one
	Records  int64 // versions of keys
	Hash     uint32
}

// Place is where backups are kept. Its methods are for one goroutine.
type Place interface {
	// String names the place, without anything secret.
	String() string

	// List returns the names of what is there that begins with prefix.
	List(ctx context.Context, prefix string) ([]string, error)

	// Keep makes the file at path, which may be gone after that, a part of the
	// place. On return it is there under name, whole and durable; after an
	// error it is not.
	Keep(ctx context.Context, path, name string) error

	// Remove removes a backup.
	Remove(ctx context.Context, name string) error
}

// Options of Backups. All but FirstPause and Reserve must be set.
type Options struct {
	Schedule  Schedule
	Retention Retention
	Place     Place

	// ID names the data in the names of its backups: 16 hexadecimal digits.
	// Those of another ID are never removed.
	ID string

	// Temporary is a directory for a snapshot that is being made. It is this
	// process's alone, and removed with everything in it.
	Temporary string

	// Write writes a snapshot to a new file at path, durably.
	Write func(ctx context.Context, path string) (Contents, error)

	// Verify reads all of a snapshot, and fails if its checksums do not match.
	Verify func(ctx context.Context, path string) (Contents, error)

	// Size is about how large the next snapshot will be, in bytes.
	Size func() int64

	// Mine says whether this process is the one that makes the backups. It is
	// asked whenever it is time for one.
	Mine func() bool

	Metrics *Metrics
	Log     *logrus.Entry

	FirstPause time.Duration // before the second try: 10 s
	Reserve    int64         // bytes that must stay free beside the snapshot: 64 MiB
}

const (
	defaultFirstPause = 10 * time.Second
	maxPause          = 10 * time.Minute
	defaultReserve    = 64 << 20

	// lookAgain is how often the clock is looked at while waiting: it may be
	// set, and the machine may sleep.
	lookAgain = time.Minute
	// missedAfter is how much too late a backup may begin.
	missedAfter = 2 * lookAgain
)

// Backups makes backups.
type Backups struct {
	opt Options
	log *logrus.Entry

	last    time.Time // of the newest backup known
	recalls bool      // last is known, as far as it can be
}

// New returns Backups that Run makes.
func New(opt Options) *Backups {
	if opt.FirstPause == 0 {
		opt.FirstPause = defaultFirstPause
	}
	if opt.Reserve == 0 {
		opt.Reserve = defaultReserve
	}
	return &Backups{opt: opt, log: opt.Log.WithField("place", opt.Place.String())}
}

// Run makes backups until ctx ends; the result is nil. A time that is missed,
// since the process did not run or another backup was under way, is not made
// up for.
func (b *Backups) Run(ctx context.Context) error {
	next := b.first(ctx)
	b.log.WithFields(logrus.Fields{"schedule": b.opt.Schedule.String(), "next": next.Format(time.RFC3339)}).Info("backups are scheduled")
	for {
		b.opt.Metrics.next.Set(seconds(next))
		var ok bool
		if next, ok = b.wait(ctx, next); !ok {
			return nil
		}
		if late := wallClock().Sub(next); late > missedAfter {
			b.log.WithField("due", next.Format(time.RFC3339)).Warn("a backup was missed: the machine slept, or its clock was set")
		} else {
			b.due(ctx, b.opt.Schedule.Next(next))
		}
		next = b.after(next)
	}
}

// wallClock is the time of day, and not the monotonic one: it follows the machine's
// clock when that is set.
func wallClock() time.Time { return time.Now().Round(0) }

// first returns when the first backup is due: a schedule of intervals goes on
// from the newest one there is.
func (b *Backups) first(ctx context.Context) time.Time {
	now := wallClock()
	b.recall(ctx)
	if b.last.IsZero() || b.last.After(now) {
		return b.opt.Schedule.Next(now)
	}
	next := b.opt.Schedule.Next(b.last)
	if next.After(now) {
		return next
	}
	if b.opt.Mine() { // else another may have made it where this cannot see it
		b.log.WithFields(logrus.Fields{"due": next.Format(time.RFC3339), "newest": b.last.Format(time.RFC3339)}).
			Warn("a backup was missed while this was not running")
	}
	return b.opt.Schedule.Next(now)
}

// recall looks for the newest backup there is.
func (b *Backups) recall(ctx context.Context) {
	found, err := b.list(ctx)
	if err != nil {
		if ctx.Err() == nil {
			b.log.WithError(err).Warn("which backups there are is not known yet")
		}
		return
	}
	b.recalls = true
	if len(found) > 0 {
		b.last = found[len(found)-1].at
		b.opt.Metrics.setLast(b.last)
	}
}

// wait waits until next, which may become earlier if the clock is set back. It
// returns false when ctx has ended.
func (b *Backups) wait(ctx context.Context, next time.Time) (time.Time, bool) {
	for {
		now := wallClock()
		if earlier := b.opt.Schedule.Next(now); earlier.Before(next) && next.After(now) {
			next = earlier
			b.opt.Metrics.next.Set(seconds(next))
		}
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

// after returns the time after t that is still to come.
func (b *Backups) after(t time.Time) time.Time {
	now := wallClock()
	next := b.opt.Schedule.Next(t)
	if next.After(now) {
		return next
	}
	b.log.WithField("due", next.Format(time.RFC3339)).Warn("a backup was missed: it was due while the one before was under way")
	return b.opt.Schedule.Next(now)
}

// due makes a backup if that is for this process to do, and tries again until
// the next one is due.
func (b *Backups) due(ctx context.Context, until time.Time) {
	pause := b.opt.FirstPause
	for {
		mine := b.opt.Mine()
		b.opt.Metrics.active.Set(truth(mine))
		if !mine {
			b.recalls = false // another makes them from here on
			b.log.Debug("a backup is due, which another server makes")
			return
		}
		if !b.recalls {
			b.recall(ctx)
		}
		start := time.Now()
		name, contents, size, err := b.make(ctx)
		if err == nil {
			took := time.Since(start)
			b.opt.Metrics.succeeded(b.last, size, took)
			removed := b.expire(ctx, name)
			b.log.WithFields(logrus.Fields{
				"name": name, "revision": contents.Revision, "records": contents.Records, "bytes": size,
				"took": took.Round(time.Millisecond).String(), "removed": removed,
			}).Info("backup done")
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

// make makes one backup.
func (b *Backups) make(ctx context.Context) (name string, c Contents, size int64, err error) {
	dir := b.opt.Temporary
	if err := os.RemoveAll(dir); err != nil { // what a killed process has left
		return "", c, 0, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", c, 0, err
	}
	defer func() {
		if removeErr := os.RemoveAll(dir); err == nil && removeErr != nil {
			b.log.WithError(removeErr).Warn("a temporary file is left")
		}
	}()
	if err := checkRoom(dir, b.opt.Size(), b.opt.Reserve); err != nil {
		return "", c, 0, err
	}
	path := filepath.Join(dir, "snapshot.db")
	if c, err = b.opt.Write(ctx, path); err != nil {
		return "", c, 0, fmt.Errorf("write the snapshot: %w", err)
	}
	read, err := b.opt.Verify(ctx, path)
	if err != nil {
		return "", c, 0, fmt.Errorf("verify the snapshot: %w", err)
	}
	if read != c {
		return "", c, 0, fmt.Errorf("verify the snapshot: %w: %d records up to revision %d were written, %d up to %d are there",
			ErrMismatch, c.Records, c.Revision, read.Records, read.Revision)
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", c, 0, err
	}
	found := backupName{id: b.opt.ID, revision: c.Revision, at: wallClock().UTC().Truncate(time.Second)}
	if err := b.opt.Place.Keep(ctx, path, found.String()); err != nil {
		return "", c, 0, fmt.Errorf("keep the backup: %w", err)
	}
	b.last = found.at
	return found.String(), c, info.Size(), nil
}

// list returns the backups of this data, the oldest first.
func (b *Backups) list(ctx context.Context) ([]backupName, error) {
	names, err := b.opt.Place.List(ctx, namePrefix+b.opt.ID+"-")
	if err != nil {
		return nil, err
	}
	return parseNames(names, b.opt.ID), nil
}

// expire removes the backups that are not to be kept any more, now that the one
// called newest is there, and returns how many. What cannot be removed is tried
// again after the next backup.
func (b *Backups) expire(ctx context.Context, newest string) (removed int) {
	found, err := b.list(ctx)
	if err != nil {
		b.opt.Metrics.removalFailures.Inc()
		b.log.WithError(err).Warn("old backups are not removed: which there are is not known")
		return 0
	}
	now := wallClock()
	if n := len(found); n > 0 && found[n-1].at.After(now.Add(time.Hour)) {
		b.log.WithField("name", found[n-1].String()).Warn("there is a backup of the future: the clock is wrong, or it was")
	}
	for _, old := range b.opt.Retention.expired(found, newest, now) {
		if err := b.opt.Place.Remove(ctx, old.String()); err != nil {
			if ctx.Err() == nil {
				b.opt.Metrics.removalFailures.Inc()
				b.log.WithError(err).WithField("name", old.String()).Warn("an old backup cannot be removed; it is tried again after the next one")
			}
			return removed
		}
		removed++
	}
	return removed
}
