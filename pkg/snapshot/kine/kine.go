package kine

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

// ErrRunning: kine, or k3s, is using the table. What it writes from here on
// would be missing.
var ErrRunning = errors.New("kine is running")

// Source is kine's data. It sees one state of it until it is closed, whatever
// is written meanwhile.
type Source struct {
	tx    *sql.Tx
	state snapshot.State

	// newest has the revision of each key's newest version at or below the
	// compact revision, the only one of those that counts.
	newest map[string]int64

	check   func() error   // at the end of a reading: whether the data is still what was opened
	release []func() error // in the order of opening
}

var _ snapshot.Source = (*Source)(nil)

// State returns what there is beside the versions of keys.
func (s *Source) State() snapshot.State { return s.state }

// Close ends the transaction and removes what was copied.
func (s *Source) Close() error {
	err := closeAll(s.release)
	s.release = nil
	return err
}

// closeAll calls what releases, last things first.
func closeAll(release []func() error) error {
	var errs []error
	for _, f := range slices.Backward(release) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// The statements are the same for all databases. One row comes after the
// other: none of the drivers reads ahead more than a buffer.
const (
	selectNothing = `SELECT * FROM kine WHERE 1 = 0`
	selectCompact = `SELECT MAX(prev_revision) FROM kine WHERE name = 'compact_rev_key'`
	selectNames   = `SELECT id, name, created, deleted, create_revision, prev_revision, lease, LENGTH(value) FROM kine ORDER BY id`
	selectRows    = `SELECT id, name, created, deleted, create_revision, prev_revision, lease, value FROM kine ORDER BY id`
)

// columns are those of kine's table in every release that there has been.
var columns = []string{"id", "name", "created", "deleted", "create_revision", "prev_revision", "lease", "value", "old_value"}

// load checks the table and reads what State returns.
func (s *Source) load(ctx context.Context) error {
	if err := s.checkTable(ctx); err != nil {
		return err
	}
	var compacted sql.NullInt64
	if err := s.tx.QueryRowContext(ctx, selectCompact).Scan(&compacted); err != nil {
		return fmt.Errorf("read the compact revision: %w", err)
	}
	s.state = snapshot.State{Revision: max(compacted.Int64, 1), Compacted: compacted.Int64}
	s.newest = make(map[string]int64)
	leases := make(map[string]int64) // of the newest version of each key
	var size sql.NullInt64
	kine := false
	r := row{}
	err := s.scan(ctx, selectNames, &r, &size, func() error {
		kine = kine || string(r.name) == compactKey
		// What compaction took is not above its revision, so that this is the
		// newest revision even if its row is gone.
		s.state.Revision = max(s.state.Revision, r.id)
		if r.internal() {
			return nil
		}
		switch {
		case r.id > s.state.Compacted:
			s.state.Records++
		case r.deleted:
			delete(s.newest, string(r.name))
		default:
			s.newest[string(r.name)] = r.id
		}
		s.state.Bytes += int64(len(r.name)) + size.Int64
		if r.deleted || r.lease <= 0 {
			delete(leases, string(r.name))
		} else {
			leases[string(r.name)] = r.lease
		}
		return nil
	})
	if err != nil {
		return err
	}
	if !kine {
		return fmt.Errorf("%w: kine has never run on its table kine: the row compact_rev_key is missing", snapshot.ErrInvalid)
	}
	s.state.Records += int64(len(s.newest))
	for _, id := range slices.Compact(slices.Sorted(maps.Values(leases))) {
		s.state.Leases = append(s.state.Leases, snapshot.Lease{ID: id, TTL: min(id, snapshot.MaxTTL)})
	}
	return nil
}

// checkTable refuses what is not the table of a kine that is known here.
func (s *Source) checkTable(ctx context.Context) error {
	rows, err := s.tx.QueryContext(ctx, selectNothing)
	if err != nil {
		return fmt.Errorf("%w: no table kine can be read: %w", snapshot.ErrInvalid, err)
	}
	defer func() { _ = rows.Close() }() // there are none
	found, err := rows.Columns()
	if err != nil {
		return err
	}
	var missing, unknown []string
	for _, name := range columns {
		if !slices.Contains(found, name) {
			missing = append(missing, name)
		}
	}
	for _, name := range found {
		if !slices.Contains(columns, name) {
			unknown = append(unknown, name)
		}
	}
	switch {
	case len(missing) > 0:
		return fmt.Errorf("%w: the table kine is not one of kine's: it has no %s", snapshot.ErrInvalid, strings.Join(missing, ", "))
	case len(unknown) > 0:
		return fmt.Errorf("%w: the table kine is of a release of kine that is too new: keelson does not know its %s",
			snapshot.ErrInvalid, strings.Join(unknown, ", "))
	}
	return rows.Err()
}

// scan reads the rows of a statement: into r what all have, and into last the
// last column.
func (s *Source) scan(ctx context.Context, statement string, r *row, last any, fn func() error) error {
	rows, err := s.tx.QueryContext(ctx, statement)
	if err != nil {
		return fmt.Errorf("read the table kine: %w", err)
	}
	defer func() { _ = rows.Close() }() // rows.Err has it
	var created, deleted, create, previous, lease sql.NullInt64
	var before int64
	for rows.Next() {
		var name sql.RawBytes
		if err := rows.Scan(&r.id, &name, &created, &deleted, &create, &previous, &lease, last); err != nil {
			return fmt.Errorf("%w: the row after id %d of the table kine: %w", snapshot.ErrInvalid, before, err)
		}
		r.name = append(r.name[:0], name...)
		r.created, r.deleted = created.Int64 != 0, deleted.Int64 != 0
		r.create, r.previous, r.lease = create.Int64, previous.Int64, lease.Int64
		switch {
		case r.id <= before:
			return fmt.Errorf("%w: id %d follows %d in the table kine", snapshot.ErrInvalid, r.id, before)
		case len(r.name) == 0:
			return fmt.Errorf("%w: the row with id %d of the table kine has no name", snapshot.ErrInvalid, r.id)
		}
		before = r.id
		if err := fn(); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read the table kine after id %d: %w", before, err)
	}
	return nil
}

// Records calls fn with every version of every key, as [snapshot.Source] says.
func (s *Source) Records(ctx context.Context, fn func(*eventlog.Record) error) error {
	h := newHistory()
	var value sql.RawBytes
	r := row{}
	err := s.scan(ctx, selectRows, &r, &value, func() error {
		if r.internal() || r.id <= s.state.Compacted && s.newest[string(r.name)] != r.id {
			return nil
		}
		r.value = value
		record := h.next(&r)
		if record == nil {
			return nil
		}
		return fn(record)
	})
	if err == nil && s.check != nil {
		err = s.check()
	}
	return err
}
