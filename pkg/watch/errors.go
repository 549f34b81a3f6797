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

// errDamaged: a value that a watcher's past needs is damaged. The text is etcd's
// for corrupt data, which its client knows.
var errDamaged = errors.New("etcdserver: corrupt cluster")
