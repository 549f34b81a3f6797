package sqlite

import (
	"errors"
	"fmt"

	codes "modernc.org/sqlite/lib"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// The sentinels of Open, next to those of package eventlog.
var (
	// ErrLocked: another process, which the message names, has the log open.
	ErrLocked = errors.New("sqlite: in use by another process")

	// ErrExists: there is a database, which an import is not to replace.
	ErrExists = errors.New("sqlite: there is data already")

	// ErrForeign: the file was not made by keelson. It was not touched.
	ErrForeign = errors.New("sqlite: not a keelson database")

	// ErrNewer: the file was written by a newer keelson. It was not touched.
	ErrNewer = errors.New("sqlite: written by a newer keelson")
)

// errFull is what to do about a full disk.
var errFull = errors.New("free space on its file system and start again; what was acknowledged is there")

// classify adds to an error of SQLite the sentinel that says what it means
// for the log. Errors of anything else, and those that carry one of the two
// already, pass unchanged.
func classify(err error) error {
	var e interface { // of the driver or of package cursor
		error
		Code() int
	}
	if !errors.As(err, &e) || errors.Is(err, eventlog.ErrCorrupt) || errors.Is(err, errFull) {
		return err
	}
	code := e.Code() & 0xff // the rest is the extended code
	if code != codes.SQLITE_FULL && errors.Is(err, eventlog.ErrFailed) {
		return err
	}
	switch code {
	case codes.SQLITE_CORRUPT, codes.SQLITE_NOTADB, codes.SQLITE_CONSTRAINT, codes.SQLITE_ERROR:
		// Our statements are constants that fit the schema: neither breaks
		// unless what is stored is not what was written.
		return fmt.Errorf("%w: %w", eventlog.ErrCorrupt, err)
	case codes.SQLITE_FULL:
		if !errors.Is(err, eventlog.ErrFailed) {
			err = fmt.Errorf("%w: %w", eventlog.ErrFailed, err)
		}
		return fmt.Errorf("%w: %w", err, errFull)
	case codes.SQLITE_IOERR, codes.SQLITE_READONLY, codes.SQLITE_CANTOPEN, codes.SQLITE_PERM:
		return fmt.Errorf("%w: %w", eventlog.ErrFailed, err)
	}
	return err
}
