package sqlite

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// CheckPages makes sure that the file's pages are as keelson makes them: others
// are read through SQLite only, and not copied to other nodes. The error is
// ErrForeign, and says what to do.
func (l *Log) CheckPages() error {
	var header [100]byte
	if _, err := l.probe.ReadAt(header[:], 0); err != nil {
		return err
	}
	// Offsets 16 and 20 of SQLite's file format.
	size, reserved := int(binary.BigEndian.Uint16(header[16:])), header[20]
	if size == 1 { // which would not fit
		size = 1 << 16
	}
	if size == pageSize && reserved == 0 {
		return nil
	}
	return fmt.Errorf(`%w: somebody has changed its pages, which have %d bytes, %d of them reserved, and not %d, so that it cannot be copied to other nodes: stop keelson and make them anew with "sqlite3 %s '.filectrl reserve_bytes 0' 'PRAGMA journal_mode=DELETE' 'PRAGMA page_size=%d' VACUUM 'PRAGMA journal_mode=WAL'"`,
		ErrForeign, size, reserved, pageSize, l.path, pageSize)
}

// tree returns table log as it is in the file, or nil if the WAL has more, or if
// the file is one that only SQLite can read. The caller holds the token for as
// long as it uses it.
func (l *Log) tree() (*tree, error) { return l.markedTree(nil) }

// markedTree is tree, with used for the tree's.
func (l *Log) markedTree(used *pageMarks) (*tree, error) {
	if err := l.CheckPages(); errors.Is(err, ErrForeign) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	wal, err := l.writer.ints("PRAGMA wal_checkpoint(NOOP)") // busy, frames, copied
	if err != nil || wal[1] != wal[2] {
		return nil, err
	}
	root, err := l.writer.int("SELECT rootpage FROM sqlite_schema WHERE name = 'log'")
	if err != nil {
		return nil, err
	}
	return openMarked(l.probe, root, used)
}

// treeRange returns a rangeReader of what row makes of the rows of t.
func (l *Log) treeRange(t *tree, row func(*Stored) (eventlog.Record, error)) rangeReader {
	return func(ctx context.Context, from, to int64) ([]*eventlog.Record, error) {
		if err := errors.Join(l.check(), ctx.Err()); err != nil {
			return nil, err
		}
		var records []*eventlog.Record
		var some []eventlog.Record // allocated together
		err := t.rows(from, to, func(s *Stored) error {
			r, err := row(s)
			if err != nil {
				return err
			}
			if len(some) == cap(some) {
				some = make([]eventlog.Record, 0, 256)
			}
			some = append(some, r)
			records = append(records, &some[len(some)-1])
			return nil
		})
		if errors.Is(err, fs.ErrClosed) {
			err = eventlog.ErrClosed
		}
		return records, err
	}
}

// loadRow returns the record without its value, which is not looked at.
func loadRow(s *Stored) (eventlog.Record, error) {
	r := eventlog.Record{Seq: s.Seq, Key: bytes.Clone(s.Key)}
	h, err := eventlog.DecodeHeader(s.Header, &r)
	r.ValueBytes = h.ValueBytes()
	return r, err
}

// verify is Load that verifies everything in a log that was just opened.
func (l *Log) verify(ctx context.Context) (eventlog.Head, error) {
	if err := l.acquire(ctx); err != nil {
		return eventlog.Head{}, err
	}
	defer l.release()
	pages, err := l.writer.int("PRAGMA page_count")
	if err != nil {
		return eventlog.Head{}, err
	}
	used := newPageMarks(pages)
	t, err := l.markedTree(used)
	if err == nil && t == nil {
		err = errors.New("somebody else reads the database, or has changed its pages")
	}
	if err != nil {
		return eventlog.Head{}, err
	}
	ld, err := l.loadAll(ctx, l.treeRange(t, verifyRow), func(*eventlog.Record) error { return nil })
	if err != nil {
		return eventlog.Head{}, err
	}
	return ld.head, verifyFree(l.probe, used)
}

// verifyRow verifies each column, and returns the record without key and value.
func verifyRow(s *Stored) (eventlog.Record, error) {
	r := eventlog.Record{Seq: s.Seq, Key: s.Key}
	h, err := eventlog.DecodeHeader(s.Header, &r)
	r.Key = nil
	if err != nil {
		return r, err
	}
	if put := r.Kind == eventlog.KindPut; put != (s.Value != nil) {
		return r, fmt.Errorf("%w: %v record %d has a value where it must not, or none", eventlog.ErrCorrupt, r.Kind, r.Seq)
	}
	if err := h.VerifyValue(s.Value); err != nil {
		return r, fmt.Errorf("record %d: %w", r.Seq, err)
	}
	if s.Revision != r.Revision.Main {
		return r, fmt.Errorf("%w: record %d has the revision %d beside the %d of its header", eventlog.ErrCorrupt, r.Seq, s.Revision, r.Revision.Main)
	}
	if s.Batch != nil {
		var id eventlog.BatchID
		copy(id[:], s.Batch)
		if !bytes.Equal(s.Batch, eventlog.EncodeBatchID(r.Seq, id)) {
			return r, fmt.Errorf("%w: checksum of the batch id of record %d does not match", eventlog.ErrCorrupt, r.Seq)
		}
	}
	return r, nil
}
