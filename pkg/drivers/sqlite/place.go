package sqlite

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// placeEvery is how often the files are looked for. A file that was removed or
// replaced is still there for this process, and for nobody after it: what is
// written until that is noticed is lost.
const placeEvery = 2 * time.Second

// notePlace remembers the files that this Log works on.
func (l *Log) notePlace() error {
	l.files = make(map[string]fs.FileInfo)
	for _, suffix := range []string{"", "-wal", ".lock"} {
		info, err := os.Stat(l.path + suffix)
		if err != nil {
			return err
		}
		l.files[l.path+suffix] = info
	}
	return nil
}

// checkPlace returns an ErrFailed if one of the files is not the one at its
// path any more.
func (l *Log) checkPlace() error {
	for path, opened := range l.files {
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%w: somebody has removed %s; what was written since then may be lost", eventlog.ErrFailed, path)
		case err != nil:
			return fmt.Errorf("%w: %w", eventlog.ErrFailed, err)
		case !os.SameFile(info, opened):
			return fmt.Errorf("%w: somebody has put another file in the place of %s; what was written since then may be lost", eventlog.ErrFailed, path)
		}
	}
	return nil
}

// blame is classify, with the disk put to the test: SQLite reports a page that
// cannot be read as a malformed one.
func (l *Log) blame(err error) error {
	if err = classify(err); !errors.Is(err, eventlog.ErrCorrupt) || errors.Is(err, eventlog.ErrFailed) {
		return err
	}
	if diskErr := tryDisk(l.probe); diskErr != nil {
		return fmt.Errorf("%w: the disk does not answer: %w (after %s)", eventlog.ErrFailed, diskErr, err.Error()) // not ErrCorrupt
	}
	return err
}

// tryDisk reports what the file system says about reading and syncing a file.
func tryDisk(f *os.File) error {
	_, readErr := f.ReadAt(make([]byte, pageSize), 0)
	if errors.Is(readErr, io.EOF) {
		readErr = nil
	}
	return errors.Join(readErr, f.Sync())
}
