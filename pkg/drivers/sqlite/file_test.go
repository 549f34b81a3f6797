package sqlite_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/internal/testaid"
)

// quiet opens the log in dir without saying what is wrong with it.
func quiet(dir string) (*sqlite.Log, error) {
	logger := logrus.New()
	logger.SetOutput(&bytes.Buffer{})
	return sqlite.Open(context.Background(), sqlite.Options{Dir: dir, Logger: logrus.NewEntry(logger)})
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "data dir #1 50%?x=y&mode=ro")
	f := fill(t, dir, 10, 100)
	defer f.log.Close()
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v, %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 4 {
		t.Errorf("%d files: %v", len(entries), err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
		}
	}
}

// TestForeign: files that keelson did not make are refused and stay as they
// are, byte for byte.
func TestForeign(t *testing.T) {
	t.Parallel()
	made := t.TempDir()
	if err := fill(t, made, 100, 100).log.Close(); err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile(filepath.Join(made, sqlite.FileName))
	if err != nil {
		t.Fatal(err)
	}
	header := func(offset int, value uint32) []byte {
		b := bytes.Clone(own)
		binary.BigEndian.PutUint32(b[offset:], value)
		return b
	}
	for name, c := range map[string]struct {
		content []byte
		want    error
	}{
		"text":          {[]byte(strings.Repeat("to be, or not to be\n", 500)), sqlite.ErrForeign},
		"short text":    {[]byte("x"), sqlite.ErrForeign},
		"other SQLite":  {header(68, 7), sqlite.ErrForeign},
		"no id":         {header(68, 0), sqlite.ErrForeign},
		"newer":         {header(60, 99), sqlite.ErrNewer},
		"empty":         {[]byte{}, eventlog.ErrCorrupt},
		"header cut":    {own[:50], eventlog.ErrCorrupt},
		"one page left": {own[:4096], eventlog.ErrCorrupt},
		"cut":           {own[:len(own)-4096], eventlog.ErrCorrupt},
		"cut in a page": {own[:len(own)-1000], eventlog.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, sqlite.FileName)
			if err := os.WriteFile(path, c.content, 0o600); err != nil {
				t.Fatal(err)
			}
			log, err := quiet(dir)
			if err == nil { // SQLite takes a last page that is cut for an append cut off
				_, err = log.Load(context.Background(), func(*eventlog.Record) error { return nil })
				_ = log.Close()
			}
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), path) {
				t.Fatalf("Open: %v, want %v and the path", err, c.want)
			}
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, c.content) {
				t.Fatalf("the file was changed (%v)", err)
			}
		})
	}
}

func TestWALWithoutDatabase(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, sqlite.FileName+"-wal"), make([]byte, 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := quiet(dir); !errors.Is(err, eventlog.ErrCorrupt) {
		t.Fatalf("Open: %v, want ErrCorrupt", err)
	}
}

// TestUnusableDirectory: the message names the path.
func TestUnusableDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "below"), "/proc/keelson"} {
		if _, err := quiet(dir); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("Open in %s: %v", dir, err)
		}
	}
}

// TestLeftOver: a creation that a crash cut off starts again.
func TestLeftOver(t *testing.T) {
	dir := t.TempDir()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.WriteFile(filepath.Join(dir, sqlite.FileName+".new"+suffix), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := fill(t, dir, 10, 10).log.Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.new*")); len(left) != 0 {
		t.Fatalf("left over: %v", left)
	}
}

// TestDamage flips single bits all over the file: whatever they hit, nothing
// that was not written is ever returned.
func TestDamage(t *testing.T) {
	t.Parallel()
	const rows, size = 200, 400
	dir := t.TempDir()
	f := fill(t, dir, 0, size)
	f.id = eventlog.BatchID{} // so that readAll knows it
	f.append(t, rows)
	if err := f.log.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, sqlite.FileName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	seen, rnd := make(map[string]int), testaid.NewRandom(t)
	flip := func(at int, bit byte) {
		damaged := bytes.Clone(whole)
		damaged[at] ^= bit
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		step, err := readAll(dir, rows, size)
		if err != nil && step != "Open" && !errors.Is(err, eventlog.ErrCorrupt) {
			t.Errorf("bit %#x of byte %d is flipped: %s: %v, want ErrCorrupt", bit, at, step, err)
		}
		seen[step]++
		for _, suffix := range []string{"-wal", "-shm"} {
			_ = os.Remove(path + suffix)
		}
	}
	for at := range 100 { // the header of the file and of its first page
		flip(at, 1<<rnd.IntN(8))
	}
	for at := range 50 { // the keys of the inner page, which only searches use
		flip(12288-50+at, 1<<rnd.IntN(8))
	}
	for at := range 24 { // the row of kept
		for bit := range 8 {
			flip(16384-24+at, 1<<bit)
		}
	}
	for _, table := range []string{"kept", "log"} { // where it begins
		for bit := range 8 {
			flip(bytes.Index(whole, []byte("table"+table+table))+len("table"+table+table), 1<<bit)
		}
	}
	for range 150 {
		flip(rnd.IntN(len(whole)), 1<<rnd.IntN(8))
	}
	t.Logf("found by %v", seen)
	if seen["Load"] == 0 || seen["Values"] == 0 {
		t.Errorf("found by %v only", seen)
	}
}

// readAll reads the log of TestDamage and returns the step that found the
// damage, or "nothing" if all that was written is there.
func readAll(dir string, rows, size int) (string, error) {
	log, err := quiet(dir)
	if err != nil {
		return "Open", err
	}
	defer log.Close()
	ctx := context.Background()
	var seqs []int64
	head, err := log.Load(ctx, func(r *eventlog.Record) error {
		seqs = append(seqs, r.Seq)
		if want := fmt.Sprintf("/registry/pods/namespace-%03d/pod-%08d", r.Seq%100, r.Seq); string(r.Key) != want {
			return fmt.Errorf("the key of %d is %q", r.Seq, r.Key)
		}
		return nil
	})
	if err != nil {
		return "Load", err
	}
	if len(seqs) != rows || head != (eventlog.Head{Position: 1, Seq: int64(rows), Revision: int64(rows)}) {
		return "Load", fmt.Errorf("%d records, head %+v", len(seqs), head)
	}
	values, err := log.Values(ctx, seqs)
	if err != nil {
		return "Values", err
	}
	for i, v := range values {
		if len(v) != size || v[1] != 7 {
			return "Values", fmt.Errorf("value of %d is %q", i, v)
		}
	}
	got, err := log.Tail(ctx, 0, 1)
	if err != nil {
		return "Tail", err
	}
	if len(got) != 1 || len(got[0].Records) != rows || got[0].ID != (eventlog.BatchID{}) {
		return "Tail", fmt.Errorf("%d batches, the first %x", len(got), got[0].ID)
	}
	return "nothing", nil
}
