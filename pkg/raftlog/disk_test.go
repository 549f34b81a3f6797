package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/internal/testaid"
)

// content is all that a WAL says but how much of it is committed: that may be
// older, as if the node had not heard of it yet.
func (d *disk) content(t *testing.T) string {
	t.Helper()
	state, conf, err := d.mem.InitialState()
	if err != nil {
		t.Fatal(err)
	}
	first, err := d.mem.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	last, err := d.mem.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	entries, err := d.mem.Entries(first, last+1, 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(d.members, state.GetTerm(), state.GetVote(), conf, entries)
}

// TestDamagedWAL: with one bit wrong anywhere in a WAL that is opened beside the
// database it goes with, it is refused, or says the same.
func TestDamagedWAL(t *testing.T) {
	t.Parallel()
	dir, id := t.TempDir(), Identity{Cluster: 7, Node: 1}
	members := Members{Members: []Member{{ID: 1, PeerURLs: []string{"http://a"}}, {ID: 2, PeerURLs: []string{"http://b"}}}}
	d, err := openDisk(dir, id, members)
	if err != nil {
		t.Fatal(err)
	}
	var head eventlog.Position
	for i := range uint64(20) {
		batch := &eventlog.Batch{ID: eventlog.NewBatchID(), Base: head, Records: []eventlog.Record{{
			Seq: int64(i) + 1, Position: head + 1, Kind: eventlog.KindPut, Revision: eventlog.Revision{Main: int64(i) + 2},
			Key: []byte("key"), Value: []byte("value"), CreateRevision: 2, Version: int64(i) + 1,
		}}}
		head = batch.Position()
		index := firstIndex + 1 + i
		entry := &raftpb.Entry{Term: new(uint64(2)), Index: &index, Type: raftpb.EntryNormal.Enum(), Data: eventlog.AppendBatch(nil, batch)}
		if err := d.save(&raftpb.Message{Term: new(uint64(2)), Vote: new(uint64(1)), Commit: new(index - 1), Entries: []*raftpb.Entry{entry}}); err != nil {
			t.Fatal(err)
		}
	}
	want := d.content(t)
	file := filepath.Join(d.walDir(), "0000000000000000-0000000000000000.wal")
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	end := 0
	for binary.LittleEndian.Uint64(whole[end:]) != 0 {
		length := int64(binary.LittleEndian.Uint64(whole[end:]))
		if end += 8 + int(uint64(length)&^(0xff<<56)); length < 0 {
			end += int(length>>56) & 7
		}
	}
	const tries = 400 / Sparse
	same, rnd := 0, testaid.NewRandom(t)
	for range tries {
		at, bit := rnd.IntN(end), rnd.IntN(8)
		damaged := append([]byte{}, whole[:end+4096]...) // short: it is written anew each time
		damaged[at] ^= 1 << bit
		if err := os.WriteFile(file, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := openDisk(dir, id, members)
		if err == nil {
			if err = d.leadsTo(head); err == nil && d.content(t) == want {
				same++
			} else if err == nil {
				t.Errorf("bit %d of byte %d of %d: it says\n%s\nand not\n%s", bit, at, end, d.content(t), want)
			}
			if err := d.close(); err != nil {
				t.Fatal(err)
			}
		}
		if err != nil && !errors.Is(err, eventlog.ErrCorrupt) {
			t.Errorf("bit %d of byte %d of %d: %v", bit, at, end, err)
		}
	}
	t.Logf("%d of %d wrong bits do not matter", same, tries)
}
