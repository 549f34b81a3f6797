package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot/etcdfile"
)

// filled is a member with more data than a client that does not read takes.
func filled(t *testing.T) *member {
	t.Helper()
	m := startMember(t, memberOptions{})
	for _, key := range strings.Split("abcdefghijkl", "") {
		if _, err := m.kv.Put(t.Context(), &pb.PutRequest{Key: []byte(key), Value: make([]byte, 256<<10)}); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// snapshot reads a whole one.
func (m *member) snapshot(t *testing.T) ([]byte, error) {
	t.Helper()
	stream, err := m.maintenance.Snapshot(short(t), &pb.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return drain(stream)
}

// begin begins a snapshot and reads one message.
func (m *member) begin(ctx context.Context, t *testing.T) pb.Maintenance_SnapshotClient {
	t.Helper()
	stream, err := m.maintenance.Snapshot(ctx, &pb.SnapshotRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func drain(stream pb.Maintenance_SnapshotClient) ([]byte, error) {
	var file []byte
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return file, nil
		}
		if err != nil {
			return file, err
		}
		file = append(file, resp.Blob...)
	}
}

func TestSnapshot(t *testing.T) {
	m := filled(t)
	file, err := m.snapshot(t)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := etcdfile.Open(t.Context(), path, etcdfile.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if s := r.State(); s.Records != 12 || s.Revision != 13 || !r.HasChecksum() {
		t.Errorf("the snapshot has %+v", s)
	}
	recorder := httptest.NewRecorder()
	m.server.Handler().ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if !strings.Contains(recorder.Body.String(), "etcd_disk_backend_snapshot_duration_seconds_count 1\n") {
		t.Error("the metrics do not count the snapshot")
	}
}

// TestSnapshotNotRead: a client that does not read, or goes away, holds up
// neither the next one nor compaction for long.
func TestSnapshotNotRead(t *testing.T) {
	m := filled(t)
	m.server.snapshots.patience = 500 * time.Millisecond
	stalled := m.begin(short(t), t)
	m.server.snapshots.patience = time.Hour
	if _, err := m.snapshot(t); err != nil {
		t.Errorf("after one that nobody reads: %v", err)
	}
	if _, err := drain(stalled); status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "was not read") {
		t.Errorf("one that was not read: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	m.begin(ctx, t)
	cancel()
	if _, err := m.snapshot(t); err != nil {
		t.Errorf("after one whose client is gone: %v", err)
	}
	if _, err := m.kv.Compact(short(t), &pb.CompactionRequest{Revision: 13, Physical: true}); err != nil {
		t.Errorf("compaction: %v", err)
	}
}

// TestSnapshotReadSlowly: neither does one that reads a message now and then.
func TestSnapshotReadSlowly(t *testing.T) {
	m := filled(t)
	m.server.snapshots.patience = time.Second
	stream := m.begin(short(t), t)
	began := time.Now()
	for {
		if _, err := stream.Recv(); err != nil {
			if status.Code(err) != codes.DeadlineExceeded || time.Since(began) > 15*time.Second {
				t.Errorf("%v after %v", err, time.Since(began))
			}
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func TestSnapshotEndsWithServer(t *testing.T) {
	m := filled(t)
	first := m.begin(short(t), t)
	second, err := m.maintenance.Snapshot(short(t), &pb.SnapshotRequest{}) // waits for its turn
	if err != nil {
		t.Fatal(err)
	}
	m.server.Stop()
	for i, stream := range []pb.Maintenance_SnapshotClient{first, second} {
		if file, err := drain(stream); err == nil || status.Code(err) != status.Code(rpctypes.ErrGRPCStopped) && status.Code(err) != codes.Unavailable {
			t.Errorf("snapshot %d of a server that stops: %d bytes, %v", i, len(file), err)
		}
	}
}

// TestSnapshotDamaged: what cannot be read whole does not look whole.
func TestSnapshotDamaged(t *testing.T) {
	m := startMember(t, memberOptions{wrap: func(s Store) Store { return failingStore{s, func() error { return eventlog.ErrCorrupt }} }})
	file, err := m.snapshot(t)
	if status.Code(err) != status.Code(rpctypes.ErrGRPCCorrupt) || len(file) > 0 {
		t.Errorf("%d bytes, %v", len(file), err)
	}
}

// TestSnapshotMessages compares the messages with what protobuf makes of them.
func TestSnapshotMessages(t *testing.T) {
	m := filled(t)
	stream, err := m.maintenance.Snapshot(short(t), &pb.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	sum, left := sha256.New(), uint64(0)
	for i := 0; ; i++ {
		resp, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if resp.Version != storageVersion || i > 0 && resp.RemainingBytes+uint64(len(resp.Blob)) != left && left > 0 {
			t.Fatalf("message %d: version %q, %d bytes, then %d, after %d", i, resp.Version, len(resp.Blob), resp.RemainingBytes, left)
		}
		if i > 0 && left == 0 {
			if !bytes.Equal(resp.Blob, sum.Sum(nil)) {
				t.Error("the last message is not the checksum")
			}
			break
		}
		left = resp.RemainingBytes
		sum.Write(resp.Blob)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the checksum: %v", err)
	}
}
