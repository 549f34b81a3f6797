package eventlog

import "errors"

// The sentinels of every driver; test with errors.Is.
var (
	// ErrStale: the head is not at the batch's base any more. Nothing was
	// appended; catch up with Tail and evaluate again.
	ErrStale = errors.New("log: the head has moved")

	// ErrUnknown: whether the batch was appended is not known. It is there
	// whole or not at all.
	ErrUnknown = errors.New("log: the fate of the append is unknown")

	// ErrCompacted: compaction has deleted what was asked for.
	ErrCompacted = errors.New("log: compacted")

	// ErrCorrupt: what was read is not what was written. Final.
	ErrCorrupt = errors.New("log: data is corrupt")

	// ErrFailed: the log cannot promise durability any more (failed fsync,
	// full disk, lost lock). Final; what was acknowledged before stands.
	ErrFailed = errors.New("log: stopped after a storage failure")

	// ErrClosed: the log was closed.
	ErrClosed = errors.New("log: closed")
)
