package sqlite

import (
	"context"
	"runtime"
	"time"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite/internal/cursor"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

const selectScan = "SELECT seq, header, key, value FROM log WHERE seq >= ? AND seq <= ? ORDER BY seq"

// scan is an eventlog.Scan. Compact pauses as long as there is one.
type scan struct {
	log     *Log
	through int64 // seq
	closed  bool
}

// Scan implements eventlog.Log.
func (l *Log) Scan(ctx context.Context, begin func(eventlog.Position) (int64, error)) (eventlog.Scan, error) {
	if err := l.share(ctx); err != nil {
		return nil, err
	}
	through, err := begin(eventlog.Position(l.head.Load()))
	if err != nil {
		l.unshare()
		return nil, err
	}
	return &scan{log: l, through: through}, nil
}

// maxHeld is how long Scans may hold up one Compact or Defragment altogether: then
// new ones wait for its end.
const maxHeld = 10 * time.Minute

// share keeps anything from being deleted until unshare: a Compact under way
// pauses. Only after maxHeld it waits for that.
func (l *Log) share(ctx context.Context) error {
	for {
		if err := l.acquire(ctx); err != nil {
			return err
		}
		turn := l.held.Load() < int64(maxHeld)
		if turn {
			l.scans.Add(1)
		}
		l.release()
		if turn {
			return nil
		}
		if err := l.pause(ctx); err != nil {
			return err
		}
	}
}

func (l *Log) unshare() { l.scans.Add(-1) }

// Records implements eventlog.Scan.
func (s *scan) Records(ctx context.Context, fn func([]eventlog.Record) error) error {
	if s.closed {
		return eventlog.ErrClosed
	}
	return eventlog.EachPage(ctx, s.through, s.page, s.ahead, fn)
}

// ahead reports whether a page may be read while another one is used: two
// processors busy with a scan would be all that a small machine has.
func (s *scan) ahead() bool {
	quiet := time.Since(time.Unix(0, s.log.lastCommit.Load())) > quietTime
	return quiet || runtime.GOMAXPROCS(0) > 2
}

// page fills p with the records from seq from on, in a transaction of its own.
func (s *scan) page(ctx context.Context, p *eventlog.Page, from int64) error {
	l := s.log
	l.cursorMu.Lock() // before a connection, which others could use meanwhile
	defer l.cursorMu.Unlock()
	return l.read(ctx, func(*conn) (err error) { // the connection is only the right to read
		if l.cursor == nil {
			l.cursor, err = cursor.Open(uriOf("ro", l.path), selectScan, "PRAGMA wal_autocheckpoint=0", "PRAGMA cache_size=-512", "PRAGMA cell_size_check=1")
			if err != nil {
				return err
			}
		}
		return l.cursor.Each(func() (more bool, err error) {
			err = p.Add(l.cursor.Int(0), l.cursor.Blob(1), l.cursor.Blob(2), l.cursor.Blob(3))
			return !p.Full(), err
		}, from, s.through)
	})
}

// Close implements eventlog.Scan.
func (s *scan) Close() error {
	if !s.closed {
		s.closed = true
		s.log.unshare()
	}
	return nil
}
