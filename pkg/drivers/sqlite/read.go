package sqlite

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	selectFrom  = "SELECT seq, header, key, value, batch FROM log WHERE seq >= ? ORDER BY seq"
	selectFirst = "SELECT seq, header, key FROM log WHERE seq >= ? ORDER BY seq LIMIT 1"
	selectValue = "SELECT seq, header, key, value FROM log WHERE seq = ?"

	// readBytes bounds what is read in one transaction, so that no read
	// holds the checkpoints up for long.
	readBytes = 16 << 20
)

// valuesGroup seqs are asked for at once, which halves the time for each.
const valuesGroup = 64

var selectValues = "SELECT seq, header, key, value FROM log WHERE seq IN (?" + strings.Repeat(",?", valuesGroup-1) + ") ORDER BY seq"

// errEnough ends a query early.
var errEnough = errors.New("enough")

// read runs fn in a read transaction: one state of the database, from which
// the checkpoints are held up meanwhile.
func (l *Log) read(ctx context.Context, fn func(*conn) error) error {
	c, err := l.reader(ctx)
	if err != nil {
		return err
	}
	defer func() { l.readers <- c }()
	if err := c.exec("BEGIN"); err != nil {
		return l.fail(err)
	}
	err = fn(c)
	if endErr := c.exec("COMMIT"); endErr != nil {
		err = errors.Join(err, endErr)
	}
	// A damaged record is its reader's business: others may still be read. A
	// disk that does not answer is everybody's.
	if err = l.blame(err); errors.Is(err, eventlog.ErrFailed) {
		l.stop(err)
	}
	return err
}

// Tail implements eventlog.Log. It ends early, at a batch, once it has read
// some megabytes.
func (l *Log) Tail(ctx context.Context, after eventlog.Position, limit int) ([]eventlog.Batch, error) {
	if err := errors.Join(l.check(), ctx.Err()); err != nil {
		return nil, err
	}
	after = max(after, 0)
	head := l.head.Load()
	if int64(after) >= head {
		return nil, nil
	}
	var batches []eventlog.Batch
	err := l.read(ctx, func(c *conn) error {
		known, err := readKept(c)
		if err != nil {
			return err
		}
		first, err := firstAfter(c, after)
		if err != nil {
			return err
		}
		t := tail{next: first, position: after, floor: known.floor, limit: limit}
		if err := c.query(t.row, selectFrom, first); err != nil && !errors.Is(err, errEnough) {
			return err
		}
		if len(t.batches) == 0 {
			return fmt.Errorf("%w: nothing follows position %d although the head is at %d", eventlog.ErrCorrupt, after, head)
		}
		batches = t.batches
		return nil
	})
	return batches, err
}

// firstAfter returns the lowest seq that is left of a position after after.
// Positions do not fall as seqs rise, so it searches in halves. There is one:
// the newest record is never deleted.
func firstAfter(c *conn, after eventlog.Position) (int64, error) {
	if after <= 0 {
		return c.int("SELECT min(seq) FROM log")
	}
	newest, err := c.int("SELECT max(seq) FROM log")
	if err != nil {
		return 0, err
	}
	low, high := int64(1), newest // the answer is in [low, high]
	for low < high {
		middle := low + (high-low)/2
		var found *eventlog.Record
		err := c.query(func(r row) error {
			found, _, err = decodeRow(r[0], r[1], r[2])
			return err
		}, selectFirst, middle)
		if err != nil {
			return 0, err
		}
		switch {
		case found == nil:
			return 0, fmt.Errorf("%w: no record from %d on, where %d should be", eventlog.ErrCorrupt, middle, newest)
		case found.Position > after:
			high = middle
		default:
			low = found.Seq + 1
		}
	}
	return c.int("SELECT min(seq) FROM log WHERE seq >= ?", low)
}

// tail puts batches together from rows in order of seq.
type tail struct {
	next     int64             // seq
	position eventlog.Position // of the newest batch
	floor    int64             // seqs up to here may be deleted
	limit    int
	count    int // records
	bytes    int
	batches  []eventlog.Batch
}

// row takes one row of selectFrom.
func (t *tail) row(row row) error {
	r, h, err := decodeRow(row[0], row[1], row[2])
	if err != nil {
		return err
	}
	id, starts := row[4].([]byte)
	if starts && len(t.batches) > 0 && (t.count >= t.limit || t.bytes >= readBytes) {
		return errEnough
	}
	if len(t.batches) == 0 && (r.Seq <= t.floor || !starts || r.Position != t.position+1) {
		if r.Seq > t.floor+1 {
			return fmt.Errorf("%w: position %d begins with record %d, which is not its first", eventlog.ErrCorrupt, t.position+1, r.Seq)
		}
		return fmt.Errorf("%w: records up to %d are deleted, position %d is not complete", eventlog.ErrCompacted, t.floor, t.position+1)
	}
	if starts {
		t.position++
	}
	if r.Seq != t.next || r.Position != t.position {
		return fmt.Errorf("%w: record %d of position %d where %d of position %d belongs",
			eventlog.ErrCorrupt, r.Seq, r.Position, t.next, t.position)
	}
	if r.Value, err = takeValue(r, h, row[3]); err != nil {
		return err
	}
	if starts {
		b := eventlog.Batch{Base: t.position - 1}
		copy(b.ID[:], id)
		if !bytes.Equal(id, eventlog.EncodeBatchID(r.Seq, b.ID)) {
			return fmt.Errorf("%w: checksum of the batch id of position %d does not match", eventlog.ErrCorrupt, t.position)
		}
		t.batches = append(t.batches, b)
	}
	b := &t.batches[len(t.batches)-1]
	b.Records = append(b.Records, *r)
	t.next++
	t.count++
	t.bytes += len(r.Key) + len(r.Value)
	return nil
}

// takeValue verifies the value column of r.
func takeValue(r *eventlog.Record, h eventlog.Header, column any) ([]byte, error) {
	value, ok := column.([]byte)
	if ok != (r.Kind == eventlog.KindPut) {
		return nil, fmt.Errorf("%w: %v record %d has a value where it must not, or none", eventlog.ErrCorrupt, r.Kind, r.Seq)
	}
	if err := h.VerifyValue(value); err != nil {
		return nil, fmt.Errorf("record %d: %w", r.Seq, err)
	}
	if ok && value == nil {
		value = []byte{}
	}
	return value, nil
}

// Values implements eventlog.Log.
func (l *Log) Values(ctx context.Context, seqs []int64) ([][]byte, error) {
	if err := errors.Join(l.check(), ctx.Err()); err != nil {
		return nil, err
	}
	// In order of seq, neighbours are found on the same page.
	order := make([]int, len(seqs))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int { return cmp.Compare(seqs[i], seqs[j]) })
	f := fetch{seqs: seqs, order: order, values: make([][]byte, len(seqs))}
	for len(f.order) > 0 {
		err := l.read(ctx, func(c *conn) error {
			for f.bytes = 0; len(f.order) > 0 && f.bytes < readBytes; {
				if err := f.next(c); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return f.values, nil
}

// fetch is one call of Values.
type fetch struct {
	seqs   []int64
	order  []int // indexes of seqs that remain, in order of seq
	values [][]byte
	bytes  int // in this transaction
	args   [valuesGroup]any
}

// next runs one query, for one seq or a group of them.
func (f *fetch) next(c *conn) error {
	sql, n := selectValue, 1
	if len(f.order) >= valuesGroup/4 {
		sql, n = selectValues, valuesGroup
	}
	for i := range n { // a short group repeats its last seq
		f.args[i] = f.seqs[f.order[min(i, len(f.order)-1)]]
	}
	end := len(f.order) - min(n, len(f.order)) // what remains after this group
	err := c.query(func(row row) error {
		r, h, err := decodeRow(row[0], row[1], row[2])
		if err != nil {
			return err
		}
		value, err := takeValue(r, h, row[3])
		if err != nil {
			return err
		}
		if f.seqs[f.order[0]] != r.Seq {
			return errEnough // that one is missing
		}
		f.bytes += len(value)
		f.values[f.order[0]] = value
		for f.order = f.order[1:]; len(f.order) > end && f.seqs[f.order[0]] == r.Seq; f.order = f.order[1:] {
			f.values[f.order[0]] = bytes.Clone(value) // asked for again
		}
		return nil
	}, sql, f.args[:n]...)
	if errors.Is(err, errEnough) || err == nil && len(f.order) > end {
		err = missing(c, f.seqs[f.order[0]])
	}
	return err
}

// missing says why record seq was not found: above the floor nothing is ever
// deleted, so that only damage, such as to an inner page, can hide it.
func missing(c *conn, seq int64) error {
	known, err := readKept(c)
	if err != nil {
		return err
	}
	newest, err := c.int("SELECT max(seq) FROM log")
	if err != nil {
		return err
	}
	if seq > known.floor && seq <= newest {
		return fmt.Errorf("%w: record %d is not found, and was not deleted", eventlog.ErrCorrupt, seq)
	}
	return fmt.Errorf("%w: record %d is not there", eventlog.ErrCompacted, seq)
}
