// Package compactor compacts by itself, as etcd's --auto-compaction-mode and
// --auto-compaction-retention do:
//
//	periodic   keep what was current within the last retention (5m, 72h)
//	revision   keep the last N revisions
//
// It needs no lock and no state on disk: after a restart a periodic compactor
// waits out its retention again before it compacts for the first time.
package compactor

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/sirupsen/logrus"
)

// The modes.
const (
	ModePeriodic = "periodic"
	ModeRevision = "revision"
)

var (
	// ErrMode: neither periodic nor revision.
	ErrMode = errors.New(`the auto compaction mode must be "periodic" or "revision"`)

	// ErrRetention: the retention does not fit the mode.
	ErrRetention = errors.New("the auto compaction retention cannot be understood")
)

// Policy is what to keep. The zero value keeps everything.
type Policy struct {
	Period    time.Duration // periodic if > 0
	Revisions int64         // revision if > 0
}

// Enabled reports whether there is anything to do.
func (p Policy) Enabled() bool { return p.Period > 0 || p.Revisions > 0 }

// Parse reads the values of the two flags. For periodic a number without a
// unit is hours; 0 switches compaction off.
func Parse(mode, retention string) (Policy, error) {
	if retention == "" {
		retention = "0"
	}
	n, err := strconv.ParseInt(retention, 10, 64)
	number := err == nil
	if number && n < 0 {
		return Policy{}, fmt.Errorf("%w: %s is negative: use 0 to switch it off", ErrRetention, retention)
	}
	switch mode {
	case ModeRevision:
		if !number {
			return Policy{}, fmt.Errorf("%w: mode revision takes a number of revisions such as 1000, not %q", ErrRetention, retention)
		}
		return Policy{Revisions: n}, nil
	case ModePeriodic:
		if number {
			if n > int64(math.MaxInt64/time.Hour) {
				return Policy{}, fmt.Errorf("%w: %s hours is too long", ErrRetention, retention)
			}
			return Policy{Period: time.Duration(n) * time.Hour}, nil
		}
		period, err := time.ParseDuration(retention)
		if err != nil || period < 0 {
			return Policy{}, fmt.Errorf("%w: mode periodic takes a duration such as 5m or 72h, or a number of hours, not %q", ErrRetention, retention)
		}
		if period > 0 && period < time.Second {
			return Policy{}, fmt.Errorf("%w: %s is too short: use at least 1s", ErrRetention, retention)
		}
		return Policy{Period: period}, nil
	}
	return Policy{}, fmt.Errorf("%w, not %q", ErrMode, mode)
}

// Target is what gets compacted.
type Target struct {
	// Revision is the newest revision.
	Revision func() int64
	// Compact compacts up to a revision. Compacting what is compacted
	// already is no error.
	Compact func(ctx context.Context, revision int64) error
}

// Clock is time as the compactor sees it.
type Clock interface {
	Now() time.Time
	After(d time.Duration) <-chan time.Time
}

// SystemClock is the machine's.
type SystemClock struct{}

// Now is time.Now.
func (SystemClock) Now() time.Time { return time.Now() }

// After is time.After.
func (SystemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// Run compacts by policy until ctx ends; the result is nil. A compaction that
// fails is logged and tried again at the next tick.
func Run(ctx context.Context, policy Policy, target Target, clock Clock, log *logrus.Entry) error {
	c := &compactor{target: target, clock: clock, log: log}
	switch {
	case policy.Period > 0:
		c.periodic(ctx, policy.Period)
	case policy.Revisions > 0:
		c.revision(ctx, policy.Revisions)
	}
	return nil
}

type compactor struct {
	target Target
	clock  Clock
	log    *logrus.Entry
}

// revisionInterval is how often mode revision looks.
const revisionInterval = 5 * time.Minute

func (c *compactor) revision(ctx context.Context, keep int64) {
	var last int64
	for c.wait(ctx, revisionInterval) {
		revision := c.target.Revision() - keep
		if revision <= last {
			continue
		}
		if c.compact(ctx, revision) {
			last = revision
		}
	}
}

// samples is how many times in a period (of an hour at most) mode periodic
// notes the revision.
const samples = 10

// periodic keeps a window of sampled revisions that reaches back a period or,
// as in etcd, a sample more; its oldest is what may go. The first compaction comes after a whole period, the
// next ones each period, or each hour if that is shorter.
func (c *compactor) periodic(ctx context.Context, period time.Duration) {
	every := min(period, time.Hour)
	tick := every / samples
	size := int(period/tick) + 1
	window := make([]int64, 0, size)
	due := c.clock.Now().Add(period)
	var last int64
	for {
		if len(window) == size {
			window = append(window[:0], window[1:]...)
		}
		window = append(window, c.target.Revision())
		if !c.wait(ctx, tick) {
			return
		}
		oldest := window[0]
		if c.clock.Now().Before(due) || oldest <= last {
			continue
		}
		if c.compact(ctx, oldest) {
			last = oldest
			due = c.clock.Now().Add(every)
		}
	}
}

func (c *compactor) wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-c.clock.After(d):
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

func (c *compactor) compact(ctx context.Context, revision int64) bool {
	start := c.clock.Now()
	log := c.log.WithField("revision", revision)
	if err := c.target.Compact(ctx, revision); err != nil {
		if ctx.Err() == nil {
			log.WithError(err).Warn("auto compaction failed; it will be tried again")
		}
		return false
	}
	log.WithField("took", c.clock.Now().Sub(start).String()).Info("auto compaction done")
	return true
}
