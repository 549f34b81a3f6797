package raftlog

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/durable"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

// A snapshot is the database as of an entry, for a node that is so far behind
// that the entries it lacks are not in memory any more:
//
//	magic, frame (snapshotHeader as JSON), frame (pages) …, empty frame, frame (snapshotMeta as JSON)
//
// A frame is its length (uvarint), a CRC-32C of it and all before it (4 bytes,
// big-endian), and its content. Pages are the number of the first one (uvarint),
// and as many as there are of the database's file; a page that comes again takes
// the place of the one before, since the database goes on while it is sent. Which
// entry it is as of is known, and said, at the end.
//
// Whoever receives one verifies each record by its own checksums before it takes
// the database, and that no page in use is in SQLite's list of free ones: what is
// damaged at the sender's goes no further. (What refers to a page, in the
// pointer maps, is not verified: SQLite notices when it moves the page.)
//
// A node that has received one whole puts it where Open looks for it and ends
// with ErrReplaced: opened again, it has that database and a Raft log that
// begins there. Every step of that can be repeated after a crash.

// ErrReplaced ends the log of a node that has received a snapshot. Opened
// again it goes on from there.
var ErrReplaced = errors.New("raft: the data was replaced by a snapshot")

const (
	snapshotMagic = "keelson snapshot 2\n"
	maxFrame      = 16 << 20

	// receivingPrefix begins the names of directories of snapshots that are
	// not there whole.
	receivingPrefix = "receiving-"

	progressEvery = 10 * time.Second
)

// snapshotHeader is what a snapshot says of itself at its beginning.
type snapshotHeader struct {
	Cluster uint64 `json:"cluster"`
	Bytes   int64  `json:"bytes"` // of the database, about
}

// snapshotMeta is what it says at its end.
type snapshotMeta struct {
	Pages   int64             `json:"pages"` // of the database
	Cluster uint64            `json:"cluster"`
	Index   uint64            `json:"index"`
	Term    uint64            `json:"term"`
	Conf    *raftpb.ConfState `json:"conf"`
	Members Members           `json:"members"`
	Head    eventlog.Head     `json:"head"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frames writes frames.
type frames struct {
	w   io.Writer
	crc uint32
}

// write writes a frame whose content is in parts.
func (f *frames) write(parts ...[]byte) error {
	length := 0
	for _, part := range parts {
		f.crc = crc32.Update(f.crc, castagnoli, part)
		length += len(part)
	}
	head := binary.AppendUvarint(nil, uint64(length))
	head = binary.BigEndian.AppendUint32(head, f.crc)
	for _, part := range append([][]byte{head}, parts...) {
		if _, err := f.w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

func (f *frames) writeJSON(v any) error {
	content, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return f.write(content)
}

// frameReader reads what frames wrote.
type frameReader struct {
	r   *bufio.Reader
	crc uint32
	buf []byte
}

// read returns the content of the next frame, until it is called again.
func (f *frameReader) read() ([]byte, error) {
	n, err := binary.ReadUvarint(f.r)
	if err != nil {
		return nil, cutOff(err)
	}
	var sum [4]byte
	if _, err := io.ReadFull(f.r, sum[:]); err != nil {
		return nil, cutOff(err)
	}
	if n > maxFrame {
		return nil, fmt.Errorf("%w: a part of the snapshot has %d bytes", eventlog.ErrCorrupt, n)
	}
	f.buf = slices.Grow(f.buf[:0], int(n))[:n]
	if _, err := io.ReadFull(f.r, f.buf); err != nil {
		return nil, cutOff(err)
	}
	f.crc = crc32.Update(f.crc, castagnoli, f.buf)
	if f.crc != binary.BigEndian.Uint32(sum[:]) {
		return nil, fmt.Errorf("%w: a checksum of the snapshot does not match", eventlog.ErrCorrupt)
	}
	return f.buf, nil
}

func cutOff(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("the snapshot was cut off: %w", err)
}

// WriteSnapshot writes the log as it is now, while it goes on.
func (l *Log) WriteSnapshot(ctx context.Context, w io.Writer) error {
	if err := l.check(); err != nil {
		return err
	}
	l.sending.Add(1)
	defer func() {
		now := time.Now()
		l.sent.Store(&now)
		l.sending.Add(-1)
	}()
	c, err := l.local.Copy(ctx)
	if err != nil {
		return err
	}
	return errors.Join(l.writeSnapshot(ctx, c, w), c.Close())
}

func (l *Log) writeSnapshot(ctx context.Context, c *sqlite.Copy, w io.Writer) error {
	if _, err := io.WriteString(w, snapshotMagic); err != nil {
		return err
	}
	f := &frames{w: w}
	if err := f.writeJSON(snapshotHeader{Cluster: l.cluster, Bytes: c.Bytes()}); err != nil {
		return err
	}
	pages := func(first int64, content []byte) error {
		return f.write(binary.AppendUvarint(nil, uint64(first)), content)
	}
	if err := c.All(ctx, pages); err != nil {
		return err
	}
	meta, err := l.capture(ctx, c)
	if err != nil {
		return err
	}
	if meta.Pages, err = c.Rest(ctx, pages); err != nil {
		return err
	}
	if err := f.write(); err != nil {
		return err
	}
	return f.writeJSON(meta)
}

// afterSnapshot is how long a node has to come back with a snapshot before the
// entries after it may go.
const afterSnapshot = 5 * time.Minute

// sendsSnapshots reports whether a node may need the entries of a while ago.
func (l *Log) sendsSnapshots() bool {
	sent := l.sent.Load()
	return l.sending.Load() > 0 || sent != nil && time.Since(*sent) < afterSnapshot
}

// capture makes c one of the database after the newest entry applied, and says
// what it is.
func (l *Log) capture(ctx context.Context, c *sqlite.Copy) (snapshotMeta, error) {
	if err := l.flush(ctx); err != nil { // so that little is left for which entries wait
		return snapshotMeta{}, err
	}
	l.applying.Lock()
	defer l.applying.Unlock()
	if err := l.flush(ctx); err != nil {
		return snapshotMeta{}, err
	}
	head, err := c.Freeze(ctx)
	if err != nil {
		return snapshotMeta{}, err
	}
	index, _ := l.applied.now()
	return snapshotMeta{Cluster: l.cluster, Index: index, Term: l.term, Conf: l.conf, Members: l.Members(), Head: head}, nil
}

// ReadSnapshot receives what another node's WriteSnapshot writes. When it is
// there whole and this node can do with it, the log ends with ErrReplaced; an
// error leaves everything as it was.
func (l *Log) ReadSnapshot(ctx context.Context, r io.Reader) error {
	if err := l.check(); err != nil {
		return err
	}
	if !l.receiving.TryLock() {
		return errors.New("another snapshot is being received")
	}
	defer l.receiving.Unlock()
	// A directory of its own: the call may outlive the log.
	dir, err := os.MkdirTemp(l.node.disk.dir, receivingPrefix)
	if err != nil {
		return err
	}
	meta, err := l.receive(ctx, dir, r)
	if err == nil {
		err = l.check()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("receive a snapshot: %w", err), os.RemoveAll(dir))
	}
	final := filepath.Join(l.node.disk.dir, "snapshot")
	if err := discard(final); err != nil {
		return err
	}
	if err := errors.Join(os.Rename(dir, final), durable.Sync(l.node.disk.dir)); err != nil {
		return err
	}
	l.logger.WithField("entry", meta.Index).Info("received a snapshot")
	return l.replace(ctx, meta)
}

// receive makes a database of a snapshot in dir, durable, with what it says.
func (l *Log) receive(ctx context.Context, dir string, r io.Reader) (meta snapshotMeta, err error) {
	f := &frameReader{r: bufio.NewReader(r)}
	header, err := l.readHeader(f)
	if err != nil {
		return meta, err
	}
	database, err := sqlite.NewReceiver(dir)
	if err != nil {
		return meta, err
	}
	if err := l.receivePages(ctx, database, f, header.Bytes); err != nil {
		return meta, errors.Join(err, database.Close())
	}
	content, err := f.read()
	if err == nil {
		err = decodeJSON(content, &meta)
	}
	if err != nil {
		return meta, errors.Join(err, database.Close())
	}
	if err := database.Finish(ctx, meta.Pages, meta.Head, l.logger); err != nil {
		return meta, err
	}
	return meta, durable.Write(filepath.Join(dir, "snapshot.json"), content)
}

// readHeader reads what is before the pages.
func (l *Log) readHeader(f *frameReader) (header snapshotHeader, err error) {
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(f.r, magic); err != nil {
		return header, cutOff(err)
	}
	if string(magic) != snapshotMagic {
		return header, fmt.Errorf("it begins with %q, where %q is what this keelson knows: it may be that of another version", magic, snapshotMagic)
	}
	content, err := f.read()
	if err == nil {
		err = decodeJSON(content, &header)
	}
	if err == nil && header.Cluster != l.cluster {
		err = fmt.Errorf("it is a snapshot of cluster %x; this node belongs to %x", header.Cluster, l.cluster)
	}
	return header, err
}

func decodeJSON(content []byte, v any) error {
	if err := json.Unmarshal(content, v); err != nil {
		return fmt.Errorf("%w: %w", eventlog.ErrCorrupt, err)
	}
	return nil
}

// receivePages takes the pages of f, of about so many bytes in all, and says now
// and then how far it is.
func (l *Log) receivePages(ctx context.Context, database *sqlite.Receiver, f *frameReader, total int64) error {
	received := int64(0)
	for said := time.Now(); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		frame, err := f.read()
		if err != nil || len(frame) == 0 {
			return err
		}
		first, n := binary.Uvarint(frame)
		if n <= 0 {
			return fmt.Errorf("%w: pages of the snapshot have no number", eventlog.ErrCorrupt)
		}
		if err := database.Write(int64(first), frame[n:]); err != nil {
			return err
		}
		received += int64(len(frame) - n)
		if time.Since(said) > progressEvery {
			said = time.Now()
			l.logger.WithFields(logrus.Fields{"bytes": received, "of": total}).Info("receiving a snapshot")
		}
	}
}

// replace ends the log for the snapshot that meta describes, unless what this
// node has is as good: entries that it may have promised to keep are not given
// up (as raft's own restore decides).
func (l *Log) replace(ctx context.Context, meta snapshotMeta) error {
	outcome := make(chan error, 1)
	l.node.inputs.put(func(raw *raft.RawNode) {
		term, err := l.node.disk.mem.Term(meta.Index)
		switch {
		case meta.Index <= raw.BasicStatus().GetCommit():
			outcome <- fmt.Errorf("the snapshot of entry %d comes too late: this node has more", meta.Index)
		case err == nil && term == meta.Term:
			outcome <- fmt.Errorf("the snapshot of entry %d is not needed: this node has the entry", meta.Index)
		default:
			l.node.halted = ErrReplaced
			outcome <- nil
		}
	})
	select {
	case err := <-outcome:
		if err != nil {
			err = errors.Join(err, discard(filepath.Join(l.node.disk.dir, "snapshot")))
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-l.ended:
		return nil
	}
}

// installSnapshot puts the database of a snapshot that was received in place
// of the one in dir, and begins the Raft log anew after it. The state of the
// disk says after a crash how far that had come.
func installSnapshot(dir string, id Identity) error {
	raftDir := filepath.Join(dir, raftDir)
	parts, err := filepath.Glob(filepath.Join(raftDir, receivingPrefix+"*"))
	for _, part := range parts {
		err = errors.Join(err, os.RemoveAll(part))
	}
	if err != nil {
		return err
	}
	from := filepath.Join(raftDir, "snapshot")
	data, err := os.ReadFile(filepath.Join(from, "snapshot.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return os.RemoveAll(from)
	}
	if err != nil {
		return err
	}
	var meta snapshotMeta
	if err := json.Unmarshal(data, &meta); err != nil {
		return fmt.Errorf("%w: %s: %w", eventlog.ErrCorrupt, from, err)
	}
	state, wanted, err := wantsSnapshot(raftDir, id, meta)
	if err == nil && wanted {
		if err = moveDatabase(from, dir); err == nil {
			err = checkDatabase(dir, meta.Head.Position)
		}
		if err == nil {
			err = renewWAL(raftDir, id, state, meta)
		}
	}
	if err != nil {
		return fmt.Errorf("install the snapshot %s: %w", from, err)
	}
	return discard(from)
}

// discard removes a snapshot, what says that it is whole first.
func discard(dir string) error {
	if err := os.Remove(filepath.Join(dir, "snapshot.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := durable.Sync(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return errors.Join(os.RemoveAll(dir), durable.Sync(filepath.Dir(dir)))
}

// wantsSnapshot reports whether the Raft log lacks what a snapshot has, as
// replace does, and returns its term and vote.
func wantsSnapshot(raftDir string, id Identity, meta snapshotMeta) (*raftpb.HardState, bool, error) {
	d, err := openDisk(raftDir, id, Members{})
	if err != nil {
		return nil, false, err
	}
	state, _, err := d.mem.InitialState()
	if err = errors.Join(err, d.close()); err != nil {
		return nil, false, err
	}
	term, err := d.mem.Term(meta.Index)
	return state, state.GetCommit() < meta.Index && (err != nil || term != meta.Term), nil
}

// moveDatabase puts the database of from into dir, unless that is done.
func moveDatabase(from, dir string) error {
	database := filepath.Join(from, sqlite.FileName)
	if _, err := os.Stat(database); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(filepath.Join(dir, sqlite.FileName+suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := durable.Sync(dir); err != nil { // else the old -wal might come back beside the new database
		return err
	}
	if err := os.Rename(database, filepath.Join(dir, sqlite.FileName)); err != nil {
		return err
	}
	return errors.Join(durable.Sync(dir), durable.Sync(from))
}

// checkDatabase makes sure that the database in dir is at position: the Raft log
// that it is to go with has nothing before it.
func checkDatabase(dir string, position eventlog.Position) error {
	ctx := context.Background()
	local, err := sqlite.Open(ctx, sqlite.Options{Dir: dir, Synchronous: sqlite.UnsafeLosesAcknowledgedWritesOnPowerCut})
	if err != nil {
		return err
	}
	head, err := local.Head(ctx)
	if err == nil && head != position {
		err = fmt.Errorf("%w: the database is at position %d, the snapshot at %d", eventlog.ErrCorrupt, head, position)
	}
	return errors.Join(err, local.Close())
}

// renewWAL makes a WAL that begins after a snapshot the node's, with the term
// and the vote of the one before.
func renewWAL(raftDir string, id Identity, state *raftpb.HardState, meta snapshotMeta) error {
	metadata, err := json.Marshal(id)
	if err != nil {
		return err
	}
	next := filepath.Join(raftDir, "wal.next")
	if err := os.RemoveAll(next); err != nil {
		return err
	}
	w, err := wal.Create(zap.NewNop(), next, metadata)
	if err != nil {
		return err
	}
	renewed := &raftpb.HardState{Term: new(state.GetTerm()), Vote: new(state.GetVote()), Commit: &meta.Index}
	if meta.Term > state.GetTerm() {
		renewed.Term, renewed.Vote = &meta.Term, new(uint64(0))
	}
	mark := markFile{Members: meta.Members}
	if meta.Head.Position > 0 { // else nothing is known of it
		mark.Position = &meta.Head.Position
	}
	err = mark.write(raftDir, meta.Index)
	if err == nil {
		err = w.Save(renewed, nil)
	}
	if err == nil {
		err = w.SaveSnapshot(&walpb.Snapshot{Index: &meta.Index, Term: &meta.Term, ConfState: meta.Conf})
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(raftDir, "wal"), filepath.Join(raftDir, "wal.old")); err != nil {
		return err
	}
	return finishWAL(raftDir)
}

// finishWAL takes the new WAL into use once the old one is put aside.
func finishWAL(raftDir string) error {
	old := filepath.Join(raftDir, "wal.old")
	if _, err := os.Stat(old); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if !wal.Exist(filepath.Join(raftDir, "wal")) {
		if err := os.Rename(filepath.Join(raftDir, "wal.next"), filepath.Join(raftDir, "wal")); err != nil {
			return err
		}
	}
	if err := durable.Sync(raftDir); err != nil {
		return err
	}
	return os.RemoveAll(old)
}
