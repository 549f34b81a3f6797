package snapshot

import (
	"errors"
	"io"
	"os"
)

// CopyFile copies a file to one that is not there yet, which only its owner can
// read: who opens somebody's database writes to it, and opens a copy instead. The
// copy is not durable.
func CopyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // only read
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
