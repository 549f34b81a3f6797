package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/keelson-io/keelson/pkg/durable"
)

// errRoom: the file system has no room for another backup.
var errRoom = errors.New("there is not enough room")

// Directory is a Place in the file system. Files are renamed into it: what is
// kept must be on the same file system.
type Directory string

func (d Directory) String() string { return string(d) }

// tryFile is what Try makes in a directory: of one name, so that no more than one
// is left.
const tryFile = ".keelson.try"

// Try implements Place: it makes the directory, and a file in it.
func (d Directory) Try(ctx context.Context) error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(string(d), tryFile), nil, 0o600); err != nil {
		return err
	}
	if err := d.Remove(ctx, tryFile); err != nil {
		return fmt.Errorf("%w: %w", ErrNotRemoved, err)
	}
	return nil
}

// List implements Place.
func (d Directory) List(_ context.Context, prefix string) ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() && strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// Keep implements Place.
func (d Directory) Keep(ctx context.Context, path, name string) error {
	if err := errors.Join(ctx.Err(), durable.Sync(path)); err != nil {
		return err
	}
	if err := os.Rename(path, filepath.Join(string(d), name)); err != nil {
		return err
	}
	if err := durable.Sync(string(d)); err != nil {
		return errors.Join(err, d.Remove(ctx, name))
	}
	return nil
}

// Remove implements Place.
func (d Directory) Remove(_ context.Context, name string) error {
	err := os.Remove(filepath.Join(string(d), name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Tidy implements Place: Keep leaves nothing.
func (d Directory) Tidy(context.Context, string) error { return nil }

// work is a directory for a snapshot that is being made. Its file lock is held as
// long as its process lives; a network's file systems may know no locks, and
// then what a killed process leaves stays.
type work struct {
	dir  string
	lock *os.File
}

const workPattern = ".keelson-*.partial"

// newWork makes one in dir.
func newWork(dir string) (*work, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	made, err := os.MkdirTemp(dir, workPattern)
	if err != nil {
		return nil, err
	}
	w := &work{dir: made}
	if w.lock, err = os.OpenFile(filepath.Join(made, "lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, errors.Join(err, w.remove())
	}
	if err := unix.Flock(int(w.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) { // another that begins takes it for left
		return nil, errors.Join(err, w.remove())
	}
	return w, nil
}

// remove removes it with all that is in it.
func (w *work) remove() error {
	err := os.RemoveAll(w.dir)
	if w.lock != nil {
		err = errors.Join(err, w.lock.Close())
	}
	return err
}

// clearWork removes what ended processes have left in dir.
func clearWork(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if left, _ := filepath.Match(workPattern, e.Name()); left && e.IsDir() {
			err = errors.Join(err, clearOne(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

// clearOne removes one directory of work unless its process lives.
func clearOne(dir string) error {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // another was faster
	}
	if err != nil {
		return err
	}
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		err = os.RemoveAll(dir)
	}
	return errors.Join(err, lock.Close())
}

// checkRoom returns errRoom if the file system of dir would have less than
// reserve bytes left after so many are written: the data may be there, too, and
// a full disk would stop the server.
func checkRoom(dir string, bytes, reserve int64) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	free := int64(s.Bavail) * int64(s.Bsize) //nolint:unconvert // their types are not the same everywhere
	if free-bytes < reserve {
		return fmt.Errorf("%w: %d MiB are free on the file system of %s, the snapshot takes about %d, and %d are to stay free",
			errRoom, free>>20, dir, bytes>>20, reserve>>20)
	}
	return nil
}
