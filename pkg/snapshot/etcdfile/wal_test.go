package etcdfile_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/pkg/snapshot/etcdfile"
)

// writeWAL makes a log whose entries from the first one on ask for requests; nil
// is what a new leader appends.
func writeWAL(t *testing.T, first uint64, requests ...*pb.InternalRaftRequest) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "wal")
	w, err := wal.Create(zap.NewNop(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	var entries []*raftpb.Entry
	for i, request := range requests {
		e := &raftpb.Entry{Term: proto.Uint64(1), Index: proto.Uint64(first + uint64(i))}
		if request != nil {
			if e.Data, err = proto.Marshal(request); err != nil {
				t.Fatal(err)
			}
		}
		entries = append(entries, e)
	}
	state := &raftpb.HardState{Term: proto.Uint64(1), Commit: proto.Uint64(first - 1)}
	mark := &walpb.Snapshot{Index: proto.Uint64(first - 1), Term: proto.Uint64(1), ConfState: &raftpb.ConfState{}}
	if err := errors.Join(w.SaveSnapshot(mark), w.Save(state, entries), w.Close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestCheckWAL: what etcd may have acknowledged and the database lacks is
// noticed, and nothing else is.
func TestCheckWAL(t *testing.T) {
	put := &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("k")}}
	other := &pb.InternalRaftRequest{LeaseCheckpoint: &pb.LeaseCheckpointRequest{}}
	r := open(t, write(t, example(), etcdfile.Options{Index: 7}))
	torn := writeWAL(t, 5, put)
	files, err := filepath.Glob(filepath.Join(torn, "*.wal"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if err := os.WriteFile(files[0], []byte(strings.Repeat("no log ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		dir  string
		want error
		text string
	}{
		"all is there":        {writeWAL(t, 5, put, put, put), nil, ""},
		"nothing that writes": {writeWAL(t, 5, put, put, put, nil, other), nil, ""},
		"one is not there":    {writeWAL(t, 5, put, put, put, nil, put), etcdfile.ErrBehind, "writes of 1 entries after the 7th"},
		"a later snapshot":    {writeWAL(t, 9), etcdfile.ErrBehind, "snapshot of entry 8"},
		"no log":              {filepath.Join(t.TempDir(), "wal"), etcdfile.ErrNoWAL, "there is no "},
		"damaged":             {torn, nil, "cannot be read"},
	} {
		err := r.CheckWAL(c.dir)
		if c.want != nil && !errors.Is(err, c.want) || c.text == "" && err != nil || c.text != "" && (err == nil || !strings.Contains(err.Error(), c.text)) {
			t.Errorf("%s: %v, want %v with %q", name, err, c.want, c.text)
		}
	}
}
