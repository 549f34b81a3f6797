package lease

import (
	"container/heap"
	"context"
	"slices"
	"time"
)

// Shared is what lessors of the same leases have in common. Of a lease it
// knows either that it was renewed or that it has expired, whichever came
// first. Its methods are safe for concurrent use.
type Shared interface {
	// LeaseExists says so of a lease that any client may have been told of,
	// although Granted may not have been called yet.
	LeaseExists(ctx context.Context, id int64) (bool, error)

	// RenewLease notes, for the primary lessor, that a lease has ttl left. It
	// returns false if that one has decided that the lease has expired.
	RenewLease(ctx context.Context, id int64, ttl time.Duration) (bool, error)

	// ExpireLeases notes that leases have expired, but for those that are
	// returned, with the time they have left: another lessor has renewed them.
	ExpireLeases(ctx context.Context, ids []int64) (map[int64]time.Duration, error)

	// ExpiredLeases returns those that ExpireLeases has noted and ForgetLeases
	// has not dropped.
	ExpiredLeases(ctx context.Context) ([]int64, error)

	// NoteLeases notes the time that leases have left, for LeaseLeft.
	NoteLeases(ctx context.Context, left map[int64]time.Duration) error

	// LeaseLeft returns the time that a lease has left, as far as anybody has
	// noted it.
	LeaseLeft(ctx context.Context, id int64) (left time.Duration, noted bool, err error)

	// ForgetLeases drops the notes on leases that are revoked.
	ForgetLeases(ctx context.Context, ids []int64) error
}

// inherit returns the leases that the primary lessor before this one has
// decided on without living to revoke them: nobody can renew them any more. It
// returns false when ctx has ended.
func (l *Lessor) inherit(ctx context.Context) (expired []int64, ok bool) {
	for l.shared != nil {
		var err error
		if expired, err = l.expiredBefore(ctx); err == nil {
			break
		}
		if ctx.Err() == nil {
			l.log.WithError(err).Warnf("cannot learn which leases have expired; trying again in %v", l.retry)
		}
		if !l.pause(ctx, l.retry, true) {
			return nil, false
		}
	}
	return expired, true
}

func (l *Lessor) expiredBefore(ctx context.Context) ([]int64, error) {
	ids, err := l.shared.ExpiredLeases(ctx)
	if err != nil {
		return nil, err
	}
	var expired []int64
	for _, id := range ids {
		exists, err := l.shared.LeaseExists(ctx, id)
		if err != nil {
			return nil, err
		}
		if exists {
			expired = append(expired, id)
		} else {
			l.forget(ctx, id)
		}
	}
	return expired, nil
}

// keepNoting tells the other lessors the deadlines that have changed, until
// ctx ends.
func (l *Lessor) keepNoting(ctx context.Context) {
	for l.pause(ctx, noteInterval, true) {
		left := l.takeUnnoted()
		if len(left) == 0 {
			continue
		}
		// What cannot be noted is shown with a little more time than it has.
		if err := l.shared.NoteLeases(ctx, left); err != nil && ctx.Err() == nil {
			l.log.WithError(err).Warnf("cannot tell other instances the time that %d leases have left", len(left))
		}
	}
}

// takeUnnoted returns the time left of leases whose deadline has changed.
func (l *Lessor) takeUnnoted() map[int64]time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	left, now := make(map[int64]time.Duration, len(l.unnoted)), l.clock.Now()
	for _, e := range l.unnoted {
		e.unnoted = false
		if l.leases[e.id] == e && e.index >= 0 {
			left[e.id] = max(0, e.deadline-now)
		}
	}
	l.unnoted = nil
	return left
}

// agree returns those of expired that no other lessor has renewed.
func (l *Lessor) agree(ctx context.Context, expired []*entry) []*entry {
	ids := make([]int64, len(expired))
	for i, e := range expired {
		ids[i] = e.id
	}
	left, err := l.shared.ExpireLeases(ctx, ids)
	if err != nil {
		if ctx.Err() == nil {
			l.log.WithError(err).Warnf("%d leases have expired but could not be revoked; trying again in %v", len(ids), l.retry)
		}
		return nil // they are due again after retry
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Now()
	return slices.DeleteFunc(expired, func(e *entry) bool {
		d, renewed := left[e.id]
		if renewed && e.index >= 0 {
			e.deadline = addSaturated(now, d)
			e.due = e.deadline
			heap.Fix(&l.due, e.index)
		}
		return renewed
	})
}

// forgetRevoked drops the notes on those of expired that are revoked.
func (l *Lessor) forgetRevoked(ctx context.Context, expired []*entry) {
	var ids []int64
	for _, e := range expired {
		select {
		case <-e.revoked:
			ids = append(ids, e.id)
		default:
		}
	}
	if len(ids) > 0 {
		l.forget(ctx, ids...)
	}
}

// forget drops the notes on leases that are revoked.
func (l *Lessor) forget(ctx context.Context, ids ...int64) {
	if err := l.shared.ForgetLeases(ctx, ids); err != nil && ctx.Err() == nil {
		l.log.WithError(err).Warnf("notes on %d revoked leases are left behind", len(ids))
	}
}
