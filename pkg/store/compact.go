package store

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// trim takes a slice of what compaction has freed out of the index, hands it
// to the compactor, and comes back for more after the next batch.
func (s *Store) trim() {
	st := s.now()
	if st.trimmed() {
		s.compactor.add(nil, 0, st.compacted)
		return
	}
	next := st.edit()
	freed, of := next.trim(trimSlice)
	through := int64(-1)
	if next.trimmed() {
		through = next.compacted
	} else {
		s.queue.wakeUp()
	}
	for _, seq := range freed {
		s.values.cache.drop(seq)
	}
	close(s.install(next))
	s.compactor.add(freed, of, through)
}

// compactor deletes records from the log behind the committer's back. What is
// left over when it stops is found again at the next start.
//
// Keys are overwritten in any order, and what a slice of the index frees lies
// scattered in the log. Much of it together is in few long runs, of which the
// log deletes whole pages: so it waits until the index is trimmed, or there is
// so much that the older half of it will hardly become denser.
type compactor struct {
	log    eventlog.Log
	logger *logrus.Entry
	wake   chan struct{} // 1 buffered

	mu      sync.Mutex
	pending [stages][]int64 // seqs to delete, an earlier stage before a later one
	partial bool            // more comes of what is pending
	through int64           // compact revision that all of pending belongs to, once it is empty
	reached int64           // compact revision whose records are all deleted
	changed chan struct{}   // closed when reached changes or the compactor stops
	stopped bool
}

func newCompactor(log eventlog.Log, logger *logrus.Entry) *compactor {
	return &compactor{
		log: log, logger: logger,
		wake: make(chan struct{}, 1), through: -1, reached: -1, changed: make(chan struct{}),
	}
}

// add queues seqs of a stage for deletion; with them, all records that a
// compaction at through frees have been queued, or not all yet if it is -1.
func (c *compactor) add(seqs []int64, of stage, through int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending[of] = append(c.pending[of], seqs...)
	was := c.partial
	c.partial = through < 0
	if c.partial && len(c.pending[stageSuperseded]) < enoughPending || !was && len(seqs) == 0 && through <= c.through {
		return
	}
	c.through = max(c.through, through)
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// enoughPending records are deleted, half of them, before all are known.
const enoughPending = 100_000

// take returns seqs to delete next, ascending. If there are none, all that the
// compaction at revision through freed is deleted; -1 is none.
func (c *compactor) take() (seqs []int64, through int64) {
	seqs, through, partial := c.takeStage()
	slices.Sort(seqs)
	if partial {
		half := len(seqs) / 2
		c.mu.Lock()
		c.pending[stageSuperseded] = append(c.pending[stageSuperseded], seqs[half:]...)
		c.mu.Unlock()
		seqs = seqs[:half]
	}
	return seqs, through
}

// takeStage takes what is pending of the stage that is next, and reports
// whether more of it comes.
func (c *compactor) takeStage() (seqs []int64, through int64, partial bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.partial && len(c.pending[stageSuperseded]) < enoughPending {
		return nil, -1, false
	}
	for i := range c.pending {
		if seqs := c.pending[i]; len(seqs) > 0 {
			c.pending[i] = nil
			return seqs, -1, c.partial
		}
	}
	return nil, c.through, false
}

// finish records that all of a compaction's records are deleted.
func (c *compactor) finish(through int64, stopped bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reached = max(c.reached, through)
	c.stopped = c.stopped || stopped
	close(c.changed)
	c.changed = make(chan struct{})
}

// run deletes what add queues until ctx ends. An error means that the log is
// not to be used any more.
func (c *compactor) run(ctx context.Context) error {
	defer c.finish(-1, true)
	var (
		start   time.Time   // of deleting what is not logged yet
		deleted int         // records since then
		logged  = int64(-1) // compact revision
	)
	for {
		select {
		case <-c.wake:
		case <-ctx.Done():
			return nil
		}
		for more := true; more; {
			seqs, through := c.take()
			if deleted == 0 {
				start = time.Now()
			}
			if err := c.delete(ctx, seqs); err != nil || ctx.Err() != nil {
				return err
			}
			deleted += len(seqs)
			if more = len(seqs) > 0; more {
				continue
			}
			if through >= 0 {
				c.finish(through, false)
			}
			if through > logged && deleted > 0 {
				c.logger.WithFields(logrus.Fields{
					"compacted": through, "records": deleted, "took": time.Since(start).Round(time.Millisecond).String(),
				}).Info("compaction finished")
				logged, deleted = through, 0
			}
		}
	}
}

// delete deletes seqs, trying again until it works, ctx ends or the log fails.
func (c *compactor) delete(ctx context.Context, seqs []int64) error {
	for len(seqs) > 0 && ctx.Err() == nil {
		err := c.log.Compact(ctx, seqs)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			continue // cut off; the next start finds them again
		case isFinal(err):
			return fmt.Errorf("deleting compacted records: %w", err)
		}
		c.logger.WithError(err).Warn("cannot delete compacted records; will try again in a second")
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
	return nil
}

// idle reports whether the records that a compaction at revision frees are gone.
func (c *compactor) idle(revision int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reached >= revision
}

// wait returns when the records that a compaction at revision frees are gone.
func (c *compactor) wait(ctx context.Context, revision int64) error {
	for {
		c.mu.Lock()
		reached, stopped, changed := c.reached, c.stopped, c.changed
		c.mu.Unlock()
		switch {
		case reached >= revision:
			return nil
		case stopped:
			return ErrStopped
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
