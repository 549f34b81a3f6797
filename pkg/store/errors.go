package store

import "errors"

// The sentinels of the store; test with errors.Is.
var (
	// ErrCompacted: the revision asked for has been compacted.
	ErrCompacted = errors.New("store: required revision has been compacted")
	// ErrFutureRev: the revision asked for is beyond the current one.
	ErrFutureRev = errors.New("store: required revision is a future revision")
	// ErrTooManyKeys: the operations of a transaction go through too many keys.
	ErrTooManyKeys = errors.New("store: the transaction goes through too many keys")
	// ErrKeyNotFound: ignore_value or ignore_lease on an absent key.
	ErrKeyNotFound = errors.New("store: key not found")
	// ErrLeaseNotFound: the lease does not exist.
	ErrLeaseNotFound = errors.New("store: lease not found")
	// ErrLeaseExists: a lease with that id was granted already.
	ErrLeaseExists = errors.New("store: lease already exists")
	// ErrNoSpace: the quota is used up; the NOSPACE alarm is raised.
	ErrNoSpace = errors.New("store: database space exceeded")
	// ErrCorruptAlarm: the CORRUPT alarm is raised; nothing is served.
	ErrCorruptAlarm = errors.New("store: corrupt alarm is raised")
	// ErrUnknownOutcome: the request was handed to the log and whether it is
	// durable is not known.
	ErrUnknownOutcome = errors.New("store: the outcome of the request is unknown")
	// ErrTimeout: the log did not answer within the request timeout; whether the
	// request takes effect is not known.
	ErrTimeout = errors.New("store: the request timed out")
	// ErrUnavailable: the log does not answer; nothing was changed.
	ErrUnavailable = errors.New("store: the log is unavailable")
	// ErrStopped: the store is stopping or has failed; nothing was changed.
	ErrStopped = errors.New("store: stopped")
)
