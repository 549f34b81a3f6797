package postgres

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// One instance at a time keeps the deadlines of leases: the one whose name is
// in the row of lessor, until the time that stands there, by the database's
// clock. The others leave the renewals that they get in the table renewal.
// There an instance and the lessor meet: a row is either renewed or expired,
// whichever came first.

const (
	// claimLessor takes or keeps the row. Whoever takes it starts every lease
	// in full, so what was renewed before means nothing any more, but what has
	// expired stays so: its revoke may be under way. Later it only clears what
	// leases have left that were revoked by clients.
	claimLessor = `WITH claimed AS (
			UPDATE keelson.lessor SET holder = $1, until = now() + $2 * interval '1 second'
			WHERE id = 1 AND (holder = $1 OR until < now())
			RETURNING id
		), cleared AS (
			DELETE FROM keelson.renewal
			WHERE NOT expired AND ($3 OR until < now() - interval '1 hour') AND EXISTS (SELECT 1 FROM claimed)
		), past AS (
			DELETE FROM keelson.deadline
			WHERE ($3 OR until < now() - interval '1 hour') AND EXISTS (SELECT 1 FROM claimed)
		)
		SELECT count(*), (SELECT count(*) FROM keelson.reader WHERE instance <> $1 AND at > now() - $4 * interval '1 second')
		FROM claimed`

	releaseLessor = "UPDATE keelson.lessor SET until = now() WHERE id = 1 AND holder = $1"

	renewLeases = `INSERT INTO keelson.renewal (lease, until, expired)
		SELECT lease, now() + ttl * interval '1 second', false FROM unnest($1::bigint[], $2::bigint[]) AS r (lease, ttl)
		ON CONFLICT (lease) DO UPDATE SET until = excluded.until WHERE NOT renewal.expired
		RETURNING lease`

	// expireLeases does nothing for an instance that is not the lessor any
	// more: the next one cannot take the row before this is done, and sees it.
	expireLeases = `WITH held AS (
			SELECT id FROM keelson.lessor WHERE id = 1 AND holder = $2 AND until > now() FOR SHARE
		)
		INSERT INTO keelson.renewal (lease, until, expired)
		SELECT lease, now(), true FROM held, unnest($1::bigint[]) AS r (lease)
		ON CONFLICT (lease) DO UPDATE SET expired = true WHERE renewal.until <= now()
		RETURNING lease`

	selectLeft = `SELECT lease, extract(epoch FROM until - now())::double precision FROM keelson.renewal
		WHERE lease = ANY($1) AND NOT expired`

	selectHolds   = "SELECT count(*) > 0 FROM keelson.lessor WHERE id = 1 AND holder = $1 AND until > now()"
	selectExpired = "SELECT lease FROM keelson.renewal WHERE expired"

	// noteLeases is for the other instances to show.
	noteLeases = `INSERT INTO keelson.deadline (lease, until)
		SELECT lease, now() + seconds * interval '1 second' FROM unnest($1::bigint[], $2::double precision[]) AS r (lease, seconds)
		ON CONFLICT (lease) DO UPDATE SET until = excluded.until`
	selectNoted = `SELECT extract(epoch FROM max(until) - now())::double precision FROM (
			SELECT until FROM keelson.renewal WHERE lease = $1
			UNION ALL SELECT until FROM keelson.deadline WHERE lease = $1
		) n`

	forgetLeases = `WITH shown AS (DELETE FROM keelson.deadline WHERE lease = ANY($1))
		DELETE FROM keelson.renewal WHERE lease = ANY($1)`

	// The row is claimed again every claimInterval. A holder that has not
	// managed to for stepDown stops; for the others the row is free after
	// claimTerm. Between the two it ends the revokes it had begun.
	claimInterval = 2 * time.Second
	stepDown      = 6 * time.Second
	claimTerm     = 15 * time.Second
)

// Lead calls run whenever this instance is the lessor, with a context that
// ends when it is not any more, until ctx ends.
func (l *Log) Lead(ctx context.Context, run func(context.Context) error) error {
	for {
		asked := time.Now()
		if held, err := l.claim(ctx, true); err == nil && held {
			l.logger.Info("this instance expires leases")
			l.leading.Store(true)
			err := l.lead(ctx, asked, run)
			l.leading.Store(false)
			l.logger.Info("this instance expires leases no more")
			if err != nil {
				return err
			}
		}
		if !pause(ctx, claimInterval) {
			return nil
		}
	}
}

// lead calls run while the row, claimed at since, is this instance's.
func (l *Log) lead(ctx context.Context, since time.Time, run func(context.Context) error) error {
	group, term := errgroup.WithContext(ctx)
	term, end := context.WithCancel(term)
	group.Go(func() error { return run(term) })
	for pause(term, claimInterval) {
		asked := time.Now()
		held, err := l.claim(term, false)
		if err == nil && held {
			since = asked
		} else if err == nil || time.Since(since) > stepDown {
			break
		}
	}
	end()
	err := group.Wait()
	l.release(context.WithoutCancel(ctx))
	return err
}

// pause waits for d and reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// claim takes or keeps the row of lessor; first says that it was not held.
func (l *Log) claim(ctx context.Context, first bool) (held bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, claimInterval)
	defer cancel()
	var claimed, others int
	err = l.with(ctx, func(c *pgx.Conn) error {
		return c.QueryRow(ctx, l.sql.claim, l.instance, claimTerm.Seconds(), first, readerTerm.Seconds()).Scan(&claimed, &others)
	})
	l.others.Store(others > 0)
	return claimed > 0, err
}

// release gives the row back at once; if it fails the row is free after
// claimTerm.
func (l *Log) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	_ = l.with(ctx, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, l.sql.release, l.instance)
		return err
	})
}

// RenewLease gives a lease ttl from now, for the instance that is the lessor
// to see before it expires the lease. It returns false if it has already.
// Calls that come while others are under way go together.
func (l *Log) RenewLease(ctx context.Context, id int64, ttl time.Duration) (bool, error) {
	if err := errors.Join(l.check(), ctx.Err()); err != nil {
		return false, err
	}
	call, ok := l.joinRenewal(id, ttl)
	if !ok {
		return false, eventlog.ErrClosed
	}
	select {
	case <-call.done:
		return call.renewed[id], call.err
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// renewals coalesces renewals.
type renewals struct {
	mu      sync.Mutex
	running bool         // mu
	next    *renewalCall // mu; not begun yet; nil if nobody waits
}

type renewalCall struct {
	leases  map[int64]int64 // id: seconds
	done    chan struct{}
	renewed map[int64]bool
	err     error
}

// joinRenewal adds a lease to the next call, or returns false if the log is
// closed.
func (l *Log) joinRenewal(id int64, ttl time.Duration) (*renewalCall, bool) {
	r := &l.renewals
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.running {
		if r.running = l.spawn(l.answerRenewals); !r.running {
			return nil, false
		}
	}
	if r.next == nil {
		r.next = &renewalCall{leases: make(map[int64]int64), done: make(chan struct{}), renewed: make(map[int64]bool)}
	}
	r.next.leases[id] = int64(ttl / time.Second)
	return r.next, true
}

// answerRenewals makes calls, one at a time, until nobody waits for one.
func (l *Log) answerRenewals() {
	r := &l.renewals
	for {
		r.mu.Lock()
		call := r.next
		r.next = nil
		r.running = call != nil
		r.mu.Unlock()
		if call == nil {
			return
		}
		ids, ttls := make([]int64, 0, len(call.leases)), make([]int64, 0, len(call.leases))
		for id := range call.leases {
			ids = append(ids, id)
		}
		slices.Sort(ids) // so that two instances do not deadlock
		for _, id := range ids {
			ttls = append(ttls, call.leases[id])
		}
		call.err = l.leaseIDs(context.Background(), call.renewed, l.sql.renew, ids, ttls)
		close(call.done)
	}
}

// leaseIDs collects the ids that a statement returns.
func (l *Log) leaseIDs(ctx context.Context, into map[int64]bool, sql string, args ...any) error {
	return l.try(ctx, func(ctx context.Context, c *pgx.Conn) error {
		rows, err := c.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		var id int64
		_, err = pgx.ForEachRow(rows, []any{&id}, func() error {
			into[id] = true
			return nil
		})
		return err
	})
}

// ExpireLeases decides on leases whose time is over as the lessor knows it:
// those that another instance has renewed are returned with the time they
// have left; the others cannot be renewed from now on, by nobody: that stays
// so if this instance dies before it has revoked them. ErrNotLessor: it may
// not decide that any more.
func (l *Log) ExpireLeases(ctx context.Context, ids []int64) (map[int64]time.Duration, error) {
	ids = slices.Clone(ids)
	slices.Sort(ids)
	expired := make(map[int64]bool, len(ids))
	if err := l.leaseIDs(ctx, expired, l.sql.expire, ids, l.instance); err != nil {
		return nil, err
	}
	left := make(map[int64]time.Duration)
	for _, id := range ids {
		if !expired[id] {
			left[id] = 0 // until the database says more
		}
	}
	if len(left) == 0 {
		return nil, nil
	}
	err := l.try(ctx, func(ctx context.Context, c *pgx.Conn) error {
		var holds bool
		if err := c.QueryRow(ctx, l.sql.holds, l.instance).Scan(&holds); err != nil || !holds {
			return errors.Join(err, ErrNotLessor)
		}
		rows, err := c.Query(ctx, l.sql.left, ids)
		if err != nil {
			return err
		}
		var id int64
		var seconds float64
		_, err = pgx.ForEachRow(rows, []any{&id, &seconds}, func() error {
			left[id] = leftOf(seconds)
			return nil
		})
		return err
	})
	return left, err
}

func leftOf(seconds float64) time.Duration {
	return max(0, time.Duration(min(seconds, maxLeft.Seconds())*float64(time.Second)))
}

// maxLeft is a time that a Duration can hold: a lease may have more.
const maxLeft = 200 * 365 * 24 * time.Hour

// ForgetLeases drops what is noted of leases that are gone.
func (l *Log) ForgetLeases(ctx context.Context, ids []int64) error {
	return l.try(ctx, func(ctx context.Context, c *pgx.Conn) error {
		_, err := c.Exec(ctx, l.sql.forget, ids)
		return err
	})
}

// ExpiredLeases returns those that ExpireLeases has decided on and that are
// not forgotten yet, maybe by the lessor before this one.
func (l *Log) ExpiredLeases(ctx context.Context) ([]int64, error) {
	ids := make(map[int64]bool)
	err := l.leaseIDs(ctx, ids, l.sql.expired)
	return slices.Sorted(maps.Keys(ids)), err
}

// noteRows are noted in one statement.
const noteRows = 1000

// NoteLeases tells the other instances, if there are any, how much time leases
// have left as the lessor knows it, for them to show.
func (l *Log) NoteLeases(ctx context.Context, left map[int64]time.Duration) error {
	if !l.others.Load() {
		return nil
	}
	for ids := range slices.Chunk(slices.Sorted(maps.Keys(left)), noteRows) {
		seconds := make([]float64, len(ids))
		for i, id := range ids {
			seconds[i] = min(left[id], maxLeft).Seconds()
		}
		if err := l.try(ctx, func(ctx context.Context, c *pgx.Conn) error {
			_, err := c.Exec(ctx, l.sql.note, ids, seconds)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// LeaseLeft returns the time that a lease has left as far as anybody has noted
// it.
func (l *Log) LeaseLeft(ctx context.Context, id int64) (left time.Duration, noted bool, err error) {
	var seconds *float64
	err = l.try(ctx, func(ctx context.Context, c *pgx.Conn) error {
		return c.QueryRow(ctx, l.sql.noted, id).Scan(&seconds)
	})
	if err != nil || seconds == nil {
		return 0, false, err
	}
	return leftOf(*seconds), true, nil
}
