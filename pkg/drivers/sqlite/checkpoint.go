package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// The WAL is copied into the database by checkpoints, which are all ours:
//
//	of the WAL
//	walTarget   to be copied: a PASSIVE checkpoint runs beside the writer.
//	walRestart  in all: then the few frames appended meanwhile follow while
//	            the writer waits, and readers, whose transactions are short,
//	            are waited for, so that the next batch starts the WAL over.
//	            The file keeps its size: writing into allocated blocks makes a
//	            cheaper fsync.
//	walLimit    in all: the writer itself waits for such a checkpoint. Only
//	            somebody else's long read transaction (an SQL shell) can make
//	            the file grow further; that is logged, and no reason to stop.
//	idle        what is left is checkpointed, and the file truncated.
const (
	walTarget  = 8 << 20
	walRestart = 24 << 20
	walLimit   = 48 << 20

	frameSize = pageSize + 24
	walHeader = 32

	// The sizes are asked for once in so many bytes: asking after each batch is
	// a sixth of the CPU time of a small one.
	countEvery = 256 << 10

	idleAfter = 30 * time.Second
	retryWait = time.Second
)

// counters are what Size and Stats tell; all written by the holder of the
// token or of janitorMu.
type counters struct {
	pages          atomic.Int64
	freePages      atomic.Int64
	walFrames      atomic.Int64 // that count, in the WAL
	walCopied      atomic.Int64 // of these, in the database too
	walBytes       atomic.Int64 // of the file
	uncounted      atomic.Int64 // bytes that batches have added since, about
	lastCommit     atomic.Int64 // Unix nanoseconds
	checkpoints    atomic.Int64
	checkpointTime atomic.Int64 // nanoseconds
	checkpointed   atomic.Int64 // position
}

// Stats are figures for metrics.
type Stats struct {
	WALBytes       int64         // size of the WAL file
	WALFrames      int64         // pages in it that count
	Pages          int64         // of the database
	FreePages      int64         // of those, free
	Checkpoints    int64         // completed
	CheckpointTime time.Duration // spent in them
	// Checkpointed is a position up to which the database file itself is
	// durable if Options.Synchronous is not SynchronousFull; with that, the file
	// and its WAL are.
	Checkpointed eventlog.Position
}

// Stats returns the current figures. It is cheap.
func (l *Log) Stats() Stats {
	return Stats{
		WALBytes:       l.walBytes.Load(),
		WALFrames:      l.walFrames.Load(),
		Pages:          l.pages.Load(),
		FreePages:      l.freePages.Load(),
		Checkpoints:    l.checkpoints.Load(),
		CheckpointTime: time.Duration(l.checkpointTime.Load()),
		Checkpointed:   eventlog.Position(l.checkpointed.Load()),
	}
}

// Size implements eventlog.Log.
func (l *Log) Size() eventlog.Size {
	pages, free, more := l.pages.Load(), l.freePages.Load(), l.uncounted.Load()
	return eventlog.Size{
		Total: pages*pageSize + l.walBytes.Load() + more,
		InUse: (pages-free)*pageSize + more,
	}
}

// countPages notes the size of the database as the writer sees it, inside its
// transaction or not.
func (l *Log) countPages() error {
	pages, err := l.writer.int("PRAGMA page_count")
	if err != nil {
		return err
	}
	free, err := l.writer.int("PRAGMA freelist_count")
	if err != nil {
		return err
	}
	l.pages.Store(pages)
	l.freePages.Store(free)
	l.uncounted.Store(0)
	return nil
}

// afterCommit notes the size of the WAL and sees to checkpoints, if it is time
// to. The caller holds the token; its batch is durable whatever happens here.
func (l *Log) afterCommit() {
	now := time.Now()
	l.lastCommit.Store(now.UnixNano())
	if !l.countDue {
		return
	}
	wal, err := l.writer.ints("PRAGMA wal_checkpoint(NOOP)") // busy, frames, copied
	if err != nil {
		l.mishap(err, checkpointFailed)
		return
	}
	used := wal[1]*frameSize + walHeader
	l.walFrames.Store(wal[1])
	l.walCopied.Store(wal[2])
	l.walBytes.Store(max(l.walBytes.Load(), used))
	switch {
	case now.Before(l.nextTry):
	case used >= walLimit:
		if err := l.checkpointAll("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
			l.mishap(err, checkpointFailed)
		}
	case l.checkpointDue():
		select {
		case l.kick <- struct{}{}:
		default: // already asked for
		}
	}
}

// checkpointDue reports whether it is time for a checkpoint beside the writer.
func (l *Log) checkpointDue() bool {
	frames := l.walFrames.Load()
	return frames*frameSize >= walRestart || (frames-l.walCopied.Load())*frameSize >= walTarget
}

// checkpointLoop does the checkpoints that are not the writer's until Close.
func (l *Log) checkpointLoop() {
	defer l.stopped.Done()
	idle := time.NewTicker(idleAfter / 2)
	defer idle.Stop()
	place := time.NewTicker(placeEvery)
	defer place.Stop()
	for {
		var err error
		select {
		case <-l.done:
			return
		case <-l.kick:
			if l.checkpointDue() { // not done since it was asked for
				err = l.checkpointBeside()
			}
		case <-idle.C:
			err = l.checkpointIdle()
		case <-place.C:
			if l.failed.Load() == nil {
				err = l.checkPlace()
			}
		}
		if err != nil && !errors.Is(err, eventlog.ErrClosed) {
			l.mishap(err, checkpointFailed)
		}
	}
}

// mishap takes an error that nobody waits for: it ends the log, or is logged.
func (l *Log) mishap(err error, message string) {
	if err = l.fail(err); !errors.Is(err, eventlog.ErrFailed) && !errors.Is(err, eventlog.ErrCorrupt) {
		l.logger.WithError(err).Warn(message)
	}
}

const checkpointFailed = "a checkpoint failed and will be tried again"

// checkpointBeside copies most of the WAL while the writer goes on, and starts
// it over when it is long enough.
func (l *Log) checkpointBeside() error {
	if l.walFrames.Load()*frameSize >= walRestart {
		return l.restartWAL()
	}
	return l.checkpointPassive()
}

// restartWAL copies the WAL so that the next batch starts it over. What comes
// meanwhile is copied twice beside the writer, for little to be left for which
// it has to wait.
func (l *Log) restartWAL() error {
	for range 2 {
		if err := l.checkpointPassive(); err != nil {
			return err
		}
	}
	if err := l.acquire(context.Background()); err != nil {
		return err
	}
	defer l.release()
	if l.walBytes.Load() > walLimit {
		return l.checkpointAll("PRAGMA wal_checkpoint(TRUNCATE)")
	}
	return l.checkpointAll("PRAGMA wal_checkpoint(RESTART)")
}

// checkpointPassive copies what it can without waiting for anybody.
func (l *Log) checkpointPassive() error {
	l.janitorMu.Lock()
	defer l.janitorMu.Unlock()
	if err := l.Err(); err != nil {
		return err // the WAL may not be what it seems
	}
	start, head := time.Now(), l.head.Load()
	res, err := l.janitor.ints("PRAGMA wal_checkpoint(PASSIVE)") // busy, frames, copied
	l.checkpointTime.Add(int64(time.Since(start)))
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	l.walCopied.Store(res[2])
	if res[0] != 0 || res[1] != res[2] {
		return nil
	}
	return l.copied(head)
}

// copied takes that the database file has everything up to head. A writer that
// is a little slower than the checkpoints starts the WAL over again and again
// without a RESTART; SQLite syncs the file for it, but not if frames came
// meanwhile. The caller holds janitorMu.
func (l *Log) copied(head int64) error {
	if l.sync != SynchronousFull { // else nobody asks up to where the file itself is durable
		if err := l.probe.Sync(); err != nil {
			return fmt.Errorf("checkpoint: %w: %w", eventlog.ErrFailed, err)
		}
	}
	l.checkpoints.Add(1)
	l.checkpointed.Store(head)
	return nil
}

// checkpointIdle empties the WAL of a log that nobody has written to for a
// while, so that a start after a crash has nothing to replay.
func (l *Log) checkpointIdle() error {
	if l.walBytes.Load()+l.uncounted.Load() == 0 || time.Since(time.Unix(0, l.lastCommit.Load())) < idleAfter {
		return nil
	}
	if err := l.checkpointPassive(); err != nil {
		return err
	}
	if err := l.acquire(context.Background()); err != nil {
		return err
	}
	defer l.release()
	return l.checkpointAll("PRAGMA wal_checkpoint(TRUNCATE)")
}

// Checkpoint makes everything that was appended before durable in the database
// file itself, whatever Options.Synchronous says. Nobody may be reading it.
func (l *Log) Checkpoint(ctx context.Context) error {
	if err := l.acquire(ctx); err != nil {
		return err
	}
	defer l.release()
	if err := l.checkpointAll("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		return err
	}
	if at, head := l.checkpointed.Load(), l.head.Load(); at < head {
		return fmt.Errorf("the database could be checkpointed up to position %d of %d only: another process has it open", at, head)
	}
	return nil
}

// checkpointAll copies the whole WAL, so that the next batch starts it over.
// The caller holds the token, or is the only one to know the Log. That the
// checkpoint is held up by a foreign reader is no error.
func (l *Log) checkpointAll(pragma string) error {
	l.janitorMu.Lock()
	defer l.janitorMu.Unlock()
	held := make([]*conn, l.pooled)
	for i := range held {
		held[i] = <-l.readers
	}
	defer func() {
		for _, c := range held {
			l.readers <- c
		}
	}()

	start := time.Now()
	res, err := l.janitor.ints(pragma) // busy, frames, copied
	l.checkpointTime.Add(int64(time.Since(start)))
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	if err := l.countPages(); err != nil {
		return err
	}
	wal := int64(0)
	switch info, err := os.Stat(l.path + "-wal"); {
	case err == nil:
		wal = info.Size()
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	l.walBytes.Store(wal)
	if busy := res[0] != 0; busy {
		l.walFrames.Store(max(res[1], 0)) // -1: it did not come to look
		l.walCopied.Store(max(res[2], 0))
		l.nextTry = time.Now().Add(retryWait)
		l.logger.WithField("wal_bytes", wal).
			Warn("another process reads the database in a long transaction: the WAL grows until it ends")
		return nil
	}
	l.walFrames.Store(0)
	l.walCopied.Store(0)
	return l.copied(l.head.Load())
}
