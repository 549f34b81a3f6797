package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Each instance says in the table reader how far it has read, so that Compact
// does not delete what another has not read yet: that one could not go on.
// One that has not reported for readerTerm is not waited for. It has most
// likely ended; if it comes back and misses something, its store fails, and is
// loaded anew.

const (
	// reportReader also clears the table of those that have ended.
	reportReader = `WITH gone AS (
			DELETE FROM keelson.reader WHERE instance <> $1 AND at < now() - interval '1 hour'
		)
		INSERT INTO keelson.reader (instance, seq, at) VALUES ($1, $2, now())
		ON CONFLICT (instance) DO UPDATE SET seq = excluded.seq, at = excluded.at`

	deleteReader = "DELETE FROM keelson.reader WHERE instance = $1"

	selectBehind = `SELECT coalesce(min(seq), 9223372036854775807) FROM keelson.reader
		WHERE instance <> $1 AND at > now() - $2 * interval '1 second'`

	reportInterval = 2 * time.Second
	readerTerm     = 15 * time.Second
	behindPause    = 50 * time.Millisecond

	// reportRequest is a notification that asks the others to report at once.
	reportRequest = "report"
)

// report says how far this instance has read.
func (l *Log) report(ctx context.Context) error {
	l.mu.Lock()
	seq := l.given.seq
	l.mu.Unlock()
	return l.try(ctx, func(ctx context.Context, c *pgx.Conn) error {
		_, err := c.Exec(ctx, l.sql.report, l.instance, seq)
		return err
	})
}

// keepReporting reports now and then until Close.
func (l *Log) keepReporting() {
	for {
		select {
		case <-time.After(reportInterval):
		case <-l.reportNow:
		case <-l.done:
			ctx, cancel := context.WithTimeout(context.Background(), pingTimeout)
			defer cancel()
			_ = l.with(ctx, func(c *pgx.Conn) error { // else the row is too old soon
				_, err := c.Exec(ctx, l.sql.leave, l.instance)
				return err
			})
			return
		}
		if err := l.report(context.Background()); err != nil && l.check() == nil && !errors.Is(err, ErrUnavailable) {
			l.logger.WithError(err).Warn("cannot tell other instances how far this one has read")
		}
	}
}

// waitForReaders returns when all other instances have read record seq.
func (l *Log) waitForReaders(ctx context.Context, seq int64) error {
	for first := true; ; first = false {
		var behind int64
		err := l.try(ctx, func(ctx context.Context, c *pgx.Conn) error {
			return c.QueryRow(ctx, l.sql.behind, l.instance, readerTerm.Seconds()).Scan(&behind)
		})
		if err != nil || behind >= seq {
			return err
		}
		if first && l.notifies {
			if err := l.try(ctx, func(ctx context.Context, c *pgx.Conn) error {
				_, err := c.Exec(ctx, selectProbe, l.set.channel, reportRequest)
				if isCode(err, codeLimitExceeded) {
					return nil // they report by themselves, only later
				}
				return err
			}); err != nil {
				return err
			}
		}
		select {
		case <-time.After(behindPause):
		case <-l.done:
			return fmt.Errorf("waiting for other instances to read on: %w", l.check())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
