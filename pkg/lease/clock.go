package lease

import "time"

// Clock tells time that only moves forward. A step of the wall clock must not
// show in it: it would expire leases, or keep them for ever.
type Clock interface {
	// Now returns the time since some fixed moment.
	Now() time.Duration

	// After returns a channel that receives once d has passed, and a function
	// that gives the timer back.
	After(d time.Duration) (<-chan time.Time, func() bool)
}

// SystemClock returns the monotonic clock of the operating system.
func SystemClock() Clock { return systemClock{start: time.Now()} }

type systemClock struct{ start time.Time }

// Now is monotonic: start carries Go's monotonic reading and Since uses it.
func (c systemClock) Now() time.Duration { return time.Since(c.start) }

func (c systemClock) After(d time.Duration) (<-chan time.Time, func() bool) {
	t := time.NewTimer(d)
	return t.C, t.Stop
}
