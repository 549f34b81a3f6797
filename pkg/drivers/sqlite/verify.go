package sqlite

import (
	"bytes"
	"context"
	"fmt"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// verify is Load that verifies everything in a log that was opened and that
// nobody else has, so that the file is all of it.
func (l *Log) verify(ctx context.Context) (eventlog.Head, error) {
	var root int64
	err := l.read(ctx, func(c *conn) (err error) {
		root, err = c.int("SELECT rootpage FROM sqlite_schema WHERE name = 'log'")
		return err
	})
	if err != nil {
		return eventlog.Head{}, err
	}
	t, err := openTree(l.probe, root)
	if err != nil {
		return eventlog.Head{}, err
	}
	return l.load(ctx, t.verifyRange, func(*eventlog.Record) error { return nil })
}

// verifyRange is a rangeReader. The records have no keys.
func (t *tree) verifyRange(ctx context.Context, from, to int64) ([]*eventlog.Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var records []*eventlog.Record
	err := t.rows(from, to, func(s *Stored) error {
		r, err := s.verify()
		if err != nil {
			return err
		}
		r.Key = nil
		records = append(records, r)
		return nil
	})
	return records, err
}

// verify verifies each column, and returns the record without its value.
func (s *Stored) verify() (*eventlog.Record, error) {
	r := &eventlog.Record{Seq: s.Seq, Key: s.Key}
	h, err := eventlog.DecodeHeader(s.Header, r)
	if err != nil {
		return nil, err
	}
	if put := r.Kind == eventlog.KindPut; put != (s.Value != nil) {
		return nil, fmt.Errorf("%w: %v record %d has a value where it must not, or none", eventlog.ErrCorrupt, r.Kind, r.Seq)
	}
	if err := h.VerifyValue(s.Value); err != nil {
		return nil, fmt.Errorf("record %d: %w", r.Seq, err)
	}
	if s.Revision != r.Revision.Main {
		return nil, fmt.Errorf("%w: record %d has the revision %d beside the %d of its header", eventlog.ErrCorrupt, r.Seq, s.Revision, r.Revision.Main)
	}
	if s.Batch != nil {
		var id eventlog.BatchID
		copy(id[:], s.Batch)
		if !bytes.Equal(s.Batch, eventlog.EncodeBatchID(r.Seq, id)) {
			return nil, fmt.Errorf("%w: checksum of the batch id of record %d does not match", eventlog.ErrCorrupt, r.Seq)
		}
	}
	return r, nil
}
