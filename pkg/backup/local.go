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
	return durable.Sync(string(d))
}

// Remove implements Place.
func (d Directory) Remove(_ context.Context, name string) error {
	return os.Remove(filepath.Join(string(d), name))
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
