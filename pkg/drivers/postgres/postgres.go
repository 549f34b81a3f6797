package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/sirupsen/logrus"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// DefaultTimeout bounds a call if Options.Timeout does not.
const DefaultTimeout = 5 * time.Second

// Options are those of Open.
type Options struct {
	// URL is a postgres:// URL with the parameters of libpq, those of the
	// pool (pool_max_conns), default_query_exec_mode, and schema.
	URL string

	// Timeout bounds how long a call waits for the database, in all its
	// tries: DefaultTimeout if 0.
	Timeout time.Duration

	// Logger is logrus's standard logger unless set.
	Logger *logrus.Entry
}

// Log is the log in a schema of a PostgreSQL database, shared with other
// instances.
type Log struct {
	opt     Options
	pool    *pgxpool.Pool
	set     *settings
	sql     *statements
	logger  *logrus.Entry
	timeout time.Duration

	// readers holds a token for each connection that long reads may take:
	// the rest is for Append and Head.
	readers chan struct{}

	// scanning holds the Scans under way. Each has a connection to itself.
	// beginning holds the one that begins.
	scanning, beginning chan struct{}

	// onAppend, if set, stands around the statement of Append, for tests.
	onAppend func(send func() error) error

	instance  string // tells this Log's notifications from others'
	notifies  bool   // the database has NOTIFY; set by Open
	listening atomic.Bool
	leading   atomic.Bool // see Lead
	others    atomic.Bool // there are other instances; known while leading
	unheard   unheard

	answers  answers
	heads    heads
	renewals renewals
	size     size
	failed   atomic.Pointer[error]
	ended    chan struct{} // closed after failed is set
	closed   atomic.Bool
	done     chan struct{} // closed by Close

	reportNow chan struct{} // asks keepReporting to; buffered

	background sync.WaitGroup // goroutines started by spawn

	before *past // what the Log that this one follows has seen, or nil; see Reopen

	mu    sync.Mutex
	epoch int64 // mu; set by Load
	fence int64 // mu; see doc.go
	seen  place // mu; the newest place of the log that was seen
	given place // mu; the newest one that a caller was given the records of
	doubt bool  // mu; an Append may still be under way although it returned

	revision int64 // mu; the newest one seen
}

// place is a batch's place in the log.
type place struct {
	position eventlog.Position
	seq      int64 // of its last record
	id       eventlog.BatchID
	revision int64 // the newest main revision, or 0 if the batch has none
}

var _ eventlog.Log = (*Log)(nil)

// Open connects to the database and makes or migrates the schema. The errors
// are ErrURL, ErrNewer, ErrNotDurable, ErrUnavailable or the database's.
func Open(ctx context.Context, opt Options) (*Log, error) {
	l, err := connect(ctx, opt)
	if err != nil {
		return nil, err
	}
	if err := l.try(ctx, l.migrate); err != nil {
		l.pool.Close()
		return nil, fmt.Errorf("open %s: %w", l.set, err)
	}
	return l, nil
}

// connect is Open without a look at the schema.
func connect(ctx context.Context, opt Options) (*Log, error) {
	if opt.Logger == nil {
		opt.Logger = logrus.NewEntry(logrus.StandardLogger())
	}
	if opt.Timeout == 0 {
		opt.Timeout = DefaultTimeout
	}
	set, err := parseURL(opt.URL)
	if err != nil {
		return nil, err
	}
	l := &Log{
		opt:     opt,
		set:     set,
		sql:     newStatements(set.schema),
		logger:  opt.Logger.WithFields(logrus.Fields{"database": set.pool.ConnConfig.Database, "schema": set.schema}),
		timeout: opt.Timeout,
		readers: make(chan struct{}, max(1, set.pool.MaxConns-reservedConns)),
		ended:   make(chan struct{}),
		done:    make(chan struct{}),

		scanning:  make(chan struct{}, maxScans),
		beginning: make(chan struct{}, 1),
		reportNow: make(chan struct{}, 1),

		instance: rand.Text(),
		answers:  answers{lost: make(chan struct{})},
	}
	if l.pool, err = pgxpool.NewWithConfig(ctx, set.pool); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrURL, err)
	}
	if err := l.try(ctx, l.checkServer); err != nil {
		l.pool.Close()
		return nil, fmt.Errorf("open %s: %w", set, err)
	}
	return l, nil
}

// checkServer refuses a database that acknowledges commits which it may lose.
// CockroachDB has neither such a setting nor NOTIFY.
func (l *Log) checkServer(ctx context.Context, c *pgx.Conn) error {
	if isCockroach(c) {
		return nil
	}
	l.notifies = true
	var synchronous, fsync string
	if err := c.QueryRow(ctx, selectDurable).Scan(&synchronous, &fsync); err != nil {
		return err
	}
	if synchronous == "off" {
		return fmt.Errorf("%w: synchronous_commit is off for this user: ALTER ROLE %s SET synchronous_commit = on",
			ErrNotDurable, pgx.Identifier{l.set.pool.ConnConfig.User}.Sanitize())
	}
	if fsync == "off" {
		l.logger.Warn("the database runs with fsync=off: a power cut loses acknowledged writes")
	}
	return nil
}

func isCockroach(c *pgx.Conn) bool { return c.PgConn().ParameterStatus("crdb_version") != "" }

// check returns why nothing more can be asked of the log, or nil.
func (l *Log) check() error {
	if l.closed.Load() {
		return eventlog.ErrClosed
	}
	return l.Err()
}

// fail ends the log for err.
func (l *Log) fail(err error) error {
	if !errors.Is(err, eventlog.ErrFailed) {
		err = fmt.Errorf("%w: %w", eventlog.ErrFailed, err)
	}
	if l.failed.CompareAndSwap(nil, &err) {
		l.logger.WithError(err).Error("the log has failed and takes no more calls")
		close(l.ended)
	}
	return err
}

// Failed is closed when the log has failed, which Err then explains.
func (l *Log) Failed() <-chan struct{} { return l.ended }

// Err is why the log has failed, an ErrFailed, or nil.
func (l *Log) Err() error {
	if err := l.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// The pauses between the tries of one call.
const (
	firstPause = 5 * time.Millisecond
	lastPause  = 250 * time.Millisecond
)

// try runs fn with a connection until it succeeds, fails for good, or the
// timeout is over. What fn does may be done more than once.
func (l *Log) try(ctx context.Context, fn func(context.Context, *pgx.Conn) error) error {
	return l.tryFor(ctx, l.timeout, func(ctx context.Context) error {
		return l.with(ctx, func(c *pgx.Conn) error { return fn(ctx, c) })
	})
}

func (l *Log) tryFor(parent context.Context, timeout time.Duration, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(parent, timeout)
	defer cancel()
	var cause error // of the last try that the timeout has not cut off
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		if err := errors.Join(l.check(), parent.Err()); err != nil {
			return err
		}
		err := fn(ctx)
		if err == nil || !isTransient(err) {
			return classify(err)
		}
		if ctx.Err() == nil || cause == nil {
			cause = err
		}
		if isOutdated(err) {
			l.pool.Reset()
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			if parent.Err() != nil {
				return parent.Err()
			}
			return unavailable(cause)
		}
	}
}

// unavailable is ErrUnavailable because of err, which is not wrapped: a
// deadline in it would be taken for the caller's.
func unavailable(err error) error {
	if e := serverError(err); e != nil && (e.Code == codeStatementName || e.Code == codeStatementExists) {
		return fmt.Errorf("%w: %s: behind a pooler add default_query_exec_mode=exec to the URL", ErrUnavailable, err.Error())
	}
	return fmt.Errorf("%w: %s", ErrUnavailable, err.Error())
}

// with runs fn with a connection of the pool.
func (l *Log) with(ctx context.Context, fn func(*pgx.Conn) error) error {
	c, err := l.pool.Acquire(ctx)
	if err != nil {
		if closed := l.check(); closed != nil {
			return closed
		}
		return err
	}
	defer c.Release()
	return fn(c.Conn())
}

// reader takes a token for a long read; give it back with <-l.readers.
func (l *Log) reader(ctx context.Context) error {
	if err := errors.Join(l.check(), ctx.Err()); err != nil {
		return err
	}
	select {
	case l.readers <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// learn takes in a place of the log; given says that its records were handed
// over.
func (l *Log) learn(p place, given bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.position > l.seen.position {
		l.seen = p
	}
	l.revision = max(l.revision, p.revision)
	if given && p.position > l.given.position {
		l.given = p
	}
}

// spawn runs fn, which Close waits for, unless the log is closed.
func (l *Log) spawn(fn func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed.Load() {
		return false
	}
	l.background.Go(fn)
	return true
}

// Close implements eventlog.Log. It waits for what is under way.
func (l *Log) Close() error {
	l.mu.Lock()
	already := l.closed.Swap(true)
	l.mu.Unlock()
	if already {
		return eventlog.ErrClosed
	}
	close(l.done)
	l.background.Wait()
	l.pool.Close()
	return nil
}
