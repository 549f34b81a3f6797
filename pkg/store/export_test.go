package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
	"github.com/keelson-io/keelson/pkg/snapshot/snapshottest"
)

// exported is what Export gives, one thing a line.
func (f *fixture) exported() (snapshot.Source, string) {
	f.t.Helper()
	src, err := f.Export(f.t.Context())
	if err != nil {
		f.t.Fatalf("Export: %v", err)
	}
	f.t.Cleanup(func() { _ = src.Close() })
	s := src.State()
	var b strings.Builder
	fmt.Fprintf(&b, "revision %d compacted %d leases %v alarms %v records %d bytes %d\n", s.Revision, s.Compacted, s.Leases, s.Alarms, s.Records, s.Bytes)
	if err := src.Records(f.t.Context(), func(r *eventlog.Record) error {
		fmt.Fprintf(&b, "%v %v %s=%s create %d version %d lease %d\n", r.Revision, r.Kind, r.Key, r.Value, r.CreateRevision, r.Version, r.Lease)
		return nil
	}); err != nil {
		f.t.Fatalf("Records: %v", err)
	}
	return src, b.String()
}

func TestExport(t *testing.T) {
	f := open(t, new(memlog.Disk), Options{})
	if _, err := f.LeaseGrant(t.Context(), 7, 60); err != nil {
		t.Fatal(err)
	}
	f.put("a", "1")
	f.put("a", "2")
	f.put("b", "3")
	f.delete("b", "")
	if _, err := f.Put(t.Context(), &pb.PutRequest{Key: []byte("c"), Value: []byte("4"), Lease: 7}); err != nil {
		t.Fatal(err)
	}
	f.delete("a", "z")
	if _, err := f.Alarm(t.Context(), &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_CORRUPT, MemberID: 5}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Alarm(t.Context(), &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_CORRUPT, MemberID: 5}); err != nil {
		t.Fatal(err)
	}
	f.compact(5)
	// What is compacted may be in the log and in the index still.
	src, got := f.exported()
	want := `revision 7 compacted 5 leases [{7 60 0}] alarms [] records 5 bytes 7
3.0 put a=2 create 2 version 2 lease 0
5.0 delete b= create 0 version 0 lease 0
6.0 put c=4 create 6 version 1 lease 7
7.0 delete a= create 0 version 0 lease 0
7.1 delete c= create 0 version 0 lease 0
`
	if got != want {
		t.Errorf("exported\n%s\nwant\n%s", got, want)
	}
	f.put("later", "5")
	f.compact(8)
	n := 0
	if err := src.Records(t.Context(), func(*eventlog.Record) error { n++; return nil }); err != nil || n != 5 {
		t.Errorf("Records again: %d, %v, want what was there before", n, err)
	}
	stop := errors.New("stop")
	if err := src.Records(t.Context(), func(*eventlog.Record) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("Records: %v, want fn's error", err)
	}
}

// TestExportBeforeTrim: what is compacted and still in the index is left out.
func TestExportBeforeTrim(t *testing.T) {
	st := newState()
	st = st.edit()
	for i, r := range []eventlog.Record{
		{Kind: eventlog.KindPut, Key: []byte("a"), Revision: eventlog.Revision{Main: 2}},
		{Kind: eventlog.KindPut, Key: []byte("b"), Revision: eventlog.Revision{Main: 3}},
		{Kind: eventlog.KindPut, Key: []byte("a"), Revision: eventlog.Revision{Main: 4}},
		{Kind: eventlog.KindDelete, Key: []byte("b"), Revision: eventlog.Revision{Main: 5}},
		{Kind: eventlog.KindPut, Key: []byte("a"), Revision: eventlog.Revision{Main: 6}},
		{Kind: eventlog.KindCompact, Revision: eventlog.Revision{Main: 5}},
	} {
		r.Seq, r.Position = int64(i+1), eventlog.Position(i+1)
		if err := st.apply(&r); err != nil {
			t.Fatal(err)
		}
	}
	var e Export
	e.list(&st)
	var got []int64
	for _, v := range e.versions {
		got = append(got, v.seq)
	}
	if want := []int64{3, 4, 5}; !slices.Equal(got, want) || e.newest != 6 {
		t.Errorf("records %v up to revision %d are exported, want %v", got, e.newest, want)
	}
}

// TestDanglingLease: a key that came with a lease which there is not, as from an
// etcd, does not end with a later lease of that id.
func TestDanglingLease(t *testing.T) {
	st := newState()
	for i, r := range []eventlog.Record{
		{Kind: eventlog.KindPut, Lease: 5, Revision: eventlog.Revision{Main: 2}, Key: []byte("a")},
		{Kind: eventlog.KindLeaseGrant, Lease: 5, TTL: 60},
		{Kind: eventlog.KindPut, Lease: 5, Revision: eventlog.Revision{Main: 3}, Key: []byte("b")},
	} {
		r.Seq, r.Position = int64(i+1), eventlog.Position(i+1)
		if err := st.apply(&r); err != nil {
			t.Fatal(err)
		}
	}
	if keys := st.keysOf(5); !slices.Equal(keys, []string{"b"}) {
		t.Errorf("the lease has %q", keys)
	}
}

// TestExportHash compares the hash of what is exported with HashKV, at any time
// of many compactions, whose records may be deleted already or not.
func TestExportHash(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	f := open(t, new(memlog.Disk), Options{})
	for i := range 600 {
		key := fmt.Sprint("k", random.IntN(20))
		switch random.IntN(12) {
		case 0:
			f.delete("k1", "k2")
		case 1:
			f.delete("\x00", "\x00")
		case 2:
			if now, compacted := f.Revision(); compacted < now {
				f.compact(max(compacted, 0) + 1 + random.Int64N(now-max(compacted, 0)))
			}
		default:
			f.put(key, strings.Repeat("v", i))
		}
		want, err := f.HashKV(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		src, _ := f.exported()
		if got, err := snapshottest.Hash(t.Context(), src); got != want.Hash || err != nil {
			t.Fatalf("at %+v the hash of what is exported is %d, %v", want, got, err)
		}
		if err := src.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// doctoredLog is a log whose scans pass through change.
type doctoredLog struct {
	*memlog.Log
	change func([]eventlog.Record) []eventlog.Record
}

type doctoredScan struct {
	eventlog.Scan
	log *doctoredLog
}

func (l *doctoredLog) Scan(ctx context.Context, begin func(eventlog.Position) (int64, error)) (eventlog.Scan, error) {
	scan, err := l.Log.Scan(ctx, begin)
	return &doctoredScan{scan, l}, err
}

func (s *doctoredScan) Records(ctx context.Context, fn func([]eventlog.Record) error) error {
	return s.Scan.Records(ctx, func(records []eventlog.Record) error { return fn(s.log.change(records)) })
}

// TestExportDamage: the log has not what the index has.
func TestExportDamage(t *testing.T) {
	disk := new(memlog.Disk)
	l := &doctoredLog{Log: disk.Open(nil)}
	f := openOn(t, disk, l, Options{})
	for i := range 5 {
		f.put(fmt.Sprint("k", i), "v")
	}
	f.compact(3)
	if err := f.compactor.wait(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name     string
		change   func(r eventlog.Record) []eventlog.Record
		harmless bool
	}{
		{"as it is", func(r eventlog.Record) []eventlog.Record { return []eventlog.Record{r} }, true},
		{"a record is missing", func(r eventlog.Record) []eventlog.Record { return only(r, r.Seq != 2) }, false},
		{"the last event is missing", func(r eventlog.Record) []eventlog.Record { return only(r, r.Seq != 5) }, false},
		{"all records are missing", func(eventlog.Record) []eventlog.Record { return nil }, false},
		{"a record is no event", func(r eventlog.Record) []eventlog.Record {
			if r.Seq == 4 {
				r.Kind = eventlog.KindLeaseGrant
			}
			return []eventlog.Record{r}
		}, false},
		{"an event that nobody knows of", func(r eventlog.Record) []eventlog.Record { return append(only(r, true), stray(r, 5, 9)...) }, false},
		{"one that is compacted", func(r eventlog.Record) []eventlog.Record { return append(only(r, true), stray(r, 1, 2)...) }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l.change = func(records []eventlog.Record) (out []eventlog.Record) {
				for _, r := range records {
					out = append(out, tt.change(r)...)
				}
				return out
			}
			src, err := f.Export(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			err = src.Records(t.Context(), func(*eventlog.Record) error { return nil })
			if errors.Is(err, eventlog.ErrCorrupt) == tt.harmless || tt.harmless && err != nil {
				t.Errorf("Records: %v", err)
			}
		})
	}
}

func only(r eventlog.Record, keep bool) []eventlog.Record {
	if keep {
		return []eventlog.Record{r}
	}
	return nil
}

// stray is another event of revision main after the one with that seq.
func stray(r eventlog.Record, seq, main int64) []eventlog.Record {
	r.Revision.Main = main
	return only(r, r.Seq == seq)
}

// TestHashInTurn: a second HashKV waits for the first one, or until its context
// ends.
func TestHashInTurn(t *testing.T) {
	disk := new(memlog.Disk)
	l := &doctoredLog{Log: disk.Open(nil)}
	f := openOn(t, disk, l, Options{})
	f.put("k", "v")
	reads, goOn := make(chan struct{}, 2), make(chan struct{})
	l.change = func(records []eventlog.Record) []eventlog.Record {
		reads <- struct{}{}
		select {
		case <-goOn:
		case <-time.After(5 * time.Second):
		}
		return records
	}
	hashed := make(chan error, 1)
	go func() {
		_, err := f.HashKV(context.Background(), 0)
		hashed <- err
	}()
	<-reads
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := f.HashKV(ctx, 0); !errors.Is(err, context.DeadlineExceeded) || len(reads) > 0 {
		t.Errorf("a second HashKV: %v, want that it waits", err)
	}
	close(goOn)
	if err := <-hashed; err != nil {
		t.Fatal(err)
	}
	if _, err := f.HashKV(t.Context(), 0); err != nil {
		t.Errorf("HashKV after another one: %v", err)
	}
}
