package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	// appendBatch is compare and append in one statement, which is its own
	// transaction. The lock of the head row orders appenders: one that had
	// to wait for it compares with what the other one has left there, not
	// with what it saw at first (READ COMMITTED). Nothing is inserted before
	// the head has moved, since the rows are joined with it.
	appendBatch = `WITH moved AS (
			UPDATE keelson.head
			SET position = $1 + 1, seq = $4, revision = greatest(revision, $5), batch = $6, bytes = bytes + $7
			WHERE id = 1 AND position = $1 AND batch = $2 AND fence = $3
			RETURNING position, bytes
		), inserted AS (
			INSERT INTO keelson.log (seq, position, revision, batch, header, key, value)
			SELECT r.seq, moved.position, r.revision, CASE WHEN r.seq = $8 THEN $9::bytea END, r.header, r.key, r.value
			FROM moved, unnest($10::bigint[], $11::bigint[], $12::bytea[], $13::bytea[], $14::bytea[])
				AS r (seq, revision, header, key, value)
		)
		SELECT (SELECT bytes FROM moved)`

	// appendBatchNotify also wakes the other instances. The message travels
	// with the commit and costs no round trip.
	appendBatchNotify = appendBatch + `, (SELECT pg_notify($15, position::text || ' ' || $16::text) FROM moved)`
)

// fenceTries is how often an Append takes over a new fence.
const fenceTries = 3

// notifyAgain is when notifications are tried again after the queue was full.
const notifyAgain = 10 * time.Second

// slowestNetwork, in bytes a second, gives large batches more time.
const slowestNetwork = 4 << 20

// Append implements eventlog.Log.
//
// A lost connection leaves the fate of the batch open, and its statement may
// even still be on its way to the server: see settle.
func (l *Log) Append(ctx context.Context, batch *eventlog.Batch) error {
	if err := errors.Join(l.check(), ctx.Err()); err != nil {
		return err
	}
	base, err := l.base(ctx, batch.Base)
	if err != nil {
		return err
	}
	if err := checkBatch(batch, base.seq); err != nil {
		return err
	}
	a := newAppend(batch, base)
	for range fenceTries {
		l.mu.Lock()
		a.args[2] = l.fence
		before := l.fence
		l.mu.Unlock()
		moved, err := l.sendAppend(ctx, a)
		if err != nil {
			return err
		}
		if moved {
			l.learn(a.place, true)
			return nil
		}
		h, err := l.queryHead(ctx)
		if err != nil {
			return err
		}
		if h.position != batch.Base || h.fence == before {
			return staleError(h.position, batch.Base)
		}
	}
	return fmt.Errorf("%w: other instances look up what became of their appends", ErrUnavailable)
}

func staleError(head, base eventlog.Position) error {
	return fmt.Errorf("%w: it is at %d, the batch is based on %d", eventlog.ErrStale, head, base)
}

// checkBatch refuses a batch that would break the log's invariants; seq is
// that of the record before it.
func checkBatch(batch *eventlog.Batch, seq int64) error {
	if len(batch.Records) == 0 {
		return fmt.Errorf("append at %d: the batch is empty", batch.Base)
	}
	for i := range batch.Records {
		r := &batch.Records[i]
		if want := seq + 1 + int64(i); r.Seq != want || r.Position != batch.Position() {
			return fmt.Errorf("append at %d: record %d of position %d where %d of position %d belongs",
				batch.Base, r.Seq, r.Position, want, batch.Position())
		}
		if r.Kind != eventlog.KindPut && len(r.Value) > 0 {
			return fmt.Errorf("append at %d: the %v record %d has a value", batch.Base, r.Kind, r.Seq)
		}
	}
	return nil
}

// base returns the place of position, which the head must have.
func (l *Log) base(ctx context.Context, position eventlog.Position) (place, error) {
	l.mu.Lock()
	seen := l.seen
	l.mu.Unlock()
	if seen.position < position {
		if _, err := l.queryHead(ctx); err != nil {
			return place{}, err
		}
		l.mu.Lock()
		seen = l.seen
		l.mu.Unlock()
	}
	if seen.position != position {
		return place{}, staleError(seen.position, position)
	}
	return seen, nil
}

// appending is a batch as the arguments of appendBatch.
type appending struct {
	place place
	bytes int64
	args  []any
}

func newAppend(batch *eventlog.Batch, base place) *appending {
	n := len(batch.Records)
	seqs, revisions := make([]int64, n), make([]int64, n)
	headers, keys, values := make([][]byte, n), make([][]byte, n), make([][]byte, n)
	var buf []byte // of all headers
	ends := make([]int, n)
	var revision, bytes int64
	for i := range batch.Records {
		r := &batch.Records[i]
		buf = eventlog.AppendHeader(buf, r)
		ends[i] = len(buf)
		seqs[i], revisions[i] = r.Seq, r.Revision.Main
		if len(r.Key) > 0 {
			keys[i] = r.Key
		}
		if r.Kind == eventlog.KindPut {
			if values[i] = r.Value; r.Value == nil {
				values[i] = []byte{}
			}
		}
		if r.Kind == eventlog.KindPut || r.Kind == eventlog.KindDelete {
			revision = max(revision, r.Revision.Main)
		}
	}
	for i, start := 0, 0; i < n; i++ {
		headers[i] = buf[start:ends[i]:ends[i]]
		start = ends[i]
		bytes += int64(rowOverhead + len(headers[i]) + len(keys[i]) + len(values[i]))
	}
	last := place{batch.Position(), batch.Records[n-1].Seq, batch.ID, revision}
	return &appending{place: last, bytes: bytes, args: []any{
		int64(batch.Base), headID(base), int64(0), last.seq, revision, batch.ID[:], bytes,
		seqs[0], eventlog.EncodeBatchID(seqs[0], batch.ID), seqs, revisions, headers, keys, values,
	}}
}

// headID is the id of p's batch as the head row has it.
func headID(p place) []byte {
	if p.position == 0 {
		return []byte{}
	}
	return p.id[:]
}

// sendAppend sends a until the database has answered: moved says whether the
// batch was appended.
func (l *Log) sendAppend(ctx context.Context, a *appending) (moved bool, err error) {
	notify := l.notifies && !l.unheard.now()
	send := func(ctx context.Context, c *pgx.Conn) error {
		sql, args := l.sql.append, a.args
		var bytes *int64
		dest := []any{&bytes}
		if notify {
			sql, args = l.sql.appendNotify, append(args[:len(args):len(args)], l.set.channel, l.instance)
			dest = append(dest, nil)
		}
		if err := c.QueryRow(ctx, sql, args...).Scan(dest...); err != nil {
			return err
		}
		if moved = bytes != nil; moved {
			l.size.appended.Store(*bytes)
			if l.notifies && !notify {
				l.unheard.appends.Add(1)
			}
		}
		return nil
	}
	timeout := l.timeout + time.Duration(a.bytes)*time.Second/slowestNetwork
	err = l.tryFor(ctx, timeout, func(ctx context.Context) error {
		sent, begun := false, time.Time{}
		err := l.with(ctx, func(c *pgx.Conn) error {
			sent, begun = true, time.Now()
			if l.onAppend != nil {
				return l.onAppend(func() error { return send(ctx, c) })
			}
			err := send(ctx, c)
			if notify && isCode(err, codeLimitExceeded) { // polling is the truth
				notify = false
				l.silence(err)
				err = send(ctx, c)
			}
			return err
		})
		switch {
		case err == nil || !sent:
			return err
		case isCode(err, codeSerializationFailure):
			return fmt.Errorf("%w: %w", eventlog.ErrStale, err)
		case isCode(err, codeQueryCanceled):
			// It has taken longer than the server allows, and would again; a
			// try that the timeout cuts off would leave its fate open.
			return unavailable(err)
		case notDone(err):
			if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < lastPause+4*time.Since(begun) { // so would the next one
				return unavailable(err)
			}
			return err
		}
		l.mu.Lock()
		l.doubt = true
		l.mu.Unlock()
		return &unknownError{err}
	})
	return moved, err
}

// unheard is about appends without a notification.
type unheard struct {
	until   atomic.Int64 // no notification is tried before, in Unix nanoseconds
	appends atomic.Int64
}

func (u *unheard) now() bool { return time.Now().UnixNano() < u.until.Load() }

// silence lets appends go on without notifications for a while: the queue of
// the whole server is full, since some session that listens does not read.
func (l *Log) silence(err error) {
	l.unheard.until.Store(time.Now().Add(notifyAgain).UnixNano())
	l.logger.WithError(err).Warnf("the database's queue of notifications is full: other instances see writes only within %v; end the session that listens and does not read", pollNotified)
}

// unknownError is an ErrUnknown. It does not unwrap to its cause, which may be
// a deadline that is not the caller's.
type unknownError struct{ cause error }

func (e *unknownError) Error() string        { return fmt.Sprintf("%v: %v", eventlog.ErrUnknown, e.cause) }
func (e *unknownError) Is(target error) bool { return target == eventlog.ErrUnknown }

// rowOverhead is about what a row takes beside header, key and value: seq,
// position, revision and batch id, the row's header, its entries in the
// indexes.
const rowOverhead = 96
