package etcdfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// ErrBehind: etcd has acknowledged, or may have, what the database does not have
// yet. An etcd that is stopped writes it there; one that was killed does when it
// is started.
var ErrBehind = errors.New("etcdfile: the database lacks what is in etcd's write-ahead log")

// ErrNoWAL: without the write-ahead log nobody can tell.
var ErrNoWAL = errors.New("etcdfile: there is no write-ahead log of etcd's")

// CheckWAL compares the database with the write-ahead log in dir, which no etcd
// has open, and changes nothing. The errors are ErrBehind, ErrNoWAL or those of
// reading the log.
//
// An entry counts if it may change data, whether or not the log says that it is
// committed: that is written there after etcd has answered.
func (r *Reader) CheckWAL(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: there is no %s", ErrNoWAL, dir)
	}
	newest, entries, err := readWAL(dir)
	if err != nil {
		return fmt.Errorf("etcd's write-ahead log %s cannot be read: %w", dir, err)
	}
	if newest > r.index {
		return fmt.Errorf("%w: that has a snapshot of entry %d, and the database has those up to %d", ErrBehind, newest, r.index)
	}
	lacking := 0
	for _, e := range entries {
		if e.GetIndex() > r.index && e.GetType() == raftpb.EntryNormal && writes(e.Data) {
			lacking++
		}
	}
	if lacking > 0 {
		return fmt.Errorf("%w: the writes of %d entries after the %dth", ErrBehind, lacking, r.index)
	}
	return nil
}

// readWAL returns the index of the newest snapshot and the entries after it.
func readWAL(dir string) (uint64, []*raftpb.Entry, error) {
	snapshots, err := wal.ValidSnapshotEntries(zap.NewNop(), dir)
	if err != nil {
		return 0, nil, err
	}
	if len(snapshots) == 0 {
		return 0, nil, errors.New("it names no snapshot to begin with")
	}
	newest := snapshots[len(snapshots)-1]
	w, err := wal.OpenForRead(zap.NewNop(), dir, newest)
	if err != nil {
		return 0, nil, err
	}
	_, _, entries, err := w.ReadAll()
	_ = w.Close() // opened for reading it has nothing to close, and says so
	return newest.GetIndex(), entries, err
}

// writes reports whether what an entry asks for changes keys or leases.
func writes(data []byte) bool {
	var r pb.InternalRaftRequest
	if err := proto.Unmarshal(data, &r); err != nil {
		return false // of the v2 API
	}
	return r.Put != nil || r.DeleteRange != nil || r.Txn != nil || r.Compaction != nil || r.LeaseGrant != nil || r.LeaseRevoke != nil
}
