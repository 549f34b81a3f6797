package datalog_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/keelson-io/keelson/pkg/drivers/postgres"
	"github.com/keelson-io/keelson/pkg/drivers/postgres/pgtest"
	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
	"github.com/keelson-io/keelson/pkg/raftlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
	"github.com/keelson-io/keelson/pkg/snapshot/datalog"
	"github.com/keelson-io/keelson/pkg/store"
)

func quiet() *logrus.Entry {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	return logrus.NewEntry(logger)
}

// memory is a source.
type memory struct {
	state   snapshot.State
	records []eventlog.Record
}

func (m *memory) State() snapshot.State { return m.state }
func (m *memory) Close() error          { return nil }

func (m *memory) Records(_ context.Context, fn func(*eventlog.Record) error) error {
	for i := range m.records {
		if err := fn(&m.records[i]); err != nil {
			return err
		}
	}
	return nil
}

// history is a store that things happened in, with all that did.
type history struct {
	*store.Store
	events []*mvccpb.Event
}

func newHistory(t testing.TB) *history {
	t.Helper()
	h := &history{}
	s, err := store.Open(t.Context(), new(memlog.Disk).Open(nil), store.Options{
		Logger: quiet(), OnApply: func(a store.Applied) { h.events = append(h.events, a.Events...) },
	})
	if err != nil {
		t.Fatal(err)
	}
	h.Store = s
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return h
}

// source is what there is, by the rule that compaction keeps of each key the
// newest version at or before its revision, and of tombstones one right at it.
func (h *history) source() *memory {
	current, compacted := h.Revision()
	m := &memory{state: snapshot.State{Revision: current, Compacted: max(0, compacted)}}
	for _, l := range h.Leases() {
		m.state.Leases = append(m.state.Leases, snapshot.Lease{ID: l.ID, TTL: l.TTL})
	}
	sub, last := int64(0), int64(0)
	for i, e := range h.events {
		if sub++; e.Kv.ModRevision != last {
			sub, last = 0, e.Kv.ModRevision
		}
		deleted := e.Type == mvccpb.Event_DELETE
		superseded := slices.ContainsFunc(h.events[i+1:], func(o *mvccpb.Event) bool {
			return string(o.Kv.Key) == string(e.Kv.Key) && o.Kv.ModRevision <= compacted
		})
		if superseded || deleted && last < compacted {
			continue
		}
		r := eventlog.Record{Kind: eventlog.KindDelete, Revision: eventlog.Revision{Main: last, Sub: sub}, Key: e.Kv.Key}
		if !deleted {
			r.Kind, r.Value = eventlog.KindPut, e.Kv.Value
			r.CreateRevision, r.Version, r.Lease = e.Kv.CreateRevision, e.Kv.Version, e.Kv.Lease
		}
		m.records = append(m.records, r)
	}
	return m
}

// happen lets n random things happen.
func (h *history) happen(t *rapid.T, n int) {
	ctx := context.Background()
	key := func() []byte { return []byte{'a' + byte(rapid.IntRange(0, 5).Draw(t, "key"))} }
	lease := func() int64 { return int64(rapid.IntRange(0, 2).Draw(t, "lease")) }
	put := func() *pb.PutRequest {
		return &pb.PutRequest{Key: key(), Value: rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(t, "value")}
	}
	for range n {
		var err error
		switch rapid.IntRange(0, 9).Draw(t, "what") {
		case 0, 1, 2:
			_, err = h.Put(ctx, put())
		case 3:
			r := put()
			if r.Lease = lease(); r.Lease > 0 {
				_, _ = h.LeaseGrant(ctx, r.Lease, 100+r.Lease) // it may be there
			}
			_, err = h.Put(ctx, r)
		case 4, 5:
			_, err = h.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key()})
		case 6:
			_, err = h.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key(), RangeEnd: []byte{0}})
		case 7:
			deleted, created := key(), put()
			ops := []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: deleted}}}}
			if string(deleted) != string(created.Key) {
				ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: created}})
			}
			_, err = h.Txn(ctx, &pb.TxnRequest{Success: ops})
		case 8:
			_ = h.LeaseRevoke(ctx, lease()) // it may not be there
		case 9:
			current, compacted := h.Revision()
			if next := current - int64(rapid.IntRange(0, 5).Draw(t, "age")); next > compacted && next > 0 {
				_, err = h.Compact(ctx, &pb.CompactionRequest{Revision: next})
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// equal compares two stores by everything that clients can see.
func equal(t rapid.TB, want, got *store.Store) {
	t.Helper()
	ctx := context.Background()
	current, compacted := want.Revision()
	if c, p := got.Revision(); c != current || p != compacted {
		t.Fatalf("revision %d, compacted %d; want %d, %d", c, p, current, compacted)
	}
	if !slices.Equal(want.Leases(), got.Leases()) {
		t.Fatalf("leases %v, want %v", got.Leases(), want.Leases())
	}
	for _, l := range want.Leases() {
		if a, b := fmt.Sprintf("%q", want.LeaseKeys(l.ID)), fmt.Sprintf("%q", got.LeaseKeys(l.ID)); a != b {
			t.Fatalf("keys of lease %d: %s, want %s", l.ID, b, a)
		}
	}
	for rev := max(1, compacted); rev <= current; rev++ {
		a, errA := want.HashKV(ctx, rev)
		b, errB := got.HashKV(ctx, rev)
		if a != b || errA != nil || errB != nil {
			t.Fatalf("HashKV at %d: %+v, %v; want %+v, %v", rev, b, errB, a, errA)
		}
		r := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: rev}
		kvA, errA := want.Range(ctx, r)
		kvB, errB := got.Range(ctx, r)
		if errA != nil || errB != nil || !proto.Equal(kvA, kvB) {
			t.Fatalf("range at %d: %v, %v; want %v, %v", rev, kvB, errB, kvA, errA)
		}
	}
}

// open opens a store on a log, and lets it compact.
func open(t rapid.TB, log eventlog.Log) *store.Store {
	t.Helper()
	s, err := store.Open(context.Background(), log, store.Options{Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openSQLite(t rapid.TB, dir string) *sqlite.Log {
	t.Helper()
	log, err := sqlite.Open(context.Background(), sqlite.Options{Dir: dir, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	return log
}

func closeLog(t rapid.TB, log eventlog.Log) {
	t.Helper()
	if err := log.Close(); err != nil {
		t.Error(err)
	}
}

// TestSame lets anything happen and makes a log of it, in which all of it is
// to be found again, and which goes on.
func TestSame(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		h := newHistory(t)
		h.happen(rt, rapid.IntRange(0, 40).Draw(rt, "n"))
		src := h.source()
		dir := t.TempDir()
		if _, err := snapshot.Copy(t.Context(), datalog.SQLite(dir, datalog.Options{}), src, nil); err != nil {
			rt.Fatal(err)
		}
		log := openSQLite(rt, dir)
		defer closeLog(rt, log)
		got := open(rt, log)
		equal(rt, h.Store, got)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- got.Run(ctx) }()
		next := &history{Store: got}
		next.happen(rt, 5)
		if current, _ := got.Revision(); current > 1 {
			if _, err := got.Compact(ctx, &pb.CompactionRequest{Revision: current, Physical: true}); err != nil && !errors.Is(err, store.ErrCompacted) {
				rt.Error(err)
			}
		}
		cancel()
		if err := <-done; err != nil {
			rt.Error(err)
		}
	})
}

// put is a version of a key.
func put(main, sub int64, key, value string) eventlog.Record {
	return eventlog.Record{
		Kind: eventlog.KindPut, Revision: eventlog.Revision{Main: main, Sub: sub}, CreateRevision: main, Version: 1, Key: []byte(key), Value: []byte(value),
	}
}

// many has a revision with a thousand changes among small ones, and its newest
// revision is only in its state.
func many() *memory {
	m := &memory{state: snapshot.State{Revision: 5000, Leases: []snapshot.Lease{{ID: 7, TTL: 60}}}}
	for main := int64(2); main < 3000; main++ {
		m.records = append(m.records, put(main, 0, fmt.Sprint("key", main), "v"))
		for sub := int64(1); main == 1500 && sub < 1300; sub++ {
			m.records = append(m.records, put(main, sub, fmt.Sprint("more", sub), "v"))
		}
	}
	return m
}

func TestBatches(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := snapshot.Copy(t.Context(), datalog.SQLite(dir, datalog.Options{}), many(), nil); err != nil {
		t.Fatal(err)
	}
	log := openSQLite(t, dir)
	defer closeLog(t, log)
	if current, _ := open(t, log).Revision(); current != 5000 {
		t.Errorf("revision %d", current)
	}
	batches, err := log.Tail(t.Context(), 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	ended := map[int64]bool{}
	for i, b := range batches {
		last := int64(0)
		for _, r := range b.Records {
			if r.Revision.Main != last && ended[r.Revision.Main] {
				t.Errorf("batch %d has a part of revision %d", i, r.Revision.Main)
			}
			ended[last], last = last != 0, r.Revision.Main
		}
		ended[last] = true
	}
	if len(batches) < 3 || len(batches) > 6 {
		t.Errorf("%d batches", len(batches))
	}
}

// tree is the names and contents of the files in dir.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files[path] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func same(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for name := range a {
		if a[name] != b[name] {
			return false
		}
	}
	return true
}

// TestDeterministic: the same snapshot makes the same files.
func TestDeterministic(t *testing.T) {
	t.Parallel()
	var files [2]string
	for i := range files {
		dir := t.TempDir()
		if _, err := snapshot.Copy(t.Context(), datalog.SQLite(dir, datalog.Options{}), many(), nil); err != nil {
			t.Fatal(err)
		}
		files[i] = tree(t, dir)[filepath.Join(dir, sqlite.FileName)]
	}
	if files[0] != files[1] || files[0] == "" {
		t.Errorf("the files differ; they have %d and %d bytes", len(files[0]), len(files[1]))
	}
}

// TestNothingChanged: what is refused or fails leaves everything as it was.
func TestNothingChanged(t *testing.T) {
	t.Parallel()
	filled := t.TempDir()
	if _, err := snapshot.Copy(t.Context(), datalog.SQLite(filled, datalog.Options{}), many(), nil); err != nil {
		t.Fatal(err)
	}
	before := tree(t, filled)
	if _, err := snapshot.Copy(t.Context(), datalog.SQLite(filled, datalog.Options{}), many(), nil); !errors.Is(err, datalog.ErrExists) {
		t.Errorf("over data: %v", err)
	}
	bad := many()
	bad.records = append(bad.records, put(4000, 0, "", ""))
	if _, err := snapshot.Copy(t.Context(), datalog.SQLite(filled, datalog.Options{Replace: true}), bad, nil); !errors.Is(err, snapshot.ErrInvalid) {
		t.Errorf("what is no history: %v", err)
	}
	if !same(before, tree(t, filled)) {
		t.Error("the data has changed")
	}
	absent := filepath.Join(t.TempDir(), "absent")
	if _, err := snapshot.Copy(t.Context(), datalog.SQLite(absent, datalog.Options{}), bad, nil); !errors.Is(err, snapshot.ErrInvalid) {
		t.Errorf("what is no history: %v", err)
	}
	if _, err := os.Stat(absent); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory was made: %v", err)
	}
	if err := datalog.SQLite(absent, datalog.Options{}).Check(t.Context()); err != nil {
		t.Errorf("Check of a place that is free: %v", err)
	}
	if _, err := os.Stat(absent); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Check has made a directory: %v", err)
	}
	if err := datalog.SQLite(filled, datalog.Options{}).Check(t.Context()); !errors.Is(err, datalog.ErrExists) {
		t.Errorf("Check of data: %v", err)
	}
	log := openSQLite(t, filled)
	if err := datalog.SQLite(filled, datalog.Options{Replace: true}).Check(t.Context()); !errors.Is(err, datalog.ErrInUse) {
		t.Errorf("Check of a database that is open: %v", err)
	}
	if _, err := snapshot.Copy(t.Context(), datalog.SQLite(filled, datalog.Options{Replace: true}), many(), nil); !errors.Is(err, datalog.ErrInUse) {
		t.Errorf("over a database that is open: %v", err)
	}
	closeLog(t, log)
	if !same(before, tree(t, filled)) {
		t.Error("the data has changed")
	}
}

// TestLimits: what a store could not go on from is refused, by a dry run, too.
func TestLimits(t *testing.T) {
	t.Parallel()
	const most = 1 << 62
	lease := func(id, ttl int64) *memory {
		return &memory{state: snapshot.State{Revision: 9, Leases: []snapshot.Lease{{ID: id, TTL: ttl}}}}
	}
	old := put(5, 0, "k", "")
	old.Version = most + 1
	for name, c := range map[string]struct {
		src  *memory
		bump int64
		want string
	}{
		"revision":          {&memory{state: snapshot.State{Revision: most + 1}}, 0, "revision 4611686018427387905"},
		"raised":            {&memory{state: snapshot.State{Revision: 9}}, most - 8, "cannot be raised"},
		"raised to the end": {&memory{state: snapshot.State{Revision: 9}}, math.MaxInt64 - 9, "cannot be raised"},
		"version":           {&memory{state: snapshot.State{Revision: 9}, records: []eventlog.Record{old}}, 0, "version 4611686018427387905"},
		"lease without id":  {lease(0, 60), 0, "no id"},
		"lease without TTL": {lease(1, 0), 0, "TTL of 0"},
		"lease for ever":    {lease(-1, 9_000_000_001), 0, "TTL of 9000000001"},
	} {
		dir := filepath.Join(t.TempDir(), "a", "b")
		sink := datalog.SQLite(dir, datalog.Options{BumpRevision: c.bump})
		for _, to := range []snapshot.Sink{sink.DryRun(), sink} {
			if _, err := snapshot.Copy(t.Context(), to, c.src, nil); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", name, err, c.want)
			}
		}
		if _, err := os.Stat(filepath.Dir(dir)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: something was made: %v", name, err)
		}
	}
	dir := t.TempDir()
	sink := datalog.SQLite(dir, datalog.Options{BumpRevision: most - 9})
	if _, err := snapshot.Copy(t.Context(), sink, lease(-1, snapshot.MaxTTL), nil); err != nil {
		t.Fatal(err)
	}
	if current, compacted := sink.Revision(); current != most || compacted != most {
		t.Errorf("revision %d, compacted %d", current, compacted)
	}
}

func TestReplace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := &memory{state: snapshot.State{Revision: 9}, records: []eventlog.Record{put(9, 0, "old", "v")}}
	for _, src := range []*memory{first, many()} {
		if _, err := snapshot.Copy(t.Context(), datalog.SQLite(dir, datalog.Options{Replace: true}), src, nil); err != nil {
			t.Fatal(err)
		}
		log := openSQLite(t, dir)
		if current, _ := open(t, log).Revision(); current != src.state.Revision {
			t.Errorf("revision %d, want %d", current, src.state.Revision)
		}
		closeLog(t, log)
	}
}

func TestBump(t *testing.T) {
	t.Parallel()
	src, dir := many(), t.TempDir()
	src.state.Alarms = []snapshot.Alarm{{Member: 3, Alarm: int32(pb.AlarmType_NOSPACE)}, {Member: 4, Alarm: int32(pb.AlarmType_CORRUPT)}}
	sink := datalog.SQLite(dir, datalog.Options{BumpRevision: 1000})
	if _, err := snapshot.Copy(t.Context(), sink, src, nil); err != nil {
		t.Fatal(err)
	}
	log := openSQLite(t, dir)
	defer closeLog(t, log)
	s := open(t, log)
	if current, compacted := s.Revision(); current != 6000 || compacted != 6000 {
		t.Errorf("revision %d, compacted %d; want 6000 for both", current, compacted)
	}
	if n := s.Keys(); n != len(src.records) {
		t.Errorf("%d keys, want %d", n, len(src.records))
	}
	alarms := s.Alarms()
	if len(alarms) != 1 || alarms[0].MemberID != 4 || len(sink.Dropped()) != 1 || sink.Dropped()[0].Member != 3 {
		t.Errorf("alarms %v, without %v", alarms, sink.Dropped())
	}
}

// TestCluster: nodes of the same snapshot are in the same cluster, others are
// not; and a node opens what was made for it.
func TestCluster(t *testing.T) {
	t.Parallel()
	node := func(name string, src snapshot.Source) (string, raftlog.Identity) {
		dir := t.TempDir()
		members := []raftlog.Member{{Name: "a", PeerURLs: []string{"http://a"}}, {Name: "b", PeerURLs: []string{"http://b"}}}
		sink := datalog.SQLite(dir, datalog.Options{Cluster: &datalog.Cluster{Name: name, Token: "t", Members: members}})
		if _, err := snapshot.Copy(t.Context(), sink, src, nil); err != nil {
			t.Fatal(err)
		}
		id, known, err := raftlog.Identify(dir)
		if err != nil || !known {
			t.Fatalf("node %s: %v, %v", name, known, err)
		}
		return dir, id
	}
	dir, a := node("a", many())
	_, b := node("b", many())
	changed := many()
	changed.records[1000].Value = []byte("w")
	_, other := node("b", changed)
	if a.Cluster != b.Cluster || a.Node == b.Node || a.Cluster == other.Cluster {
		t.Errorf("nodes of one snapshot: %v, %v; of another: %v", a, b, other)
	}
	log, err := raftlog.Open(t.Context(), raftlog.Options{Dir: dir, Cluster: a.Cluster, ID: a.Node, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer closeLog(t, log)
	if m := log.Members().Members; len(m) != 2 || m[0].Name == m[1].Name {
		t.Errorf("members %v", m)
	}
	if _, err := snapshot.Copy(t.Context(), datalog.SQLite(dir, datalog.Options{}), many(), nil); !errors.Is(err, datalog.ErrExists) {
		t.Errorf("over the data of a node: %v", err)
	}
}

// TestForget: a node's directory that is replaced is no node's any more.
func TestForget(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, cluster := range []*datalog.Cluster{{Name: "a", Members: []raftlog.Member{{Name: "a", PeerURLs: []string{"http://a"}}}}, nil} {
		if _, err := snapshot.Copy(t.Context(), datalog.SQLite(dir, datalog.Options{Replace: true, Cluster: cluster}), many(), nil); err != nil {
			t.Fatal(err)
		}
		if _, node, err := raftlog.Identify(dir); err != nil || node != (cluster != nil) {
			t.Errorf("a node's: %v, %v", node, err)
		}
	}
}

// cancelling is a source that a signal interrupts.
type cancelling struct {
	*memory
	cancel func()
}

func (c *cancelling) Records(ctx context.Context, fn func(*eventlog.Record) error) error {
	n := 0
	return c.memory.Records(ctx, func(r *eventlog.Record) error {
		if n++; n == 2000 {
			c.cancel()
		}
		return fn(r)
	})
}

// TestPostgres makes the data of a schema, over and over.
func TestPostgres(t *testing.T) {
	t.Parallel()
	db := pgtest.ForTest(t)
	url := db.URL("postgres")
	h := newHistory(t)
	copyTo := func(src snapshot.Source, replace bool) error {
		_, err := snapshot.Copy(t.Context(), datalog.Postgres(url, datalog.Options{Replace: replace, Logger: quiet()}), src, nil)
		return err
	}
	openPostgres := func() *postgres.Log {
		log, err := postgres.Open(t.Context(), postgres.Options{URL: url, Logger: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		return log
	}
	check := func(replace bool, want error) {
		t.Helper()
		if err := datalog.Postgres(url, datalog.Options{Replace: replace}).Check(t.Context()); !errors.Is(err, want) {
			t.Errorf("Check: %v, want %v", err, want)
		}
	}
	check(false, nil)
	if _, err := postgres.Inspect(t.Context(), url); !errors.Is(err, postgres.ErrNoSchema) {
		t.Errorf("Check has made a schema: %v", err)
	}
	running := openPostgres()
	open(t, running)
	check(false, datalog.ErrInUse)
	check(true, nil)
	if err := copyTo(h.source(), false); !errors.Is(err, datalog.ErrInUse) {
		t.Errorf("under an instance that runs: %v", err)
	}
	closeLog(t, running)
	rounds, names := 0, make(map[string]bool)
	rapid.Check(t, func(rt *rapid.T) {
		if rounds == 15 {
			return // each has its connections and fsyncs
		}
		h.happen(rt, 20)
		if err := copyTo(h.source(), rounds > 0); err != nil {
			rt.Fatal(err)
		}
		rounds++
		log := openPostgres()
		defer closeLog(rt, log)
		equal(rt, h.Store, open(rt, log))
		name, err := log.Name(t.Context())
		if names[name] = true; err != nil || len(name) != 16 || len(names) != rounds {
			rt.Errorf("%d different data have %d names, such as %q: %v", rounds, len(names), name, err)
		}
	})
	check(false, datalog.ErrExists)
	if err := copyTo(h.source(), false); !errors.Is(err, datalog.ErrExists) {
		t.Errorf("over data: %v", err)
	}
	if err := copyTo(many(), true); err != nil {
		t.Fatal(err)
	}
	bad := h.source()
	bad.records = append(bad.records, put(bad.state.Revision+1, 0, "k", ""))
	if err := copyTo(bad, true); !errors.Is(err, snapshot.ErrInvalid) {
		t.Errorf("what is no history: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cut := &cancelling{many(), cancel}
	if _, err := snapshot.Copy(ctx, datalog.Postgres(url, datalog.Options{Replace: true, Logger: quiet()}), cut, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a copy that is interrupted: %v", err)
	}
	// An instance that runs notices that the data was replaced.
	log := openPostgres()
	if current, _ := open(t, log).Revision(); current != 5000 {
		t.Errorf("revision %d after a copy that failed, want 5000", current)
	}
	if err := copyTo(h.source(), true); err != nil {
		t.Fatal(err)
	}
	if _, err := log.Head(t.Context()); !errors.Is(err, postgres.ErrLost) {
		t.Errorf("the head of an instance whose data was replaced: %v", err)
	}
	closeLog(t, log)
}
