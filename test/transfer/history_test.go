package transfer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// row is what the test knows of a revision.
type row struct {
	mod, create, lease int64
	key, value         string
	deleted            bool
}

// writer changes kine at random, the way kube-apiserver does, and notes what
// came of it.
type writer struct {
	t         *testing.T
	c         *clientv3.Client
	rng       *rand.Rand
	rows      []row
	live      map[string]row
	compacted int64
	version   int64 // of compact_rev_key
}

func newWriter(t *testing.T, endpoint string, seed uint64) *writer {
	return &writer{t: t, c: connect(t, endpoint), rng: rand.New(rand.NewPCG(seed, 7)), live: map[string]row{}}
}

func (w *writer) note(r row) {
	w.rows = append(w.rows, r)
	if r.deleted {
		delete(w.live, r.key)
	} else {
		w.live[r.key] = r
	}
}

// step changes something.
func (w *writer) step() {
	w.t.Helper()
	key := fmt.Sprintf("/registry/things/%02d", w.rng.IntN(25))
	if w.rng.IntN(20) == 0 {
		key = fmt.Sprintf("/registry/gap-%d", w.rng.IntN(3))
	}
	old, there := w.live[key]
	is := clientv3.Compare(clientv3.ModRevision(key), "=", old.mod)
	if there && w.rng.IntN(3) == 0 {
		resp, err := w.c.Txn(w.t.Context()).If(is).Then(clientv3.OpDelete(key)).Else(clientv3.OpGet(key)).Commit()
		check(w.t, err)
		w.note(row{mod: resp.Header.Revision, key: key, deleted: true})
		return
	}
	r := row{key: key, value: strings.Repeat(string(rune('a'+w.rng.IntN(26))), w.rng.IntN(60))}
	var opts []clientv3.OpOption
	if w.rng.IntN(4) == 0 {
		lease, err := w.c.Grant(w.t.Context(), 1000+int64(w.rng.IntN(3)))
		check(w.t, err)
		r.lease = int64(lease.ID)
		opts = append(opts, clientv3.WithLease(lease.ID))
	}
	txn := w.c.Txn(w.t.Context()).If(is).Then(clientv3.OpPut(key, r.value, opts...))
	if there {
		txn = txn.Else(clientv3.OpGet(key))
	}
	resp, err := txn.Commit()
	check(w.t, err)
	if !resp.Succeeded {
		w.t.Fatalf("%s is not at revision %d any more", key, old.mod)
	}
	if r.mod, r.create = resp.Header.Revision, old.create; !there {
		r.create = r.mod
	}
	w.note(r)
}

// compact compacts at a revision that was written, and writes compact_rev_key
// before as kube-apiserver does.
func (w *writer) compact() {
	w.t.Helper()
	rev := w.rows[w.rng.IntN(len(w.rows))].mod
	if rev <= w.compacted {
		return
	}
	const key = "compact_rev_key"
	resp, err := w.c.Txn(w.t.Context()).If(clientv3.Compare(clientv3.Version(key), "=", w.version)).
		Then(clientv3.OpPut(key, fmt.Sprint(rev))).Else(clientv3.OpGet(key)).Commit()
	check(w.t, err)
	if !resp.Succeeded {
		w.t.Fatalf("%s is not of version %d any more", key, w.version)
	}
	w.version++
	_, err = w.c.Compact(w.t.Context(), rev)
	check(w.t, err)
	w.compacted = rev
}

// kept returns the rows that a compaction has left, in order.
func (w *writer) kept() (kept []row) {
	newest := map[string]row{}
	for _, r := range w.rows {
		if r.mod <= w.compacted {
			newest[r.key] = r
		}
	}
	for _, r := range w.rows {
		if r.mod > w.compacted || newest[r.key].mod == r.mod && !r.deleted {
			kept = append(kept, r)
		}
	}
	return kept
}

// versions returns the version of each key: counted from what is left.
func (w *writer) versions() map[string]int64 {
	versions := map[string]int64{}
	for _, r := range w.kept() {
		switch {
		case r.deleted:
			delete(versions, r.key)
		case r.mod == r.create:
			versions[r.key] = 1
		case versions[r.key] == 0:
			versions[r.key] = 2
		default:
			versions[r.key]++
		}
	}
	return versions
}

// listing renders the keys at a revision: all that kine and etcd both say.
func listing(t *testing.T, c *clientv3.Client, rev int64) string {
	t.Helper()
	resp, err := c.Get(t.Context(), "/", clientv3.WithRange("0"), clientv3.WithRev(rev))
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, kv := range resp.Kvs {
		fmt.Fprintf(&b, "%s=%s create %d mod %d lease %d\n", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Lease)
	}
	return b.String()
}

// events renders what a watcher from a revision on is told up to another.
func events(t *testing.T, c *clientv3.Client, from, to int64) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var b strings.Builder
	for resp := range c.Watch(ctx, "/", clientv3.WithRange("0"), clientv3.WithRev(from), clientv3.WithPrevKV()) {
		if err := resp.Err(); err != nil {
			return err.Error()
		}
		for _, e := range resp.Events {
			fmt.Fprintf(&b, "%d %v %s=%s", e.Kv.ModRevision, e.Type, e.Kv.Key, e.Kv.Value)
			if e.PrevKv != nil {
				fmt.Fprintf(&b, " before %s", e.PrevKv.Value)
			}
			b.WriteByte('\n')
			if e.Kv.ModRevision >= to {
				return b.String()
			}
		}
	}
	t.Fatalf("the watch from %d ended before %d:\n%s", from, to, &b)
	return ""
}

// expected is what kine answers before it is stopped.
type expected struct {
	revision int64
	lists    map[int64]string
	watches  map[int64]string
}

// ask asks at the newest revision and some older ones.
func (w *writer) ask(c *clientv3.Client) expected {
	w.t.Helper()
	resp, err := c.Get(w.t.Context(), "/none")
	check(w.t, err)
	e := expected{resp.Header.Revision, map[int64]string{}, map[int64]string{}}
	last := w.rows[len(w.rows)-1].mod
	e.lists[0] = listing(w.t, c, 0)
	for i := range 8 {
		at := w.rows[i*len(w.rows)/8].mod
		e.lists[at] = listing(w.t, c, at)
		if at > w.compacted {
			e.watches[at] = events(w.t, c, at, last)
		}
	}
	return e
}

// same checks that a keelson with what was imported says what kine has said.
func (w *writer) same(c *clientv3.Client, want expected) {
	w.t.Helper()
	got := w.ask(c)
	if got.revision != want.revision {
		w.t.Errorf("revision %d, want %d", got.revision, want.revision)
	}
	for at, list := range want.lists {
		if got.lists[at] != list {
			w.t.Errorf("a list at %d (compacted %d):\n%swant\n%s", at, w.compacted, got.lists[at], list)
		}
	}
	for at, watch := range want.watches {
		if got.watches[at] != watch {
			w.t.Errorf("a watch from %d (compacted %d):\n%swant\n%s", at, w.compacted, got.watches[at], watch)
		}
	}
	resp, err := c.Get(w.t.Context(), "\x00", clientv3.WithFromKey())
	check(w.t, err)
	versions := w.versions()
	versions["/registry/health"], versions["compact_rev_key"] = 1, w.version
	leases := map[int64]bool{}
	for _, kv := range resp.Kvs {
		if v := versions[string(kv.Key)]; v != kv.Version {
			w.t.Errorf("%s has version %d, want %d", kv.Key, kv.Version, v)
		}
		delete(versions, string(kv.Key))
		if kv.Lease != 0 {
			leases[kv.Lease] = true
		}
	}
	for key, version := range versions {
		if version != 0 {
			w.t.Errorf("%s is missing", key)
		}
	}
	w.sameLeases(c, leases)
}

// sameLeases checks that a lease is what kine means by its id: a TTL.
func (w *writer) sameLeases(c *clientv3.Client, want map[int64]bool) {
	w.t.Helper()
	list, err := c.Leases(w.t.Context())
	check(w.t, err)
	var ids []int64
	for _, l := range list.Leases {
		ids = append(ids, int64(l.ID))
		ttl, err := c.TimeToLive(w.t.Context(), l.ID, clientv3.WithAttachedKeys())
		check(w.t, err)
		if ttl.GrantedTTL != int64(l.ID) || len(ttl.Keys) == 0 {
			w.t.Errorf("lease %d has TTL %d and %d keys", l.ID, ttl.GrantedTTL, len(ttl.Keys))
		}
	}
	if slices.Sort(ids); len(ids) != len(want) {
		w.t.Errorf("leases %v, want %v", ids, want)
	}
}

// goesOn checks that writers go on from the revisions they know.
func (w *writer) goesOn(c *clientv3.Client) {
	w.t.Helper()
	for key, r := range w.live {
		resp, err := c.Txn(w.t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", r.mod)).Then(clientv3.OpPut(key, "on")).Commit()
		check(w.t, err)
		if !resp.Succeeded {
			w.t.Errorf("%s is not at revision %d any more", key, r.mod)
		}
	}
	const key = "compact_rev_key"
	resp, err := c.Txn(w.t.Context()).If(clientv3.Compare(clientv3.Version(key), "=", w.version)).Then(clientv3.OpPut(key, "1")).Commit()
	check(w.t, err)
	if !resp.Succeeded {
		w.t.Errorf("%s has another version", key)
	}
}
