package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	// lockKept lets every Compact wait, whose it may be, before it commits.
	lockKept = `SELECT h.position FROM keelson.head h CROSS JOIN keelson.kept k
		WHERE h.id = 1 AND k.id = 1 FOR SHARE OF k`

	// selectPast tells whether the log is still the one that was read so far.
	selectPast = `SELECT h.epoch, (SELECT batch FROM keelson.log WHERE position = $1 AND batch IS NOT NULL)
		FROM keelson.head h WHERE h.id = 1`

	// selectScan gives a page of records from seq $1 up to $2: at most $3
	// records, and no more once they have $4 bytes.
	selectScan = `SELECT seq, header, key, value FROM (
			SELECT p.*, sum(coalesce(octet_length(p.value), 0)) OVER (ORDER BY p.seq) - coalesce(octet_length(p.value), 0) AS before
			FROM (
				SELECT seq, header, key, value FROM keelson.log
				WHERE seq >= $1 AND seq <= $2 ORDER BY seq LIMIT $3
			) p
		) r WHERE before < $4 ORDER BY seq`

	scanRows = 1000

	// maxScans are under way at a time, such as a client's snapshot and a backup.
	maxScans = 4
)

// scan is an eventlog.Scan: a transaction that sees one state of the database,
// whatever is deleted meanwhile. It asks for a page in each statement, so that
// none lasts long.
type scan struct {
	log     *Log
	through int64 // seq
	conn    *pgx.Conn
	tx      pgx.Tx
}

// Scan implements eventlog.Log. Between begin and the transaction that reads
// nothing must be deleted that begin counts on: the row that every Compact
// changes is locked meanwhile.
func (l *Log) Scan(ctx context.Context, begin func(eventlog.Position) (int64, error)) (eventlog.Scan, error) {
	if err := errors.Join(l.check(), ctx.Err()); err != nil {
		return nil, err
	}
	select {
	case l.scanning <- struct{}{}:
	case <-l.done:
		return nil, eventlog.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s := &scan{log: l}
	// One after another: each has two connections now, one of which the pool
	// keeps, and who waits for the second one would hold the first.
	select {
	case l.beginning <- struct{}{}:
	case <-l.done:
		return nil, errors.Join(eventlog.ErrClosed, s.Close())
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), s.Close())
	}
	defer func() { <-l.beginning }()
	bounded, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	var refused error
	err := l.with(bounded, func(c *pgx.Conn) error {
		return pgx.BeginFunc(bounded, c, func(tx pgx.Tx) error {
			var head eventlog.Position
			if err := tx.QueryRow(bounded, l.sql.holdKept).Scan(&head); err != nil {
				return err
			}
			if s.through, refused = begin(head); refused != nil {
				return refused
			}
			return s.begin(bounded)
		})
	})
	if err == nil {
		return s, nil
	}
	_ = s.Close() // err says more
	if refused != nil {
		return nil, refused
	}
	return nil, fmt.Errorf("scan %s: %w", l.set, l.scanError(ctx, err))
}

// begin begins the transaction that reads. Its connection leaves the pool: Close
// of the log does not wait for it.
func (s *scan) begin(ctx context.Context) error {
	l := s.log
	c, err := l.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	s.conn = c.Hijack()
	s.tx, err = s.conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return err
	}
	l.mu.Lock()
	given, known := l.given, l.epoch
	l.mu.Unlock()
	var epoch int64
	var previous []byte
	if err := s.tx.QueryRow(ctx, l.sql.scanState, int64(given.position)).Scan(&epoch, &previous); err != nil {
		return err
	}
	if cause := otherPast(given, previous, known, epoch); cause != nil {
		return l.lost(cause)
	}
	return nil
}

// scanError is what err, met by a Scan, means. The transaction cannot be tried
// again: its state of the database is gone with it.
func (l *Log) scanError(ctx context.Context, err error) error {
	if !isTransient(err) {
		return classify(err)
	}
	if ended := errors.Join(l.check(), ctx.Err()); ended != nil {
		return ended
	}
	return unavailable(err)
}

// Records implements eventlog.Scan.
func (s *scan) Records(ctx context.Context, fn func([]eventlog.Record) error) error {
	if s.tx == nil {
		return eventlog.ErrClosed
	}
	return eventlog.EachPage(ctx, s.through, s.page, func() bool { return true }, fn)
}

// page fills p with the records from seq from on.
func (s *scan) page(ctx context.Context, p *eventlog.Page, from int64) error {
	if err := errors.Join(s.log.check(), ctx.Err()); err != nil {
		return err
	}
	if err := s.query(ctx, p, from); err != nil {
		return fmt.Errorf("scan %s: %w", s.log.set, s.log.scanError(ctx, err))
	}
	return nil
}

func (s *scan) query(ctx context.Context, p *eventlog.Page, from int64) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	rows, err := s.tx.Query(ctx, s.log.sql.scan, from, s.through, scanRows, int64(eventlog.ScanBytes))
	if err != nil {
		return err
	}
	var seq int64
	var header, key, value pgtype.DriverBytes // the page copies them
	_, err = pgx.ForEachRow(rows, []any{&seq, &header, &key, &value}, func() error { return p.Add(seq, header, key, value) })
	return err
}

// Close implements eventlog.Scan.
func (s *scan) Close() error {
	if s.log == nil {
		return nil
	}
	if s.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), pingTimeout)
		defer cancel()
		_ = s.conn.Close(ctx) // it has changed nothing
	}
	<-s.log.scanning
	s.tx, s.conn, s.log = nil, nil, nil
	return nil
}
