package raftlog_test

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/raftlog"
)

// follower starts three nodes and returns the leader, and another node once it
// has what the leader has appended.
func follower(t *testing.T, net *network, dir string) (leader, other *raftlog.Log, head eventlog.Head) {
	t.Helper()
	nodes := nodesOf(t, net, dir, 3)
	leader = leaderOf(t, nodes...)
	other = others(nodes, leader)[0]
	for range 20 {
		head = appendTo(t, leader, head, "key")
	}
	if _, err := other.Head(t.Context()); err != nil {
		t.Fatal(err)
	}
	return leader, other, head
}

// TestLostEnd: a WAL whose end is gone, as it looks after damage to the length
// of a record, is not taken for one that a power cut has torn: the database has
// what was there.
func TestLostEnd(t *testing.T) {
	t.Parallel()
	net, dir := newNetwork(), t.TempDir()
	_, other, _ := follower(t, net, dir)
	id := other.Status().ID
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "node"+string(rune('0'+id)))
	files, err := filepath.Glob(filepath.Join(data, "raft", "wal", "*.wal"))
	if err != nil || len(files) == 0 {
		t.Fatalf("the WAL is %v, %v", files, err)
	}
	file := files[len(files)-1]
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var begins []int // of the records
	for at := 0; binary.LittleEndian.Uint64(whole[at:]) != 0; {
		begins = append(begins, at)
		length := int64(binary.LittleEndian.Uint64(whole[at:]))
		if at += 8 + int(uint64(length)&^(0xff<<56)); length < 0 {
			at += int(length>>56) & 7
		}
	}
	middle := begins[len(begins)/2]
	for what, damage := range map[string]func(wal []byte){
		"has no length": func(wal []byte) { clear(wal[middle : middle+8]) },
		"has one that leads past what is written": func(wal []byte) { wal[middle+2] ^= 8 },
		"has one that leads past the file":        func(wal []byte) { wal[middle+5] ^= 1 },
	} {
		damaged := append([]byte{}, whole...)
		damage(damaged)
		if err := os.WriteFile(file, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := raftlog.Open(t.Context(), raftlog.Options{Dir: data, Cluster: 7, ID: id, Transport: net})
		if !errors.Is(err, eventlog.ErrCorrupt) {
			t.Errorf("Open of a WAL in whose middle a record %s: %v", what, err)
		}
	}
}

// TestOldData: a node whose data was put back to what it was before, so that it
// lacks what it has told the leader it has, ends and says so.
func TestOldData(t *testing.T) {
	t.Parallel()
	net, dir := newNetwork(), t.TempDir()
	leader, other, head := follower(t, net, dir)
	id := other.Status().ID
	data := filepath.Join(dir, "node"+string(rune('0'+id)))
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(data+".old", os.DirFS(data)); err != nil {
		t.Fatal(err)
	}
	other = startNode(t, net, dir, id, membersOf(3))
	for range 20 {
		head = appendTo(t, leader, head, "key")
	}
	if _, err := other.Head(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(other.Close(), os.RemoveAll(data), os.Rename(data+".old", data)); err != nil {
		t.Fatal(err)
	}
	other = startNode(t, net, dir, id, membersOf(3))
	select {
	case <-other.Failed():
		if err := other.Err(); !errors.Is(err, eventlog.ErrFailed) || !strings.Contains(err.Error(), "add it again with an empty data directory") {
			t.Errorf("the node ends with %v", err)
		}
	case <-time.After(forever):
		t.Error("the node goes on")
	}
	appendTo(t, leader, head, "without it")
}
