package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite/internal/cursor"
	"github.com/keelson-io/keelson/pkg/durable"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

// FileName is the name of the database in the data directory. Next to it are
// SQLite's own -wal and -shm files, which belong to it, and the lock file.
const FileName = "keelson.db"

// Synchronous says when an acknowledged batch survives what.
type Synchronous int

const (
	// SynchronousFull: a batch survives a power cut (one fsync for each).
	SynchronousFull Synchronous = iota

	// UnsafeLosesAcknowledgedWritesOnPowerCut: a batch survives the end of
	// the process, but not that of the machine; whole batches are lost from
	// the end. Only for callers that have the batches durable elsewhere. Such
	// a loss looks like damage to an Open with SynchronousFull.
	UnsafeLosesAcknowledgedWritesOnPowerCut
)

func (s Synchronous) pragma() string {
	if s == UnsafeLosesAcknowledgedWritesOnPowerCut {
		return "PRAGMA synchronous=NORMAL"
	}
	return "PRAGMA synchronous=FULL"
}

// Options are those of Open.
type Options struct {
	// Dir is the data directory; it is made if it is not there.
	Dir string

	// Synchronous is SynchronousFull unless set.
	Synchronous Synchronous

	// Logger is logrus's standard logger unless set.
	Logger *logrus.Entry
}

// readerCount is the size of the read pool. Two saturate what SQLite reads
// side by side on small machines; the others keep a short read from waiting
// behind a long one.
const readerCount = 4

// What connections cache of the database's pages, in KiB; in SQLite's memory a
// page takes 8 KiB. The table is written in order, at its end, and deleted from
// in order: the writer comes back to hardly any page, but one transaction has
// room in 2 MiB, as a rule. What a reader has cached is void with the next
// transaction, and the system has the file in memory: more than some inner pages
// saves nothing that could be measured.
const (
	writerCache = "PRAGMA cache_size=-2048"
	readerCache = "PRAGMA cache_size=-1024"
)

// Log is the log in one SQLite file.
type Log struct {
	path   string
	sync   Synchronous
	logger *logrus.Entry
	lock   *fileLock
	files  map[string]fs.FileInfo // by path; set by Open
	// probe is the database, for tryDisk; set by Open. It stays open, since
	// to close any file of it gives all of SQLite's locks on it up (POSIX).
	probe *os.File

	// writing holds the one token that allows to write. Waiters get it in
	// the order in which they came. writers counts the Appends that wait.
	writing chan struct{}
	writers atomic.Int32

	// The following belong to the holder of the token.
	writer       *conn
	headSeq      int64
	headRevision int64         // newest main revision; 0 until Load
	markSeq      int64         // of the newest KindCompact record; 0 until Load
	doomed       []int64       // records that Compact has still to delete, in order
	spare        *spare        // what Compact or Defragment gives free pages back beyond, or nil
	chunk        int           // records that Compact deletes at once
	pace         time.Duration // of batches: about how long one takes, without what it took along
	worked       time.Duration // for what this one took along
	lastBatch    time.Time
	nextTry      time.Time // no checkpoint for batches before, after one held up
	countDue     bool      // this transaction ends with a look at the sizes
	onCommit     func(commit func() error) error
	copies       []*Copy // under way

	// compacting holds the one Compact or Defragment under way. left is the
	// length of doomed after the last commit; along counts the batches that
	// took some of the work along.
	compacting  chan struct{}
	left, along atomic.Int64
	waiting     atomic.Int32 // that many wait for compacting

	// scans is how many Scans there are, which hold that work up. Only the
	// holder of the token raises it, so that none begins inside a transaction
	// that deletes. held is for how long (time.Duration) they have held up what
	// is in compacting.
	scans atomic.Int32
	held  atomic.Int64
	freed chan struct{} // tells vacuumLoop to look, buffered

	// readers is the pool; whoever takes a connection puts it back. Holding
	// all of them means that nobody reads.
	readers chan *conn
	pooled  int // connections in the pool when nobody reads; set by open
	// cursor is that of all Scans; it belongs to who holds cursorMu and one of
	// readers, and is nil before the first page.
	cursorMu sync.Mutex
	cursor   *cursor.Cursor

	// janitor does the checkpoints; it belongs to the holder of janitorMu,
	// which is locked after the token is taken and before readers are.
	janitorMu sync.Mutex
	janitor   *conn
	kick      chan struct{} // asks for a checkpoint, buffered
	stopped   sync.WaitGroup

	head   atomic.Int64 // position; written by the holder of the token
	failed atomic.Pointer[error]
	ended  chan struct{} // closed after failed is set
	done   chan struct{} // closed by Close
	closed atomic.Bool

	counters
}

var _ eventlog.Log = (*Log)(nil)

// Open opens the log in opt.Dir, and makes it if the directory has none. The
// errors are ErrLocked, ErrForeign, ErrNewer, eventlog.ErrCorrupt, or those of
// the file system.
func Open(ctx context.Context, opt Options) (*Log, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if opt.Logger == nil {
		opt.Logger = logrus.NewEntry(logrus.StandardLogger())
	}
	dir, err := filepath.Abs(opt.Dir)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, FileName)
	l := &Log{
		path:       path,
		sync:       opt.Synchronous,
		logger:     opt.Logger.WithField("database", path),
		writing:    make(chan struct{}, 1),
		readers:    make(chan *conn, readerCount),
		compacting: make(chan struct{}, 1),
		freed:      make(chan struct{}, 1),
		chunk:      1,
		pace:       time.Millisecond,
		kick:       make(chan struct{}, 1),
		ended:      make(chan struct{}),
		done:       make(chan struct{}),
	}
	if err := makeDir(dir); err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if l.lock, err = lockFile(path + ".lock"); err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if err = removeAsides(path); err == nil {
		err = l.open()
	}
	if err == nil {
		err = l.notePlace()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, classify(err)), l.closeConns(), l.lock.release())
	}
	l.writing <- struct{}{}
	l.stopped.Add(2)
	go l.checkpointLoop()
	go l.vacuumLoop()
	return l, nil
}

// makeDir makes the data directory and those above it that are not there, with
// their entries durable.
func makeDir(dir string) error {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := makeDir(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return durable.Sync(filepath.Dir(dir))
}

// open checks the file, makes it if there is none, and opens the connections.
func (l *Log) open() error {
	err := checkFile(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		// A WAL holds acknowledged batches; without its database it would
		// be replayed into the new one, or lost.
		if _, statErr := os.Stat(l.path + "-wal"); !errors.Is(statErr, fs.ErrNotExist) {
			return fmt.Errorf("%w: the database is missing but its -wal file is there", eventlog.ErrCorrupt)
		}
		err = create(l.path)
	}
	if err == nil && l.sync == SynchronousFull {
		err = checkWAL(l.path + "-wal")
	}
	if err == nil {
		// A -wal file that was removed must not come back.
		err = errors.Join(durable.Rewrite(l.path+"-wal"), durable.Sync(filepath.Dir(l.path)))
	}
	if err != nil {
		return err
	}
	if l.probe, err = os.Open(l.path); err != nil {
		return err
	}
	if l.writer, err = openConn(l.path,
		"PRAGMA busy_timeout=5000", // somebody with an SQL shell
		"PRAGMA journal_mode=WAL",
		"PRAGMA wal_autocheckpoint=0",
		writerCache,
		"PRAGMA cell_size_check=1",
		l.sync.pragma(),
	); err != nil {
		return err
	}
	if err := l.checkMode(); err != nil {
		return err
	}
	if err := migrate(l.writer, migrations); err != nil {
		return err
	}
	if l.janitor, err = openConn(l.path,
		"PRAGMA busy_timeout=0", "PRAGMA wal_autocheckpoint=0", "PRAGMA synchronous=FULL",
	); err != nil {
		return err
	}
	for range readerCount {
		c, err := openMode("ro", l.path,
			"PRAGMA busy_timeout=5000", "PRAGMA wal_autocheckpoint=0", readerCache,
			"PRAGMA cell_size_check=1", "PRAGMA query_only=1",
		)
		if err != nil {
			return err
		}
		l.readers <- c
		l.pooled++
	}
	return l.readState()
}

// checkMode makes sure that SQLite took what it may silently not take.
func (l *Log) checkMode() error {
	mode := ""
	if err := l.writer.query(func(row row) error { mode, _ = row[0].(string); return nil }, "PRAGMA journal_mode"); err != nil {
		return err
	}
	if mode != "wal" {
		return fmt.Errorf("the file system does not allow SQLite's WAL mode (shared memory and locks are needed): journal mode is %q", mode)
	}
	vacuum, err := l.writer.int("PRAGMA auto_vacuum")
	if err == nil && vacuum != 2 {
		err = fmt.Errorf("%w: the database was changed: auto_vacuum is %d, not incremental", ErrForeign, vacuum)
	}
	return err
}

// readState fills the head and the counters from the file, and empties the
// WAL that a killed process left.
func (l *Log) readState() error {
	if err := l.checkpointAll("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		return err
	}
	return l.writer.query(func(row row) error {
		r, _, err := decodeRow(row[0], row[1], row[2])
		if err != nil {
			return err
		}
		l.headSeq = r.Seq
		l.head.Store(int64(r.Position))
		return nil
	}, "SELECT seq, header, key FROM log ORDER BY seq DESC LIMIT 1")
}

// decodeRow makes a record, without its value, of the columns seq, header and
// key.
func decodeRow(seq, header, key any) (*eventlog.Record, eventlog.Header, error) {
	r := &eventlog.Record{}
	r.Seq, _ = seq.(int64)
	raw, ok := header.([]byte)
	if !ok {
		return nil, eventlog.Header{}, fmt.Errorf("%w: record %d has no header", eventlog.ErrCorrupt, r.Seq)
	}
	r.Key, _ = key.([]byte)
	h, err := eventlog.DecodeHeader(raw, r)
	return r, h, err
}

// check returns why nothing more can be asked of the log, or nil.
func (l *Log) check() error {
	if l.closed.Load() {
		return eventlog.ErrClosed
	}
	return l.Err()
}

// fail ends the log if err, which it returns classified, is one that leaves
// its durability or its content in doubt.
func (l *Log) fail(err error) error {
	err = l.blame(err)
	if errors.Is(err, eventlog.ErrFailed) || errors.Is(err, eventlog.ErrCorrupt) {
		l.stop(err)
	}
	return err
}

// stop makes every later call return err as ErrFailed.
func (l *Log) stop(err error) {
	final := err
	if !errors.Is(err, eventlog.ErrFailed) {
		final = fmt.Errorf("%w: %w", eventlog.ErrFailed, err)
	}
	if l.failed.CompareAndSwap(nil, &final) {
		l.logger.WithError(err).Error("the log has failed and takes no more calls")
		close(l.ended)
	}
}

// Failed is closed when the log has failed, which Err then explains: also
// when that was in a checkpoint, for which nobody waits.
func (l *Log) Failed() <-chan struct{} { return l.ended }

// Err is why the log has failed, an ErrFailed, or nil.
func (l *Log) Err() error {
	if err := l.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// acquire takes the write token.
func (l *Log) acquire(ctx context.Context) error {
	if err := errors.Join(l.check(), ctx.Err()); err != nil {
		return err
	}
	select {
	case <-l.writing:
	case <-l.done:
		return eventlog.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := l.check(); err != nil {
		l.release()
		return err
	}
	return nil
}

func (l *Log) release() { l.writing <- struct{}{} }

// reader takes a connection of the pool, to be put back with l.readers <- c.
func (l *Log) reader(ctx context.Context) (*conn, error) {
	if err := errors.Join(l.check(), ctx.Err()); err != nil {
		return nil, err
	}
	select {
	case c := <-l.readers:
		if err := l.check(); err != nil {
			l.readers <- c
			return nil, err
		}
		return c, nil
	case <-l.done:
		return nil, eventlog.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Head implements eventlog.Log. Nobody else writes, so it is known.
func (l *Log) Head(ctx context.Context) (eventlog.Position, error) {
	if err := errors.Join(l.check(), ctx.Err()); err != nil {
		return 0, err
	}
	return eventlog.Position(l.head.Load()), nil
}

// Close implements eventlog.Log. It waits for what is under way. An error may
// say that acknowledged batches are lost, since the files were removed.
func (l *Log) Close() error {
	if !l.closed.CompareAndSwap(false, true) {
		return eventlog.ErrClosed
	}
	close(l.done)
	l.stopped.Wait()
	<-l.writing
	var place error
	if l.failed.Load() == nil {
		place = l.checkPlace()
	}
	return errors.Join(place, l.closeConns(), l.lock.release())
}

// closeConns closes the connections. The last one checkpoints and removes the
// WAL: the writer. When the log has failed, so that the WAL may not be what it
// seems, it is a reader, which cannot.
func (l *Log) closeConns() error {
	conns := []*conn{l.writer, l.janitor}
	for range l.pooled {
		conns = append(conns, <-l.readers)
	}
	if l.Err() == nil {
		slices.Reverse(conns)
	}
	if l.cursor != nil {
		l.cursor.Close()
	}
	var errs []error
	for _, c := range conns {
		if c != nil {
			errs = append(errs, c.close())
		}
	}
	if l.probe != nil {
		errs = append(errs, l.probe.Close())
	}
	return errors.Join(errs...)
}
