package raftlog

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/keelson-io/keelson/pkg/durable"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

// The state of a new cluster, the same on all of its first nodes, is a mark at
// this index and term: the entries begin after it.
const firstIndex, firstTerm = 1, 1

// raftDir is where the Raft log is in a data directory.
const raftDir = "raft"

// segmentBytes is the size of a file of the WAL, which is allocated whole, and
// written anew at each start: a few times what is kept of the Raft log.
const segmentBytes = 16 << 20

func init() { wal.SegmentSizeBytes = segmentBytes }

// disk is the Raft log: in etcd's WAL, where it is durable, and from the mark
// before last on in memory, where raft reads it.
type disk struct {
	dir string // holds "wal", and the members as of the newest mark
	wal *wal.WAL
	mem *raft.MemoryStorage

	committed atomic.Uint64      // newest commit index in the WAL
	marked    uint64             // index of the newest mark; belongs to the caller of mark
	members   Members            // as of the newest mark when it was opened
	begun     *eventlog.Position // of a database with all up to that mark; nil if not known
	reached   *eventlog.Position // of one with all that the WAL had then; nil if not known
}

func (d *disk) walDir() string { return filepath.Join(d.dir, "wal") }

// DiskBytes returns how much room the Raft log takes on the disk. What it will be
// written to next is counted: WAL files have their size from the beginning.
func (l *Log) DiskBytes() (bytes int64) {
	entries, _ := os.ReadDir(l.node.disk.walDir()) // as far as it can be read: this is for metrics
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			bytes += info.Size()
		}
	}
	return bytes
}

// openDisk opens the Raft log in dir. If there is none, it is made, with members
// as those of a new cluster.
func openDisk(dir string, id Identity, members Members) (*disk, error) {
	metadata, err := json.Marshal(id)
	if err != nil {
		return nil, err
	}
	d := &disk{dir: dir, mem: raft.NewMemoryStorage()}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := id.check(dir); err != nil {
		return nil, fmt.Errorf("the raft log %s: %w", dir, err)
	}
	if !wal.Exist(d.walDir()) {
		w, err := wal.Create(zap.NewNop(), d.walDir(), metadata)
		if err != nil {
			return nil, fmt.Errorf("make the raft log %s: %w", dir, err)
		}
		if err := w.Close(); err != nil {
			return nil, fmt.Errorf("make the raft log %s: %w", dir, err)
		}
	}
	if err := d.open(metadata, members); err != nil {
		if d.wal != nil {
			err = errors.Join(err, d.wal.Close())
		}
		return nil, fmt.Errorf("open the raft log %s: %w", dir, err)
	}
	return d, nil
}

func (d *disk) open(metadata []byte, members Members) (err error) {
	defer recovered(&err)
	if err := d.rewrite(); err != nil {
		return err
	}
	// What a power cut has torn off the end was not acknowledged. Repair cuts
	// it off, and what does not verify elsewhere stops the start; but damage
	// of the last file that looks like a torn end (a sector of zeros) is taken
	// for one by etcd's WAL.
	mark, err := d.newestMark()
	if errors.Is(err, io.ErrUnexpectedEOF) && wal.Repair(zap.NewNop(), d.walDir()) {
		mark, err = d.newestMark()
	}
	if err != nil {
		return corrupt(err)
	}
	if d.wal, err = wal.Open(zap.NewNop(), d.walDir(), mark); err != nil {
		return corrupt(err)
	}
	found, state, entries, err := d.wal.ReadAll()
	if errors.Is(err, io.ErrUnexpectedEOF) {
		if err := d.wal.Close(); err != nil {
			return err
		}
		if !wal.Repair(zap.NewNop(), d.walDir()) {
			return fmt.Errorf("%w: its end is damaged and could not be cut off", eventlog.ErrCorrupt)
		}
		if d.wal, err = wal.Open(zap.NewNop(), d.walDir(), mark); err == nil {
			found, state, entries, err = d.wal.ReadAll()
		}
	}
	if err != nil {
		return corrupt(err)
	}
	if string(found) != string(metadata) {
		return fmt.Errorf("it belongs to another node: it says %s, and this is %s", found, metadata)
	}
	// New, or its making was cut off. A node that joins a cluster has nothing
	// until it gets a snapshot.
	if mark.GetIndex() == 0 && len(members.Members) > 0 && state.GetTerm() <= firstTerm && len(entries) == 0 {
		if mark, state, err = d.bootstrap(members); err != nil {
			return err
		}
	}
	if mark.GetIndex() > 0 {
		file, err := readMark(d.dir, mark.GetIndex())
		if err != nil {
			return err
		}
		d.members, d.begun = file.Members, file.Position
		if d.reached, err = reach(file.Position, entries); err != nil {
			return err
		}
	}
	return d.fill(mark, state, entries)
}

// rewrite writes the WAL anew before it is trusted: what is read may not be on
// the disk, if an fsync had failed or the process was killed before it, and
// will be taken for durable.
func (d *disk) rewrite() error {
	files, err := filepath.Glob(filepath.Join(d.walDir(), "*.wal"))
	for _, file := range files {
		err = errors.Join(err, durable.Rewrite(file))
	}
	return errors.Join(err, durable.Sync(d.walDir()), durable.Sync(d.dir))
}

// newestMark returns where to read from.
func (d *disk) newestMark() (*walpb.Snapshot, error) {
	marks, err := wal.ValidSnapshotEntries(zap.NewNop(), d.walDir())
	if err != nil {
		return nil, err
	}
	if len(marks) == 0 {
		return nil, errors.New("no mark is left in it")
	}
	return marks[len(marks)-1], nil
}

// bootstrap writes the state of a new cluster.
func (d *disk) bootstrap(members Members) (*walpb.Snapshot, *raftpb.HardState, error) {
	begin := markFile{Members: members}
	if len(members.Members) > 1 {
		begin.Position = new(eventlog.Position(0)) // a node alone may have data
	}
	if err := begin.write(d.dir, firstIndex); err != nil {
		return nil, nil, err
	}
	state := &raftpb.HardState{Term: new(uint64(firstTerm)), Vote: new(uint64(0)), Commit: new(uint64(firstIndex))}
	if err := d.wal.Save(state, nil); err != nil {
		return nil, nil, err
	}
	mark := &walpb.Snapshot{
		Index:     new(uint64(firstIndex)),
		Term:      new(uint64(firstTerm)),
		ConfState: raftpb.EnsureConfState(&raftpb.ConfState{Voters: members.ids(false), Learners: members.ids(true)}),
	}
	return mark, state, d.wal.SaveSnapshot(mark)
}

// fill makes what the WAL holds known to raft.
func (d *disk) fill(mark *walpb.Snapshot, state *raftpb.HardState, entries []*raftpb.Entry) error {
	if err := d.mem.ApplySnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: mark.Index, Term: mark.Term, ConfState: mark.ConfState,
	}}); err != nil {
		return err
	}
	if err := d.mem.SetHardState(state); err != nil {
		return err
	}
	d.committed.Store(state.GetCommit())
	d.marked = mark.GetIndex()
	return d.mem.Append(entries)
}

// save makes what m says durable: a new term or vote, entries. Anything else
// than nil leaves the durability of all of it in doubt.
func (d *disk) save(m *raftpb.Message) error {
	if !raft.IsEmptySnap(m.Snapshot) {
		return errors.New("a snapshot arrived, which no node sends")
	}
	state := &raftpb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit}
	if err := d.wal.Save(state, m.Entries); err != nil {
		return err
	}
	if !raft.IsEmptyHardState(state) {
		if err := d.mem.SetHardState(state); err != nil {
			return err
		}
		d.committed.Store(state.GetCommit())
	}
	return d.mem.Append(m.Entries)
}

// mark notes that nothing up to m is needed any more for a restart of this
// node, and gives the files before it back. A mark
// that the WAL does not know to be committed would not be found; it returns
// false for one of these, to be asked again.
func (d *disk) mark(m mark) (bool, error) {
	if m.index > d.committed.Load() {
		return false, nil
	}
	if err := (markFile{Members: m.members, Position: &m.position}).write(d.dir, m.index); err != nil {
		return false, err
	}
	if err := d.wal.SaveSnapshot(&walpb.Snapshot{Index: &m.index, Term: &m.term, ConfState: m.conf}); err != nil {
		return false, err
	}
	if err := removeMarks(d.dir, m.index); err != nil {
		return false, err
	}
	if _, err := d.mem.CreateSnapshot(m.index, m.conf, nil); err != nil && !errors.Is(err, raft.ErrSnapOutOfDate) { // forgetKnown was further
		return false, err
	}
	d.marked = m.index
	if err := d.wal.ReleaseLockTo(m.index); err != nil {
		return false, err
	}
	return true, d.removeReleased()
}

// removeReleased removes the files of the WAL that it has given up.
func (d *disk) removeReleased() error {
	names, err := fileutil.ReadDir(d.walDir()) // in order of their age
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".wal") {
			continue
		}
		path := filepath.Join(d.walDir(), name)
		lock, err := fileutil.TryLockFile(path, os.O_WRONLY, fileutil.PrivateFileMode)
		if errors.Is(err, fileutil.ErrLocked) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := errors.Join(os.Remove(path), lock.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (d *disk) close() error { return d.wal.Close() }

// corrupt takes for damage whatever prevents the WAL from being read, unless the
// operating system does.
func corrupt(err error) error {
	var system syscall.Errno
	if errors.As(err, &system) || errors.Is(err, fileutil.ErrLocked) {
		return err
	}
	return fmt.Errorf("%w: %w", eventlog.ErrCorrupt, err)
}

// recovered makes an error of a panic of the WAL's package, at a record whose
// kind, which no checksum covers, has changed.
func recovered(err *error) {
	switch p := recover().(type) {
	case nil:
	case string:
		*err = fmt.Errorf("%w: %s", eventlog.ErrCorrupt, p)
	default:
		panic(p)
	}
}
