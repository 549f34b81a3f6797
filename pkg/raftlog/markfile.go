package raftlog

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/keelson-io/keelson/pkg/durable"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

// markFile is what is known of a mark beside what the WAL has of it.
type markFile struct {
	Members

	// Position is that of the database with all up to the mark; nil if it is
	// not known.
	Position *eventlog.Position `json:"position,omitempty"`

	// Checksum is the CRC-32C of this as JSON, without it.
	Checksum string `json:"checksum,omitempty"`
}

// membersFile is where the file of mark index stands.
func membersFile(dir string, index uint64) string {
	return filepath.Join(dir, fmt.Sprintf("members-%016x.json", index))
}

func (f markFile) checksum() (string, error) {
	f.Checksum = ""
	data, err := json.Marshal(f)
	return fmt.Sprintf("%08x", crc32.Checksum(data, castagnoli)), err
}

// write makes it durable, before mark index is made.
func (f markFile) write(dir string, index uint64) error {
	var err error
	if f.Checksum, err = f.checksum(); err != nil {
		return err
	}
	data, err := json.MarshalIndent(f, "", "\t")
	if err != nil {
		return err
	}
	return durable.Write(membersFile(dir, index), append(data, '\n'))
}

// readMark reads the file of mark index, and removes others.
func readMark(dir string, index uint64) (markFile, error) {
	f, err := loadMark(dir, index)
	if err != nil {
		return f, err
	}
	return f, removeMarks(dir, index)
}

// loadMark reads the file of mark index.
func loadMark(dir string, index uint64) (markFile, error) {
	var f markFile
	data, err := os.ReadFile(membersFile(dir, index))
	if err == nil {
		err = json.Unmarshal(data, &f)
	}
	if err == nil {
		var sum string
		if sum, err = f.checksum(); err == nil && sum != f.Checksum {
			err = errors.New("the checksum does not match")
		}
	}
	if err != nil {
		return f, fmt.Errorf("%w: the members as of entry %d: %w", eventlog.ErrCorrupt, index, err)
	}
	return f, nil
}

// removeMarks removes the files of marks other than index.
func removeMarks(dir string, index uint64) error {
	files, err := filepath.Glob(filepath.Join(dir, "members-*.json"))
	for _, file := range files {
		if file != membersFile(dir, index) {
			err = errors.Join(err, os.Remove(file))
		}
	}
	return err
}

// reach returns the position of a database at from once entries are applied, as
// far as they will be; nil if from is not known.
func reach(from *eventlog.Position, entries []*raftpb.Entry) (*eventlog.Position, error) {
	if from == nil {
		return nil, nil
	}
	at := *from
	for _, e := range entries {
		if e.GetType() != raftpb.EntryNormal || len(e.Data) == 0 {
			continue
		}
		batch, err := eventlog.DecodeBatch(e.Data)
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", e.GetIndex(), err)
		}
		if batch.Base == at { // else it changes nothing
			at = batch.Position()
		}
	}
	return &at, nil
}

// leadsTo makes sure that the database, which is at head, and the WAL belong
// together.
//
//	            mark                  reached
//	WAL          ├──────────────────────┤
//	database ────────────────┤ head
//
// The database has durably what is before the mark. If it has not, it is an older
// one, and nobody else would notice before the next batch. And the WAL has what
// the database has: nothing is applied before it is durable there. If it has not,
// its end was lost, and with it, maybe, what this node has promised to keep. What
// had been applied last before a crash, and was not in the database yet, cannot
// tell.
func (d *disk) leadsTo(head eventlog.Position) error {
	if err := d.goesOn(head); err != nil {
		return err
	}
	if d.reached == nil || head <= *d.reached {
		return nil
	}
	return fmt.Errorf("%w: the end of the raft log %s is lost: it leads to position %d, and the database is at %d: %s",
		eventlog.ErrCorrupt, d.dir, *d.reached, head, joinAgain)
}

// goesOn makes sure of the first half of it.
func (d *disk) goesOn(head eventlog.Position) error {
	if d.begun == nil || head >= *d.begun {
		return nil
	}
	return fmt.Errorf("%w: the database is at position %d, and the raft log %s begins after position %d: the database was replaced by an older one, or has lost what was durable: put the right one back, or %s",
		eventlog.ErrCorrupt, head, d.dir, *d.begun, joinAgain)
}

// joinAgain is what can be done about a node whose data is not what it was.
const joinAgain = "remove this node from the cluster, and add it again with an empty data directory"
