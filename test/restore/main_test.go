// Package restore tests keelson snapshot: what etcd had is what keelson has of
// its snapshot, and what is no snapshot changes nothing.
package restore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// onSQLite keeps the data where a test looks for it, whatever
// KEELSON_TEST_DATASTORE says.
var onSQLite = []string{"--datastore", "sqlite"}

const timeout = 3 * time.Minute

func connect(t *testing.T, srv *harness.Server) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{srv.Endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// try runs a program and returns what it prints.
func try(t *testing.T, env []string, program string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := try(t, nil, program, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(program), strings.Join(args, " "), err, out)
	}
	return out
}

func keelson(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, harness.KeelsonBinary(t), args...)
}

// history is what a server was told, for its revisions.
type history struct {
	client             *clientv3.Client
	current, compacted int64
}

// fill lets a server have a history: with changes of one key again and again,
// deletes, transactions, leases, a compaction and what came after it.
func fill(t *testing.T, c *clientv3.Client) history {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	random := rand.New(rand.NewPCG(7, 7))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for id := range int64(5) {
		_, err := c.Grant(ctx, 1000+id)
		must(err)
	}
	leases, err := c.Leases(ctx)
	must(err)
	key := func() string { return fmt.Sprintf("/registry/things/%d", random.IntN(60)) }
	value := func() string { return strings.Repeat(string(rune('a'+random.IntN(26))), random.IntN(200)) }
	h := history{client: c}
	for i := range 400 {
		switch random.IntN(10) {
		case 0:
			_, err = c.Delete(ctx, key())
		case 1:
			_, err = c.Put(ctx, key(), value(), clientv3.WithLease(leases.Leases[random.IntN(5)].ID))
		case 2:
			a, b := key(), key()+"/more"
			_, err = c.Txn(ctx).Then(clientv3.OpPut(a, value()), clientv3.OpPut(b, value()), clientv3.OpDelete("/registry/things/5", clientv3.WithPrefix())).Commit()
			if errors.Is(err, rpctypes.ErrDuplicateKey) {
				err = nil
			}
		case 3:
			_, err = c.Delete(ctx, fmt.Sprintf("/registry/things/%d", random.IntN(6)), clientv3.WithPrefix())
		default:
			_, err = c.Put(ctx, key(), value())
		}
		must(err)
		if i == 250 { // a tombstone right at the compact revision
			_, err := c.Put(ctx, "/gone", "x")
			must(err)
			gone, err := c.Delete(ctx, "/gone")
			must(err)
			h.compacted = gone.Header.Revision
			_, err = c.Compact(ctx, h.compacted, clientv3.WithCompactPhysical())
			must(err)
		}
	}
	_, err = c.Revoke(ctx, leases.Leases[0].ID)
	must(err)
	got, err := c.Get(ctx, "x")
	must(err)
	h.current = got.Header.Revision
	return h
}

// same compares what a server has with what it was restored from.
func (h history) same(t *testing.T, srv *harness.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	restored := connect(t, srv)
	revisions := []int64{h.compacted, h.compacted + 1, (h.compacted + h.current) / 2, h.current - 1, h.current}
	for _, rev := range revisions {
		want, err := h.client.Get(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(rev))
		if err != nil {
			t.Fatal(err)
		}
		got, err := restored.Get(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(rev))
		if err != nil {
			t.Fatalf("keys at %d: %v", rev, err)
		}
		if got.Header.Revision != h.current || len(want.Kvs) == 0 || !slices.EqualFunc(want.Kvs, got.Kvs, func(a, b *kv) bool { return proto.Equal(a, b) }) {
			t.Errorf("keys at %d, of revision %d: %v\nwant, of %d: %v", rev, got.Header.Revision, got.Kvs, h.current, want.Kvs)
		}
		if rev == h.compacted { // etcd remembers what it was before the compaction
			continue
		}
		wantHash, err := h.client.HashKV(ctx, h.client.Endpoints()[0], rev)
		if err != nil {
			t.Fatal(err)
		}
		gotHash, err := restored.HashKV(ctx, srv.Endpoint, rev)
		if err != nil || gotHash.Hash != wantHash.Hash || gotHash.CompactRevision != wantHash.CompactRevision {
			t.Errorf("HashKV at %d: %v, %v; want %v", rev, gotHash, err, wantHash)
		}
	}
	if _, err := restored.Get(ctx, "x", clientv3.WithRev(h.compacted-1)); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Errorf("keys before the compact revision: %v", err)
	}
	if want, got := events(ctx, t, h.client, h), events(ctx, t, restored, h); want != got {
		t.Errorf("events after the compact revision:\n%s\nwant\n%s", got, want)
	}
	if want, got := leases(ctx, t, h.client), leases(ctx, t, restored); want != got || want == "" {
		t.Errorf("leases %s, want %s", got, want)
	}
	put, err := restored.Put(ctx, "/next", "v")
	if err != nil || put.Header.Revision != h.current+1 {
		t.Errorf("the next put: %v, %v; want revision %d", put, err, h.current+1)
	}
}

// events is all that a watch from right after the compaction shows.
func events(ctx context.Context, t *testing.T, c *clientv3.Client, h history) string {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var b strings.Builder
	for resp := range c.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(h.compacted+1), clientv3.WithPrevKV()) {
		if resp.Err() != nil {
			t.Fatalf("watch: %v", resp.Err())
		}
		for _, e := range resp.Events {
			fmt.Fprintf(&b, "%v %v before %v\n", e.Type, e.Kv, e.PrevKv)
		}
		if n := len(resp.Events); n > 0 && resp.Events[n-1].Kv.ModRevision >= h.current {
			return b.String()
		}
	}
	t.Fatalf("the watch ended: %v", ctx.Err())
	return ""
}

// leases is all leases with their keys.
func leases(ctx context.Context, t *testing.T, c *clientv3.Client) string {
	t.Helper()
	all, err := c.Leases(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, l := range all.Leases {
		ttl, err := c.TimeToLive(ctx, l.ID, clientv3.WithAttachedKeys())
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(ttl.Keys, slices.Compare)
		lines = append(lines, fmt.Sprintf("%x: %d s, %q", l.ID, ttl.GrantedTTL, ttl.Keys))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
