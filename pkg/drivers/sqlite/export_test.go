package sqlite

import (
	"context"
	"errors"
	"time"
)

// FailAppend makes the next commit fail, after it was done if persisted.
func (l *Log) FailAppend(persisted bool) {
	l.onCommit = func(commit func() error) error {
		if persisted {
			if err := commit(); err != nil {
				return err
			}
		}
		return errors.New("injected fault")
	}
}

// RestartWAL runs the checkpoint that starts the WAL over.
func (l *Log) RestartWAL() error { return l.fail(l.restartWAL()) }

// Doom notes what is to be deleted, for the batches that follow to take along.
func (l *Log) Doom(seqs []int64) error { return l.doom(context.Background(), seqs) }

// Pace lets compactions delete all that they have to in one transaction, or, if
// slowly, one run of records in each, whatever the clock says.
func (l *Log) Pace(slowly bool) error {
	if err := l.acquire(context.Background()); err != nil {
		return err
	}
	defer l.release()
	set := func() {
		const run = 4
		l.pace, l.chunk = time.Hour, run
		if slowly {
			l.pace = 0
		}
		l.lastBatch = time.Now().Add(time.Hour) // never is it idle
	}
	set()
	l.onCommit = func(commit func() error) error {
		set()
		return commit()
	}
	return nil
}

// ShrinkCache lets the writer keep 10 pages, so that a batch which is larger
// than that goes to the WAL before its COMMIT.
func (l *Log) ShrinkCache() error {
	if err := l.acquire(context.Background()); err != nil {
		return err
	}
	defer l.release()
	return l.writer.exec("PRAGMA cache_size=10")
}
