package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// The sentinels of Open, next to those of package eventlog.
var (
	// ErrURL: the URL cannot be used. The message does not repeat it.
	ErrURL = errors.New("postgres: URL")

	// ErrNewer: the schema was made by a newer keelson. It was not touched.
	ErrNewer = errors.New("postgres: the schema was made by a newer keelson")

	// ErrNotDurable: the database does not make commits durable.
	ErrNotDurable = errors.New("postgres: commits are not durable")
)

// The sentinels of NewImporter.
var (
	// ErrExists: there is data, which the import is not to replace.
	ErrExists = errors.New("postgres: there is data already")

	// ErrInUse: keelson runs on the schema.
	ErrInUse = errors.New("postgres: in use")
)

// ErrNoSchema: there is no data of keelson's to inspect.
var ErrNoSchema = errors.New("postgres: there is no such schema of keelson's")

// ErrNotLessor: this instance does not expire leases, or not any more.
var ErrNotLessor = errors.New("postgres: this instance does not expire leases")

// ErrUnavailable: the database did not answer in time. It may do so later.
var ErrUnavailable = errors.New("postgres: the database is not available")

// ErrLost: the database has lost batches that it had acknowledged, as after a
// failover to a standby that was behind. Errors wrap it and
// eventlog.ErrFailed: what this process knows is a past that never was.
var ErrLost = errors.New("postgres: the database has lost acknowledged batches")

// PostgreSQL's error codes (appendix A of its manual).
const (
	codeReadOnly             = "25006"
	codeSerializationFailure = "40001"
	codeCompletionUnknown    = "40003"
	codeDeadlock             = "40P01"
	codeLockNotAvailable     = "55P03"
	codeQueryCanceled        = "57014"
	codeLimitExceeded        = "54000" // among others: the queue of notifications is full
	codeStatementName        = "26000" // a pooler has lost a prepared statement
	codeStatementExists      = "42P05" // or has another client's

	classConnection   = "08"
	classConstraint   = "23"
	classResources    = "53"
	classIntervention = "57"
	classDamage       = "XX"
)

// serverError returns the server's own error in err, or nil.
func serverError(err error) *pgconn.PgError {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e
	}
	return nil
}

// isCode reports whether err is the server's error with that code.
func isCode(err error, code string) bool {
	e := serverError(err)
	return e != nil && e.Code == code
}

// isTransient reports whether the same call may succeed soon: the connection
// was lost, or the server has a passing trouble.
func isTransient(err error) bool {
	var config *pgconn.ParseConfigError
	if errors.As(err, &config) || isFinal(err) || errors.Is(err, ErrUnavailable) {
		return false
	}
	e := serverError(err)
	if e == nil {
		return !errors.Is(err, context.Canceled)
	}
	switch e.Code {
	case codeReadOnly, codeSerializationFailure, codeCompletionUnknown, codeDeadlock, codeLockNotAvailable,
		codeStatementName, codeStatementExists:
		return true
	}
	switch e.Code[:2] {
	case classConnection, classResources, classIntervention:
		return true
	}
	return false
}

// isFinal reports whether err has its meaning already, so that trying again
// would not help.
func isFinal(err error) bool {
	for _, sentinel := range []error{
		eventlog.ErrCompacted, eventlog.ErrCorrupt, eventlog.ErrFailed, eventlog.ErrClosed, eventlog.ErrStale, eventlog.ErrUnknown,
		ErrNewer, ErrNotDurable, ErrNotLessor,
	} {
		if errors.Is(err, sentinel) {
			return true
		}
	}
	return false
}

// notDone reports whether err, of a statement that was its own transaction,
// says that the statement has no effect and never will.
//
// An error of the server does: it rolls back before it reports one. But when
// the session itself ends (FATAL and worse, which poolers also send of their
// own), the commit may already be written, and only its report be missing.
func notDone(err error) bool {
	if e := serverError(err); e != nil {
		severity := e.SeverityUnlocalized
		if severity == "" {
			severity = e.Severity
		}
		return severity == "ERROR" && e.Code != codeCompletionUnknown && !strings.HasPrefix(e.Code, classConnection)
	}
	return pgconn.SafeToRetry(err)
}

// isOutdated reports whether the pool's other connections are most likely no
// better than the one that gave err: the server has become a standby, or it
// does not answer.
func isOutdated(err error) bool {
	e := serverError(err)
	return e != nil && e.Code == codeReadOnly || e == nil && pgconn.Timeout(err)
}

// classify adds the sentinel that says what a server's error means for the
// data.
func classify(err error) error {
	e := serverError(err)
	if e == nil || isFinal(err) {
		return err
	}
	switch e.Code[:2] {
	case classConstraint, classDamage:
		// Nothing that keelson writes breaks a constraint, unless what is
		// stored is not what was written.
		if e.Code != "XX000" { // internal error: anything
			return fmt.Errorf("%w: %w", eventlog.ErrCorrupt, err)
		}
	}
	return err
}
