// Package faultvfs is a disk for tests that fails when it is told to: a shim
// between SQLite (modernc.org/sqlite) and its VFS for files, below which the
// driver under test runs unchanged.
//
//	sqlite.Log ─▶ SQLite ─▶ faultvfs ─▶ SQLite's own VFS ─▶ files
//	                           │
//	                           └─ Disk: counts, fails, and knows what a
//	                              power cut would leave of each file
//
// A [Disk] stands for one directory. It numbers every operation that changes a
// file (see [Kind]); a run of the same calls gives the same numbers, so that a
// test first counts them and then runs once for each with a [Fault] there. The
// operations can also be played again without the program, up to any of them:
// a [Replay], whose [State] tells what is on the disk.
//
// # Power cuts
//
// What was written since the last sync of a file is on the platter, or not, in
// units of 512 bytes and in any combination, its length included; names given
// and taken since the last sync of the directory likewise. Bytes beside those
// written stay as they were, which is what SQLite assumes of a disk too
// (SQLITE_IOCAP_POWERSAFE_OVERWRITE).
//
// Nothing is really synced: the directory may be on any file system, and the
// tests are fast. What the program does without SQLite (renames, its lock
// file) is not seen: a file that SQLite opens and the Disk does not know is
// taken for durable as it is, and so is one that the program has written to
// between [Disk.Restart] and SQLite's opening it.
package faultvfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	sqlite3 "modernc.org/sqlite/lib"
)

// Kind says what an operation does.
type Kind uint8

// The kinds of operations.
const (
	Write    Kind = iota + 1
	Truncate      // to a length
	Sync          // of a file, and of the directory with a new file's first one
	Delete
	Create
	adopt   // a file that the Disk meets for the first time; cannot fail
	gone    // a file that the program has renamed or removed; cannot fail
	syncDir // by the program; cannot fail
)

// String returns the kind's name.
func (k Kind) String() string {
	switch k {
	case Write:
		return "write"
	case Truncate:
		return "truncate"
	case Sync:
		return "sync"
	case Delete:
		return "delete"
	case Create:
		return "create"
	case adopt:
		return "first open of"
	case gone:
		return "rename of"
	}
	return "sync of the directory"
}

// Op is one operation on a file.
type Op struct {
	Kind Kind
	Name string // of the file, without the directory

	offset int64  // Write: of data; Truncate: the length
	data   []byte // Write, adopt
	meant  []byte // Write that fails: all of data
	dir    bool   // Sync, Delete: the directory is synced too
	fault  Fault
	seed   uint64 // of what a failed Sync leaves
}

// String describes the operation.
func (op Op) String() string {
	switch op.Kind {
	case Write:
		return fmt.Sprintf("write %s %d+%d", op.Name, op.offset, len(op.data))
	case Truncate:
		return fmt.Sprintf("truncate %s %d", op.Name, op.offset)
	}
	return fmt.Sprintf("%v %s", op.Kind, op.Name)
}

// Fault is how an operation fails.
type Fault uint8

// The faults.
const (
	// Refused: nothing is done, and it is an I/O error.
	Refused Fault = iota + 1
	// Full: nothing is done, since the disk is full. Write only.
	Full
	// Short: the first half is written, whole sectors, and the rest is an I/O
	// error. Write only.
	Short
	// Unanswered: it is done, and yet an I/O error.
	Unanswered
	// Dropped: what was not synced is gone, also for who reads it, as when
	// the kernel gives up the pages that it could not write. Sync only.
	Dropped
	// Stale: what was not synced is still read, but will never be on the disk
	// unless it is written again, as when the kernel takes the pages that it
	// could not write for clean. Sync only.
	Stale
)

// Faults are those that an operation of kind can have.
func Faults(kind Kind) []Fault {
	switch kind {
	case Write:
		return []Fault{Refused, Full, Short, Unanswered}
	case Sync:
		return []Fault{Refused, Unanswered, Dropped, Stale}
	case adopt, gone, syncDir:
		return nil
	}
	return []Fault{Refused, Unanswered}
}

// String returns the fault's name.
func (f Fault) String() string {
	return []string{"none", "refused", "full", "short", "unanswered", "dropped", "stale"}[f]
}

// code is SQLite's for the fault of an operation.
func (f Fault) code(kind Kind) int32 {
	if f == Full {
		return sqlite3.SQLITE_FULL
	}
	switch kind {
	case Write:
		return sqlite3.SQLITE_IOERR_WRITE
	case Truncate:
		return sqlite3.SQLITE_IOERR_TRUNCATE
	case Sync:
		return sqlite3.SQLITE_IOERR_FSYNC
	case Delete:
		return sqlite3.SQLITE_IOERR_DELETE
	}
	return sqlite3.SQLITE_CANTOPEN
}

// Disk is what SQLite's files in one directory are on. Its methods are safe
// for concurrent use.
type Disk struct {
	dir string

	mu    sync.Mutex
	trace []Op  // mu
	state State // mu; after trace
	reads int   // mu

	failAt, failReadAt int   // mu; -1 for none
	fault              Fault // mu; of failAt
	lasting            bool  // mu; the disk stays broken
	broken             bool  // mu; a lasting fault has happened
	fired              bool  // mu

	restarted map[string]bool // mu; names that SQLite has not opened since Restart
}

// New puts a Disk below the files of dir, which must be absolute, until it is
// removed. Install has been called.
func New(dir string) *Disk {
	d := &Disk{dir: dir, failAt: -1, failReadAt: -1, state: newState()}
	disks.Store(dir, d)
	return d
}

// Fork puts another Disk below dir, an empty directory, with the files as they
// are seen now and what a power cut would leave of them: the machine after the
// end of the process.
func (d *Disk) Fork(dir string) (*Disk, error) {
	fork := New(dir)
	replay := NewReplay(d.Ops())
	for replay.Next() {
	}
	fork.trace, fork.state = slices.Clip(replay.ops), replay.State
	return fork, errors.Join(replay.Kill(dir), fork.Restart())
}

// Remove ends the Disk; its files are plain ones from now on.
func (d *Disk) Remove() { disks.Delete(d.dir) }

// Fail makes operation n fail, numbered from 0. After a lasting fault every
// later one fails in the same way: the disk is full, or has become read-only.
func (d *Disk) Fail(n int, fault Fault, lasting bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failAt, d.fault, d.lasting, d.broken, d.fired = n, fault, lasting, false, false
}

// FailRead makes read n an I/O error, numbered from 0.
func (d *Disk) FailRead(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failReadAt, d.fired = n, false
}

// Restart makes the disk a good one again, for another start of the program.
func (d *Disk) Restart() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failAt, d.failReadAt, d.broken = -1, -1, false
	var errs []error
	d.restarted = make(map[string]bool)
	for name := range d.state.names {
		d.restarted[name] = true
		errs = append(errs, os.Chtimes(filepath.Join(d.dir, name), untouched, untouched))
	}
	return errors.Join(errs...)
}

// untouched is the time of a file that nobody has written to since Restart.
var untouched = time.Unix(1, 0)

// State calls fn with what is on the disk now.
func (d *Disk) State(fn func(*State) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return fn(&d.state)
}

// SyncDir notes that the program has synced the directory.
func (d *Disk) SyncDir() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note(Op{Kind: syncDir, dir: true})
}

// Fired says whether the fault has happened.
func (d *Disk) Fired() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fired
}

// Len is the number of operations so far.
func (d *Disk) Len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.trace)
}

// Reads is the number of reads so far.
func (d *Disk) Reads() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reads
}

// Ops returns the operations so far.
func (d *Disk) Ops() []Op {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.trace)
}

// Check compares what the Disk believes the files to be with what they are.
func (d *Disk) Check() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, f := range d.state.names {
		content, err := os.ReadFile(filepath.Join(d.dir, name))
		if err != nil {
			return err
		}
		if !bytes.Equal(content, f.seen) {
			return fmt.Errorf("%s is not what was written to it: it has %d bytes, not %d", name, len(content), len(f.seen))
		}
	}
	return nil
}

// do runs an operation: perform does it, all of it or a part, and returns
// SQLite's code; restore puts the content of the file back in time.
func (d *Disk) do(op Op, perform func(Op) int32, restore func([]byte)) int32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken || len(d.trace) == d.failAt {
		d.fired = true
		d.broken = d.lasting
		op.fault = d.fault
		if !slices.Contains(Faults(op.Kind), op.fault) {
			op.fault = Refused
		}
	}
	failed := op.fault.code(op.Kind)
	if op.fault != 0 {
		op.meant = op.data
	}
	if op.fault == Short {
		half := (op.offset + int64(len(op.data)/2)) / sectorSize * sectorSize
		op.data = op.data[:max(0, half-op.offset)]
	}
	if op.fault == 0 || op.fault == Short && len(op.data) > 0 || op.fault == Unanswered {
		if code := perform(op); code != sqlite3.SQLITE_OK {
			op.fault, failed = Refused, code
		}
	}
	op.seed = uint64(len(d.trace))
	d.trace = append(d.trace, op)
	d.state.apply(op)
	if op.fault == Dropped {
		restore(d.state.names[op.Name].seen)
	}
	if op.fault != 0 {
		return failed
	}
	return sqlite3.SQLITE_OK
}

// meet takes in a file that SQLite opens. Those that are not there any more
// were renamed by the program, which has synced the directory.
func (d *Disk) meet(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	path := filepath.Join(d.dir, name)
	if known := d.state.names[name] != nil; known {
		if !d.restarted[name] {
			return nil
		}
		delete(d.restarted, name)
		if info, err := os.Stat(path); err != nil || info.ModTime().Equal(untouched) {
			return err
		}
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for known := range d.state.names {
		if _, err := os.Stat(filepath.Join(d.dir, known)); errors.Is(err, os.ErrNotExist) {
			d.note(Op{Kind: gone, Name: known})
		}
	}
	d.note(Op{Kind: adopt, Name: name, data: content})
	return nil
}

// note adds an operation to the trace and does it to the state.
func (d *Disk) note(op Op) {
	d.trace = append(d.trace, op)
	d.state.apply(op)
}

// read counts a read and says whether it may go on.
func (d *Disk) read() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	fail := d.reads == d.failReadAt
	d.reads++
	d.fired = d.fired || fail
	return !fail
}
