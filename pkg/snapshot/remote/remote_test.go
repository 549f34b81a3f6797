package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-io/keelson/pkg/embed"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
	"github.com/keelson-io/keelson/pkg/snapshot/etcdfile"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// startServer starts a keelson and returns a client of it.
func startServer(t *testing.T) *clientv3.Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "kr") // short enough for a unix socket
	check(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	config := embed.DefaultConfig()
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	config.DataDir, config.Logger = dir+"/data", logrus.NewEntry(logger)
	config.ListenClientURLs = []string{"unix://" + dir + "/k.sock"}
	server, err := embed.Start(t.Context(), config)
	check(t, err)
	client, err := Dial(t.Context(), Config{Endpoints: server.Endpoints()})
	check(t, err)
	t.Cleanup(func() {
		_ = client.Close()
		check(t, server.Close())
	})
	return client
}

func put(t *testing.T, c *clientv3.Client, key, value string, opts ...clientv3.OpOption) int64 {
	t.Helper()
	resp, err := c.Put(t.Context(), key, value, opts...)
	check(t, err)
	return resp.Header.Revision
}

func grant(t *testing.T, c *clientv3.Client, id, ttl int64) {
	t.Helper()
	_, err := clientv3.RetryLeaseClient(c).LeaseGrant(t.Context(), &pb.LeaseGrantRequest{ID: id, TTL: ttl})
	check(t, err)
}

// render is everything that a source has.
func render(t *testing.T, src snapshot.Source) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "revision %d compacted %d\n", src.State().Revision, src.State().Compacted)
	for _, l := range src.State().Leases {
		fmt.Fprintf(&b, "lease %d ttl %d remaining %v\n", l.ID, l.TTL, l.Remaining > 0)
	}
	check(t, src.Records(t.Context(), func(r *eventlog.Record) error {
		fmt.Fprintf(&b, "%v %s=%s create %d version %d lease %d\n", r.Revision, r.Key, r.Value, r.CreateRevision, r.Version, r.Lease)
		return nil
	}))
	return b.String()
}

func open(t *testing.T, c *clientv3.Client) *Source {
	t.Helper()
	src, err := Open(t.Context(), c, nil)
	check(t, err)
	t.Cleanup(func() { check(t, src.Close()) })
	return src
}

// fill writes what TestOpen expects.
func fill(t *testing.T, c *clientv3.Client) {
	grant(t, c, 77, 300)
	grant(t, c, 78, 600)
	put(t, c, "z", "first")
	put(t, c, "a", "second", clientv3.WithLease(77))
	put(t, c, "gone", "")
	put(t, c, "z", "again")
	_, err := c.Txn(t.Context()).Then(clientv3.OpPut("m2", ""), clientv3.OpPut("m1", "x"), clientv3.OpDelete("gone")).Commit()
	check(t, err)
	put(t, c, "\xff\xfe not text", "\x00\xff")
	put(t, c, "late", "")
	_, err = c.Delete(t.Context(), "late")
	check(t, err)
}

func TestOpen(t *testing.T) {
	c := startServer(t)
	if got, want := render(t, open(t, c)), "revision 1 compacted 0\n"; got != want {
		t.Errorf("an empty server: %q", got)
	}
	fill(t, c)
	want := `revision 9 compacted 9
lease 77 ttl 300 remaining true
lease 78 ttl 600 remaining true
3.0 a=second create 3 version 1 lease 77
5.0 z=again create 2 version 2 lease 0
6.0 m1=x create 6 version 1 lease 0
6.1 m2= create 6 version 1 lease 0
7.0 ` + "\xff\xfe not text=\x00\xff" + ` create 7 version 1 lease 0
`
	if got := render(t, open(t, c)); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// TestPages: many keys and large ones, of one revision although others write.
func TestPages(t *testing.T) {
	c := startServer(t)
	const n = 450
	for i := range n {
		value := fmt.Sprint(i)
		if i%40 == 0 {
			value = strings.Repeat("large", 200_000)
		}
		put(t, c, fmt.Sprintf("key%04d", i), value)
	}
	r, err := newReader(t.Context(), c)
	check(t, err)
	var keys []string
	limits := map[int64]bool{}
	check(t, r.each(t.Context(), func(kv *mvccpb.KeyValue) error {
		if len(keys) == 10 {
			put(t, c, "key0449", "changed")
			put(t, c, "key0005a", "new")
		}
		keys = append(keys, string(kv.Key))
		limits[r.limit] = true
		if string(kv.Value) == "changed" {
			t.Error("a change after the start is seen")
		}
		return nil
	}))
	if len(keys) != n || !slices.IsSorted(keys) || len(limits) < 2 {
		t.Errorf("%d keys, sorted %v, in pages of %v", len(keys), slices.IsSorted(keys), limits)
	}
	stop := errors.New("stop")
	if err := r.each(t.Context(), func(*mvccpb.KeyValue) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("an error of the caller's: %v", err)
	}
	_, err = c.Compact(t.Context(), put(t, c, "x", ""))
	check(t, err)
	if err := r.each(t.Context(), func(*mvccpb.KeyValue) error { return nil }); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Errorf("a revision that is compacted: %v", err)
	}
}

func TestSink(t *testing.T) {
	from, to := startServer(t), startServer(t)
	fill(t, from)
	var last, total snapshot.Progress
	opt := SinkOptions{Report: func(a, b snapshot.Progress) { last, total = a, b }}
	_, err := snapshot.Copy(t.Context(), NewSink(to, opt), open(t, from), nil)
	check(t, err)
	if last != total || total.Records != 5 {
		t.Errorf("reported %v of %v", last, total)
	}
	got := render(t, open(t, to))
	for _, want := range []string{
		"revision 6 ", "lease 77 ttl 300", "lease 78 ttl 600", "a=second create 2 version 1 lease 77\n", "z=again create", "not text=\x00\xff",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("there is no %q in\n%s", want, got)
		}
	}
	if _, err := snapshot.Copy(t.Context(), NewSink(to, SinkOptions{}), open(t, from), nil); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("into a server with keys: %v", err)
	}
}

// TestSinkExisting: a copy goes on where it was cut off, mends what differs,
// and reports what is not its own.
func TestSinkExisting(t *testing.T) {
	from, to := startServer(t), startServer(t)
	fill(t, from)
	grant(t, to, 77, 300)
	skipped := put(t, to, "a", "second", clientv3.WithLease(77))
	put(t, to, "m1", "x", clientv3.WithLease(77)) // not attached there
	put(t, to, "z", "other")
	resume := func() error {
		_, err := snapshot.Copy(t.Context(), NewSink(to, SinkOptions{Existing: true}), open(t, from), nil)
		return err
	}
	check(t, resume())
	resp, err := to.Get(t.Context(), "a")
	check(t, err)
	if resp.Kvs[0].ModRevision != skipped {
		t.Error("an equal key was written again")
	}
	before := resp.Header.Revision
	if resp, err := to.Get(t.Context(), "m1"); err != nil || resp.Kvs[0].Lease != 0 {
		t.Errorf("a key that is attached to a lease only there: %v, %v", resp, err)
	}
	check(t, resume())
	if after := put(t, to, "mine", ""); after != before+1 {
		t.Errorf("the second time %d keys were written", after-before-1)
	}
	if err := resume(); !errors.Is(err, ErrDifferent) || !strings.Contains(err.Error(), `"mine"`) {
		t.Errorf("with a key of another origin: %v", err)
	}
}

// TestSinkLeases: a lease that is there for another time is not taken for the
// source's, and none that is gone for there.
func TestSinkLeases(t *testing.T) {
	from, to := startServer(t), startServer(t)
	fill(t, from)
	grant(t, from, -5, 400)
	put(t, from, "negative", "", clientv3.WithLease(-5))
	grant(t, to, 77, 5)
	for _, existing := range []bool{false, true} {
		_, err := snapshot.Copy(t.Context(), NewSink(to, SinkOptions{Existing: existing}), open(t, from), nil)
		if !errors.Is(err, ErrDifferent) || !strings.Contains(err.Error(), "lease 4d for 5 seconds, and not for 300") {
			t.Errorf("with existing %v: %v", existing, err)
		}
	}
	_, err := to.Revoke(t.Context(), 77)
	check(t, err)
	grant(t, to, 77, 300)
	sink := NewSink(to, SinkOptions{})
	_, err = snapshot.Copy(t.Context(), sink, open(t, from), nil)
	check(t, err)
	if got := render(t, open(t, to)); !strings.Contains(got, "lease -5 ttl 400") || !strings.Contains(got, "negative= create 7 version 1 lease -5\n") {
		t.Errorf("got\n%s", got)
	}
	_, err = to.Revoke(t.Context(), 78)
	check(t, err)
	if err := sink.compareLease(t.Context(), snapshot.Lease{ID: 78, TTL: 600}); !errors.Is(err, ErrDifferent) {
		t.Errorf("a lease that is gone: %v", err)
	}
	grant(t, to, 79, 2)
	if err := sink.compareLease(t.Context(), snapshot.Lease{ID: 79, TTL: 1}); err != nil {
		t.Errorf("a TTL that a server has raised: %v", err)
	}
}

// sized answers with pages of no more than limit keys of four.
type sized struct {
	pb.UnimplementedKVServer
	limit int64
}

func (s sized) Range(_ context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if r.Limit > s.limit {
		return nil, status.Error(codes.ResourceExhausted, "too large")
	}
	resp := &pb.RangeResponse{Header: &pb.ResponseHeader{ClusterId: 1, Revision: 9}}
	for i := range int64(4) {
		key := fmt.Appendf(nil, "%d", i)
		if bytes.Compare(key, r.Key) < 0 {
			continue
		}
		if resp.More = int64(len(resp.Kvs)) == r.Limit; resp.More {
			break
		}
		resp.Kvs = append(resp.Kvs, &mvccpb.KeyValue{Key: key})
	}
	return resp, nil
}

// TestPagesTooLarge: a page that no message can carry is asked for in parts.
func TestPagesTooLarge(t *testing.T) {
	for _, limit := range []int64{3, 1, 0} {
		client := serve(t, sized{limit: limit})
		r := &reader{client: client, revision: 9, limit: 4}
		var keys []string
		err := r.each(t.Context(), func(kv *mvccpb.KeyValue) error {
			keys = append(keys, string(kv.Key))
			return nil
		})
		if limit > 0 && (err != nil || strings.Join(keys, "") != "0123") || limit == 0 && status.Code(err) != codes.ResourceExhausted {
			t.Errorf("pages of at most %d keys: %v, %v", limit, keys, err)
		}
	}
}

// TestSinkInterrupted: a copy that is interrupted goes on, and writes no key
// twice.
func TestSinkInterrupted(t *testing.T) {
	from, to := startServer(t), startServer(t)
	const n = 200
	for i := range n {
		put(t, from, fmt.Sprint("key", i), fmt.Sprint(i))
	}
	ctx, cancel := context.WithCancel(t.Context())
	src := open(t, from)
	_, err := snapshot.Copy(ctx, NewSink(to, SinkOptions{Report: func(done, _ snapshot.Progress) {
		if done.Records >= n/2 {
			cancel()
		}
	}}), src, nil)
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted: %v", err)
	}
	_, err = snapshot.Copy(t.Context(), NewSink(to, SinkOptions{Existing: true}), src, nil)
	check(t, err)
	if rev := put(t, to, "after", ""); rev != 1+n+1 {
		t.Errorf("%d keys were written in %d revisions", n, rev-2)
	}
}

// TestSinkFails: a key that the server does not take is named.
func TestSinkFails(t *testing.T) {
	to := startServer(t)
	sink := NewSink(to, SinkOptions{})
	check(t, sink.Begin(t.Context(), snapshot.State{Revision: 3}))
	check(t, sink.Add(t.Context(), &eventlog.Record{Kind: eventlog.KindPut, Revision: eventlog.Revision{Main: 2}, Key: []byte("k"), Lease: 5}))
	if err := sink.Finish(t.Context()); !errors.Is(err, rpctypes.ErrLeaseNotFound) || !strings.Contains(err.Error(), `"k"`) {
		t.Errorf("a key of a lease that is not there: %v", err)
	}
	sink = NewSink(to, SinkOptions{})
	check(t, sink.Begin(t.Context(), snapshot.State{Revision: 3}))
	check(t, sink.Abort())
}

// TestSnapshotHasNoName: what is put aside is gone with the process, however
// that ends.
func TestSnapshotHasNoName(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	c := startServer(t)
	fill(t, c)
	list := func() {
		files, err := filepath.Glob(filepath.Join(dir, "keelson-*"))
		check(t, err)
		if len(files) > 0 {
			t.Errorf("there are %v", files)
		}
	}
	src, err := OpenSnapshot(t.Context(), c, func(file *os.File) (*etcdfile.Reader, error) {
		list()
		return etcdfile.OpenFile(t.Context(), file, etcdfile.OpenOptions{})
	}, nil)
	check(t, err)
	if got := src.State().Revision; got != 9 {
		t.Errorf("revision %d", got)
	}
	pages := open(t, c)
	list()
	if got := pages.State().Records; got != 5 {
		t.Errorf("%d records by pages", got)
	}
	check(t, src.Close())
}

// TestFetchReports: what is reported ends with all of what is to come, from the
// beginning on: that is not the size of the database, part of which is free.
func TestFetchReports(t *testing.T) {
	c := startServer(t)
	for i := range 40 {
		put(t, c, fmt.Sprint("key", i%4), strings.Repeat("large", 20_000))
	}
	_, err := c.Compact(t.Context(), put(t, c, "last", ""))
	check(t, err)
	var file bytes.Buffer
	var done, total, first int64
	check(t, Fetch(t.Context(), c, &file, func(d, all int64) {
		if d <= done || all < d || total > 0 && all > total+sha256.Size {
			t.Errorf("%d of %d bytes after %d of %d", d, all, done, total)
		}
		if done, total = d, all; first == 0 {
			first = all
		}
	}))
	if size := int64(file.Len()); done != size || total != size || first < size-sha256.Size || first > size {
		t.Errorf("at first %d bytes were to come, at the end %d of %d are there; the snapshot has %d", first, done, total, size)
	}
}

// alone is a member of an etcd that has no leader.
type alone struct{ pb.UnimplementedKVServer }

func (alone) Range(_ context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if !r.Serializable {
		return nil, rpctypes.ErrGRPCNoLeader
	}
	return &pb.RangeResponse{Header: &pb.ResponseHeader{}}, nil
}

// TestDialAlone: a member whose cluster has no quorum can be dialed, so that what
// it has can be saved.
func TestDialAlone(t *testing.T) { serve(t, alone{}) }

// asKine knows no serializable reads.
type asKine struct{ pb.UnimplementedKVServer }

func (asKine) Range(_ context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if r.Serializable {
		return nil, status.Error(codes.Unimplemented, "serializable is not implemented by kine")
	}
	return &pb.RangeResponse{Header: &pb.ResponseHeader{}}, nil
}

func TestDialKine(t *testing.T) { serve(t, asKine{}) }

// serve returns a client of kv, which it has dialed.
func serve(t *testing.T, kv pb.KVServer) *clientv3.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	serveAt(t, kv, socket)
	client, err := Dial(t.Context(), Config{Endpoints: []string{"unix://" + socket}, DialTimeout: 5 * time.Second})
	check(t, err)
	t.Cleanup(func() { check(t, client.Close()) })
	return client
}

// serveAt serves kv on a socket.
func serveAt(t *testing.T, kv pb.KVServer, socket string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	check(t, err)
	server := grpc.NewServer()
	pb.RegisterKVServer(server, kv)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		check(t, <-served)
	})
}
