// Package durable has what it takes to make files survive a power cut.
package durable

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Sync makes a file, or a directory's entries, durable.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Write makes a file of data, readable by its owner only, that is there whole
// or as it was before. It is durable when the error is nil.
func Write(path string, data []byte) error {
	temporary := path + ".tmp"
	f, err := os.OpenFile(temporary, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	return Sync(filepath.Dir(path))
}

// Rewrite writes to a file what is read of it, and syncs that: after an fsync
// that failed the kernel may show what is not on the disk, and would leave it
// at that, since for the kernel it is written. No file is no error.
func Rewrite(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for offset := int64(0); err == nil; {
		var n int
		n, err = f.ReadAt(buf, offset)
		if _, writeErr := f.WriteAt(buf[:n], offset); writeErr != nil {
			err = writeErr
		}
		offset += int64(n)
	}
	if errors.Is(err, io.EOF) {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
