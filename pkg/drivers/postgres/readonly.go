package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// ErrReadOnly: a ReadOnly does not do that.
var ErrReadOnly = errors.New("postgres: the log was opened to be read only")

// ReadOnly is the log of a schema as it was when it was opened, beside instances
// that run: to be loaded and scanned. It changes nothing, so that a role that may
// only SELECT and a standby do. It is used by one goroutine.
type ReadOnly struct {
	in   *Inspector
	log  *Log // not open: it has what reading takes
	head eventlog.Position
}

var _ eventlog.Log = (*ReadOnly)(nil)

// OpenReadOnly begins. The errors are those of Inspect.
func OpenReadOnly(ctx context.Context, url string) (*ReadOnly, error) {
	in, err := Inspect(ctx, url)
	if err != nil {
		return nil, err
	}
	if _, err := in.tx.Exec(ctx, setPatience); err != nil {
		return nil, errors.Join(fmt.Errorf("read %s: %w", in.set, err), in.Close())
	}
	l := &Log{set: in.set, sql: newStatements(in.set.schema), scanning: make(chan struct{}, 1)}
	return &ReadOnly{in: in, log: l}, nil
}

// Load implements eventlog.Log.
func (r *ReadOnly) Load(ctx context.Context, fn func(*eventlog.Record) error) (eventlog.Head, error) {
	var ld loader
	if err := r.log.load(ctx, r.in.tx, &ld, fn); err != nil {
		return eventlog.Head{}, fmt.Errorf("load %s: %w", r.log.set, classify(err))
	}
	r.head = ld.position
	return eventlog.Head{Position: ld.position, Seq: ld.seq, Revision: ld.revision}, nil
}

// Scan implements eventlog.Log, after Load.
func (r *ReadOnly) Scan(_ context.Context, begin func(eventlog.Position) (int64, error)) (eventlog.Scan, error) {
	through, err := begin(r.head)
	if err != nil {
		return nil, err
	}
	r.log.scanning <- struct{}{}
	return &scan{log: r.log, through: through, tx: r.in.tx}, nil
}

// Head implements eventlog.Log.
func (r *ReadOnly) Head(context.Context) (eventlog.Position, error) { return r.head, nil }

// Append refuses.
func (*ReadOnly) Append(context.Context, *eventlog.Batch) error { return ErrReadOnly }

// Tail refuses.
func (*ReadOnly) Tail(context.Context, eventlog.Position, int) ([]eventlog.Batch, error) {
	return nil, ErrReadOnly
}

// Values refuses.
func (*ReadOnly) Values(context.Context, []int64) ([][]byte, error) { return nil, ErrReadOnly }

// Compact refuses.
func (*ReadOnly) Compact(context.Context, []int64) error { return ErrReadOnly }

// Size implements eventlog.Log; it is not known.
func (*ReadOnly) Size() eventlog.Size { return eventlog.Size{} }

// Defragment refuses.
func (*ReadOnly) Defragment(context.Context) error { return ErrReadOnly }

// Close implements eventlog.Log.
func (r *ReadOnly) Close() error { return r.in.Close() }
