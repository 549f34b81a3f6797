package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	selectStored = `SELECT seq, position, revision, header, key, batch, value FROM keelson.log
		WHERE seq >= $1 ORDER BY seq LIMIT $2`
	// setIndexOnly lets rows be read one by one in the order of the index: a
	// page that cannot be read then costs no more than its rows. Without an index
	// that would look so dear to the planner that it compiles the query.
	setIndexOnly = `SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
		set_config('enable_sort', 'off', true), set_config('jit', 'off', true)`

	selectNewest = "SELECT coalesce(max(seq), 0) FROM keelson.log"
)

// Stored is a row as it is, whatever that is. A nil slice is NULL.
type Stored struct {
	Seq, Position, Revision   int64
	Header, Key, Batch, Value []byte
}

// Bytes is what the row counts for in Counters.
func (s *Stored) Bytes() int64 {
	return int64(rowOverhead + len(s.Header) + len(s.Key) + len(s.Value))
}

// Counters are the rows of head and kept.
type Counters struct {
	Position, Seq, Revision int64
	Batch                   []byte
	Epoch, Fence            int64
	Appended                int64 // bytes
	Floor, Deleted, Freed   int64
}

// Inspector shows what is in a schema, right or wrong, to those who look for
// damage: one state of it, beside instances that run. It changes nothing, and
// is used by one goroutine.
type Inspector struct {
	set  *settings
	conn *pgx.Conn
	tx   pgx.Tx
}

// Inspect begins. The errors are ErrURL, ErrNewer, ErrNoSchema or the
// database's.
func Inspect(ctx context.Context, url string) (*Inspector, error) {
	set, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	config := set.pool.ConnConfig
	config.ValidateConnect = nil // a standby will do
	in := &Inspector{set: set}
	if in.conn, err = pgx.ConnectConfig(ctx, config); err != nil {
		return nil, fmt.Errorf("inspect %s: %w", set, err)
	}
	if err := in.begin(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("inspect %s: %w", set, err), in.Close())
	}
	return in, nil
}

func (in *Inspector) begin(ctx context.Context) (err error) {
	in.tx, err = in.conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return err
	}
	if !isCockroach(in.conn) {
		if _, err := in.tx.Exec(ctx, setIndexOnly); err != nil {
			return err
		}
	}
	version, err := (&Log{set: in.set}).version(ctx, in.tx)
	if err != nil {
		return err
	}
	if version <= 0 {
		return ErrNoSchema
	}
	return nil
}

// Newest returns the seq of the last row; 0 if there is none.
func (in *Inspector) Newest(ctx context.Context) (newest int64, err error) {
	err = in.try(ctx, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, inSchema(selectNewest, in.set.schema)).Scan(&newest)
	})
	return newest, err
}

// Counters returns the rows of head and kept; it is pgx.ErrNoRows if one of
// them is missing.
func (in *Inspector) Counters(ctx context.Context) (c Counters, err error) {
	err = in.try(ctx, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, inSchema(selectState, in.set.schema)).Scan(&c.Position, &c.Seq, &c.Revision, &c.Batch, &c.Epoch, &c.Fence,
			&c.Appended, &c.Floor, &c.Deleted, &c.Freed)
	})
	return c, err
}

// Rows calls fn with up to limit rows, in order, from seq on. An error that
// Damage knows may come after some of them.
func (in *Inspector) Rows(ctx context.Context, from int64, limit int, fn func(*Stored) error) error {
	return in.try(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, inSchema(selectStored, in.set.schema), from, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var s Stored
			if err := rows.Scan(&s.Seq, &s.Position, &s.Revision, &s.Header, &s.Key, &s.Batch, &s.Value); err != nil {
				return err
			}
			if err := fn(&s); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

// try runs fn in a savepoint, so that its error does not end the transaction.
func (in *Inspector) try(ctx context.Context, fn func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, in.tx, fn)
}

// Damage reports whether err says that the database could not read what it has
// stored.
func Damage(err error) bool {
	e := serverError(err)
	return e != nil && strings.HasPrefix(e.Code, classDamage) || errors.Is(err, eventlog.ErrCorrupt)
}

// Close ends the transaction.
func (in *Inspector) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), pingTimeout)
	defer cancel()
	return in.conn.Close(ctx)
}
