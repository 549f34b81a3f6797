package sqlite

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

func silent() *logrus.Entry {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	return logrus.NewEntry(logger)
}

// appendRandom appends a batch of n puts with values of size random bytes.
func appendRandom(t *testing.T, l *Log, n, size int) {
	t.Helper()
	head := l.head.Load()
	b := eventlog.Batch{ID: eventlog.NewBatchID(), Base: eventlog.Position(head)}
	for i := range n {
		value := make([]byte, size)
		_, _ = rand.Read(value) // never fails
		b.Records = append(b.Records, eventlog.Record{
			Seq: l.headSeq + 1 + int64(i), Position: b.Position(), Kind: eventlog.KindPut, Revision: eventlog.Revision{Main: head + 1, Sub: int64(i)},
			Key: []byte("key"), Value: value, CreateRevision: 1, Version: head + 1,
		})
	}
	if err := l.Append(t.Context(), &b); err != nil {
		t.Fatalf("Append: %v", err)
	}
}

// rowsOf returns all rows.
func rowsOf(t *testing.T, l *Log) (all []Row) {
	t.Helper()
	err := l.read(t.Context(), func(c *conn) error {
		return c.query(func(r row) error {
			seq, _ := r[0].(int64)
			all = append(all, Row{Seq: seq, Header: blob(r[1]), Key: blob(r[2]), Batch: blob(r[3]), Value: blob(r[4])})
			return nil
		}, "SELECT seq, header, key, batch, value FROM log ORDER BY seq")
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// copyTo brings c to a Receiver in dir; between is called before pages are taken, and
// frozen after Freeze.
func copyTo(t *testing.T, c *Copy, dir string, between, frozen func()) (eventlog.Head, error) {
	t.Helper()
	r, err := NewReceiver(dir)
	if err != nil {
		t.Fatal(err)
	}
	take := func(first int64, content []byte) error {
		between()
		return r.Write(first, content)
	}
	if err := c.All(t.Context(), take); err != nil {
		return eventlog.Head{}, errors.Join(err, r.Close())
	}
	head, err := c.Freeze(t.Context())
	if err != nil {
		return head, errors.Join(err, r.Close())
	}
	frozen()
	pages, err := c.Rest(t.Context(), take)
	if err != nil {
		return head, errors.Join(err, r.Close())
	}
	return head, r.Finish(t.Context(), pages, head, silent())
}

// TestCopy copies a database to which everything happens meanwhile.
func TestCopy(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			testCopy(t, mathrand.New(mathrand.NewPCG(seed, 1)))
		})
	}
}

func testCopy(t *testing.T, random *mathrand.Rand) {
	l := mustOpen(t, t.TempDir())
	defer l.Close()
	for range 20 {
		appendRandom(t, l, 1+random.IntN(60), 1+random.IntN(9000))
	}
	if random.IntN(2) == 0 {
		if err := l.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c, err := l.Copy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	busy := random.IntN(2) * random.IntN(4) // times that more changes than is left to the end
	actions := []func() error{
		func() error { appendRandom(t, l, 1, 100); return nil },
		func() error { appendRandom(t, l, 1+random.IntN(10), random.IntN(20_000)); return nil },
		func() error {
			if busy--; busy >= 0 {
				appendRandom(t, l, 100, 50_000)
			}
			return nil
		},
		func() error {
			l.writerDo(t, func() { l.markSeq = l.headSeq }) // as if it were one
			var seqs []int64
			for range 100 {
				seqs = append(seqs, 1+random.Int64N(l.headSeq-1))
			}
			slices.Sort(seqs)
			return l.Compact(t.Context(), slices.Compact(seqs))
		},
		l.checkpointPassive,
		l.RestartWAL,
		func() error { return l.Defragment(t.Context()) },
	}
	dir := t.TempDir()
	var want []Row
	head, err := copyTo(t, c, dir, func() {
		for range random.IntN(4) {
			if err := actions[random.IntN(len(actions))](); err != nil {
				t.Fatal(err)
			}
		}
	}, func() {
		want = rowsOf(t, l)
		appendRandom(t, l, 30, 5000)
		if err := l.checkpointPassive(); err != nil {
			t.Fatal(err)
		}
	})
	if err = errors.Join(err, c.Close()); err != nil {
		t.Fatal(err)
	}
	if newest := want[len(want)-1].Seq; newest != head.Seq || len(l.copies) != 0 {
		t.Errorf("the head is %+v, the newest record %d; %d copies are under way", head, newest, len(l.copies))
	}
	if got := names(t, dir); got != "keelson.db keelson.db.lock" {
		t.Errorf("files %s", got)
	}
	in, err := Inspect(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Integrity(t.Context(), 10, func(what string) { t.Error(what) }); err != nil {
		t.Error(err)
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	copied := mustOpen(t, dir)
	defer copied.Close()
	if got := rowsOf(t, copied); !reflect.DeepEqual(got, want) {
		t.Errorf("%d rows, and %d in the copy, differ", len(want), len(got))
	}
}

// TestCopyOfDamage: what is damaged in the file is not taken over.
func TestCopyOfDamage(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"key", "value", "batch"} {
		dir := t.TempDir()
		l := mustOpen(t, dir)
		appendRandom(t, l, 300, 1000)
		row := rowsOf(t, l)[0]
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, FileName)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		content := map[string][]byte{"key": append(row.Header, row.Key...), "value": row.Value, "batch": row.Batch}[what]
		at := bytes.Index(data, content)
		data[at+len(content)-1] ^= 1
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		l = mustOpen(t, dir)
		c, err := l.Copy(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := copyTo(t, c, t.TempDir(), func() {}, func() {}); !errors.Is(err, eventlog.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", what, err)
		}
		if err := errors.Join(c.Close(), l.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCopyCutOff: the log may close, and whoever takes the pages may fail, at any
// time.
func TestCopyCutOff(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"All", "Freeze", "Rest", "fn"} {
		l := mustOpen(t, t.TempDir())
		appendRandom(t, l, 3000, 1000)
		c, err := l.Copy(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		broken := errors.New("broken")
		var closing sync.WaitGroup
		closed := func(now bool) {
			if now {
				closing.Go(func() {
					if err := l.Close(); err != nil {
						t.Errorf("Close: %v", err)
					}
				})
				<-l.done
			}
		}
		want := eventlog.ErrClosed
		err = c.All(t.Context(), func(first int64, _ []byte) error {
			closed(step == "All" && first == 1)
			if step == "fn" {
				return broken
			}
			return nil
		})
		if err == nil {
			closed(step == "Freeze")
			_, err = c.Freeze(t.Context())
		}
		if err == nil {
			_, err = c.Rest(t.Context(), func(int64, []byte) error {
				closed(step == "Rest" && !l.closed.Load())
				return nil
			})
			want = nil // it has all that it needs
		}
		if step == "fn" {
			want = broken
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", step, err, want)
		}
		if err := c.Close(); err != nil {
			t.Errorf("%s: Close: %v", step, err)
		}
		closing.Wait()
		if !l.closed.Load() {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestIntegrityInterrupted: SQLite's own check ends with its context.
func TestIntegrityInterrupted(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir)
	appendPuts(t, l, 5, 10)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	in, err := Inspect(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := in.Integrity(ctx, 1, func(string) {}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
}

// TestCopyLeftovers: what a copy had put aside when its process was killed is
// removed.
func TestCopyLeftovers(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, FileName+".copy-1")
	if err := os.WriteFile(left, []byte("pages"), 0o600); err != nil {
		t.Fatal(err)
	}
	defer mustOpen(t, dir).Close()
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is there: %v", left, err)
	}
}
