package contract

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/bbolt"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/test/harness"
)

var snapshots = []statement{
	{name: "44_snapshot_stream", run: snapshotStream},
	{name: "45_snapshot_file", run: snapshotFile},
	{name: "46_restore", run: snapshotRestore},
	{name: "issue_18055_two_quick_snapshots", run: twoSnapshots},
}

// snapshot reads a whole snapshot, and checks how it is streamed.
func (e *env) snapshot() ([]byte, error) {
	e.Helper()
	stream, err := e.maint.Snapshot(e.ctx, &pb.SnapshotRequest{})
	must(e, err)
	var file []byte
	for left := uint64(0); ; {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			equal(e, "bytes left at the end", left, 0)
			return file, nil
		}
		if err != nil {
			return nil, err
		}
		if len(resp.Blob) > 32<<10 || len(resp.Blob) == 0 {
			e.Errorf("a blob of %d bytes", len(resp.Blob))
		}
		if len(file) > 0 && resp.RemainingBytes > 0 {
			equal(e, "bytes left", resp.RemainingBytes, left-uint64(len(resp.Blob)))
		}
		equal(e, "version", resp.Version, "3.7.0") // of the storage
		left = resp.RemainingBytes
		file = append(file, resp.Blob...)
	}
}

func (e *env) mustSnapshot() []byte {
	e.Helper()
	file, err := e.snapshot()
	must(e, err)
	return file
}

func snapshotStream(e *env) {
	for i := range 20 {
		e.put(fmt.Sprint("k", i), strings.Repeat("v", 50<<10))
	}
	file := e.mustSnapshot()
	equal(e, "what is over whole sectors", len(file)%512, sha256.Size)
	sum := sha256.Sum256(file[:len(file)-sha256.Size])
	if !slices.Equal(sum[:], file[len(file)-sha256.Size:]) {
		e.Errorf("the end of the file is not its checksum")
	}
}

// open opens a snapshot as the database that it is.
func (e *env) open(file []byte) *bbolt.DB {
	e.Helper()
	path := filepath.Join(e.TempDir(), "snapshot.db")
	must(e, os.WriteFile(path, file, 0o600))
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
	must(e, err)
	e.Cleanup(func() { _ = db.Close() })
	return db
}

// storageVersion is that of the etcd which a snapshot says it is for.
func storageVersion(e *env) (version string) {
	db := e.open(e.mustSnapshot())
	must(e, db.View(func(tx *bbolt.Tx) error {
		version = string(tx.Bucket([]byte("meta")).Get([]byte("storageVersion")))
		return nil
	}))
	return version
}

func snapshotFile(e *env) {
	e.grant(77, 1000)
	e.put("a", "1")
	e.put("a", "2")
	e.del("a", "")
	e.attach("b", 77)
	e.compact(3)
	db := e.open(e.mustSnapshot())
	must(e, db.View(func(tx *bbolt.Tx) error {
		var names []string
		must(e, tx.ForEach(func(name []byte, _ *bbolt.Bucket) error {
			names = append(names, string(name))
			return nil
		}))
		equal(e, "buckets", strings.Join(names, " "),
			"alarm auth authRoles authUsers cluster key lease members members_removed meta")
		var got []string
		must(e, tx.Bucket([]byte("key")).ForEach(func(k, v []byte) error {
			kv := new(mvccpb.KeyValue)
			must(e, proto.Unmarshal(v, kv))
			line := fmt.Sprintf("%d%c%d", binary.BigEndian.Uint64(k), k[8], binary.BigEndian.Uint64(k[9:]))
			got = append(got, fmt.Sprintf("%s%s %s lease=%d", line, k[17:], show(kv), kv.Lease))
			return nil
		}))
		equal(e, "keys", strings.Join(got, "\n"), strings.Join([]string{
			"3_0 a=2 create=2 mod=3 version=2 lease=0",
			"4_0t a= create=0 mod=0 version=0 lease=0",
			"5_0 b= create=5 mod=5 version=1 lease=77",
		}, "\n"))
		meta := tx.Bucket([]byte("meta"))
		for name, size := range map[string]int{"consistent_index": 8, "term": 8, "scheduledCompactRev": 17, "finishedCompactRev": 17} {
			equal(e, "size of "+name, len(meta.Get([]byte(name))), size)
		}
		equal(e, "compacted", binary.BigEndian.Uint64(meta.Get([]byte("finishedCompactRev"))), 3)
		if !strings.HasPrefix(string(meta.Get([]byte("confState"))), "{") {
			e.Errorf("confState is %q", meta.Get([]byte("confState")))
		}
		equal(e, "leases", tx.Bucket([]byte("lease")).Stats().KeyN, 1)
		equal(e, "id of the lease", len(tx.Bucket([]byte("lease")).Get(binary.BigEndian.AppendUint64(nil, 77))) > 0, true)
		return nil
	}))
}

// snapshotRestore restores a store whose newest record was compacted away.
func snapshotRestore(e *env) {
	e.put("a", "1")
	e.put("b", "1")
	e.del("b", "")
	e.compact(4)
	dir := e.TempDir()
	path := filepath.Join(dir, "snapshot.db")
	must(e, os.WriteFile(path, e.mustSnapshot(), 0o600))
	etcdutl := func(args ...string) string {
		e.Helper()
		out, err := exec.CommandContext(e.ctx, harness.Tool(e, "etcdutl"), args...).CombinedOutput()
		if err != nil {
			e.Fatalf("etcdutl %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	if out := etcdutl("snapshot", "status", path, "-w", "json"); !strings.Contains(out, `"revision":4`) {
		e.Errorf("status: %s", out)
	}
	// Whoever has made it, etcd goes on from it.
	restored := harness.NewServer(e, harness.Etcd, harness.Tool(e, "etcd"))
	peer := "unix://" + filepath.Join(restored.Dir, "peer.sock")
	etcdutl("snapshot", "restore", path, "--data-dir", filepath.Join(restored.Dir, "data"),
		"--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	restored.Restart()
	e = e.on(restored)
	equal(e, "revision", e.rev(), 4)
	equal(e, "keys", keys(e.rng(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}).Kvs), "a")
	equal(e, "revision of the next put", e.put("c", "1"), 5)
}

func twoSnapshots(e *env) {
	e.put("a", strings.Repeat("v", 1<<20))
	type result struct {
		file []byte
		err  error
	}
	results := make(chan result, 2)
	for range cap(results) {
		go func() {
			file, err := e.snapshot()
			results <- result{file, err}
		}()
	}
	for range cap(results) {
		r := <-results
		must(e, r.err)
		must(e, e.open(r.file).View(func(tx *bbolt.Tx) error {
			equal(e, "keys", tx.Bucket([]byte("key")).Stats().KeyN, 1)
			return nil
		}))
	}
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	_, err := e.maint.Snapshot(ctx, &pb.SnapshotRequest{})
	must(e, err)
	cancel() // one that nobody reads does not hold up the next
	e.mustSnapshot()
}
