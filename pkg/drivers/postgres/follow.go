package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	selectProbe = "SELECT pg_notify($1, $2)"

	// The head is asked for this often: polling is the truth, notifications
	// only make it faster. Without them polling has to be fast by itself.
	pollNotified = time.Second
	pollAlone    = 50 * time.Millisecond

	probeTimeout  = 2 * time.Second  // for the probe to come back
	probeAgain    = time.Minute      // after one that did not
	reconnectWait = time.Second      // after a lost connection
	idlePing      = 10 * time.Second // looks whether the connection is there
)

// Follow calls notify with the position of the head whenever another instance
// may have moved it, until ctx ends or the log fails. It must run for the log
// to be kept up with; notify must not block.
func (l *Log) Follow(ctx context.Context, notify func(eventlog.Position)) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return l.poll(ctx, notify) })
	if l.notifies {
		group.Go(func() error { l.listen(ctx, notify); return nil })
	}
	if err := group.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	return l.Err()
}

// answers is whether the database does, as far as poll knows.
type answers struct {
	mu   sync.Mutex
	down bool          // mu
	lost chan struct{} // mu; closed when it ceases to
}

// Answers reports whether the database answers, as far as Follow knows, and
// returns a channel that is closed when it ceases to.
func (l *Log) Answers() (lost <-chan struct{}, ok bool) {
	a := &l.answers
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lost, !a.down
}

// setAnswers notes whether the database answers and reports whether that is
// new.
func (l *Log) setAnswers(ok bool) bool {
	a := &l.answers
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down != ok {
		return false
	}
	if a.down = !ok; ok {
		a.lost = make(chan struct{})
	} else {
		close(a.lost)
	}
	return true
}

func (l *Log) poll(ctx context.Context, notify func(eventlog.Position)) error {
	for {
		wait := pollAlone
		if l.listening.Load() {
			wait = pollNotified
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
		head, err := l.Head(ctx)
		switch {
		case err == nil:
			notify(head)
			if l.setAnswers(true) {
				l.logger.Info("the database answers again")
			}
		case isFinal(err):
			return err
		case ctx.Err() == nil && l.setAnswers(false):
			l.logger.WithError(err).Warn("the database does not answer; requests wait for it, watches are sent to other instances")
		}
	}
}

// listen passes notifications on, over a connection of its own, and makes a
// new one when that is lost.
func (l *Log) listen(ctx context.Context, notify func(eventlog.Position)) {
	said := false
	for ctx.Err() == nil {
		err := l.listenOnce(ctx, notify)
		l.listening.Store(false)
		wait := reconnectWait
		if errors.Is(err, errNoProbe) {
			wait = probeAgain
			if !said {
				l.logger.Infof("the database does not deliver notifications, as behind a pooler: other instances' writes are looked for every %v", pollAlone)
			}
			said = true
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

var errNoProbe = fmt.Errorf("%w: a notification was not delivered", ErrUnavailable)

func (l *Log) listenOnce(ctx context.Context, notify func(eventlog.Position)) error {
	start, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	c, err := pgx.ConnectConfig(start, l.set.pool.ConnConfig.Copy())
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTimeout)
		defer cancel()
		_ = c.Close(closing) // it has nothing to lose
	}()
	if _, err := c.Exec(start, "LISTEN "+pgx.Identifier{l.set.channel}.Sanitize()); err != nil {
		return err
	}
	if err := l.probe(ctx, c); err != nil {
		return err
	}
	l.listening.Store(true)
	// What was appended before, nobody will be notified of.
	if head, err := l.Head(ctx); err == nil {
		notify(head)
	}
	for {
		waiting, cancel := context.WithTimeout(ctx, idlePing)
		n, err := c.WaitForNotification(waiting)
		expired := waiting.Err() != nil
		cancel()
		switch {
		case err == nil:
			if position, ok := l.takeNotification(n.Payload); ok {
				notify(position)
			}
		case ctx.Err() != nil || !expired:
			return err
		default:
			pinging, cancel := context.WithTimeout(ctx, pingTimeout)
			err := c.Ping(pinging)
			cancel()
			if err != nil {
				return err
			}
		}
	}
}

// probe makes sure that what is sent over the pool arrives at c. A pooler in
// transaction mode takes LISTEN, and forgets it.
func (l *Log) probe(ctx context.Context, c *pgx.Conn) error {
	payload := "probe " + l.instance
	if err := l.try(ctx, func(ctx context.Context, c *pgx.Conn) error {
		_, err := c.Exec(ctx, selectProbe, l.set.channel, payload)
		return err
	}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	for {
		n, err := c.WaitForNotification(ctx)
		switch {
		case err == nil && n.Payload == payload:
			return nil
		case err != nil && ctx.Err() != nil:
			return errNoProbe
		case err != nil:
			return err
		}
	}
}

// takeNotification does what a notification asks for and returns the position
// in one of appendBatchNotify, unless the batch is this instance's own.
func (l *Log) takeNotification(payload string) (eventlog.Position, bool) {
	if payload == reportRequest {
		select {
		case l.reportNow <- struct{}{}:
		default:
		}
		return 0, false
	}
	number, instance, _ := strings.Cut(payload, " ")
	position, err := strconv.ParseInt(number, 10, 64)
	return eventlog.Position(position), err == nil && instance != l.instance
}
