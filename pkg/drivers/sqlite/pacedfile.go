package sqlite

import (
	"errors"
	"os"
)

// pacedFile is a large file that is written at once. It is brought to the disk
// meanwhile: all of it at the end would take its time after everything else, and
// hold up the fsyncs of others for long. It is used by one goroutine, and not
// durable before a Sync after the last Write.
type pacedFile struct {
	*os.File
	every    int // bytes that are not on their way to the disk yet, at most
	unsynced int
	syncing  chan error // the outcome of the sync under way; nil if there is none
}

// Write implements io.Writer.
func (f *pacedFile) Write(b []byte) (int, error) {
	n, err := f.File.Write(b)
	return n, errors.Join(err, f.wrote(n))
}

// WriteAt implements io.WriterAt.
func (f *pacedFile) WriteAt(b []byte, at int64) (int, error) {
	n, err := f.File.WriteAt(b, at)
	return n, errors.Join(err, f.wrote(n))
}

// wrote notes that n bytes were written.
func (f *pacedFile) wrote(n int) error {
	if f.unsynced += n; f.unsynced < f.every {
		return nil
	}
	if err := f.synced(); err != nil {
		return err
	}
	f.sync()
	return nil
}

// sync begins to bring to the disk what was written.
func (f *pacedFile) sync() {
	f.unsynced = 0
	f.syncing = make(chan error, 1)
	go func() { f.syncing <- f.Sync() }()
}

// synced waits for the sync under way, if there is one.
func (f *pacedFile) synced() error {
	if f.syncing == nil {
		return nil
	}
	err := <-f.syncing
	f.syncing = nil
	return err
}

// Close implements io.Closer.
func (f *pacedFile) Close() error { return errors.Join(f.synced(), f.File.Close()) }
