package check

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

func put(key string, main, sub, create, version, lease int64) eventlog.Record {
	return eventlog.Record{
		Kind: eventlog.KindPut, Revision: eventlog.Revision{Main: main, Sub: sub}, Key: []byte(key), Value: []byte("v"),
		CreateRevision: create, Version: version, Lease: lease,
	}
}

func remove(key string, main int64) eventlog.Record {
	return eventlog.Record{Kind: eventlog.KindDelete, Revision: eventlog.Revision{Main: main}, Key: []byte(key)}
}

func grant(id, ttl int64) eventlog.Record {
	return eventlog.Record{Kind: eventlog.KindLeaseGrant, Lease: id, TTL: ttl}
}

func revoke(id int64) eventlog.Record {
	return eventlog.Record{Kind: eventlog.KindLeaseRevoke, Lease: id}
}

func compacted(main int64) eventlog.Record {
	return eventlog.Record{Kind: eventlog.KindCompact, Revision: eventlog.Revision{Main: main}}
}

func alarmed(kind eventlog.Kind) eventlog.Record {
	return eventlog.Record{Kind: kind, Member: 7, Alarm: 1}
}

// TestWhatDoesNotFollow: logs whose checksums are right, and that no store can
// have written.
func TestWhatDoesNotFollow(t *testing.T) {
	for name, tt := range map[string]struct {
		records []eventlog.Record
		want    Kind // none: clean
		problem string
	}{
		"all is well": {[]eventlog.Record{
			grant(1, 60), put("a", 2, 0, 2, 1, 1), put("b", 2, 1, 2, 1, 0), put("a", 3, 0, 2, 2, 0), remove("b", 4), put("b", 5, 0, 5, 1, 1),
			alarmed(eventlog.KindAlarmRaise), alarmed(eventlog.KindAlarmDisarm), remove("b", 6), revoke(1), compacted(4),
		}, "", ""},
		"restored": {[]eventlog.Record{ // what was before the compaction is not there
			grant(1, 60), put("a", 20, 3, 7, 9, 1), remove("x", 22), put("b", 23, 0, 23, 1, 0), compacted(22),
		}, "", ""},
		"restored, revision raised": {[]eventlog.Record{
			put("a", 20, 0, 7, 9, 0), compacted(20), put("b", 21, 0, 21, 1, 0), compacted(1000000), put("b", 1000001, 0, 21, 2, 0),
		}, "", ""},
		"gap":                 {[]eventlog.Record{put("a", 2, 0, 2, 1, 0), put("a", 9, 0, 2, 2, 0)}, "", ""},
		"version left out":    {[]eventlog.Record{put("a", 2, 0, 2, 1, 0), put("a", 3, 0, 2, 3, 0)}, KindIndex, "version 3, created at 2, after version 1"},
		"version again":       {[]eventlog.Record{put("a", 2, 0, 2, 1, 0), put("a", 3, 0, 2, 1, 0)}, KindIndex, ""},
		"version 0":           {[]eventlog.Record{put("a", 2, 0, 2, 0, 0)}, KindIndex, ""},
		"created later":       {[]eventlog.Record{put("a", 2, 0, 3, 1, 0)}, KindIndex, ""},
		"other creation":      {[]eventlog.Record{put("a", 2, 0, 2, 1, 0), put("a", 3, 0, 3, 2, 0)}, KindIndex, ""},
		"created twice":       {[]eventlog.Record{put("a", 2, 0, 2, 1, 0), put("a", 3, 0, 3, 1, 0)}, KindIndex, ""},
		"nothing before":      {[]eventlog.Record{put("a", 2, 0, 1, 5, 0)}, KindIndex, "the versions before are not there"},
		"deleted and goes on": {[]eventlog.Record{put("a", 2, 0, 2, 1, 0), remove("a", 3), put("a", 4, 0, 2, 2, 0)}, KindIndex, ""},
		"tombstone":           {[]eventlog.Record{remove("a", 2)}, KindIndex, "and was not there"},
		"tombstone again":     {[]eventlog.Record{put("a", 2, 0, 2, 1, 0), remove("a", 3), remove("a", 4)}, KindIndex, ""},
		"no key":              {[]eventlog.Record{put("", 2, 0, 2, 1, 0)}, KindIndex, ""},
		"revision goes back":  {[]eventlog.Record{put("a", 3, 0, 3, 1, 0), put("b", 2, 0, 2, 1, 0)}, KindOrder, "follows revision 3.0"},
		"revision again":      {[]eventlog.Record{put("a", 2, 0, 2, 1, 0), put("b", 2, 0, 2, 1, 0)}, KindOrder, ""},
		"no revision":         {[]eventlog.Record{put("a", 0, 0, 0, 1, 0)}, KindOrder, ""},
		"no revision left":    {[]eventlog.Record{put("a", 1<<62+1, 0, 1<<62+1, 1, 0)}, KindOrder, "there are none left"},
		"sub left out":        {[]eventlog.Record{put("a", 2, 0, 2, 1, 0), put("b", 2, 2, 2, 1, 0)}, KindOrder, "a part of a transaction"},
		"sub does not begin":  {[]eventlog.Record{put("a", 2, 0, 2, 1, 0), put("b", 3, 1, 3, 1, 0)}, KindOrder, "a part of a transaction"},
		"lease is not there":  {[]eventlog.Record{put("a", 2, 0, 2, 1, 5)}, KindLease, `key "a" is attached to lease 5`},
		"lease is gone":       {[]eventlog.Record{grant(5, 9), put("a", 2, 0, 2, 1, 5), revoke(5)}, KindLease, ""},
		"lease twice":         {[]eventlog.Record{grant(5, 9), grant(5, 9)}, KindLease, ""},
		"lease without time":  {[]eventlog.Record{grant(5, 0)}, KindLease, ""},
		"lease 0":             {[]eventlog.Record{grant(0, 5)}, KindLease, ""},
		"no such lease":       {[]eventlog.Record{revoke(5)}, KindLease, ""},
		"alarm twice":         {[]eventlog.Record{alarmed(eventlog.KindAlarmRaise), alarmed(eventlog.KindAlarmRaise)}, KindAlarm, ""},
		"no such alarm":       {[]eventlog.Record{alarmed(eventlog.KindAlarmDisarm)}, KindAlarm, ""},
		"compacted too far":   {[]eventlog.Record{put("a", 2, 0, 2, 1, 0), compacted(9)}, KindCompact, "compacted up to revision 9"},
		"compacted nothing":   {[]eventlog.Record{put("a", 2, 0, 2, 1, 0), compacted(0)}, KindCompact, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := checkSQLite(t, crafted(t, tt.records))
			if tt.want == "" && !r.Clean() || tt.want != "" && (!has(r, tt.want) || len(r.Findings) != 1 && name != "no revision") {
				t.Errorf("%+v", r.Findings)
			}
			if tt.problem != "" && (r.Clean() || !strings.Contains(r.Findings[0].Problem, tt.problem)) {
				t.Errorf("%+v, want %q", r.Findings, tt.problem)
			}
			if noted := len(r.Notes) > 0; noted != (name == "gap" || name == "alarm twice") {
				t.Errorf("%q", r.Notes)
			}
		})
	}
}

// crafted makes a log of records, two in a batch.
func crafted(t *testing.T, records []eventlog.Record) string {
	t.Helper()
	dir := t.TempDir()
	log, err := sqlite.Open(t.Context(), sqlite.Options{Dir: dir, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := log.Load(t.Context(), func(*eventlog.Record) error { return nil }); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(records); i += 2 {
		b := eventlog.Batch{ID: eventlog.NewBatchID(), Base: eventlog.Position(i / 2), Records: records[i:min(i+2, len(records))]}
		for j := range b.Records {
			b.Records[j].Seq, b.Records[j].Position = int64(i+j+1), b.Position()
		}
		if err := log.Append(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestDamagedFile overwrites pages: what is readable is checked.
func TestDamagedFile(t *testing.T) {
	clean := makeSQLite(t, 3, 400)
	whole := checkSQLite(t, clean)
	path := func(dir string) string { return filepath.Join(dir, sqlite.FileName) }
	info, err := os.Stat(path(clean))
	if err != nil {
		t.Fatal(err)
	}
	rows := int64(0)
	for page := int64(1); page < info.Size()/4096; page++ {
		dir := copyDir(t, clean)
		f, err := os.OpenFile(path(dir), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt(make([]byte, 4096), page*4096)
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		r := checkSQLite(t, dir)
		if r.Clean() {
			t.Errorf("page %d is overwritten, and all is well", page)
		}
		rows = max(rows, r.Records)
		if r.Records == whole.Records {
			continue // a page of another table, or a pointer map
		}
		if !has(r, KindFile) || !has(r, KindRead) {
			t.Errorf("page %d: %+v", page, r.Findings)
		}
	}
	if rows < whole.Records/2 {
		t.Errorf("at best %d of %d rows were read", rows, whole.Records)
	}
	for name, data := range map[string][]byte{"empty": {}, "text": []byte("hello, this is no database at all, however long one looks at it ................................"), "short": []byte("SQLite format 3\x00")} {
		dir := t.TempDir()
		if err := os.WriteFile(path(dir), data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := SQLite(t.Context(), dir, nil)
		if name == "text" && !errors.Is(err, sqlite.ErrForeign) || name != "text" && (err != nil || !has(r, KindFile)) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

// TestDamagedWAL: of a server that was killed.
func TestDamagedWAL(t *testing.T) {
	dir := t.TempDir()
	log, err := sqlite.Open(t.Context(), sqlite.Options{Dir: dir, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := log.Load(t.Context(), func(*eventlog.Record) error { return nil }); err != nil {
		t.Fatal(err)
	}
	for i := range int64(20) {
		r := put("a", i+2, 0, 2, i+1, 0)
		r.Seq, r.Position = i+1, eventlog.Position(i+1)
		if err := log.Append(t.Context(), &eventlog.Batch{ID: eventlog.NewBatchID(), Base: eventlog.Position(i), Records: []eventlog.Record{r}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := SQLite(t.Context(), dir, nil); !errors.Is(err, sqlite.ErrLocked) {
		t.Errorf("beside a server: %v", err)
	}
	killed := copyDir(t, dir)
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(killed, sqlite.FileName+"-shm")); err != nil {
		t.Fatal(err)
	}
	if r := checkSQLite(t, killed); !r.Clean() || r.Records != 20 {
		t.Errorf("%d records, %+v", r.Records, r.Findings)
	}
	wal := filepath.Join(killed, sqlite.FileName+"-wal")
	data, err := os.ReadFile(wal)
	if err != nil {
		t.Fatal(err)
	}
	data[32+3*(4096+24)+500] ^= 1
	if err := os.WriteFile(wal, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := checkSQLite(t, killed); !has(r, KindWAL) || !strings.Contains(r.Findings[0].Problem, "frame 4") {
		t.Errorf("%+v", r.Findings)
	}
}

func TestCannotCheck(t *testing.T) {
	dir := t.TempDir()
	if _, err := SQLite(t.Context(), dir, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no database: %v", err)
	}
	if len(files(t, dir)) != 0 {
		t.Error("something was made")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := SQLite(ctx, makeSQLite(t, 1, 20), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

// TestCheckCopy: a copy without a lock file, or of which nothing can be written, is
// checked, and left as it was.
func TestCheckCopy(t *testing.T) {
	dir := makeSQLite(t, 1, 20)
	lock := filepath.Join(dir, sqlite.FileName+".lock")
	for mode, name := range map[os.FileMode]string{0o400: lock, 0o500: dir} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	check := func() {
		t.Helper()
		before := files(t, dir)
		if r, err := SQLite(t.Context(), dir, nil); err != nil || !r.Clean() {
			t.Errorf("%+v, %v", r, err)
		}
		if after := files(t, dir); !maps.Equal(before, after) {
			t.Errorf("%d files, then %d", len(before), len(after))
		}
	}
	check()
	if err := errors.Join(os.Chmod(dir, 0o700), os.Remove(lock)); err != nil {
		t.Fatal(err)
	}
	check()
	if _, err := os.Stat(lock); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the check has left a lock file: %v", err)
	}
}

// TestAlarmNoted: an alarm is no damage, and said with what it does.
func TestAlarmNoted(t *testing.T) {
	raised := alarmed(eventlog.KindAlarmRaise)
	raised.Alarm = 2
	r := checkSQLite(t, crafted(t, []eventlog.Record{put("a", 2, 0, 2, 1, 0), raised}))
	if !r.Clean() || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "the alarm CORRUPT of member 7 is raised: reads and writes are refused") {
		t.Errorf("%+v", r)
	}
}

// TestMany: a report stays short, and counts what it leaves out.
func TestMany(t *testing.T) {
	dir := makeSQLite(t, 3, 400)
	db := openSQL(t, dir)
	if _, err := db.ExecContext(t.Context(), "UPDATE log SET value = x'00' WHERE value IS NOT NULL"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	r := checkSQLite(t, dir)
	if len(r.Findings) != MaxFindings || r.Count() < 50 || r.More[KindValue] != r.Count()-MaxFindings {
		t.Errorf("%d findings and %v more", len(r.Findings), r.More)
	}
}
