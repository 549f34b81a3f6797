package etcdfile_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
	"github.com/keelson-io/keelson/pkg/snapshot/etcdfile"
	"github.com/keelson-io/keelson/pkg/snapshot/snapshottest"
)

// memory is a source.
type memory struct {
	state   snapshot.State
	records []eventlog.Record
}

func (m *memory) State() snapshot.State { return m.state }
func (m *memory) Close() error          { return nil }

func (m *memory) Records(_ context.Context, fn func(*eventlog.Record) error) error {
	for _, r := range m.records {
		if err := fn(&r); err != nil {
			return err
		}
	}
	return nil
}

func put(main, sub int64, key, value string) eventlog.Record {
	return eventlog.Record{
		Kind: eventlog.KindPut, Revision: eventlog.Revision{Main: main, Sub: sub}, Key: []byte(key), Value: []byte(value),
		CreateRevision: main, Version: 1,
	}
}

func del(main, sub int64, key string) eventlog.Record {
	return eventlog.Record{Kind: eventlog.KindDelete, Revision: eventlog.Revision{Main: main, Sub: sub}, Key: []byte(key)}
}

// example has something of everything.
func example() *memory {
	m := &memory{
		state: snapshot.State{
			Revision: 40, Compacted: 7,
			Leases: []snapshot.Lease{{ID: 3, TTL: 60}, {ID: 1 << 62, TTL: 5, Remaining: 2}},
			Alarms: []snapshot.Alarm{{Member: 77, Alarm: 1}},
		},
		records: []eventlog.Record{
			put(2, 0, "empty", ""), put(5, 0, "a", "1"), del(7, 0, "b"),
			put(8, 0, "a", strings.Repeat("large", 100_000)), put(8, 1, "c", "\x00\xff"), del(8, 2, "d"),
		},
	}
	m.records[1].Lease, m.records[1].Version, m.records[1].CreateRevision = 3, 4, 2
	for i := range int64(30) {
		m.records = append(m.records, put(10+i, 0, fmt.Sprint("k", i), strings.Repeat("v", int(i)*100)))
	}
	return m
}

// write makes a file of src and returns its path.
func write(t testing.TB, src snapshot.Source, opt etcdfile.Options) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snapshot.db")
	w, err := etcdfile.Create(path, opt)
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	if _, err := snapshot.Copy(t.Context(), w, src, nil); err != nil {
		t.Fatalf("Copy: %v", err)
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Errorf("%d files are left, %v", len(files), err)
	}
	return path
}

func open(t testing.TB, path string) *etcdfile.Reader {
	t.Helper()
	r, err := etcdfile.Open(t.Context(), path, etcdfile.OpenOptions{})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return r
}

// dump is all that src has, one thing a line.
func dump(t testing.TB, src snapshot.Source) string {
	t.Helper()
	s := src.State()
	var b strings.Builder
	fmt.Fprintf(&b, "revision %d compacted %d leases %v alarms %v\n", s.Revision, s.Compacted, s.Leases, s.Alarms)
	err := src.Records(t.Context(), func(r *eventlog.Record) error {
		fmt.Fprintf(&b, "%v %v %q create %d version %d lease %d value %v %d %x\n", r.Kind, r.Revision, r.Key, r.CreateRevision, r.Version, r.Lease,
			r.Value != nil, len(r.Value), r.Value[:min(len(r.Value), 20)])
		return nil
	})
	if err != nil {
		t.Fatalf("Records: %v", err)
	}
	return b.String()
}

func equal(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s is\n%s\nwant\n%s", what, got, want)
	}
}

func TestWriteAndRead(t *testing.T) {
	src := example()
	path := write(t, src, etcdfile.Options{Index: 9, Term: 4})
	r := open(t, path)
	if !r.HasChecksum() {
		t.Error("the file has no checksum")
	}
	if got := r.State(); got.Records != int64(len(src.records)) || got.Bytes < 500_000 {
		t.Errorf("%d records and %d bytes, want %d", got.Records, got.Bytes, len(src.records))
	}
	equal(t, "what was read", dump(t, r), dump(t, src))
	equal(t, "what was read again", dump(t, r), dump(t, src))
	got, gotErr := snapshottest.Hash(t.Context(), r)
	want, wantErr := snapshottest.Hash(t.Context(), src)
	if got != want || gotErr != nil || wantErr != nil {
		t.Errorf("hash is %d, %v, want %d, %v", got, gotErr, want, wantErr)
	}
	equal(t, "what was written again", dump(t, open(t, write(t, r, etcdfile.Options{}))), dump(t, src))

	// The same without its end is the database of a member.
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bare := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(bare, raw[:len(raw)-32], 0o400); err != nil {
		t.Fatal(err)
	}
	db := open(t, bare)
	equal(t, "the database", dump(t, db), dump(t, src))
	if db.HasChecksum() {
		t.Error("a database has a checksum")
	}
	stop := errors.New("stop")
	if err := r.Records(t.Context(), func(*eventlog.Record) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("Records: %v, want fn's error", err)
	}
}

// TestOfEtcd reads what etcdctl snapshot save made of an etcd 3.7.3, and writes
// it again. The hashes are what HashKV and etcdutl said.
func TestOfEtcd(t *testing.T) {
	r := open(t, "testdata/etcd-3.7.3.db")
	equal(t, "etcd's snapshot", dump(t, r), `revision 8 compacted 5 leases [{3777009354612322567 3600 0}] alarms []
put 4.0 "/registry/leased" create 4 version 1 lease 3777009354612322567 value true 1 78
delete 5.0 "/registry/a" create 0 version 0 lease 0 value false 0 
put 6.0 "/txn/1" create 6 version 1 lease 0 value true 3 6f6e65
put 6.1 "/txn/2" create 6 version 1 lease 0 value true 3 74776f
put 7.0 "/registry/a" create 7 version 1 lease 0 value true 5 616761696e
put 8.0 "/registry/a" create 7 version 2 lease 0 value true 0 
`)
	if info, err := r.Info(); info != (etcdfile.Info{Hash: 2295761862, Size: 20480, Version: "3.7.0"}) || err != nil {
		t.Errorf("Info: %+v, %v", info, err)
	}
	again := open(t, write(t, r, etcdfile.Options{}))
	equal(t, "what was written of it", dump(t, again), dump(t, r))
	for _, src := range []snapshot.Source{r, again} {
		if hash, err := snapshottest.Hash(t.Context(), src); hash != 2893802962 || err != nil {
			t.Errorf("the hash is %d, %v", hash, err)
		}
	}
}

// sized is a source that knows its sizes.
type sized struct{ memory }

func (m *sized) Sizes() (newest int64, each iter.Seq2[int, int]) {
	if n := len(m.records); n > 0 {
		newest = m.records[n-1].Revision.Main
	}
	return newest, func(yield func(int, int) bool) {
		for i := range m.records {
			r := &m.records[i]
			if !yield(len(snapshot.AppendRevision(nil, r.Revision, r.Kind == eventlog.KindDelete)), snapshot.SizeKeyValue(r, len(r.Value))) {
				return
			}
		}
	}
}

// TestStream compares what is written from the first byte to the last with what
// is written to a file.
func TestStream(t *testing.T) {
	for _, src := range sources() {
		want, err := os.ReadFile(write(t, src, etcdfile.Options{}))
		if err != nil {
			t.Fatal(err)
		}
		s, err := etcdfile.NewStream(&sized{*src}, etcdfile.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := s.Write(t.Context(), &got); err != nil {
			t.Fatalf("Write: %v", err)
		}
		if s.Size() != int64(got.Len()) || !bytes.Equal(got.Bytes(), want[:len(want)-32]) {
			t.Errorf("%d bytes were written of %d, want %d, and equal ones", got.Len(), s.Size(), len(want)-32)
		}
		if len(src.records) == 0 {
			continue
		}
		// The source has not what it said.
		wrong := &sized{*src}
		s, err = etcdfile.NewStream(wrong, etcdfile.Options{})
		if err != nil {
			t.Fatal(err)
		}
		wrong.records = append(slices.Clone(wrong.records), put(1<<40, 0, "more", strings.Repeat("v", 5000)))
		if err := s.Write(t.Context(), io.Discard); !errors.Is(err, eventlog.ErrCorrupt) {
			t.Errorf("Write of more than was said: %v, want ErrCorrupt", err)
		}
	}
}

// sources have every number of records and sizes around those of pages.
func sources() []*memory {
	all := []*memory{{state: snapshot.State{Revision: 1}}, {state: snapshot.State{Revision: 9}}, example()}
	for _, size := range []int{900, 980, 1010, 4000, 4060, 64<<10 - 100, 64<<10 - 40, 64 << 10, 300 << 10} {
		for _, n := range []int64{1, 2, 3, 70} {
			m := &memory{state: snapshot.State{Revision: n + 1}}
			for i := range n {
				m.records = append(m.records, put(i+2, 0, "k", strings.Repeat("v", size+int(i))))
			}
			all = append(all, m)
		}
	}
	many := &memory{state: snapshot.State{Revision: 200_001, Compacted: 3}}
	for i := range int64(200_000) {
		many.records = append(many.records, put(i+2, i, "k", strings.Repeat("v", int(i%90*i%9))))
	}
	for i := range int64(10_000) {
		many.state.Leases = append(many.state.Leases, snapshot.Lease{ID: i + 1, TTL: 5})
	}
	return append(all, many)
}

// TestPages lets bbolt check the pages, read them and go on with them.
func TestPages(t *testing.T) {
	for _, src := range sources() {
		path := change(t, write(t, src, etcdfile.Options{}), func(tx *bbolt.Tx) error {
			for err := range tx.Check() {
				t.Errorf("%d records: %v", len(src.records), err)
			}
			keys, n := tx.Bucket([]byte("key")), 0
			if err := keys.ForEach(func(name, value []byte) error {
				if n++; !bytes.Equal(keys.Get(name), value) {
					t.Errorf("%d records: %x is not found", len(src.records), name)
				}
				return nil
			}); err != nil {
				return err
			}
			if stats := keys.Stats(); stats.KeyN != n || n < len(src.records) || stats.Depth > 3 {
				t.Errorf("%d records: %d were read, %+v", len(src.records), n, stats)
			}
			for i, r := range src.records {
				if i%3 > 0 {
					if err := keys.Delete(snapshot.AppendRevision(nil, r.Revision, r.Kind == eventlog.KindDelete)); err != nil {
						return err
					}
				}
			}
			return keys.Put([]byte("\x7f\x00\x00\x00\x00\x00\x00\x00_\x00\x00\x00\x00\x00\x00\x00\x00"), nil)
		})
		// Open lets bbolt check it again.
		n, r := 0, open(t, path)
		if err := r.Records(t.Context(), func(*eventlog.Record) error { n++; return nil }); err != nil || n != (len(src.records)+2)/3 {
			t.Errorf("%d records: %d are left, %v", len(src.records), n, err)
		}
	}
}

// TestRevision has heads whose record is gone: where the compact revision does
// not tell, a record without a key stands for it.
func TestRevision(t *testing.T) {
	for _, tt := range []struct {
		state  snapshot.State
		marked bool
	}{
		{snapshot.State{Revision: 1}, false},
		{snapshot.State{Revision: 20}, false},
		{snapshot.State{Revision: 90}, true},
		{snapshot.State{Revision: 90, Compacted: 90}, false},
		{snapshot.State{Revision: 90, Compacted: 50}, true},
	} {
		m := &memory{state: tt.state}
		if tt.state.Revision > 1 {
			m.records = []eventlog.Record{put(20, 0, "a", "1")}
		}
		path := write(t, m, etcdfile.Options{})
		r := open(t, path)
		equal(t, "what was read", dump(t, r), dump(t, m))
		change(t, path, func(tx *bbolt.Tx) error {
			last, value := tx.Bucket([]byte("key")).Cursor().Last()
			if marked := last != nil && len(value) == 0; marked != tt.marked {
				t.Errorf("%+v: the last record is %x", tt.state, last)
			}
			return nil
		})
	}
}

func TestNothingIsWrittenOver(t *testing.T) {
	path := write(t, example(), etcdfile.Options{})
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := etcdfile.Create(path, etcdfile.Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create of a file that is there: %v", err)
	}
	later := filepath.Join(t.TempDir(), "x")
	w, err := etcdfile.Create(later, etcdfile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Begin(t.Context(), snapshot.State{Revision: 1}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(later, before, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(t.Context()); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Finish where a file has come to be: %v", err)
	}
	// One that is aborted leaves nothing.
	broken := example()
	broken.records[3].Revision.Main = 1
	w, err = etcdfile.Create(filepath.Join(filepath.Dir(later), "y"), etcdfile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := snapshot.Copy(t.Context(), w, broken, nil); !errors.Is(err, snapshot.ErrInvalid) {
		t.Errorf("Copy: %v, want ErrInvalid", err)
	}
	files, err := os.ReadDir(filepath.Dir(later))
	if err != nil || len(files) != 1 {
		t.Errorf("%d files are left, want 1, %v", len(files), err)
	}
}

// change makes a bbolt database of a file and changes it.
func change(t testing.TB, path string, fn func(*bbolt.Tx) error) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(changed, raw[:len(raw)-32], 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(changed, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(fn), db.Close()); err != nil {
		t.Fatal(err)
	}
	return changed
}

// TestVersions: what a file says of the etcd that it is for.
func TestVersions(t *testing.T) {
	for version, want := range map[string][2]string{
		"3.5": {"", "3.5.0"}, "": {"3.6.0", "3.6.0"}, "3.6": {"3.6.0", "3.6.0"}, "3.7": {"3.7.0", "3.7.0"},
	} {
		path := write(t, example(), etcdfile.Options{Version: version})
		equal(t, "what was read", dump(t, open(t, path)), dump(t, example()))
		change(t, path, func(tx *bbolt.Tx) error {
			got := [2]string{string(tx.Bucket([]byte("meta")).Get([]byte("storageVersion"))), string(tx.Bucket([]byte("cluster")).Get([]byte("clusterVersion")))}
			if got != want {
				t.Errorf("version %q: %q, want %q", version, got, want)
			}
			return nil
		})
	}
}

func meta(name, value string) func(*bbolt.Tx) error {
	return func(tx *bbolt.Tx) error { return tx.Bucket([]byte("meta")).Put([]byte(name), []byte(value)) }
}

func TestAuth(t *testing.T) {
	path := change(t, write(t, example(), etcdfile.Options{}), func(tx *bbolt.Tx) error {
		return errors.Join(tx.Bucket([]byte("auth")).Put([]byte("authEnabled"), []byte{1}), tx.Bucket([]byte("authUsers")).Put([]byte("root"), nil))
	})
	if _, err := etcdfile.Open(t.Context(), path, etcdfile.OpenOptions{}); !errors.Is(err, etcdfile.ErrAuth) {
		t.Errorf("Open: %v, want ErrAuth", err)
	}
	r, err := etcdfile.Open(t.Context(), path, etcdfile.OpenOptions{WithoutAuth: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	equal(t, "what was read", dump(t, r), dump(t, example()))
	if n := r.Accounts(); n != 1 {
		t.Errorf("%d users and roles", n)
	}
}

// TestUnfinishedCompaction has a compaction that was scheduled and not done, or
// only in part.
func TestUnfinishedCompaction(t *testing.T) {
	m := &memory{
		state: snapshot.State{Revision: 12, Compacted: 2},
		records: []eventlog.Record{
			put(2, 0, "a", "1"), put(3, 0, "a", "2"), put(3, 1, "a", "3"), put(4, 0, "b", "1"), del(5, 0, "b"), put(6, 0, "c", "1"), del(7, 0, "c"),
			put(7, 1, "d", "1"), put(8, 0, "a", "4"), del(9, 0, "d"), put(12, 0, "b", "2"),
		},
	}
	done := &memory{
		state:   snapshot.State{Revision: 12, Compacted: 7},
		records: []eventlog.Record{m.records[2], m.records[6], m.records[7], m.records[8], m.records[9], m.records[10]},
	}
	file := write(t, m, etcdfile.Options{})
	path := change(t, file, meta("scheduledCompactRev", "\x00\x00\x00\x00\x00\x00\x00\x07_\x00\x00\x00\x00\x00\x00\x00\x00"))
	equal(t, "what was read", dump(t, open(t, path)), dump(t, done))
}
