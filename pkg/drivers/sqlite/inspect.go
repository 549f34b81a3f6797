package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const selectStored = "SELECT seq, revision, header, key, batch, value FROM log WHERE seq >= ? ORDER BY seq LIMIT ?"

// Row is a record as it is stored, with its checksums. A nil slice is NULL.
type Row struct {
	Seq                       int64
	Header, Key, Batch, Value []byte
}

// Stored is a row as it is, whatever that is.
type Stored struct {
	Row
	Revision int64 // the column of this name; -1 if it is no number
}

// Inspector shows what is in a database, right or wrong, to those who look for
// damage. It changes nothing, and is used by one goroutine.
type Inspector struct {
	path string
	lock *fileLock // nil: nobody can have it open
	conn *conn
	made bool // there was no -shm file
}

// Inspect opens the database in dir, which nobody else can open meanwhile. The
// errors are ErrLocked, ErrForeign, ErrNewer, eventlog.ErrCorrupt, or those of
// the file system.
func Inspect(dir string) (*Inspector, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	in := &Inspector{path: filepath.Join(dir, FileName)}
	if _, err := os.Stat(in.path); err != nil {
		return nil, err
	}
	if in.lock, err = lockExisting(in.path + ".lock"); err != nil {
		return nil, fmt.Errorf("inspect %s: %w", in.path, err)
	}
	if err := in.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("inspect %s: %w", in.path, classify(err)), in.Close())
	}
	return in, nil
}

func (in *Inspector) open() error {
	if err := checkFile(in.path); err != nil {
		return err
	}
	// With nothing in the WAL SQLite can do without it, and need not make it.
	mode := "ro&immutable=1"
	if info, err := os.Stat(in.path + "-wal"); err == nil && info.Size() > 0 {
		mode = "ro"
		_, err := os.Stat(in.path + "-shm")
		in.made = errors.Is(err, fs.ErrNotExist)
	}
	var err error
	in.conn, err = openMode(mode, in.path, "PRAGMA cell_size_check=1", "PRAGMA query_only=1")
	return err
}

// CheckWAL returns an eventlog.ErrCorrupt if the WAL is damaged: SQLite shows
// only what is before that. It is not for a database under a Raft log, whose
// WAL may be torn.
func (in *Inspector) CheckWAL() error { return checkWAL(in.path + "-wal") }

// Integrity calls fn with each thing that SQLite finds wrong with the file, up
// to limit.
func (in *Inspector) Integrity(ctx context.Context, limit int, fn func(string)) error {
	err := in.conn.queryContext(ctx, func(r row) error {
		text, _ := r[0].(string)
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); line != "ok" && !strings.HasPrefix(line, "***") {
				fn(line)
			}
		}
		return nil
	}, fmt.Sprintf("PRAGMA integrity_check(%d)", limit)) // a PRAGMA takes no parameter
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return classify(err)
}

// blob is a column: empty blobs are not NULL.
func blob(v any) []byte {
	b, ok := v.([]byte)
	if ok && b == nil {
		return []byte{}
	}
	return b
}

// Newest returns the seq of the last row; 0 if there is none.
func (in *Inspector) Newest() (int64, error) {
	newest, err := in.conn.int("SELECT max(seq) FROM log")
	return newest, classify(err)
}

// Kept returns the row of kept: the highest seq deleted, how many were, and the
// newest main revision when that was; with an eventlog.ErrCorrupt as they are.
func (in *Inspector) Kept() (floor, deleted, revision int64, err error) {
	version, err := in.conn.int("PRAGMA user_version")
	if err != nil {
		return 0, 0, 0, classify(err)
	}
	if version < keptVersion { // nothing here migrates
		v, err := in.conn.ints(selectKept)
		if err != nil {
			return 0, 0, 0, classify(err)
		}
		return v[0], v[1], v[2], nil
	}
	k, err := readKept(in.conn)
	return k.floor, k.deleted, k.revision, classify(err)
}

// Rows calls fn with up to limit rows, in order, from seq on. An ErrCorrupt or
// ErrFailed comes after the rows that could be read.
func (in *Inspector) Rows(ctx context.Context, from int64, limit int, fn func(*Stored) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return classify(in.conn.query(func(r row) error {
		s := Stored{Row: Row{Header: blob(r[2]), Key: blob(r[3]), Batch: blob(r[4]), Value: blob(r[5])}, Revision: -1}
		s.Seq, _ = r[0].(int64)
		if n, ok := r[1].(int64); ok {
			s.Revision = n
		}
		return fn(&s)
	}, selectStored, from, int64(limit)))
}

// Damage reports whether err says that a part of the file cannot be read.
func Damage(err error) bool {
	return errors.Is(err, eventlog.ErrCorrupt) || errors.Is(err, eventlog.ErrFailed)
}

// Close lets others open the database.
func (in *Inspector) Close() error {
	var errs []error
	if in.conn != nil {
		errs = append(errs, in.conn.close())
	}
	if in.made {
		if err := os.Remove(in.path + "-shm"); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, in.lock.release())...)
}
