package kine

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite" // the driver that OpenFile uses

	"github.com/keelson-io/keelson/pkg/snapshot"
)

// places are where the file is below a directory: k3s's own, a server's, kine's.
var places = []string{"server/db/state.db", "db/state.db", "state.db"}

// header is what an SQLite file begins with.
var header = []byte("SQLite format 3\x00")

// newestFormat is the newest version of the file format that there is: with a
// write-ahead log.
const newestFormat = 2

// The bytes of the file that SQLite locks, whatever is there: pending, reserved
// and shared. Who has the database open in WAL mode holds a shared lock.
const (
	firstLockByte = 0x40000000
	lockBytes     = 512
)

// FindFile returns the database below path: a file, or a directory of k3s (such
// as /var/lib/rancher/k3s) or kine.
func FindFile(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil || info.Mode().IsRegular() {
		return path, err
	}
	if !info.IsDir() {
		return "", fmt.Errorf("%w: %s is neither a file nor a directory", snapshot.ErrInvalid, path)
	}
	for _, place := range places {
		file := filepath.Join(path, place)
		if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
			return file, err
		}
	}
	return "", fmt.Errorf("%w: %s has no database of kine: no %s", snapshot.ErrInvalid, path, places[0])
}

// IsFile reports whether the file at path is a database of SQLite.
func IsFile(path string) bool {
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() { // opening a pipe waits
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }() // only read
	start := make([]byte, len(header))
	_, err = io.ReadFull(f, start)
	return err == nil && bytes.Equal(start, header)
}

// OpenFile opens the SQLite database at path, which nobody may be using, and
// changes nothing beside it. With a write-ahead log, as a k3s that was killed
// leaves it, both are copied to the directory for temporary files (TMPDIR)
// until Close: SQLite reads a log only where it may write.
func OpenFile(ctx context.Context, path string) (src *Source, err error) {
	s := &Source{}
	defer func() {
		if cause := context.Cause(ctx); err != nil && cause != nil {
			err = cause
		}
		if err != nil {
			src, err = nil, errors.Join(fmt.Errorf("%s: %w", path, err), s.Close())
		}
	}()
	before, err := look(path)
	if err != nil {
		return nil, err
	}
	s.check = func() error {
		if after, err := look(path); err != nil || after != before {
			return errors.Join(fmt.Errorf("%w: the database was changed while it was read", ErrRunning), err)
		}
		return nil
	}
	file, mode := path, "mode=ro&immutable=1"
	if before.journals != [2]stamp{} {
		dir, err := os.MkdirTemp("", "keelson-kine-")
		if err != nil {
			return nil, err
		}
		s.release = append(s.release, func() error { return os.RemoveAll(dir) })
		file, mode = filepath.Join(dir, "state.db"), "mode=rw"
		for _, suffix := range []string{"", walSuffix, journalSuffix} {
			if err := snapshot.CopyFile(file+suffix, path+suffix); err != nil && (suffix == "" || !errors.Is(err, fs.ErrNotExist)) {
				return nil, err
			}
		}
		if err := s.check(); err != nil {
			return nil, err
		}
	}
	absolute, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	uri := url.URL{Scheme: "file", Path: absolute, RawQuery: mode}
	db, err := sql.Open("sqlite", uri.String())
	if err != nil {
		return nil, err
	}
	if err := s.begin(ctx, db, nil); err != nil {
		return nil, fmt.Errorf("%w: the database is damaged: %w", snapshot.ErrInvalid, err)
	}
	var found string
	if err := s.tx.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&found); err != nil {
		return nil, fmt.Errorf("%w: the database is damaged: %w", snapshot.ErrInvalid, err)
	}
	if found != "ok" {
		return nil, fmt.Errorf("%w: the database is damaged: %s", snapshot.ErrInvalid, strings.Join(strings.Fields(found), " "))
	}
	if err := s.load(ctx); err != nil {
		return nil, err
	}
	return s, s.check()
}

const (
	walSuffix     = "-wal"
	journalSuffix = "-journal"
)

// stamp changes whenever a file does; it is zero for an empty one or none.
type stamp struct{ size, modified int64 }

// files is what there is of a database.
type files struct {
	main     stamp
	journals [2]stamp // the write-ahead log, and a rollback journal
}

// look refuses what is in use or not a database, by its first bytes.
func look(path string) (files, error) {
	f, err := os.Open(path)
	if err != nil {
		return files{}, err
	}
	defer func() { _ = f.Close() }() // only read
	start := make([]byte, len(header)+4)
	switch n, err := io.ReadFull(f, start); {
	case n == 0 && errors.Is(err, io.EOF):
		return files{}, fmt.Errorf("%w: the file is empty", snapshot.ErrInvalid)
	case err != nil && !errors.Is(err, io.ErrUnexpectedEOF):
		return files{}, err
	case !bytes.HasPrefix(start, header):
		return files{}, fmt.Errorf("%w: not an SQLite database, or encrypted", snapshot.ErrInvalid)
	case start[18] > newestFormat || start[19] > newestFormat:
		return files{}, fmt.Errorf("%w: SQLite's file format %d is too new", snapshot.ErrInvalid, max(start[18], start[19]))
	}
	if err := inUse(f); err != nil {
		return files{}, err
	}
	var all files
	for suffix, to := range map[string]*stamp{"": &all.main, walSuffix: &all.journals[0], journalSuffix: &all.journals[1]} {
		info, err := os.Stat(path + suffix)
		switch {
		case err == nil && info.Size() > 0:
			*to = stamp{info.Size(), info.ModTime().UnixNano()}
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return files{}, err
		}
	}
	return all, nil
}

// inUse asks for the lock of whoever has the database open; it takes none.
func inUse(f *os.File) error {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: firstLockByte, Len: lockBytes}
	err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock)
	if unlocked := err != nil || lock.Type == unix.F_UNLCK; unlocked { // not every file system has locks
		return nil
	}
	who := "another process"
	if lock.Pid > 0 {
		who = fmt.Sprint("process ", lock.Pid)
	}
	return fmt.Errorf("%w: %s has the database open: stop it first", ErrRunning, who)
}

// begin begins the transaction that all is read in. It closes db at the end.
func (s *Source) begin(ctx context.Context, db *sql.DB, options *sql.TxOptions) error {
	s.release = append(s.release, db.Close)
	db.SetMaxOpenConns(1)
	if err := db.PingContext(ctx); err != nil {
		return err
	}
	// It lasts longer than this call.
	tx, err := db.BeginTx(context.WithoutCancel(ctx), options)
	if err != nil {
		return err
	}
	s.tx = tx
	s.release = append(s.release, tx.Rollback)
	return nil
}
