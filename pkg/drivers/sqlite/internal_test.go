package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logrustest "github.com/sirupsen/logrus/hooks/test"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

func mustOpen(t *testing.T, dir string) *Log {
	t.Helper()
	l, err := Open(context.Background(), Options{Dir: dir})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return l
}

// appendPuts appends one batch of n puts of the same key.
func appendPuts(t *testing.T, l *Log, n, size int) {
	t.Helper()
	head, seq := l.head.Load(), l.headSeq
	b := eventlog.Batch{ID: eventlog.NewBatchID(), Base: eventlog.Position(head)}
	for i := range n {
		b.Records = append(b.Records, eventlog.Record{
			Seq: seq + 1 + int64(i), Position: b.Position(), Kind: eventlog.KindPut, Revision: eventlog.Revision{Main: head + 1, Sub: int64(i)},
			Key: []byte("key"), Value: make([]byte, size), CreateRevision: 1, Version: head + 1,
		})
	}
	if err := l.Append(context.Background(), &b); err != nil {
		t.Fatalf("Append: %v", err)
	}
}

func walSize(t *testing.T, l *Log) int64 {
	t.Helper()
	info, err := os.Stat(l.path + "-wal")
	if errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// TestAppendAll: batches that are appended together are each what one that is
// appended alone is, and all there or none of them.
func TestAppendAll(t *testing.T) {
	l := mustOpen(t, t.TempDir())
	defer l.Close()
	appendPuts(t, l, 2, 10)
	next := func(base, seq int64, kind eventlog.Kind) *eventlog.Batch {
		b := &eventlog.Batch{ID: eventlog.NewBatchID(), Base: eventlog.Position(base)}
		b.Records = []eventlog.Record{{Seq: seq, Position: b.Position(), Kind: kind, Revision: eventlog.Revision{Main: base + 1}, Key: []byte("key")}}
		return b
	}
	const put, del = eventlog.KindPut, eventlog.KindDelete
	ctx := context.Background()
	for what, batches := range map[string][]*eventlog.Batch{
		"with one that is based on another position": {next(1, 3, put), next(1, 4, put)},
		"with a gap":               {next(1, 3, put), next(3, 4, put)},
		"with a record left out":   {next(1, 3, put), next(2, 5, put)},
		"with one that cannot be":  {next(1, 3, put), {Base: 2}},
		"of which none comes next": {next(2, 3, put), next(3, 4, put)},
	} {
		if err := l.AppendAll(ctx, batches...); err == nil {
			t.Errorf("AppendAll of batches %s", what)
		}
		if head, err := l.State(ctx); err != nil || head.Position != 1 || head.Seq != 2 {
			t.Fatalf("after AppendAll of batches %s the head is %+v, %v", what, head, err)
		}
	}
	batches := []*eventlog.Batch{next(1, 3, put), next(2, 4, del), next(3, 5, put)}
	if err := l.AppendAll(ctx, batches...); err != nil {
		t.Fatalf("AppendAll: %v", err)
	}
	for i, want := range batches {
		got, err := l.Tail(ctx, eventlog.Position(1+i), 1)
		if err != nil || len(got) != 1 || got[0].ID != want.ID || got[0].Records[0].Kind != want.Records[0].Kind {
			t.Errorf("Tail of batch %d is %+v, %v, want %+v", i, got, err, want)
		}
	}
	if head, err := l.State(ctx); err != nil || head != (eventlog.Head{Position: 4, Seq: 5, Revision: 4}) {
		t.Errorf("the head is %+v, %v", head, err)
	}
}

// TestWALBounded writes as fast as it can beside readers that never pause.
func TestWALBounded(t *testing.T) {
	l := mustOpen(t, t.TempDir())
	defer l.Close()
	appendPuts(t, l, 30, 100_000)

	ctx, cancel := context.WithCancel(context.Background())
	var readers sync.WaitGroup
	for i := range readerCount + 1 {
		readers.Add(1)
		go func() {
			defer readers.Done()
			for ctx.Err() == nil {
				var err error
				if i%2 == 0 {
					_, err = l.Tail(ctx, 0, 1)
				} else {
					_, err = l.Values(ctx, []int64{1, 25, 10, 20, 30})
				}
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			}
		}()
	}
	const batch = 2 << 20
	largest := int64(0)
	for range 36 {
		appendPuts(t, l, 20, batch/20)
		largest = max(largest, walSize(t, l))
	}
	cancel()
	readers.Wait()
	if largest > 64<<20+batch || largest < walTarget {
		t.Errorf("the WAL grew to %d bytes", largest)
	}
	for end := time.Now().Add(time.Minute); l.Stats().Checkpoints < 2 && time.Now().Before(end); { // it was asked for
		time.Sleep(time.Millisecond)
	}
	if s := l.Stats(); s.Checkpoints < 2 || s.CheckpointTime == 0 || s.WALBytes < walSize(t, l) || s.Checkpointed == 0 {
		t.Errorf("Stats: %+v", s)
	}
	t.Logf("the WAL grew to %d MiB", largest>>20)
}

// TestCheckpointed: a passive checkpoint that has copied everything tells up to
// where the file itself is durable. Where writes pause now and then no other
// one comes.
func TestCheckpointed(t *testing.T) {
	for _, sync := range []Synchronous{SynchronousFull, UnsafeLosesAcknowledgedWritesOnPowerCut} {
		dir := t.TempDir()
		l, err := Open(t.Context(), Options{Dir: dir, Synchronous: sync})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		appendPuts(t, l, 10, 1000)
		reader, err := openMode("ro", filepath.Join(dir, FileName)) // of somebody else
		if err != nil {
			t.Fatal(err)
		}
		defer reader.close()
		if err := reader.exec("BEGIN"); err != nil {
			t.Fatal(err)
		}
		if n, err := reader.int("SELECT count(*) FROM log"); err != nil || n != 10 {
			t.Fatal(n, err)
		}
		before := l.head.Load()
		appendPuts(t, l, 10, 1000)
		if err := l.checkpointPassive(); err != nil {
			t.Fatal(err)
		}
		if at := int64(l.Stats().Checkpointed); at > before {
			t.Errorf("beside a reader who sees position %d the file is said to have %d", before, at)
		}
		if err := reader.exec("COMMIT"); err != nil {
			t.Fatal(err)
		}
		if err := l.checkpointPassive(); err != nil {
			t.Fatal(err)
		}
		if at := int64(l.Stats().Checkpointed); at != l.head.Load() {
			t.Errorf("the file is said to have position %d of %d", at, l.head.Load())
		}
	}
}

// TestForeignReader: somebody else's long transaction stops no write, is not
// complained of all the time, and the WAL shrinks when it ends.
func TestForeignReader(t *testing.T) {
	logger, logged := logrustest.NewNullLogger()
	l, err := Open(context.Background(), Options{Dir: t.TempDir(), Logger: logrus.NewEntry(logger)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	appendPuts(t, l, 1, 10)
	foreign, err := openConn(l.path, "BEGIN")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := foreign.int("SELECT count(*) FROM log"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for walSize(t, l) < walLimit+walTarget {
		appendPuts(t, l, 20, 100_000)
	}
	// One may be asked for while another begins, and the writer may be at one of its own.
	if n, most := len(logged.AllEntries()), 3*(int(time.Since(start)/retryWait)+1); n == 0 || n > most {
		t.Fatalf("%d warnings, want 1 to %d", n, most)
	}
	if n, err := foreign.int("SELECT count(*) FROM log"); err != nil || n != 1 {
		t.Fatalf("the foreign reader sees %d records, %v", n, err)
	}
	if err := errors.Join(foreign.exec("COMMIT"), foreign.close()); err != nil {
		t.Fatal(err)
	}
	if err := l.Defragment(context.Background()); err != nil {
		t.Fatalf("Defragment: %v", err)
	}
	if size := walSize(t, l); size != 0 {
		t.Fatalf("the WAL has %d bytes after Defragment", size)
	}
}

// TestOpenBesideForeignReader: the size is known although the WAL that was left
// cannot be copied yet.
func TestOpenBesideForeignReader(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir)
	appendPuts(t, l, 100, 10_000)
	foreign, err := openConn(l.path, "BEGIN")
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.close()
	if _, err := foreign.int("SELECT count(*) FROM log"); err != nil {
		t.Fatal(err)
	}
	appendPuts(t, l, 100, 10_000)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, dir)
	defer l.Close()
	wal := walSize(t, l)
	if size := l.Size(); wal < 1_000_000 || size.InUse < 2_000_000 || size.Total < size.InUse+wal {
		t.Fatalf("Size: %+v with a WAL of %d bytes", size, wal)
	}
}

// TestBackup: a copy made beside the log is a log, as README says.
func TestBackup(t *testing.T) {
	t.Parallel()
	l := mustOpen(t, t.TempDir())
	defer l.Close()
	appendPuts(t, l, 10, 5000)
	shell, err := openMode("ro", l.path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := errors.Join(shell.exec("VACUUM INTO ?", filepath.Join(dir, FileName)), shell.close()); err != nil {
		t.Fatal(err)
	}
	appendPuts(t, l, 1, 10) // comes too late

	backup := mustOpen(t, dir)
	defer backup.Close()
	head, err := backup.Load(context.Background(), func(*eventlog.Record) error { return nil })
	if err != nil || head.Position != 1 || head.Seq != 10 {
		t.Fatalf("head %+v, %v", head, err)
	}
	appendPuts(t, backup, 1, 10)
}

// TestIdle: a log that is left alone has no WAL.
func TestIdle(t *testing.T) {
	l := mustOpen(t, t.TempDir())
	defer l.Close()
	appendPuts(t, l, 10, 1000)
	if err := l.checkpointIdle(); err != nil || walSize(t, l) == 0 {
		t.Fatalf("checkpoint of a log just written: %v, %d bytes left", err, walSize(t, l))
	}
	l.lastCommit.Add(-int64(idleAfter))
	if err := l.checkpointIdle(); err != nil || walSize(t, l) != 0 {
		t.Fatalf("checkpoint of an idle log: %v, %d bytes left", err, walSize(t, l))
	}
	if size := l.Size(); size.Total != l.pages.Load()*pageSize {
		t.Fatalf("Size: %+v with %d pages", size, l.pages.Load())
	}
}

// TestVacuum: Compact keeps free pages for later and gives the rest back.
func TestVacuum(t *testing.T) {
	t.Parallel()
	l := mustOpen(t, t.TempDir())
	defer l.Close()
	appendPuts(t, l, 400, 100_000)
	full := l.Size().Total
	l.writerDo(t, func() { l.markSeq = 400 }) // as if it were one
	for _, seqs := range [][]int64{{400}, {1, 400, 999}} {
		if err := l.Compact(context.Background(), seqs); err == nil || errors.Is(err, eventlog.ErrFailed) {
			t.Fatalf("Compact of the newest mark: %v", err)
		}
	}
	var seqs []int64
	for seq := int64(1); seq < 400; seq++ {
		seqs = append(seqs, seq)
	}
	committed := make(chan struct{}, 1)
	l.writerDo(t, func() {
		l.onCommit = func(commit func() error) error {
			select {
			case committed <- struct{}{}:
			default:
			}
			return commit()
		}
	})
	if err := l.Compact(context.Background(), seqs); err != nil {
		t.Fatalf("Compact: %v", err)
	}
	for l.Stats().FreePages > freeNumber {
		select {
		case <-committed:
		case <-time.After(time.Minute):
			t.Fatalf("free pages are not given back: %+v", l.Stats())
		}
	}
	if s := l.Stats(); s.FreePages > freeNumber || s.FreePages < freeNumber/2 || s.Pages*pageSize > full/4 {
		t.Fatalf("%d of %d pages are free", s.FreePages, s.Pages)
	}
	if err := l.Defragment(context.Background()); err != nil {
		t.Fatalf("Defragment: %v", err)
	}
	if s := l.Stats(); s.FreePages != 0 || s.WALBytes != 0 {
		t.Fatalf("after Defragment: %+v", s)
	}
}

// TestDefragmentBesideCompact: that as many pages are freed as Defragment gives
// back does not mean that it gets no further.
func TestDefragmentBesideCompact(t *testing.T) {
	ctx := context.Background()
	l := mustOpen(t, t.TempDir())
	defer l.Close()
	const puts, size = 64, 63_000 // each with 16 pages of its own
	appendPuts(t, l, puts, size)
	var seqs []int64
	for seq := int64(1); seq < puts; seq++ {
		seqs = append(seqs, seq)
	}
	remove := func(n int) error {
		return l.step(ctx, func(func() bool) error {
			goal := len(l.doomed) - n
			return l.deleteDoomed(func() bool { return len(l.doomed) > goal })
		})
	}
	l.writerDo(t, func() { l.doomed = seqs })
	if err := remove(puts / 2); err != nil {
		t.Fatal(err)
	}
	l.writers.Add(1) // each step ends at its first check
	defer l.writers.Add(-1)
	var others sync.WaitGroup
	ours := true // this commit is Defragment's
	l.onCommit = func(commit func() error) error {
		if ours {
			others.Go(func() {
				if err := remove(1); err != nil {
					t.Error(err)
				}
			})
		}
		ours = !ours
		return commit()
	}
	err := l.vacuum(ctx, spare{0, 0}, func() bool { return true })
	others.Wait()
	l.onCommit = nil
	if err != nil {
		t.Fatal(err)
	}
}

// TestTakenAlong: batches delete some of what Compact has to, in their own
// transactions.
func TestTakenAlong(t *testing.T) {
	l := mustOpen(t, t.TempDir())
	defer l.Close()
	appendPuts(t, l, 200, 10)
	l.writerDo(t, func() { l.markSeq = 200 }) // as if it were one
	var seqs []int64
	for seq := int64(1); seq < 200; seq++ {
		seqs = append(seqs, seq)
	}
	rows := func(want int64) {
		t.Helper()
		n := int64(0)
		if _, err := l.Load(context.Background(), func(*eventlog.Record) error { n++; return nil }); err != nil || n != want {
			t.Fatalf("%d records, %v, want %d", n, err, want)
		}
		l.writerDo(t, func() { l.markSeq = 200 })
	}
	if err := l.doom(context.Background(), append(seqs, 777)); err != nil {
		t.Fatal(err)
	}
	left := int64(199)
	for i := range int64(2) {
		l.writerDo(t, func() { l.pace, l.chunk = 0, 16 })
		appendPuts(t, l, 1, 10)
		took := left - l.left.Load()
		if took != 16 { // one run, since there was no time for more
			t.Fatalf("a batch took %d along", took)
		}
		left -= took
		rows(200 + i + 1 - (199 - left))
	}
	// A run ends where records are kept, however much time there is.
	l.writerDo(t, func() { l.pace, l.doomed = time.Hour, []int64{40, 41, 50, 60, 61, 62} })
	appendPuts(t, l, 1, 10)
	rows(203 - 32 - 6)
	l.writerDo(t, func() {
		if want := time.Hour - time.Hour/16; l.pace != want {
			t.Fatalf("after a batch that was faster the pace is %v, want %v", l.pace, want)
		}
		l.pace = minPace
		l.keepPace(time.Now().Add(-time.Hour))
		if want := minPace + minPace/16; l.pace != want {
			t.Fatalf("after a batch that was slower the pace is %v, want %v", l.pace, want)
		}
	})

	// A compaction that ends early leaves nothing to the batches after it.
	ctx, cancel := context.WithCancel(context.Background())
	l.onCommit = func(commit func() error) error {
		cancel()
		return commit()
	}
	l.writers.Add(1) // ends its step at the first check
	defer l.writers.Add(-1)
	if err := l.Compact(ctx, seqs); !errors.Is(err, context.Canceled) {
		t.Fatalf("Compact: %v", err)
	}
	err := l.alone(context.Background(), func() error { // vacuumLoop would have pages to take along
		l.onCommit = nil
		appendPuts(t, l, 1, 10)
		return nil
	})
	if left, along := l.left.Load(), l.along.Load(); err != nil || left != 0 || along != 3 {
		t.Fatalf("%d are left, and %d batches took some along, %v", left, along, err)
	}
	if err := l.Compact(context.Background(), seqs); err != nil {
		t.Fatal(err)
	}
	rows(5)
}

// TestPagesTakenAlong: batches give free pages back too, and a Compact that
// waits ends that.
func TestPagesTakenAlong(t *testing.T) {
	ctx := context.Background()
	l := mustOpen(t, t.TempDir())
	defer l.Close()
	const puts = 64
	appendPuts(t, l, puts, 63_000) // each with 16 pages of its own
	l.writerDo(t, func() {
		l.markSeq = puts // as if it were one
		for seq := int64(1); seq < puts; seq++ {
			l.doomed = append(l.doomed, seq)
		}
	})
	if err := l.step(ctx, func(func() bool) error { return l.deleteDoomed(func() bool { return true }) }); err != nil {
		t.Fatal(err)
	}

	others := make(chan error, 1)
	begin := sync.OnceFunc(func() { go func() { others <- l.Compact(ctx, nil) }() })
	for _, reserve := range []int64{900, 0} {
		before := l.Stats()
		l.writerDo(t, func() { l.pace, l.spare = 0, &spare{0, reserve} })
		appendPuts(t, l, 1, 10)
		if after := l.Stats(); after.Pages != before.Pages-4 || after.FreePages < before.FreePages-5 || after.FreePages >= before.FreePages {
			t.Fatalf("a batch made %+v of %+v", after, before)
		}
	}
	l.writers.Add(1) // each step ends at its first check
	defer l.writers.Add(-1)
	l.writerDo(t, func() {
		l.spare = nil
		l.onCommit = func(commit func() error) error {
			begin()
			for l.waiting.Load() == 0 && len(others) == 0 {
				runtime.Gosched()
			}
			return commit()
		}
	})
	free := l.Stats().FreePages
	if err := l.alone(ctx, func() error {
		return l.vacuum(ctx, spare{0, 0}, func() bool { return l.waiting.Load() == 0 })
	}); err != nil {
		t.Fatal(err)
	}
	if left := l.Stats().FreePages; left == 0 || left >= free {
		t.Fatalf("of %d free pages %d are left although another waits", free, left)
	}
	if err := <-others; err != nil {
		t.Fatal(err)
	}
	n := 0
	if _, err := l.Load(ctx, func(*eventlog.Record) error { n++; return nil }); err != nil || n != 3 {
		t.Fatalf("%d records, %v", n, err)
	}
}

func (l *Log) writerDo(t *testing.T, fn func()) {
	t.Helper()
	if err := l.acquire(context.Background()); err != nil {
		t.Fatal(err)
	}
	defer l.release()
	fn()
}

func TestMigrate(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir)
	appendPuts(t, l, 1, 10)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, FileName)
	c, err := openConn(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()

	failing := append(migrations[:len(migrations):len(migrations)], statements("CREATE TABLE more (a); CREATE TABLE log (a)"))
	if err := migrate(c, failing); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("schema version %d", len(migrations))) {
		t.Fatalf("migrate with a step that fails: %v", err)
	}
	if n, err := c.int("SELECT count(*) FROM sqlite_schema WHERE name = 'more'"); err != nil || n != 0 {
		t.Fatalf("a failed step left %d tables, %v", n, err)
	}
	next := append(migrations[:len(migrations):len(migrations)], statements("CREATE TABLE more (a)"), statements("INSERT INTO more VALUES (7)"))
	for range 2 { // the second time there is nothing to do
		if err := migrate(c, next); err != nil {
			t.Fatalf("migrate: %v", err)
		}
		if n, err := c.int("SELECT sum(a) FROM more"); err != nil || n != 7 {
			t.Fatalf("the migrated table has %d, %v", n, err)
		}
	}
	if err := migrate(c, migrations); !errors.Is(err, ErrNewer) {
		t.Fatalf("migrate of a newer file: %v, want ErrNewer", err)
	}
	if _, err := Open(context.Background(), Options{Dir: dir}); !errors.Is(err, ErrNewer) {
		t.Fatalf("Open of a newer file: %v, want ErrNewer", err)
	}
}

// TestMigrateKept: the checksum of kept comes with schema version 2.
func TestMigrateKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := openConn(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if err := migrate(c, migrations[:1]); err != nil {
		t.Fatal(err)
	}
	if err := c.exec("UPDATE kept SET floor = 20, deleted = 7, revision = 30"); err != nil {
		t.Fatal(err)
	}
	if err := migrate(c, migrations); err != nil {
		t.Fatal(err)
	}
	if k, err := readKept(c); err != nil || k != (kept{20, 7, 30}) {
		t.Fatalf("kept is %+v, %v", k, err)
	}
	for _, column := range []string{"floor", "deleted", "revision", "crc"} {
		if err := c.exec("UPDATE kept SET " + column + " = " + column + " + 1"); err != nil {
			t.Fatal(err)
		}
		if _, err := readKept(c); !errors.Is(err, eventlog.ErrCorrupt) {
			t.Errorf("%s is damaged: %v, want ErrCorrupt", column, err)
		}
		if err := c.exec("UPDATE kept SET " + column + " = " + column + " - 1"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestInspectOlder: a database of an older schema is inspected as it is.
func TestInspectOlder(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir)
	appendPuts(t, l, 1, 10)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := openConn(filepath.Join(dir, FileName))
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{"ALTER TABLE kept DROP COLUMN crc", "UPDATE kept SET floor = 20, deleted = 7, revision = 30", "PRAGMA user_version=1"} {
		if err := c.exec(sql); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	in, err := Inspect(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if floor, deleted, revision, err := in.Kept(); err != nil || floor != 20 || deleted != 7 || revision != 30 {
		t.Fatalf("Kept: %d, %d, %d, %v", floor, deleted, revision, err)
	}
}

// TestLive reads what a person with an SQL shell would.
func TestLive(t *testing.T) {
	l := mustOpen(t, t.TempDir())
	defer l.Close()
	var records []eventlog.Record
	for i, kv := range []string{"b=1", "a=1", "a=2", "c=1", "c", "lease", "d="} {
		key, value, put := strings.Cut(kv, "=")
		r := eventlog.Record{Seq: int64(i + 1), Position: 1, Kind: eventlog.KindDelete, Revision: eventlog.Revision{Main: int64(i + 2)}, Key: []byte(key)}
		if put {
			r.Kind, r.Value = eventlog.KindPut, []byte(value)
		}
		if key == "lease" {
			r = eventlog.Record{Seq: r.Seq, Position: 1, Kind: eventlog.KindLeaseGrant, Lease: 1, TTL: 1}
		}
		records = append(records, r)
	}
	if err := l.Append(context.Background(), &eventlog.Batch{Records: records}); err != nil {
		t.Fatal(err)
	}
	got := ""
	l.writerDo(t, func() {
		if err := l.writer.query(func(r row) error {
			value, _ := r[2].([]byte)
			got += fmt.Sprintf("%v@%v=%s ", r[0], r[1], value)
			return nil
		}, "SELECT key, revision, value FROM live"); err != nil {
			t.Fatal(err)
		}
	})
	if want := "a@4=2 b@2=1 d@8= "; got != want {
		t.Fatalf("live has %q, want %q", got, want)
	}
}

// TestCloseUnderLoad: Close ends whatever is under way, with ErrClosed or
// with its result, and what was acknowledged is there.
func TestCloseUnderLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := mustOpen(t, dir)
	appendPuts(t, l, 200, 1000)
	l.writerDo(t, func() { l.markSeq = 200 })
	acknowledged := l.head.Load()
	ctx := context.Background()
	var calls sync.WaitGroup
	started := make(chan struct{}, 10)
	loop := func(call func() error) {
		calls.Add(1)
		go func() {
			defer calls.Done()
			for i := 0; ; i++ {
				err := call()
				if i == 0 {
					started <- struct{}{}
				}
				if err != nil {
					if !errors.Is(err, eventlog.ErrClosed) {
						t.Errorf("beside Close: %v", err)
					}
					return
				}
			}
		}()
	}
	loop(func() error { _, err := l.Tail(ctx, 0, 10); return notCompacted(err) })
	loop(func() error { _, err := l.Values(ctx, []int64{200}); return err })
	loop(func() error { return l.Compact(ctx, []int64{7}) })
	loop(func() error { return l.Defragment(ctx) })
	loop(func() error { _ = l.Size(); _ = l.Stats(); _, err := l.Head(ctx); return err })
	loop(func() error {
		b := eventlog.Batch{Base: eventlog.Position(acknowledged)}
		b.Records = []eventlog.Record{{Seq: 200 + acknowledged, Position: b.Position(), Kind: eventlog.KindDelete, Key: []byte("k")}}
		err := l.Append(ctx, &b)
		if err == nil {
			acknowledged++
		}
		return err
	})
	for range 6 {
		<-started
	}
	if err := l.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	calls.Wait()
	l = mustOpen(t, dir)
	defer l.Close()
	if head := l.head.Load(); head != acknowledged {
		t.Fatalf("the head is %d, %d was acknowledged", head, acknowledged)
	}
}

func notCompacted(err error) error {
	if errors.Is(err, eventlog.ErrCompacted) {
		return nil
	}
	return err
}

// TestSynchronous: every transaction is as durable as the mode says.
func TestSynchronous(t *testing.T) {
	t.Parallel()
	for mode, want := range map[Synchronous]int64{SynchronousFull: 2, UnsafeLosesAcknowledgedWritesOnPowerCut: 1} {
		l, err := Open(context.Background(), Options{Dir: t.TempDir(), Synchronous: mode})
		if err != nil {
			t.Fatal(err)
		}
		check := func(when string, want int64) {
			t.Helper()
			l.writerDo(t, func() {
				if got, err := l.writer.int("PRAGMA synchronous"); err != nil || got != want {
					t.Errorf("%s of mode %d synchronous is %d, %v, want %d", when, mode, got, err, want)
				}
			})
		}
		check("after Open", want)
		appendPuts(t, l, 3, 10)
		check("after Append", want)
		l.writerDo(t, func() { l.markSeq = 3 })
		if err := l.Compact(context.Background(), []int64{1}); err != nil {
			t.Fatal(err)
		}
		check("after Compact", want)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFilesGone: files that somebody removes or replaces end the log at the
// next look, or at Close, instead of taking batches that nobody will see.
func TestFilesGone(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		harm func(path string) error
		want string
	}{
		{"directory", func(path string) error { return os.RemoveAll(filepath.Dir(path)) }, "removed"},
		{"database", os.Remove, "removed"},
		{"wal", func(path string) error { return os.Remove(path + "-wal") }, "removed"},
		{"lock", func(path string) error { return os.Remove(path + ".lock") }, "removed"},
		{"replaced", func(path string) error {
			return errors.Join(os.Rename(path, path+".old"), os.WriteFile(path, nil, 0o600))
		}, "another file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, noticed := range []bool{true, false} {
				l := mustOpen(t, filepath.Join(t.TempDir(), "data"))
				appendPuts(t, l, 1, 10)
				if err := l.checkPlace(); err != nil {
					t.Fatal(err)
				}
				if err := tt.harm(l.path); err != nil {
					t.Fatal(err)
				}
				if noticed {
					l.mishap(l.checkPlace(), checkpointFailed)
					<-l.Failed()
					if err := l.Err(); !errors.Is(err, eventlog.ErrFailed) || !strings.Contains(err.Error(), tt.want) {
						t.Errorf("got %v", err)
					}
					_ = l.Close()
					continue
				}
				err := l.Close()
				if l.Err() != nil { // checkpointLoop has just looked
					err = l.Err()
				}
				if !errors.Is(err, eventlog.ErrFailed) || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("Close: %v", err)
				}
			}
		})
	}
}

// TestBlame: what looks like corruption on a disk that does not answer is the
// disk's failure.
func TestBlame(t *testing.T) {
	l := mustOpen(t, filepath.Join(t.TempDir(), "data"))
	defer l.Close()
	damage := fmt.Errorf("%w: damaged", eventlog.ErrCorrupt)
	if err := l.blame(damage); !errors.Is(err, eventlog.ErrCorrupt) || errors.Is(err, eventlog.ErrFailed) {
		t.Errorf("with a disk that answers: %v", err)
	}
	database := l.probe
	var err error
	if l.probe, err = os.Open(filepath.Dir(l.path)); err != nil { // reading a directory is an error
		t.Fatal(err)
	}
	err = errors.Join(l.blame(damage), l.probe.Close())
	l.probe = database
	if !errors.Is(err, eventlog.ErrFailed) || errors.Is(err, eventlog.ErrCorrupt) {
		t.Errorf("with one that does not: %v", err)
	}
}
