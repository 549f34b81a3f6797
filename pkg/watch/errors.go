package watch

import "errors"

var (
	// ErrStopped: the hub has stopped, no further response will come.
	ErrStopped = errors.New("watch: hub stopped")

	// ErrClosed: the stream was closed.
	ErrClosed = errors.New("watch: stream closed")
)

// errNoAdvance: a source answered a page that leads nowhere.
var errNoAdvance = errors.New("watch: history does not advance")
