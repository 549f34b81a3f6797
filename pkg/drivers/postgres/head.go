package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	selectHead = `SELECT h.position, h.seq, h.revision, h.batch, h.epoch, h.fence, h.bytes, k.freed, current_setting('transaction_read_only')
		FROM keelson.head h CROSS JOIN keelson.kept k WHERE h.id = 1 AND k.id = 1`

	updateFence = "UPDATE keelson.head SET fence = fence + 1 WHERE id = 1 RETURNING fence"
)

// headRow is the row of head.
type headRow struct {
	place
	epoch, fence    int64
	appended, freed int64 // bytes
}

// errEpoch says that the epoch has changed.
var errEpoch = errors.New("another instance has found so")

// errReadOnly is what a standby, or a primary that became one, is met with.
var errReadOnly = errors.New("the database is read-only")

// queryHead asks the database for the head.
func (l *Log) queryHead(ctx context.Context) (headRow, error) {
	var h headRow
	err := l.try(ctx, func(ctx context.Context, c *pgx.Conn) error {
		// What was seen before the question, the answer cannot be behind.
		l.mu.Lock()
		seen, epoch := l.seen, l.epoch
		l.mu.Unlock()
		var id []byte
		var readOnly string
		err := c.QueryRow(ctx, l.sql.head).Scan(&h.position, &h.seq, &h.revision, &id, &h.epoch, &h.fence, &h.appended, &h.freed, &readOnly)
		if err != nil {
			return err
		}
		if readOnly != "off" {
			l.pool.Reset()
			return errReadOnly
		}
		copy(h.id[:], id)
		return l.checkLost(h, seen, epoch)
	})
	if err != nil {
		return h, err
	}
	l.learnHead(h)
	return h, nil
}

func (l *Log) learnHead(h headRow) {
	l.size.appended.Store(h.appended)
	l.size.freed.Store(h.freed)
	l.learn(h.place, false)
	l.mu.Lock()
	l.fence = max(l.fence, h.fence)
	l.mu.Unlock()
}

// checkLost ends the log if a head h that was asked for when seen was known
// proves that the database has forgotten something. epoch is 0 before Load.
func (l *Log) checkLost(h headRow, seen place, epoch int64) error {
	switch {
	case epoch != 0 && h.epoch != epoch:
		return l.lost(errEpoch)
	case h.position < seen.position:
		return l.lost(fmt.Errorf("the head is at position %d and was at %d", h.position, seen.position))
	case h.position == seen.position && h.id != seen.id:
		return l.lost(fmt.Errorf("position %d has another batch", h.position))
	}
	return nil
}

// settle makes sure that an Append whose fate is unknown is either there or
// never will be: its statement may still be under way, and what Tail says of
// it would then not last. Raising the fence waits for a statement that has
// the head row, and those that come later compare with the old fence.
func (l *Log) settle(ctx context.Context) error {
	l.mu.Lock()
	doubt := l.doubt
	l.mu.Unlock()
	if !doubt {
		return nil
	}
	var fence int64
	if err := l.try(ctx, func(ctx context.Context, c *pgx.Conn) error {
		return c.QueryRow(ctx, l.sql.raiseFence).Scan(&fence)
	}); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fence, l.doubt = max(l.fence, fence), false
	return nil
}

// Head implements eventlog.Log. Callers that come while a query is under way
// share the next one.
func (l *Log) Head(ctx context.Context) (eventlog.Position, error) {
	if err := errors.Join(l.check(), ctx.Err()); err != nil {
		return 0, err
	}
	h, ok := l.joinHead()
	if !ok {
		return 0, eventlog.ErrClosed
	}
	select {
	case <-h.done:
		return h.position, h.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// heads coalesces the queries of Head.
type heads struct {
	mu      sync.Mutex
	running bool      // mu
	next    *headCall // mu; not begun yet; nil if nobody waits
}

// headCall is a query that several callers wait for.
type headCall struct {
	done     chan struct{}
	position eventlog.Position
	err      error
}

// joinHead returns a query that has not begun yet, or false if the log is
// closed.
func (l *Log) joinHead() (*headCall, bool) {
	h := &l.heads
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.running {
		if h.running = l.spawn(l.answerHeads); !h.running {
			return nil, false
		}
	}
	if h.next == nil {
		h.next = &headCall{done: make(chan struct{})}
	}
	return h.next, true
}

// answerHeads makes queries, one at a time, until nobody waits for one.
func (l *Log) answerHeads() {
	h := &l.heads
	for {
		h.mu.Lock()
		call := h.next
		h.next = nil
		h.running = call != nil
		h.mu.Unlock()
		if call == nil {
			return
		}
		row, err := l.queryHead(context.Background())
		call.position, call.err = row.position, err
		close(call.done)
	}
}
