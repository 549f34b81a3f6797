package sqlite

import (
	"context"
	"fmt"
	"time"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const insertRecord = "INSERT INTO log (seq, revision, batch, header, key, value) VALUES (?, ?, ?, ?, ?, ?)"

// Append implements eventlog.Log.
//
// What a crash leaves: SQLite replays the WAL up to the last commit whose
// checksums hold, so a batch is there whole or not at all. An error of COMMIT
// does not tell which: its frames may have reached the file although the
// fsync failed. That is ErrUnknown, and also the end of this Log, since the
// kernel may have dropped the pages it could not write. The next Open tells.
func (l *Log) Append(ctx context.Context, batch *eventlog.Batch) error {
	return l.AppendAll(ctx, batch)
}

// AppendAll appends batches that follow each other, in one transaction: what
// Append says of one is so for all of them together. There is at least one.
func (l *Log) AppendAll(ctx context.Context, batches ...*eventlog.Batch) error {
	l.writers.Add(1)
	err := l.acquire(ctx)
	l.writers.Add(-1)
	if err != nil {
		return err
	}
	defer l.release()

	if err := l.checkAll(batches); err != nil {
		return err
	}
	start := time.Now()
	if err := l.begin(); err != nil {
		return l.fail(err)
	}
	doomed, compacts := l.doomed, false
	for _, batch := range batches {
		if err == nil {
			err = l.insert(batch)
		}
	}
	if err == nil {
		compacts, err = l.takeAlong()
	}
	if err != nil {
		l.doomed = doomed
		return l.rollback(err)
	}
	l.countDue = l.uncounted.Add(addedBytes(batches)) >= countEvery || compacts
	if err := l.commit(); err != nil {
		return fmt.Errorf("%w: %w", eventlog.ErrUnknown, err)
	}
	for _, batch := range batches {
		l.noteHead(batch)
	}
	l.keepPace(start)
	l.afterCommit()
	return nil
}

// checkAll refuses batches that do not follow the head and each other.
func (l *Log) checkAll(batches []*eventlog.Batch) error {
	head, seq := l.head.Load(), l.headSeq
	for _, batch := range batches {
		if int64(batch.Base) != head {
			return fmt.Errorf("%w: it is at %d, the batch is based on %d", eventlog.ErrStale, head, batch.Base)
		}
		if err := batch.Check(seq); err != nil {
			return err
		}
		head++
		seq += int64(len(batch.Records))
	}
	return nil
}

// noteHead makes batch, which is committed, the newest.
func (l *Log) noteHead(batch *eventlog.Batch) {
	for i := range batch.Records {
		r := &batch.Records[i]
		l.headSeq = r.Seq
		switch r.Kind {
		case eventlog.KindCompact:
			l.markSeq = r.Seq
		case eventlog.KindPut, eventlog.KindDelete:
			l.headRevision = max(l.headRevision, r.Revision.Main)
		}
	}
	l.head.Store(int64(batch.Position()))
}

func (l *Log) insert(batch *eventlog.Batch) error {
	var header []byte
	for i := range batch.Records {
		r := &batch.Records[i]
		header = eventlog.AppendHeader(header[:0], r)
		// A nil slice is NULL, an empty one an empty blob.
		var id, key, value []byte
		if i == 0 {
			id = eventlog.EncodeBatchID(r.Seq, batch.ID)
		}
		if len(r.Key) > 0 {
			key = r.Key
		}
		if r.Kind == eventlog.KindPut {
			if value = r.Value; value == nil {
				value = []byte{}
			}
		}
		if err := l.writer.exec(insertRecord, r.Seq, r.Revision.Main, id, header, key, value); err != nil {
			return fmt.Errorf("insert record %d: %w", r.Seq, err)
		}
	}
	return nil
}

// addedBytes is about how many bytes a transaction with batches adds to the
// database and the WAL.
func addedBytes(batches []*eventlog.Batch) int64 {
	bytes := int64(pageSize)
	for _, batch := range batches {
		for i := range batch.Records {
			bytes += int64(len(batch.Records[i].Key) + len(batch.Records[i].Value))
		}
	}
	return bytes
}

// begin starts a write transaction.
func (l *Log) begin() error {
	l.countDue = true
	return l.writer.exec("BEGIN IMMEDIATE")
}

// rollback ends a transaction after err, which it returns. Nothing of the
// transaction stays. After a failed rollback that can only be guaranteed by
// ending the log: the connection may not be used again.
func (l *Log) rollback(err error) error {
	err = l.fail(err)
	// SQLite rolls back by itself after some errors; the second rollback is
	// then an error without meaning. What matters is the state it leaves.
	_ = l.writer.exec("ROLLBACK")
	if beginErr := l.writer.exec("BEGIN"); beginErr != nil {
		return l.fail(fmt.Errorf("%w: roll back: %w (after %w)", eventlog.ErrFailed, beginErr, err))
	}
	if rollbackErr := l.writer.exec("ROLLBACK"); rollbackErr != nil {
		return l.fail(fmt.Errorf("%w: roll back: %w (after %w)", eventlog.ErrFailed, rollbackErr, err))
	}
	return err
}

// commit ends the transaction that begin started. Any error ends the log.
func (l *Log) commit() error {
	if l.countDue {
		if err := l.countPages(); err != nil {
			return l.fail(fmt.Errorf("%w: %w", eventlog.ErrFailed, err))
		}
	}
	commit := func() error { return l.writer.exec("COMMIT") }
	if hook := l.onCommit; hook != nil {
		once := commit
		commit = func() error { return hook(once) }
	}
	if err := commit(); err != nil {
		return l.fail(fmt.Errorf("%w: commit: %w", eventlog.ErrFailed, err))
	}
	l.left.Store(int64(len(l.doomed)))
	for _, c := range l.copies {
		c.note()
	}
	return nil
}
