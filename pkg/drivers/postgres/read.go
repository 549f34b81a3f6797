package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	// selectTail gives a page of records, from seq $2 or, if that is NULL,
	// from the first one of position $1 + 1: at most $3 records, and no more
	// once they have $4 bytes. There is at least one row, with the state of
	// the log and the id of batch $1, as far as it is left.
	selectTail = `SELECT h.position, h.seq, h.epoch, k.floor,
			(SELECT batch FROM keelson.log WHERE position = $1 AND batch IS NOT NULL),
			r.seq, r.header, r.key, r.value, r.batch
		FROM keelson.head h CROSS JOIN keelson.kept k LEFT JOIN (
			SELECT p.*, sum(coalesce(octet_length(p.value), 0)) OVER (ORDER BY p.seq) - coalesce(octet_length(p.value), 0) AS before
			FROM (
				SELECT seq, header, key, value, batch FROM keelson.log
				WHERE seq >= coalesce($2, (SELECT seq FROM keelson.log WHERE position = $1 + 1 AND batch IS NOT NULL))
				ORDER BY seq LIMIT $3
			) p
		) r ON r.before < $4
		WHERE h.id = 1 AND k.id = 1
		ORDER BY r.seq`

	// selectValues gives records in order, and no more once they have $2 bytes;
	// each with what tells whether the log is still the same: the epoch, and the
	// id of batch $3 as far as it is left.
	selectValues = `SELECT r.seq, r.header, r.key, r.value, h.epoch,
			(SELECT batch FROM keelson.log WHERE position = $3 AND batch IS NOT NULL)
		FROM (
			SELECT seq, header, key, value,
				sum(coalesce(octet_length(value), 0)) OVER (ORDER BY seq) - coalesce(octet_length(value), 0) AS before
			FROM keelson.log WHERE seq = ANY($1)
		) r CROSS JOIN keelson.head h
		WHERE r.before < $2 AND h.id = 1
		ORDER BY r.seq`

	selectMissing = `SELECT k.floor, h.seq, (SELECT count(*) FROM keelson.log WHERE seq = ANY($1))
		FROM keelson.head h CROSS JOIN keelson.kept k WHERE h.id = 1 AND k.id = 1`

	// A page of Tail, and the seqs that Values asks for at once.
	tailRows   = 1000
	valuesRows = 1000

	// readBytes bounds what is read at once, as far as one value allows; at a
	// batch that is where Tail ends.
	readBytes = 16 << 20
)

// decodeRow makes a record, without its value, of the columns seq, header and
// key.
func decodeRow(seq int64, header, key []byte) (*eventlog.Record, eventlog.Header, error) {
	r := &eventlog.Record{Seq: seq}
	if len(key) > 0 {
		r.Key = key
	}
	h, err := eventlog.DecodeHeader(header, r)
	return r, h, err
}

// takeValue verifies the value column of r.
func takeValue(r *eventlog.Record, h eventlog.Header, value []byte) error {
	if (value != nil) != (r.Kind == eventlog.KindPut) {
		return fmt.Errorf("%w: %v record %d has a value where it must not, or none", eventlog.ErrCorrupt, r.Kind, r.Seq)
	}
	if err := h.VerifyValue(value); err != nil {
		return fmt.Errorf("record %d: %w", r.Seq, err)
	}
	r.Value = value
	return nil
}

// Tail implements eventlog.Log. It ends early, at a batch, once it has read
// some megabytes.
func (l *Log) Tail(ctx context.Context, after eventlog.Position, limit int) ([]eventlog.Batch, error) {
	if err := l.reader(ctx); err != nil {
		return nil, err
	}
	defer func() { <-l.readers }()
	if err := l.settle(ctx); err != nil {
		return nil, err
	}
	l.mu.Lock()
	t := tail{after: max(after, 0), position: max(after, 0), limit: limit, given: l.given, epoch: l.epoch}
	l.mu.Unlock()
	for !t.complete {
		p, err := l.tailPage(ctx, &t)
		if err != nil {
			return nil, err
		}
		if err := t.check(p); err != nil {
			var lost *lostError
			if errors.As(err, &lost) {
				err = l.lost(lost.cause)
			}
			return nil, err
		}
		for i := range p.rows {
			if err := t.row(&p.rows[i]); err != nil {
				return nil, err
			}
		}
	}
	if n := len(t.batches); n > 0 {
		newest := &t.batches[n-1]
		p := place{position: newest.Position(), seq: newest.Records[len(newest.Records)-1].Seq, id: newest.ID}
		for i := range newest.Records {
			if r := &newest.Records[i]; r.Kind == eventlog.KindPut || r.Kind == eventlog.KindDelete {
				p.revision = r.Revision.Main
			}
		}
		l.learn(p, true)
	}
	return t.batches, nil
}

// page is the result of selectTail.
type page struct {
	head     eventlog.Position
	newest   int64 // seq
	epoch    int64
	floor    int64  // seqs up to here may be deleted
	previous []byte // batch column of the batch before; nil if it is deleted
	rows     []pageRow
}

type pageRow struct {
	seq                       int64
	header, key, value, batch []byte
}

// tailPage reads the records that t wants next.
func (l *Log) tailPage(ctx context.Context, t *tail) (p *page, err error) {
	var from *int64
	if t.next > 0 {
		from = &t.next
	}
	limit := tailRows
	if t.next == 0 {
		// One more row tells that the last batch is whole.
		limit = min(max(t.limit, 1), tailRows) + 1
	}
	err = l.try(ctx, func(ctx context.Context, c *pgx.Conn) error {
		p = &page{}
		rows, err := c.Query(ctx, l.sql.tail, int64(t.after), from, limit, int64(readBytes))
		if err != nil {
			return err
		}
		var seq *int64
		var r pageRow
		_, err = pgx.ForEachRow(rows, []any{
			&p.head, &p.newest, &p.epoch, &p.floor, &p.previous, &seq, &r.header, &r.key, &r.value, &r.batch,
		}, func() error {
			if seq != nil {
				r.seq = *seq
				p.rows = append(p.rows, r)
			}
			return nil
		})
		return err
	})
	return p, err
}

// tail is one call of Tail: it puts batches together from pages of rows.
type tail struct {
	after eventlog.Position
	limit int
	given place // when the call began
	epoch int64 // 0 before Load

	position eventlog.Position // of the newest batch
	next     int64             // seq; 0 at first
	count    int               // records
	bytes    int
	batches  []eventlog.Batch
	complete bool
	newest   int64 // seq, of the page
}

// check looks at the state of the log that p was read from.
func (t *tail) check(p *page) error {
	t.newest = p.newest
	previous := p.previous
	if t.after != t.given.position {
		previous = nil
	}
	if cause := otherPast(t.given, previous, t.epoch, p.epoch); cause != nil {
		return &lostError{cause}
	}
	if t.next == 0 && t.after >= p.head {
		t.complete = true
		return nil
	}
	first := t.next
	if first == 0 && len(p.rows) > 0 {
		first = p.rows[0].seq
	}
	switch {
	case first > 0 && first <= p.floor, first == 0 && p.floor > 0:
		return fmt.Errorf("%w: records up to %d are deleted, position %d is not complete", eventlog.ErrCompacted, p.floor, t.position+1)
	case len(p.rows) == 0:
		return fmt.Errorf("%w: nothing follows position %d although the head is at %d", eventlog.ErrCorrupt, t.position, p.head)
	}
	t.next = first
	return nil
}

// lostError says how check has found that the database has lost batches.
type lostError struct{ cause error }

func (e *lostError) Error() string { return e.cause.Error() }

// row takes one row.
func (t *tail) row(row *pageRow) error {
	if t.complete {
		return nil
	}
	r, h, err := decodeRow(row.seq, row.header, row.key)
	if err != nil {
		return err
	}
	starts := row.batch != nil
	if starts && len(t.batches) > 0 && (t.count >= t.limit || t.bytes >= readBytes) {
		t.complete = true
		return nil
	}
	if starts {
		t.position++
	}
	if r.Seq != t.next || r.Position != t.position || !starts && len(t.batches) == 0 {
		return fmt.Errorf("%w: record %d of position %d where %d of position %d belongs",
			eventlog.ErrCorrupt, r.Seq, r.Position, t.next, t.position)
	}
	if err := takeValue(r, h, row.value); err != nil {
		return err
	}
	if starts {
		b := eventlog.Batch{Base: t.position - 1}
		copy(b.ID[:], row.batch)
		if !bytes.Equal(row.batch, eventlog.EncodeBatchID(r.Seq, b.ID)) {
			return fmt.Errorf("%w: checksum of the batch id of position %d does not match", eventlog.ErrCorrupt, t.position)
		}
		t.batches = append(t.batches, b)
	}
	b := &t.batches[len(t.batches)-1]
	b.Records = append(b.Records, *r)
	t.next++
	t.count++
	t.bytes += len(r.Key) + len(r.Value)
	t.complete = r.Seq == t.newest
	return nil
}

// Values implements eventlog.Log.
func (l *Log) Values(ctx context.Context, seqs []int64) ([][]byte, error) {
	if err := l.reader(ctx); err != nil {
		return nil, err
	}
	defer func() { <-l.readers }()
	values := make(map[int64][]byte, len(seqs)) // nil for what is not a put
	todo := slices.Clone(seqs)
	slices.Sort(todo)
	for todo = slices.Compact(todo); len(todo) > 0; {
		n, err := l.fetch(ctx, todo[:min(len(todo), valuesRows)], values)
		if err != nil {
			return nil, err
		}
		todo = todo[n:]
	}
	result, taken := make([][]byte, len(seqs)), make(map[int64]bool, len(seqs))
	for i, seq := range seqs {
		if result[i] = values[seq]; taken[seq] {
			result[i] = bytes.Clone(result[i])
		}
		taken[seq] = true
	}
	return result, nil
}

// fetch reads values of seqs, which are in order, and returns how many of
// them: all, or fewer if they are large.
func (l *Log) fetch(ctx context.Context, seqs []int64, values map[int64][]byte) (int, error) {
	n, size := 0, 0
	l.mu.Lock()
	given, known := l.given, l.epoch
	l.mu.Unlock()
	var epoch int64
	var previous []byte
	err := l.try(ctx, func(ctx context.Context, c *pgx.Conn) error {
		n, size = 0, 0
		rows, err := c.Query(ctx, l.sql.values, seqs, int64(readBytes), int64(given.position))
		if err != nil {
			return err
		}
		var row pageRow
		_, err = pgx.ForEachRow(rows, []any{&row.seq, &row.header, &row.key, &row.value, &epoch, &previous}, func() error {
			if n == len(seqs) || row.seq != seqs[n] {
				return errGap
			}
			r, h, err := decodeRow(row.seq, row.header, row.key)
			if err == nil {
				err = takeValue(r, h, row.value)
			}
			if err != nil {
				return err
			}
			values[r.Seq] = r.Value
			n++
			size += len(r.Value)
			return nil
		})
		if err == nil && n < len(seqs) && size < readBytes {
			err = errGap
		}
		if errors.Is(err, errGap) {
			return l.missing(ctx, seqs[n])
		}
		return err
	})
	if epoch != 0 { // else there were no rows
		// In another past a record may be another key's.
		if cause := otherPast(given, previous, known, epoch); cause != nil {
			return 0, l.lost(cause)
		}
	}
	return n, err
}

// otherPast returns what is wrong with a log of that epoch whose batch at the
// place given has the id previous, which is nil if the batch is deleted. known
// is 0 before Load.
func otherPast(given place, previous []byte, known, epoch int64) error {
	switch {
	case known != 0 && epoch != known:
		return errEpoch
	case given.position > 0 && len(previous) > 0 && !bytes.HasPrefix(previous, given.id[:]):
		return fmt.Errorf("position %d has another batch", given.position)
	}
	return nil
}

// errGap: a record that was asked for is not there.
var errGap = errors.New("a record is missing")

// missing says why record seq was not found: above the floor nothing is ever
// deleted, so that only damage can hide it.
func (l *Log) missing(ctx context.Context, seq int64) error {
	var floor, newest int64
	var found int
	err := l.try(ctx, func(ctx context.Context, c *pgx.Conn) error {
		return c.QueryRow(ctx, l.sql.missing, []int64{seq}).Scan(&floor, &newest, &found)
	})
	if err != nil {
		return err
	}
	if seq > floor && seq <= newest && found == 0 {
		return fmt.Errorf("%w: record %d is not found, and was not deleted", eventlog.ErrCorrupt, seq)
	}
	return fmt.Errorf("%w: record %d is not there", eventlog.ErrCompacted, seq)
}
