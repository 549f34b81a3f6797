package etcdfile

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/keelson-io/keelson/pkg/durable"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

// Options are those of Create and NewStream.
type Options struct {
	// Members are those of the cluster; unless set, one that an etcd without
	// flags calls itself.
	Members []Member

	// Index and Term are those of Raft; 1 unless set.
	Index, Term uint64

	// Version is that of the etcd that is to read the file, one of Versions;
	// DefaultVersion unless set.
	Version string
}

func (o *Options) setDefaults() {
	if len(o.Members) == 0 {
		o.Members = []Member{defaultMember}
	}
	o.Index, o.Term = max(o.Index, 1), max(o.Term, 1)
	o.Version = cmp.Or(o.Version, DefaultVersion)
}

// writeBytes are written to a file at once.
const writeBytes = 1 << 20

// Writer is a snapshot.Sink that makes a file as etcdctl snapshot save does.
type Writer struct {
	path string // empty: the file is the caller's
	opt  Options
	file *os.File // after Begin
	buf  *bufio.Writer
	db   *database
}

var _ snapshot.Sink = (*Writer)(nil)

// NewWriter makes a Writer that writes to an empty file, which stays the
// caller's. It is durable after Finish.
func NewWriter(file *os.File, opt Options) *Writer {
	opt.setDefaults()
	return &Writer{opt: opt, file: file}
}

// Create makes a Writer of the file path, which must not be there. Until Finish
// it has another name.
func Create(path string, opt Options) (*Writer, error) {
	opt.setDefaults()
	w := &Writer{path: path, opt: opt}
	return w, w.check()
}

// check refuses to write over anything.
func (w *Writer) check() error {
	_, err := os.Lstat(w.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = &fs.PathError{Op: "create", Path: w.path, Err: fs.ErrExist}
	}
	return err
}

// Begin implements snapshot.Sink.
func (w *Writer) Begin(_ context.Context, state snapshot.State) error {
	if w.path != "" {
		if err := w.check(); err != nil {
			return err
		}
		file, err := os.CreateTemp(filepath.Dir(w.path), filepath.Base(w.path)+".partial-*")
		if err != nil {
			return err
		}
		w.file = file
	}
	w.buf = bufio.NewWriterSize(w.file, writeBytes)
	w.db = newDatabase(w.buf, state, w.opt)
	if _, err := w.buf.Write(make([]byte, metaPages*pageSize)); err != nil {
		return errors.Join(err, w.Abort())
	}
	return nil
}

// Add implements snapshot.Sink.
func (w *Writer) Add(_ context.Context, r *eventlog.Record) error { return w.db.add(r) }

// Finish implements snapshot.Sink.
func (w *Writer) Finish(context.Context) error {
	if err := w.finish(); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", cmp.Or(w.path, w.file.Name()), err), w.Abort())
	}
	return nil
}

func (w *Writer) finish() error {
	l, err := w.db.finish()
	if err == nil {
		err = w.buf.Flush()
	}
	if err != nil {
		return err
	}
	if _, err := w.file.WriteAt(l.meta(), 0); err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(w.file, 0, l.size())); err != nil {
		return err
	}
	if _, err := w.file.WriteAt(h.Sum(nil), l.size()); err != nil {
		return err
	}
	if err := w.file.Sync(); err != nil || w.path == "" {
		return err
	}
	if err := w.file.Close(); err != nil {
		return err
	}
	if err := w.check(); err != nil {
		return err
	}
	if err := os.Rename(w.file.Name(), w.path); err != nil {
		return err
	}
	return durable.Sync(filepath.Dir(w.path))
}

// Abort implements snapshot.Sink.
func (w *Writer) Abort() error {
	if w.path == "" {
		return nil
	}
	err := w.file.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	if removeErr := os.Remove(w.file.Name()); !errors.Is(removeErr, fs.ErrNotExist) {
		err = errors.Join(err, removeErr)
	}
	return err
}
