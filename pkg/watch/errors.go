package watch

import "errors"

var (
	// ErrCompacted is what [Source.History] returns, wrapped or not, when the
	// first revision asked for is below the compacted revision. Test with
	// errors.Is.
	ErrCompacted = errors.New("watch: revision has been compacted")

	// ErrStopped: the hub has stopped, no further response will come.
	ErrStopped = errors.New("watch: hub stopped")

	// ErrClosed: the stream was closed.
	ErrClosed = errors.New("watch: stream closed")
)

// errNoAdvance: a source answered a page that leads nowhere.
var errNoAdvance = errors.New("watch: history does not advance")
