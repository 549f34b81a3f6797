package sqlite

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// fileLock is an advisory lock (flock) that ends with the process, however it
// ends. The file says who holds it. Only its holder removes it, together with a
// directory that was made in vain: whoever was about to lock it notices.
type fileLock struct {
	f        *os.File
	readOnly bool // the file does not say who holds it
}

// lockFile takes the lock or returns ErrLocked with what its holder wrote.
func lockFile(path string) (*fileLock, error) {
	f, err := openLocked(path, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, err
	}
	return sign(f, path)
}

// lockExisting is lockFile for one who changes nothing else: the file may be one
// that cannot be written, and without it nobody is locked out; then the lock is
// nil.
func lockExisting(path string) (*fileLock, error) {
	f, err := openLocked(path, os.O_RDWR)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		if f, err = openLocked(path, os.O_RDONLY); err == nil {
			return &fileLock{f: f, readOnly: true}, nil
		}
		return nil, err
	case err != nil:
		return nil, err
	}
	return sign(f, path)
}

// sign writes into a locked file who holds it.
func sign(f *os.File, path string) (*fileLock, error) {
	host, _ := os.Hostname() // for people only
	holder := fmt.Sprintf("pid %d\nhost %s\nsince %s\n", os.Getpid(), host, time.Now().UTC().Format(time.RFC3339))
	if err := errors.Join(f.Truncate(0), writeAt(f, holder)); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return &fileLock{f: f}, nil
}

// checkLock returns what lockFile would, and leaves no lock. No file is no lock.
func checkLock(path string) error {
	f, err := openLocked(path, os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return unlock(f)
}

// openLocked opens the file and locks it.
func openLocked(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		holder, _ := io.ReadAll(io.LimitReader(f, 1024))
		_ = f.Close()
		who := strings.Join(strings.Fields(string(holder)), " ")
		if who == "" {
			who = "its name is not written yet"
		}
		return nil, fmt.Errorf("%w (%s)", ErrLocked, who)
	}
	if err == nil {
		err = stillThere(f, path)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// stillThere makes sure that f is the file at path.
func stillThere(f *os.File, path string) error {
	locked, err := f.Stat()
	if err != nil {
		return err
	}
	now, err := os.Stat(path)
	if err == nil && !os.SameFile(locked, now) {
		err = errors.New("another file has taken its place: try again")
	}
	return err
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// release gives the lock up, if there is one; an empty file says that its holder
// ended well.
func (l *fileLock) release() error {
	if l == nil {
		return nil
	}
	if l.readOnly {
		return unlock(l.f)
	}
	return errors.Join(l.f.Truncate(0), unlock(l.f))
}

// unlock gives the lock up, even if a process that is just being started has the
// file, too.
func unlock(f *os.File) error {
	return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
}
