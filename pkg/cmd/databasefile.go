package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

// copiedLog is a log in a directory that is gone after Close.
type copiedLog struct {
	eventlog.Log
	dir string
}

// Close implements eventlog.Log.
func (l *copiedLog) Close() error { return errors.Join(l.Log.Close(), os.RemoveAll(l.dir)) }

// openCopy opens a copy of the database at path, and of the write-ahead log beside
// it if there is one: who opens a database writes to it, and it may be somebody's
// only backup. The copy is in the directory for temporary files (TMPDIR).
func openCopy(ctx context.Context, path string, logger *logrus.Entry) (eventlog.Log, error) {
	dir, err := os.MkdirTemp("", "keelson-copy-")
	if err != nil {
		return nil, err
	}
	to := filepath.Join(dir, sqlite.FileName)
	if err = snapshot.CopyFile(to, path); err == nil {
		if err = snapshot.CopyFile(to+"-wal", path+"-wal"); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err == nil {
		var log *sqlite.Log
		if log, err = sqlite.Open(ctx, sqlite.Options{Dir: dir, Logger: logger}); err == nil {
			return &copiedLog{log, dir}, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("%s: %w", path, err), os.RemoveAll(dir))
}
