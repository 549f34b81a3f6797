package remote

import (
	"bufio"
	"fmt"
	"os"
)

// pair is a version of a key, which is in a spool.
type pair struct {
	mod, create, version, lease int64

	at           int64 // of the key in the file; the value follows
	keyN, valueN int32
}

// spool keeps keys and values in a temporary file, so that memory grows with
// their number and not with their size.
type spool struct {
	file *os.File
	w    *bufio.Writer
	size int64
}

func newSpool() (*spool, error) {
	file, err := nameless("keelson-pairs-")
	if err != nil {
		return nil, err
	}
	return &spool{file: file, w: bufio.NewWriterSize(file, 1<<20)}, nil
}

func (s *spool) add(key, value []byte, p pair) (pair, error) {
	p.at, p.keyN, p.valueN = s.size, int32(len(key)), int32(len(value))
	s.size += int64(len(key) + len(value))
	_, err := s.w.Write(key)
	if err == nil {
		_, err = s.w.Write(value)
	}
	return p, err
}

// seal ends the adding; from here on it can be read.
func (s *spool) seal() error { return s.w.Flush() }

// read returns key and value, in memory of their own. It may be called
// concurrently.
func (s *spool) read(p pair) (key, value []byte, err error) {
	both := make([]byte, p.keyN+p.valueN)
	if _, err := s.file.ReadAt(both, p.at); err != nil {
		return nil, nil, fmt.Errorf("read what was put aside: %w", err)
	}
	return both[:p.keyN:p.keyN], both[p.keyN:], nil
}

func (s *spool) close() error { return s.file.Close() }

// sumBytes is for the display of progress.
func sumBytes(pairs []pair) (n int64) {
	for _, p := range pairs {
		n += int64(p.keyN) + int64(p.valueN)
	}
	return n
}
