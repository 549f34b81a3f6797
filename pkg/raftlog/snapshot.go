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
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/durable"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

// A snapshot is the whole log as of an entry, for a node that is so far behind
// that the entries it lacks are not in memory any more:
//
//	magic, frame (snapshotMeta as JSON), frame (rows) …, empty frame
//
// A frame is its length (uvarint), a CRC-32C of it and all before it (4 bytes,
// big-endian), and its content. Rows are those of the database, each checked
// once more by its own checksums.
//
// A node that has received one whole puts it where Open looks for it and ends
// with ErrReplaced: opened again, it has that database and a Raft log that
// begins there. Every step of that can be repeated after a crash.

// ErrReplaced ends the log of a node that has received a snapshot. Opened
// again it goes on from there.
var ErrReplaced = errors.New("raft: the data was replaced by a snapshot")

const (
	snapshotMagic = "keelson snapshot 1\n"
	maxFrame      = 1 << 30 // a record's value may be large

	// receivingPrefix begins the names of directories of snapshots that are
	// not there whole.
	receivingPrefix = "receiving-"

	progressEvery = 10 * time.Second
)

// snapshotMeta is what a snapshot says of itself.
type snapshotMeta struct {
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

func (f *frames) write(content []byte) error {
	f.crc = crc32.Update(f.crc, castagnoli, content)
	head := binary.AppendUvarint(nil, uint64(len(content)))
	head = binary.BigEndian.AppendUint32(head, f.crc)
	if _, err := f.w.Write(head); err != nil {
		return err
	}
	_, err := f.w.Write(content)
	return err
}

// frameReader reads what frames wrote.
type frameReader struct {
	r   *bufio.Reader
	crc uint32
}

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
	content, err := io.ReadAll(io.LimitReader(f.r, int64(n)))
	if err == nil && uint64(len(content)) < n {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, cutOff(err)
	}
	f.crc = crc32.Update(f.crc, castagnoli, content)
	if f.crc != binary.BigEndian.Uint32(sum[:]) {
		return nil, fmt.Errorf("%w: a checksum of the snapshot does not match", eventlog.ErrCorrupt)
	}
	return content, nil
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
	if _, err := io.WriteString(w, snapshotMagic); err != nil {
		return err
	}
	f := &frames{w: w}
	var meta snapshotMeta
	begin := func() (int64, error) {
		var err error
		if meta, err = l.capture(ctx); err != nil {
			return 0, err
		}
		header, err := json.Marshal(meta)
		if err != nil {
			return 0, err
		}
		return meta.Head.Seq, f.write(header)
	}
	var buf []byte
	err := l.local.Export(ctx, begin, func(rows []sqlite.Row) error {
		buf = buf[:0]
		for _, r := range rows {
			buf = appendRow(buf, r)
		}
		return f.write(buf)
	})
	if err != nil {
		return err
	}
	return f.write(nil)
}

// afterSnapshot is how long a node has to come back with a snapshot before the
// entries after it may go.
const afterSnapshot = 5 * time.Minute

// sendsSnapshots reports whether a node may need the entries of a while ago.
func (l *Log) sendsSnapshots() bool {
	sent := l.sent.Load()
	return l.sending.Load() > 0 || sent != nil && time.Since(*sent) < afterSnapshot
}

// capture returns the state after the newest entry applied.
func (l *Log) capture(ctx context.Context) (snapshotMeta, error) {
	l.applying.Lock()
	defer l.applying.Unlock()
	head, err := l.local.State(ctx)
	if err != nil {
		return snapshotMeta{}, err
	}
	index, _ := l.applied.now()
	return snapshotMeta{Cluster: l.cluster, Index: index, Term: l.term, Conf: l.conf, Members: l.Members(), Head: head}, nil
}

// appendRow appends a row as bytes: seq and four columns, each with its length
// and one, or zero for NULL.
func appendRow(dst []byte, r sqlite.Row) []byte {
	dst = binary.AppendUvarint(dst, uint64(r.Seq))
	for _, column := range [...][]byte{r.Header, r.Key, r.Batch, r.Value} {
		if column == nil {
			dst = append(dst, 0)
			continue
		}
		dst = binary.AppendUvarint(dst, uint64(len(column))+1)
		dst = append(dst, column...)
	}
	return dst
}

// cutRow takes the first row off src.
func cutRow(src []byte) (r sqlite.Row, rest []byte, err error) {
	bad := fmt.Errorf("%w: a row of the snapshot cannot be decoded", eventlog.ErrCorrupt)
	seq, n := binary.Uvarint(src)
	if n <= 0 {
		return r, nil, bad
	}
	r.Seq, src = int64(seq), src[n:]
	for _, column := range [...]*[]byte{&r.Header, &r.Key, &r.Batch, &r.Value} {
		size, n := binary.Uvarint(src)
		if n <= 0 || size > uint64(len(src)-n)+1 {
			return r, nil, bad
		}
		src = src[n:]
		if size > 0 {
			*column, src = src[:size-1:size-1], src[size-1:]
		}
	}
	return r, src, nil
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
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return meta, cutOff(err)
	}
	if string(magic) != snapshotMagic {
		return meta, errors.New("it is not a snapshot that this keelson knows: it may be that of a newer one")
	}
	f := &frameReader{r: bufio.NewReaderSize(r, 1<<20)}
	header, err := f.read()
	if err != nil {
		return meta, err
	}
	if err := json.Unmarshal(header, &meta); err != nil {
		return meta, fmt.Errorf("%w: %w", eventlog.ErrCorrupt, err)
	}
	if meta.Cluster != l.cluster {
		return meta, fmt.Errorf("it is a snapshot of cluster %x; this node belongs to %x", meta.Cluster, l.cluster)
	}
	im, err := sqlite.NewImporter(sqlite.ImportOptions{Dir: dir})
	if err != nil {
		return meta, err
	}
	if err := l.importRows(ctx, im, f, meta); err != nil {
		return meta, errors.Join(err, im.Abort())
	}
	if err := im.Finish(meta.Head); err != nil {
		return meta, err
	}
	return meta, durable.Write(filepath.Join(dir, "snapshot.json"), header)
}

// importRows adds the rows of f to im, and says now and then how far it is.
func (l *Log) importRows(ctx context.Context, im *sqlite.Importer, f *frameReader, meta snapshotMeta) error {
	rows := 0
	for said := time.Now(); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		frame, err := f.read()
		if err != nil || len(frame) == 0 {
			return err
		}
		var row sqlite.Row
		for len(frame) > 0 {
			if row, frame, err = cutRow(frame); err != nil {
				return err
			}
			if err := im.AddRow(row); err != nil {
				return err
			}
			rows++
		}
		if time.Since(said) > progressEvery {
			said = time.Now()
			l.logger.Infof("receiving a snapshot: %d records, up to %d of %d", rows, row.Seq, meta.Head.Seq)
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
