package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/sirupsen/logrus"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// fill is a place that waits for the value of record seq.
type fill struct {
	seq int64
	kv  *mvccpb.KeyValue
}

// valueFunc returns the values of records. Evaluation gives one without I/O,
// which fails with a needValues for what is not in memory.
type valueFunc func(seqs []int64) ([][]byte, error)

// needValues says that an evaluation cannot go on without these values.
type needValues struct{ seqs []int64 }

func (e *needValues) Error() string {
	return fmt.Sprintf("store: %d values must be read before the request can be evaluated", len(e.seqs))
}

// values reads the values of records through the cache.
type values struct {
	cache  *valueCache
	log    eventlog.Log
	logger *logrus.Entry
}

// valuesPerRead bounds one call of Log.Values.
const valuesPerRead = 1000

// fill reads the value of each of fills into place. ErrCompacted means that
// one of them has been deleted meanwhile; others may have been filled.
func (v *values) fill(ctx context.Context, fills []fill) error {
	seqs := make([]int64, len(fills))
	for i, f := range fills {
		seqs[i] = f.seq
	}
	values := make([][]byte, len(seqs))
	err := v.readInto(ctx, seqs, values)
	for i, value := range values {
		if value != nil {
			fills[i].kv.Value = value
		}
	}
	return err
}

// read returns the values of records, none of them nil.
func (v *values) read(ctx context.Context, seqs []int64) ([][]byte, error) {
	values := make([][]byte, len(seqs))
	if err := v.readInto(ctx, seqs, values); err != nil {
		return nil, err
	}
	return values, nil
}

// readInto is read for values that are nil; after an error some may still be.
func (v *values) readInto(ctx context.Context, seqs []int64, values [][]byte) error {
	missing := v.cache.getAll(seqs, values)
	for len(missing) > 0 {
		page := missing[:min(len(missing), valuesPerRead)]
		missing = missing[len(page):]
		wanted := make([]int64, len(page))
		for i, at := range page {
			wanted[i] = seqs[at]
		}
		read, err := v.log.Values(ctx, wanted)
		if isDamage(err) {
			v.logger.WithError(err).Error("a value cannot be read: its record is damaged")
		}
		if err != nil {
			return logError(err)
		}
		for i, at := range page {
			if read[i] == nil {
				read[i] = []byte{} // nil is for what was not read
			}
			values[at] = read[i]
			v.cache.put(wanted[i], read[i])
		}
	}
	return nil
}

// fillEach is fill one by one: it returns those whose record is damaged, with
// the error that says so, and fills the others.
func (v *values) fillEach(ctx context.Context, fills []fill) (map[*mvccpb.KeyValue]error, error) {
	damaged := make(map[*mvccpb.KeyValue]error)
	for _, f := range fills {
		err := v.fill(ctx, []fill{f})
		switch {
		case isDamage(err):
			damaged[f.kv] = err
		case err != nil:
			return nil, err
		}
	}
	return damaged, nil
}

// isDamage reports whether err is about records that are damaged in a log
// which otherwise goes on.
func isDamage(err error) bool {
	return errors.Is(err, eventlog.ErrCorrupt) && !errors.Is(err, eventlog.ErrFailed)
}

// logError gives an error of the log that a reader met as one of the store.
func logError(err error) error {
	switch {
	case errors.Is(err, eventlog.ErrCompacted):
		return fmt.Errorf("%w: %w", ErrCompacted, err)
	case errors.Is(err, eventlog.ErrFailed), errors.Is(err, eventlog.ErrClosed):
		return fmt.Errorf("%w: %w", ErrStopped, err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, eventlog.ErrCorrupt):
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
