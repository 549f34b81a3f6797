package sqlite

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/bits"
	"os"
	"path/filepath"
	"slices"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	// copyPages are read and handed out in one go.
	copyPages = 256

	// Pages that have changed while a copy was made are handed out again, until
	// no more than lastPages have in one round, but not for more than copyRounds:
	// what is left then, as of one batch, is put aside before it is handed out.
	lastPages  = 1024
	copyRounds = 4

	// asideSuffix is what the name of the file ends with that they are put in.
	asideSuffix = ".copy-*"

	selectPage = "SELECT data FROM sqlite_dbpage WHERE pgno = ?"
)

// Copy hands out the pages of the database while the log goes on, until they are
// those of one head.
//
//	Log.Copy  notes, from now on, which pages batches change; and those in the WAL
//	All       all pages, as they are in the file; then again those noted meanwhile
//	Freeze    says which head the copy will be of
//	Rest      those noted since, as of that head
//
// Pages are read from the file without a transaction, so that neither
// checkpoints nor compaction wait for whoever takes them, and a page may be half of
// before and half of after a checkpoint. Invariant: a page that was not noted by
// the time of Freeze has had no frame in the WAL since the copy began, so that no
// checkpoint has written it, and the file has what it has at the head.
//
// It is used by one goroutine.
type Copy struct {
	log *Log
	wal *os.File

	// The following belong to the holder of log's token.
	changed pageSet
	salts   [8]byte // of the WAL that was looked through
	frames  int64   // how many of its frames were
	failed  error   // why something may not have been noted

	frozen *conn   // in a transaction, between Freeze and Rest; else nil
	size   int64   // of the database at that head, in pages
	last   pageSet // what Rest has to hand out
}

// State returns the head as of the newest batch.
func (l *Log) State(ctx context.Context) (eventlog.Head, error) {
	if err := l.acquire(ctx); err != nil {
		return eventlog.Head{}, err
	}
	defer l.release()
	return l.state(), nil
}

// state is State for the holder of the token.
func (l *Log) state() eventlog.Head {
	return eventlog.Head{Position: eventlog.Position(l.head.Load()), Seq: l.headSeq, Revision: l.headRevision}
}

// Copy begins a copy, which Close ends.
func (l *Log) Copy(ctx context.Context) (*Copy, error) {
	if err := l.acquire(ctx); err != nil {
		return nil, err
	}
	defer l.release()
	if err := l.CheckPages(); err != nil {
		return nil, err
	}
	wal, err := os.Open(l.path + "-wal") // SQLite has no locks on this one, which would end with wal.Close
	if err != nil {
		return nil, l.fail(err)
	}
	c := &Copy{log: l, wal: wal}
	if c.note(); c.failed != nil {
		return nil, errors.Join(c.failed, wal.Close())
	}
	l.copies = append(l.copies, c)
	return c, nil
}

// Close ends the copy, whether it is whole or not.
func (c *Copy) Close() error {
	err := errors.Join(c.thaw(), c.wal.Close())
	if acquireErr := c.log.acquire(context.Background()); acquireErr != nil {
		return err // nobody writes any more
	}
	defer c.log.release()
	c.log.copies = slices.DeleteFunc(c.log.copies, func(other *Copy) bool { return other == c })
	return err
}

// Bytes is about how much there is to be handed out.
func (c *Copy) Bytes() int64 { return c.log.pages.Load() * pageSize }

// note notes the pages that transactions have changed since it was called last;
// the first time, all that the WAL has. The caller holds the token.
func (c *Copy) note() {
	if c.failed == nil {
		if err := c.look(); err != nil {
			c.failed = fmt.Errorf("look through the WAL for what has changed: %w", err)
		}
	}
}

func (c *Copy) look() error {
	wal, err := c.log.writer.ints("PRAGMA wal_checkpoint(NOOP)") // busy, frames, copied
	if err != nil || wal[1] <= 0 {
		return err
	}
	var header [walHeader]byte
	switch _, err := c.wal.ReadAt(header[:], 0); {
	case errors.Is(err, io.EOF):
		return nil // it was truncated, and nothing was written since
	case err != nil:
		return err
	}
	if salts := [8]byte(header[16:]); salts != c.salts {
		c.salts, c.frames = salts, 0
	}
	var frame [frameHeader]byte
	for ; c.frames < wal[1]; c.frames++ {
		if _, err := c.wal.ReadAt(frame[:], walHeader+c.frames*frameSize); err != nil {
			return err
		}
		if [8]byte(frame[8:]) != c.salts {
			return fmt.Errorf("%w: frame %d of %d is of another log", eventlog.ErrCorrupt, c.frames+1, wal[1])
		}
		c.changed.add(int64(binary.BigEndian.Uint32(frame[:])))
	}
	return nil
}

// All calls fn with runs of pages, their content and the number of the first. A
// page comes again if it has changed meanwhile.
func (c *Copy) All(ctx context.Context, fn func(first int64, content []byte) error) error {
	if err := c.file(ctx, fn); err != nil {
		return err
	}
	for range copyRounds {
		changed, err := c.take(ctx, lastPages)
		if err != nil || changed.count == 0 {
			return err
		}
		var content []byte
		for pages := range slices.Chunk(changed.pages(math.MaxInt64), copyPages) {
			err := c.log.read(ctx, func(from *conn) error {
				content, err = readPages(from, pages, content[:0])
				return err
			})
			if err != nil {
				return err
			}
			if err := eachRun(pages[:len(content)/pageSize], content, fn); err != nil {
				return err
			}
		}
	}
	return nil
}

// file calls fn with the pages of the file.
func (c *Copy) file(ctx context.Context, fn func(first int64, content []byte) error) error {
	buf := make([]byte, copyPages*pageSize)
	for first := int64(1); ; first += copyPages {
		if err := errors.Join(c.log.check(), ctx.Err()); err != nil {
			return err
		}
		n, err := c.log.probe.ReadAt(buf, (first-1)*pageSize)
		switch end := errors.Is(err, io.EOF); {
		case errors.Is(err, fs.ErrClosed):
			return eventlog.ErrClosed
		case err != nil && !end:
			return err
		case n >= pageSize:
			if err := fn(first, buf[:n-n%pageSize]); err != nil {
				return err
			}
			fallthrough
		default:
			if end {
				return nil
			}
		}
	}
}

// take returns the pages noted and forgets them, unless they are at most few.
func (c *Copy) take(ctx context.Context, few int) (pageSet, error) {
	if err := c.log.acquire(ctx); err != nil {
		return pageSet{}, err
	}
	defer c.log.release()
	if c.failed != nil || c.changed.count <= few {
		return pageSet{}, c.failed
	}
	taken := c.changed
	c.changed = pageSet{}
	return taken, nil
}

// Freeze says that the copy is to be of the head there is now, and returns that.
// Only Rest and Close may follow, and soon.
func (c *Copy) Freeze(ctx context.Context) (eventlog.Head, error) {
	if err := c.log.acquire(ctx); err != nil {
		return eventlog.Head{}, err
	}
	defer c.log.release()
	if c.failed != nil {
		return eventlog.Head{}, c.failed
	}
	var err error
	if c.frozen, err = c.log.reader(ctx); err != nil {
		return eventlog.Head{}, err
	}
	if err = c.frozen.exec("BEGIN"); err == nil {
		c.size, err = c.frozen.int("PRAGMA page_count") // the transaction reads from here on
	}
	if err != nil {
		return eventlog.Head{}, c.log.fail(err)
	}
	c.last, c.changed = c.changed, pageSet{}
	return c.log.state(), nil
}

// thaw ends the transaction of Freeze.
func (c *Copy) thaw() error {
	if c.frozen == nil {
		return nil
	}
	err := c.frozen.exec("ROLLBACK")
	c.log.readers <- c.frozen
	c.frozen = nil
	return err
}

// Rest calls fn as All does, with what makes the pages handed out those of the
// head that Freeze has returned, and returns how many there are: if others have
// been handed out, they are to be left out.
func (c *Copy) Rest(ctx context.Context, fn func(first int64, content []byte) error) (int64, error) {
	// Put aside first: nobody who writes waits for whoever takes the pages.
	aside, err := os.CreateTemp(filepath.Dir(c.log.path), FileName+asideSuffix)
	if err != nil {
		return 0, err
	}
	defer aside.Close()
	if err := os.Remove(aside.Name()); err != nil {
		return 0, err
	}
	var content []byte
	last := c.last.pages(c.size)
	for pages := range slices.Chunk(last, copyPages) {
		content, err = readPages(c.frozen, pages, content[:0])
		if err == nil && len(content) < len(pages)*pageSize {
			err = fmt.Errorf("%w: a page of %d to %d is missing", eventlog.ErrCorrupt, pages[0], pages[len(pages)-1])
		}
		if err != nil {
			return 0, c.log.blame(err)
		}
		if _, err := aside.Write(content); err != nil {
			return 0, err
		}
	}
	if err := c.thaw(); err != nil {
		return 0, c.log.blame(err)
	}
	if _, err := aside.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	for pages := range slices.Chunk(last, copyPages) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		content = content[:len(pages)*pageSize]
		if _, err := io.ReadFull(aside, content); err != nil {
			return 0, err
		}
		if err := eachRun(pages, content, fn); err != nil {
			return 0, err
		}
	}
	return c.size, nil
}

// removeAsides removes what a process that was killed within Rest has left.
func removeAsides(path string) error {
	found, err := filepath.Glob(path + asideSuffix)
	for _, file := range found {
		err = errors.Join(err, os.Remove(file))
	}
	return err
}

// readPages appends the content of pages, which are in order, to dst, up to the
// end of the database.
func readPages(c *conn, pages []int64, dst []byte) ([]byte, error) {
	for _, page := range pages {
		before := len(dst)
		err := c.query(func(r row) error {
			dst = append(dst, blob(r[0])...)
			return nil
		}, selectPage, page)
		if err != nil || len(dst) == before {
			return dst, err
		}
		if len(dst) != before+pageSize {
			return dst, fmt.Errorf("%w: page %d has %d bytes", eventlog.ErrCorrupt, page, len(dst)-before)
		}
	}
	return dst, nil
}

// eachRun calls fn with each run of pages in content.
func eachRun(pages []int64, content []byte, fn func(first int64, content []byte) error) error {
	for len(pages) > 0 {
		n := run(pages)
		if err := fn(pages[0], content[:n*pageSize]); err != nil {
			return err
		}
		pages, content = pages[n:], content[n*pageSize:]
	}
	return nil
}

// pageSet is a set of page numbers.
type pageSet struct {
	bits  []uint64
	count int
}

func (s *pageSet) add(page int64) {
	word, bit := int(page/64), uint64(1)<<(page%64)
	if word >= len(s.bits) {
		s.bits = append(s.bits, make([]uint64, word+1-len(s.bits))...)
	}
	if s.bits[word]&bit == 0 {
		s.bits[word] |= bit
		s.count++
	}
}

// pages returns those up to newest, in order.
func (s *pageSet) pages(newest int64) []int64 {
	all := make([]int64, 0, s.count)
	for i, word := range s.bits {
		for ; word != 0; word &= word - 1 {
			if page := int64(i)*64 + int64(bits.TrailingZeros64(word)); page <= newest {
				all = append(all, page)
			}
		}
	}
	return all
}
