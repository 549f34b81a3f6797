package backup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"
)

const notCleared = "what an ended process has left of a backup is not removed"

// backup makes one backup, and removes older ones.
func (b *Backups) backup(ctx context.Context) error {
	start := time.Now()
	newest, contents, size, err := b.make(ctx)
	if err != nil {
		return err
	}
	took := time.Since(start)
	b.last = newest.at
	b.opt.Metrics.succeeded(b.last, size, took)
	removed := b.expire(ctx, newest)
	b.log.WithFields(logrus.Fields{
		"name": newest.String(), "revision": contents.Revision, "records": contents.Records, "bytes": size,
		"took": took.Round(time.Millisecond).String(), "removed": removed,
	}).Info("backup done")
	return nil
}

// make makes one backup, as yet beside all others.
func (b *Backups) make(ctx context.Context) (made backupName, c Contents, size int64, err error) {
	if err := b.identify(ctx); err != nil {
		return made, c, 0, err
	}
	if err := clearWork(b.opt.Dir); err != nil {
		b.log.WithError(err).Warn(notCleared)
	}
	work, err := newWork(b.opt.Dir)
	if err != nil {
		return made, c, 0, err
	}
	defer func() {
		if removeErr := work.remove(); err == nil && removeErr != nil {
			b.log.WithError(removeErr).Warn("a temporary file is left")
		}
	}()
	if err := checkRoom(work.dir, b.opt.Size(), b.opt.Reserve); err != nil {
		return made, c, 0, err
	}
	path := filepath.Join(work.dir, "snapshot.db")
	if c, err = b.write(ctx, path); err != nil {
		return made, c, 0, fmt.Errorf("write the snapshot: %w", err)
	}
	read, err := b.opt.Verify(ctx, path)
	if err != nil {
		return made, c, 0, fmt.Errorf("verify the snapshot: %w", err)
	}
	if read != c {
		return made, c, 0, fmt.Errorf("verify the snapshot: %w: %+v was written, %+v is there", ErrMismatch, c, read)
	}
	info, err := os.Stat(path)
	if err != nil {
		return made, c, 0, err
	}
	made = backupName{id: b.id, revision: c.Revision, at: wallClock().UTC().Truncate(time.Second)}
	name := made.String()
	if err := b.opt.Place.Keep(ctx, path, name); err != nil {
		b.failed[name] = true
		return made, c, 0, fmt.Errorf("keep the backup: %w", err)
	}
	delete(b.failed, name)
	return made, c, info.Size(), nil
}

// write writes a snapshot, in bounded time.
func (b *Backups) write(ctx context.Context, path string) (Contents, error) {
	limit := writeTime + time.Duration(b.opt.Size()/writeRate)*time.Second
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c, err := b.opt.Write(bounded, path)
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: more than %v: %w", errSlow, limit, err)
	}
	return c, err
}

// expire removes the backups that are not to be kept any more, now that newest
// is there, and returns how many. What cannot be removed is tried again after
// the next backup.
func (b *Backups) expire(ctx context.Context, newest backupName) (removed int) {
	if why := b.opt.Doubt(); why != "" {
		b.log.Warn("old backups are not removed: " + why)
		return 0
	}
	found, err := b.list(ctx)
	if err != nil {
		b.removalFailed(ctx, "old backups are not removed: which there are is not known", err)
		return 0
	}
	old, ahead := b.opt.Retention.expired(found, newest, wallClock())
	b.opt.Metrics.ahead.Set(float64(len(ahead)))
	if len(ahead) > 0 {
		b.log.WithFields(logrus.Fields{"backups": len(ahead), "newest": ahead[len(ahead)-1].String(), "revision": newest.revision}).
			Warn("there are backups of later revisions than the data has: it is another or an older one, or a part of it was lost; these backups are not removed: move them elsewhere, or remove them, if they are not needed")
	}
	for _, n := range old {
		if err := b.opt.Place.Remove(ctx, n.String()); err != nil {
			b.removalFailed(ctx, "an old backup cannot be removed; it is tried again after the next one: "+n.String(), err)
			return removed
		}
		removed++
	}
	if err := b.opt.Place.Tidy(ctx, b.prefix()); err != nil {
		b.removalFailed(ctx, "what ended processes have left of backups cannot be removed", err)
	}
	return removed
}

// removeFailed removes what failed tries may have left, each name until that
// succeeds once: also a server that gives no answer may have taken the backup.
func (b *Backups) removeFailed(ctx context.Context) {
	for name := range b.failed {
		if err := b.opt.Place.Remove(ctx, name); err != nil {
			b.removalFailed(ctx, "what a failed try may have left cannot be removed, and does not count as a backup: "+name, err)
			return
		}
		delete(b.failed, name)
	}
}

func (b *Backups) removalFailed(ctx context.Context, what string, err error) {
	if ctx.Err() != nil { // the server stops
		return
	}
	b.opt.Metrics.removalFailures.Inc()
	b.log.WithError(err).Warn(what)
}
