package raftlog

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// Inspection is what is in the Raft log of a node.
type Inspection struct {
	Node     Identity
	Mark     uint64 // index of the newest mark: where a restart reads from
	Last     uint64 // index of the last entry
	LastTerm uint64 // and its term
	Commit   uint64 // of what the node knows to be committed
	Members  int    // as of the mark

	// The database has everything up to Durable, and nothing after Reached,
	// which is where the log leads to; nil is not known.
	Durable, Reached *eventlog.Position

	entries []*raftpb.Entry // after the mark
}

// LeadsTo is the position of a database at position from once it has what the Raft
// log has, as far as that is ever applied.
func (in *Inspection) LeadsTo(from eventlog.Position) (eventlog.Position, error) {
	to, err := reach(&from, in.entries)
	if err != nil {
		return from, err
	}
	return *to, nil
}

// Inspect reads the Raft log in data directory dir, which no server has open;
// it changes nothing, not even a torn end. An eventlog.ErrCorrupt says what is
// damaged.
func Inspect(dir string) (*Inspection, error) {
	id, known, err := Identify(dir)
	if err != nil {
		return nil, err
	}
	if !known {
		return nil, fmt.Errorf("%s is not the data directory of a node of a cluster", dir)
	}
	in := &Inspection{Node: id}
	d := disk{dir: filepath.Join(dir, raftDir)}
	mark, err := d.newestMark()
	if err != nil {
		return nil, damaged(err)
	}
	w, err := wal.OpenForRead(zap.NewNop(), d.walDir(), mark)
	if err != nil {
		return nil, damaged(err)
	}
	metadata, state, entries, err := w.ReadAll()
	_ = w.Close() // opened for reading it has nothing to close, and says so
	if err != nil {
		return nil, damaged(err)
	}
	var found Identity
	if err := json.Unmarshal(metadata, &found); err != nil || found != id {
		return nil, fmt.Errorf("%w: it belongs to another node: it says %s, and this is node %x of cluster %x", eventlog.ErrCorrupt, metadata, id.Node, id.Cluster)
	}
	in.Mark, in.LastTerm, in.Commit, in.entries = mark.GetIndex(), mark.GetTerm(), state.GetCommit(), entries
	return in, errors.Join(in.readMark(d.dir, mark, entries), in.checkEntries(entries))
}

// damaged takes every error of reading the WAL for damage: nobody writes to it.
func damaged(err error) error { return fmt.Errorf("%w: the raft log: %w", eventlog.ErrCorrupt, err) }

func (in *Inspection) readMark(dir string, mark *walpb.Snapshot, entries []*raftpb.Entry) error {
	if mark.GetIndex() == 0 {
		return nil // it has joined, and has no data yet
	}
	file, err := loadMark(dir, mark.GetIndex())
	if err != nil {
		return err
	}
	in.Members, in.Durable = len(file.Members.Members), file.Position
	for _, voter := range mark.GetConfState().GetVoters() {
		if _, known := file.Member(voter); !known {
			return fmt.Errorf("%w: node %x votes as of entry %d, and is not among the members", eventlog.ErrCorrupt, voter, mark.GetIndex())
		}
	}
	in.Reached, err = reach(file.Position, entries)
	return err
}

// checkEntries looks whether the entries after the mark are all there, and
// their batches whole.
func (in *Inspection) checkEntries(entries []*raftpb.Entry) error {
	in.Last = in.Mark
	for _, e := range entries {
		if e.GetIndex() != in.Last+1 {
			return fmt.Errorf("%w: entry %d of the raft log follows entry %d", eventlog.ErrCorrupt, e.GetIndex(), in.Last)
		}
		in.Last, in.LastTerm = e.GetIndex(), e.GetTerm()
		if e.GetType() != raftpb.EntryNormal || len(e.Data) == 0 {
			continue
		}
		if _, err := eventlog.DecodeBatch(e.Data); err != nil {
			return fmt.Errorf("entry %d of the raft log: %w", e.GetIndex(), err)
		}
	}
	if in.Commit > in.Last {
		return fmt.Errorf("%w: entries up to %d of the raft log are committed, and only those up to %d are there", eventlog.ErrCorrupt, in.Commit, in.Last)
	}
	return nil
}
