package sqlite

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"

	"github.com/keelson-io/keelson/pkg/durable"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

// receivedBytes are not on their way to the disk yet at most, while the logs of
// others are written to it.
const receivedBytes = 8 << 20

// Receiver makes a database of the pages that a Copy hands out. It is used by one
// goroutine.
type Receiver struct {
	dir  string
	file *pacedFile
}

// NewReceiver begins a database in dir, which is there and is the caller's: it is
// of no use before Finish, and removed by the caller if that fails.
func NewReceiver(dir string) (*Receiver, error) {
	f, err := os.OpenFile(filepath.Join(dir, FileName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &Receiver{dir: dir, file: &pacedFile{File: f, every: receivedBytes}}, nil
}

// Write takes pages in the place of those there were; first is the number of the
// first.
func (r *Receiver) Write(first int64, content []byte) error {
	if first < 1 || first > math.MaxUint32 || len(content)%pageSize != 0 {
		return fmt.Errorf("%w: %d bytes cannot be pages from %d on", eventlog.ErrCorrupt, len(content), first)
	}
	_, err := r.file.WriteAt(content, (first-1)*pageSize)
	return err
}

// Finish makes a database of the first so many pages, durable, if it is one whose
// head is head and all checksums match: what is damaged where the pages come from
// is refused, and does not spread.
func (r *Receiver) Finish(ctx context.Context, pages int64, head eventlog.Head, logger *logrus.Entry) error {
	err := errors.Join(r.file.synced(), r.file.Truncate(pages*pageSize))
	if err != nil {
		return errors.Join(err, r.file.Close())
	}
	r.file.sync() // beside that
	err = r.verify(ctx, head, logger)
	return errors.Join(err, r.Close(), durable.Sync(filepath.Join(r.dir, FileName)), durable.Sync(r.dir))
}

func (r *Receiver) verify(ctx context.Context, head eventlog.Head, logger *logrus.Entry) error {
	l, err := Open(ctx, Options{Dir: r.dir, Synchronous: UnsafeLosesAcknowledgedWritesOnPowerCut, Logger: logger})
	if err != nil {
		return err
	}
	found, err := l.verify(ctx)
	if err == nil && found != head {
		err = fmt.Errorf("%w: the database received has the head %+v, not %+v", eventlog.ErrCorrupt, found, head)
	}
	return errors.Join(err, l.Close())
}

// Close ends what Finish has not.
func (r *Receiver) Close() error { return r.file.Close() }
