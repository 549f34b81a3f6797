// Package snapshot takes snapshots of keelson with etcdctl and lets etcd go on
// from them: it must have everything that keelson had.
package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// node is a server with a client.
type node struct {
	*testing.T
	*clientv3.Client
	ctx context.Context
	srv *harness.Server
}

func connect(t *testing.T, srv *harness.Server) *node {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{srv.Endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	return &node{t, c, ctx, srv}
}

// must ends the test unless the call went well.
func must[R any](r R, err error) func(*node) R {
	return func(n *node) R {
		n.Helper()
		if err != nil {
			n.Fatal(err)
		}
		return r
	}
}

func (n *node) tool(name string, args ...string) string {
	n.Helper()
	out, err := exec.CommandContext(n.ctx, harness.Tool(n, name), args...).Output()
	if err != nil {
		n.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// save takes a snapshot with etcdctl.
func (n *node) save() (path string) {
	n.Helper()
	path = filepath.Join(n.TempDir(), "snapshot.db")
	n.tool("etcdctl", "--endpoints", n.srv.Endpoint, "snapshot", "save", path)
	return path
}

// status is what etcdutl says of a snapshot.
type status struct {
	Hash      uint32 `json:"hash"`
	Revision  int64  `json:"revision"`
	TotalKey  int    `json:"totalKey"`
	TotalSize int64  `json:"totalSize"`
	Version   string `json:"version"`
}

func (n *node) status(path string) (s status) {
	n.Helper()
	if err := json.Unmarshal([]byte(n.tool("etcdutl", "snapshot", "status", path, "-w", "json")), &s); err != nil {
		n.Fatal(err)
	}
	return s
}

// restore starts an etcd on a snapshot.
func (n *node) restore(path string) *node {
	n.Helper()
	srv := harness.NewServer(n, harness.Etcd, harness.Tool(n, "etcd"))
	peer := "unix://" + filepath.Join(srv.Dir, "peer.sock")
	n.tool("etcdutl", "snapshot", "restore", path, "--data-dir", filepath.Join(srv.Dir, "data"),
		"--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	srv.Restart()
	return connect(n.T, srv)
}

// bounds returns the current and the compact revision.
func (n *node) bounds() (current, compacted int64) {
	n.Helper()
	h := must(n.HashKV(n.ctx, n.srv.Endpoint, 0))(n)
	return h.Header.Revision, max(h.CompactRevision, 0)
}

// events returns all that happened from revision from through to.
func (n *node) events(from, to int64) []*clientv3.Event {
	n.Helper()
	ctx, cancel := context.WithCancel(n.ctx)
	defer cancel()
	var all []*clientv3.Event
	for resp := range n.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithPrevKV()) {
		if resp.Err() != nil {
			n.Fatalf("watch from %d: %v", from, resp.Err())
		}
		all = append(all, resp.Events...)
		if len(all) > 0 && all[len(all)-1].Kv.ModRevision >= to {
			break
		}
	}
	return all
}

// same compares all that two servers have up to a revision of both.
func same(got, want *node, revision int64) {
	got.Helper()
	_, compacted := want.bounds()
	if now, c := got.bounds(); now != revision || c != compacted {
		got.Errorf("the revision is %d and %d was compacted, want %d and %d", now, c, revision, compacted)
	}
	for at := max(compacted, 1); at <= revision; at += 1 + (revision-compacted)/20 {
		g := must(got.Get(got.ctx, "", clientv3.WithPrefix(), clientv3.WithRev(at)))(got)
		w := must(want.Get(want.ctx, "", clientv3.WithPrefix(), clientv3.WithRev(at)))(want)
		g.Header, w.Header = nil, nil
		if !proto.Equal((*pb.RangeResponse)(g), (*pb.RangeResponse)(w)) {
			got.Errorf("at revision %d there are %d keys, want %d, and equal ones:\n%.300v\n%.300v", at, g.Count, w.Count, g.Kvs, w.Kvs)
		}
		gh, wh := must(got.HashKV(got.ctx, got.srv.Endpoint, at))(got), must(want.HashKV(want.ctx, want.srv.Endpoint, at))(want)
		if gh.Hash != wh.Hash || gh.HashRevision != wh.HashRevision {
			got.Errorf("HashKV at %d is %d of %d, want %d of %d", at, gh.Hash, gh.HashRevision, wh.Hash, wh.HashRevision)
		}
	}
	if compacted > 1 {
		if _, err := got.Get(got.ctx, "a", clientv3.WithRev(compacted-1)); !errors.Is(err, rpctypes.ErrCompacted) {
			got.Errorf("get at %d, which was compacted: %v", compacted-1, err)
		}
	}
	if newest := must(want.Get(want.ctx, "", clientv3.WithPrefix(), clientv3.WithLimit(1),
		clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend)))(want); revision > compacted && len(newest.Kvs) > 0 {
		g, w := got.events(compacted+1, revision), want.events(compacted+1, revision)
		for len(w) > 0 && w[len(w)-1].Kv.ModRevision > revision {
			w = w[:len(w)-1]
		}
		if fmt.Sprint(g) != fmt.Sprint(w) {
			got.Errorf("%d events since the compaction, want %d, and equal ones", len(g), len(w))
		}
	}
	sameLeases(got, want)
}

func sameLeases(got, want *node) {
	got.Helper()
	leases := must(want.Leases(want.ctx))(want)
	if n := len(must(got.Leases(got.ctx))(got).Leases); n != len(leases.Leases) {
		got.Errorf("there are %d leases, want %d", n, len(leases.Leases))
	}
	for _, l := range leases.Leases {
		g := must(got.TimeToLive(got.ctx, l.ID, clientv3.WithAttachedKeys()))(got)
		w := must(want.TimeToLive(want.ctx, l.ID, clientv3.WithAttachedKeys()))(want)
		if g.GrantedTTL != w.GrantedTTL || g.TTL < 0 || len(g.Keys) != len(w.Keys) || !sameKeys(g.Keys, w.Keys) {
			got.Errorf("lease %x has %d s and the keys %q, want %d s and %q", l.ID, g.GrantedTTL, g.Keys, w.GrantedTTL, w.Keys)
		}
	}
}

func sameKeys(a, b [][]byte) bool {
	set := map[string]bool{}
	for _, key := range a {
		set[string(key)] = true
	}
	for _, key := range b {
		if !set[string(key)] {
			return false
		}
	}
	return true
}

// fill makes a history of n requests.
func (n *node) fill(random *rand.Rand, requests int) {
	n.Helper()
	key := func() string { return fmt.Sprintf("/registry/%c/%d", 'a'+random.IntN(3), random.IntN(30)) }
	value := func() string { return strings.Repeat(fmt.Sprint(random.Int()), random.IntN(1+random.IntN(200))) }
	var leases []clientv3.LeaseID
	for i := range requests {
		switch random.IntN(12) {
		case 0:
			must(n.Delete(n.ctx, key()))(n)
		case 1:
			must(n.Delete(n.ctx, "/registry/a/1", clientv3.WithPrefix()))(n)
		case 2:
			must(n.Txn(n.ctx).Then(clientv3.OpDelete(key()), clientv3.OpPut("/txn/1", value()), clientv3.OpPut("/txn/2", ""), clientv3.OpDelete("/txn/3")).Commit())(n)
		case 3:
			leases = append(leases, must(n.Grant(n.ctx, 1000+int64(i)))(n).ID)
		case 4, 5:
			if len(leases) > 0 {
				must(n.Put(n.ctx, key(), value(), clientv3.WithLease(leases[random.IntN(len(leases))])))(n)
			}
		case 6:
			if len(leases) > 3 {
				must(n.Revoke(n.ctx, leases[0]))(n)
				leases = leases[1:]
			}
		case 7:
			if current, compacted := n.bounds(); random.IntN(5) == 0 && compacted < current {
				must(n.Compact(n.ctx, compacted+1+random.Int64N(current-compacted)))(n)
			}
		default:
			must(n.Put(n.ctx, key(), value()))(n)
		}
	}
}

// TestToEtcd: etcd has of a snapshot all that keelson had.
func TestToEtcd(t *testing.T) {
	for _, tt := range []struct {
		name string
		fill func(*node)
	}{
		{"empty", func(*node) {}},
		{"one key", func(n *node) { must(n.Put(n.ctx, "a", "1"))(n) }},
		{"nothing left", func(n *node) {
			must(n.Put(n.ctx, "a", "1"))(n)
			must(n.Put(n.ctx, "b", "1"))(n)
			must(n.Delete(n.ctx, "", clientv3.WithPrefix()))(n)
			must(n.Compact(n.ctx, 4))(n)
			if _, err := n.Compact(n.ctx, 4, clientv3.WithCompactPhysical()); !errors.Is(err, rpctypes.ErrCompacted) {
				n.Fatalf("the same compaction again: %v", err)
			}
		}},
		{"never compacted", func(n *node) {
			for i := range 50 {
				must(n.Put(n.ctx, fmt.Sprint("k", i%7), fmt.Sprint(i)))(n)
			}
		}},
		{"large values", func(n *node) {
			for i := range 40 {
				must(n.Put(n.ctx, fmt.Sprint("k", i%30), strings.Repeat("x", i*30_000)))(n)
			}
		}},
		{"history 1", func(n *node) { n.fill(rand.New(rand.NewPCG(1, 1)), 500) }},
		{"history 2", func(n *node) { n.fill(rand.New(rand.NewPCG(2, 2)), 500) }},
		{"history 3", func(n *node) { n.fill(rand.New(rand.NewPCG(3, 3)), 1500) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := connect(t, harness.StartServer(t, harness.Keelson))
			tt.fill(n)
			revision, _ := n.bounds()
			keys := must(n.Get(n.ctx, "", clientv3.WithPrefix(), clientv3.WithCountOnly()))(n).Count
			path := n.save()
			if s := n.status(path); revision > 1 && s.Revision != revision || s.TotalKey != int(keys) || s.Version != "3.6.0" {
				t.Errorf("etcdutl says %+v, want revision %d and %d keys", s, revision, keys)
			}
			restored := n.restore(path)
			same(restored, n, revision)
			// Both go on alike.
			for _, m := range []*node{n, restored} {
				if r := must(m.Put(m.ctx, "after", "1"))(m).Header.Revision; r != revision+1 {
					t.Errorf("%s goes on with revision %d, want %d", m.srv.Backend, r, revision+1)
				}
				must(m.Compact(m.ctx, revision+1, clientv3.WithCompactPhysical()))(m)
			}
			restored.srv.Restart() // until then it remembers the hash from before its compaction
			same(restored, n, revision+1)
		})
	}
}

// TestBesideWrites: a snapshot is of one revision, whatever is written and
// compacted meanwhile.
func TestBesideWrites(t *testing.T) {
	n := connect(t, harness.StartServer(t, harness.Keelson))
	for i := range 200 {
		must(n.Put(n.ctx, fmt.Sprint("fill", i), strings.Repeat("x", 100_000)))(n)
	}
	begun, stop, done := make(chan struct{}), make(chan struct{}), make(chan int)
	go func() {
		writes := 0
		for ; ; writes++ {
			select {
			case <-stop:
				done <- writes
				return
			default:
			}
			value := fmt.Sprint(writes)
			resp, err := n.Txn(n.ctx).Then(clientv3.OpPut("a", value), clientv3.OpPut("b", value), clientv3.OpDelete("c"), clientv3.OpPut("c/"+value, value)).Commit()
			if err == nil && writes%20 == 19 {
				_, err = n.Compact(n.ctx, resp.Header.Revision-5)
			}
			if err != nil {
				t.Error(err)
			}
			if writes == 0 {
				close(begun)
			}
		}
	}()
	<-begun
	var paths []string
	for range 3 {
		paths = append(paths, n.save())
	}
	close(stop)
	t.Logf("%d transactions meanwhile", <-done)
	last := int64(0)
	for _, path := range paths {
		restored := n.restore(path)
		current, _ := restored.bounds()
		resp := must(restored.Get(restored.ctx, "", clientv3.WithPrefix()))(restored)
		values := map[string]string{}
		for _, kv := range resp.Kvs {
			values[string(kv.Key)] = string(kv.Value)
		}
		if a := values["a"]; a == "" || values["b"] != a || values["c/"+a] != a || current <= last {
			t.Errorf("revision %d after %d has a=%q b=%q", current, last, a, values["b"])
		}
		last = current
		_ = restored.srv.Stop()
	}
}

// TestThereAndBack: etcd's snapshot of a restored snapshot has the same again.
func TestThereAndBack(t *testing.T) {
	n := connect(t, harness.StartServer(t, harness.Keelson))
	n.fill(rand.New(rand.NewPCG(4, 4)), 300)
	revision, _ := n.bounds()
	first := n.restore(n.save())
	second := first.restore(first.save())
	same(second, n, revision)
}
