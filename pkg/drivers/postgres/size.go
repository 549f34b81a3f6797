package postgres

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	// selectSize adds up the log with its TOAST table and their indexes, but
	// for the maps of free space, which VACUUM makes.
	selectSize = `WITH tables AS (
			SELECT oid FROM pg_class WHERE oid = 'keelson.log'::regclass
			UNION ALL SELECT reltoastrelid FROM pg_class WHERE oid = 'keelson.log'::regclass AND reltoastrelid <> 0
		), files AS (
			SELECT oid FROM tables
			UNION ALL SELECT indexrelid FROM pg_index WHERE indrelid IN (SELECT oid FROM tables)
		)
		SELECT coalesce(sum(pg_relation_size(oid)), 0)::bigint FROM files`

	// measureAfter is how old a measured size may become.
	measureAfter = time.Second
)

// size is what is known of the space taken. The bytes in use are counted by
// the database, with every batch and deletion of any instance; what the files
// take is measured now and then.
type size struct {
	appended, freed atomic.Int64
	total           atomic.Int64
	measured        atomic.Int64 // when, in Unix nanoseconds; 0: never
	measuring       atomic.Bool
}

// Size implements eventlog.Log.
func (l *Log) Size() eventlog.Size {
	s := &l.size
	switch at := s.measured.Load(); {
	case l.check() != nil:
	case at == 0:
		s.measured.Store(time.Now().UnixNano()) // also if it fails
		_ = l.measure(context.Background())     // the next one may succeed
	case time.Since(time.Unix(0, at)) > measureAfter && s.measuring.CompareAndSwap(false, true):
		l.spawn(func() {
			defer s.measuring.Store(false)
			s.measured.Store(time.Now().UnixNano())
			_ = l.measure(context.Background())
		})
	}
	inUse := max(0, s.appended.Load()-s.freed.Load())
	return eventlog.Size{Total: max(s.total.Load(), inUse), InUse: inUse}
}

// measure asks the database how much room the log takes.
func (l *Log) measure(ctx context.Context) error {
	var total int64
	if err := l.try(ctx, func(ctx context.Context, c *pgx.Conn) error {
		return c.QueryRow(ctx, l.sql.size).Scan(&total)
	}); err != nil {
		return err
	}
	l.size.total.Store(total)
	l.size.measured.Store(time.Now().UnixNano())
	return nil
}
