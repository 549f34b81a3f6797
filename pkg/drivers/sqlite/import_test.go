package sqlite

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// importPuts imports n puts of value into dir; finish ends the import.
func importPuts(opt ImportOptions, n int64, value string, finish func(*Importer, eventlog.Head) error) error {
	im, err := NewImporter(opt)
	if err != nil {
		return err
	}
	for seq := int64(1); seq <= n; seq++ {
		id := eventlog.NewBatchID()
		r := &eventlog.Record{
			Seq: seq, Position: eventlog.Position(seq), Kind: eventlog.KindPut, Revision: eventlog.Revision{Main: seq + 1},
			Key: []byte("k"), Value: []byte(value), CreateRevision: 2, Version: seq,
		}
		if err := im.Add(r, &id); err != nil {
			return errors.Join(err, im.Abort())
		}
	}
	return finish(im, eventlog.Head{Position: eventlog.Position(n), Seq: n, Revision: n + 10})
}

// loaded returns how many records are in dir, and the newest value.
func loaded(dir string) (head eventlog.Head, value string, err error) {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	l, err := Open(context.Background(), Options{Dir: dir, Logger: logrus.NewEntry(logger)})
	if err != nil {
		return head, "", err
	}
	head, err = l.Load(context.Background(), func(*eventlog.Record) error { return nil })
	if err == nil && head.Seq > 0 {
		var values [][]byte
		if values, err = l.Values(context.Background(), []int64{head.Seq}); err == nil {
			value = string(values[0])
		}
	}
	return head, value, errors.Join(err, l.Close())
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

func TestImport(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := importPuts(ImportOptions{Dir: dir}, 100, "v", (*Importer).Finish); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); got != "keelson.db keelson.db.lock" {
		t.Errorf("files %s", got)
	}
	head, value, err := loaded(dir)
	if want := (eventlog.Head{Position: 100, Seq: 100, Revision: 110}); err != nil || head != want || value != "v" {
		t.Errorf("head %+v, value %q, %v; want %+v", head, value, err, want)
	}
	if err := importPuts(ImportOptions{Dir: dir}, 1, "w", (*Importer).Finish); !errors.Is(err, ErrExists) {
		t.Errorf("over data: %v", err)
	}
	l := mustOpen(t, dir)
	if err := importPuts(ImportOptions{Dir: dir, Replace: true}, 1, "w", (*Importer).Finish); !errors.Is(err, ErrLocked) {
		t.Errorf("under a log that is open: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestImportAborted leaves nothing, and the directory only if there is
// something else in it.
func TestImportAborted(t *testing.T) {
	abort := func(im *Importer, _ eventlog.Head) error { return im.Abort() }
	short := func(im *Importer, head eventlog.Head) error {
		head.Seq++
		return im.Finish(head)
	}
	for name, finish := range map[string]func(*Importer, eventlog.Head) error{"abort": abort, "not whole": short} {
		above := filepath.Join(t.TempDir(), "above")
		dir := filepath.Join(above, "new")
		if err := importPuts(ImportOptions{Dir: dir}, 3, "v", finish); errors.Is(err, eventlog.ErrCorrupt) != (name == "not whole") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(above); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the directories are left: %v", name, err)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		_ = importPuts(ImportOptions{Dir: dir}, 3, "v", finish)
		if got := names(t, dir); got != "keelson.db.lock" {
			t.Errorf("%s: files %s", name, got)
		}
	}
}

// TestImportCutOff ends an import before each of its last steps, as a crash
// does. What is opened then is what there was before or what was imported, or
// nothing is.
func TestImportCutOff(t *testing.T) {
	crash := errors.New("crash")
	var outcomes []string
	for step, done := 0, false; !done; step++ {
		dir := t.TempDir()
		l := mustOpen(t, dir)
		appendPuts(t, l, 5, 10)
		wal, err := os.ReadFile(filepath.Join(dir, FileName+"-wal"))
		if err != nil || len(wal) == 0 {
			t.Fatalf("%d bytes of WAL, %v", len(wal), err)
		}
		database, err := os.ReadFile(filepath.Join(dir, FileName))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		// As a process that was killed leaves them.
		for name, data := range map[string][]byte{FileName: database, FileName + "-wal": wal, NameFile: []byte("0123456789abcdef\n")} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		replaced := 0
		opt := ImportOptions{Dir: dir, Replace: true, OnReplace: func() error { replaced++; return nil }}
		err = importPuts(opt, 3, "new", func(im *Importer, head eventlog.Head) error {
			n := 0
			im.onStep = func() error {
				if n++; n > step {
					return crash
				}
				return nil
			}
			return im.Finish(head)
		})
		done = err == nil
		if err != nil && !errors.Is(err, crash) {
			t.Fatal(err)
		}
		head, value, err := loaded(dir)
		outcome := "after"
		switch {
		case errors.Is(err, eventlog.ErrCorrupt) && strings.Contains(err.Error(), "an import or restore into this directory was cut off"):
			outcome = "refused"
		case err != nil:
			t.Fatalf("before step %d: %v", step, err)
		case head.Seq == 5:
			outcome = "before"
		case head.Seq != 3 || value != "new":
			t.Fatalf("before step %d: head %+v, value %q", step, head, value)
		}
		outcomes = append(outcomes, outcome)
		if _, err := os.Stat(filepath.Join(dir, NameFile)); outcome != "before" && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("before step %d: the new data has the name of the old: %v", step, err)
		}
		if outcome != "before" && step > 4 && replaced == 0 {
			t.Errorf("before step %d: OnReplace was not called", step)
		}
		if err := importPuts(ImportOptions{Dir: dir}, 3, "again", (*Importer).Finish); !errors.Is(err, ErrExists) {
			t.Errorf("before step %d: again, without Replace: %v", step, err)
		}
		if err := importPuts(opt, 2, "again", (*Importer).Finish); err != nil {
			t.Errorf("before step %d: again: %v", step, err)
		}
		if head, value, err := loaded(dir); err != nil || head.Seq != 2 || value != "again" {
			t.Errorf("before step %d, again: %+v, %q, %v", step, head, value, err)
		}
	}
	if got, want := strings.Join(outcomes, " "), "before before before refused refused refused refused after after"; got != want {
		t.Errorf("what is there when it ends before each step: %s, want %s", got, want)
	}
}

// TestImportKilled: an import that was killed where nothing was is not taken for
// a directory without data; another one goes on, and one that is refused leaves
// it so.
func TestImportKilled(t *testing.T) {
	dir := t.TempDir()
	if err := importPuts(ImportOptions{Dir: dir}, 3, "v", func(im *Importer, _ eventlog.Head) error {
		return errors.Join(im.closeTree(), im.lock.release())
	}); err != nil {
		t.Fatal(err)
	}
	refused := func(when string) {
		t.Helper()
		if _, _, err := loaded(dir); !errors.Is(err, eventlog.ErrCorrupt) || !strings.Contains(err.Error(), "run it again") {
			t.Errorf("%s: %v", when, err)
		}
	}
	refused("killed")
	if err := importPuts(ImportOptions{Dir: dir}, 3, "v", func(im *Importer, _ eventlog.Head) error { return im.Abort() }); err != nil {
		t.Fatal(err)
	}
	refused("killed, and another one aborted")
	installed := false
	opt := ImportOptions{Dir: dir, OnInstalled: func() error {
		_, err := Open(t.Context(), Options{Dir: dir})
		installed = errors.Is(err, ErrLocked)
		return nil
	}}
	if err := importPuts(opt, 3, "v", (*Importer).Finish); err != nil {
		t.Fatal(err)
	}
	if _, value, err := loaded(dir); err != nil || value != "v" || !installed {
		t.Errorf("again: %q, %v; locked after it was installed: %v", value, err, installed)
	}
}

// TestCheckImport: it refuses what NewImporter does, and makes nothing.
func TestCheckImport(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	check := func(replace bool, want error) {
		t.Helper()
		if err := CheckImport(ImportOptions{Dir: dir, Replace: replace}); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	check(false, nil)
	if _, err := os.Stat(filepath.Dir(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was made: %v", err)
	}
	l := mustOpen(t, dir)
	check(false, ErrLocked)
	check(true, ErrLocked)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	check(false, ErrExists)
	check(true, nil)
	if dir = filepath.Join(dir, FileName, "c"); CheckImport(ImportOptions{Dir: dir}) == nil {
		t.Error("a place below a file is taken")
	}
}

// TestImportLeftovers: what a killed import has left is removed by the next
// one, and by whoever makes a database.
func TestImportLeftovers(t *testing.T) {
	for _, next := range []func(dir string) error{
		func(dir string) error { return importPuts(ImportOptions{Dir: dir}, 1, "v", (*Importer).Finish) },
		func(dir string) error { _, _, err := loaded(dir); return err },
	} {
		dir := t.TempDir()
		for _, name := range []string{FileName + partSuffix, FileName + partSuffix + "-wal"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("half"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := next(dir); err != nil {
			t.Fatal(err)
		}
		if got := names(t, dir); got != "keelson.db keelson.db.lock" {
			t.Errorf("files %s", got)
		}
	}
}

// TestImportDiskFails: an error of the disk ends the import, whenever it is
// noticed, and leaves nothing.
func TestImportDiskFails(t *testing.T) {
	broken := errors.New("broken")
	syncFails := func(im *Importer) {
		im.tree.file.syncing = make(chan error, 1)
		im.tree.file.syncing <- broken
	}
	writeFails := func(im *Importer) {
		if err := im.tree.file.File.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		every  int
		breaks func(*Importer)
		adds   int64 // records after that
		want   error
	}{
		"write, noticed by a record":    {importedBytes, writeFails, 1 << 20 / 1000, fs.ErrClosed},
		"write, noticed at the end":     {importedBytes, writeFails, 1, fs.ErrClosed},
		"sync, noticed by a write":      {1, syncFails, 1 << 20 / 1000, broken},
		"sync, noticed at the very end": {importedBytes, syncFails, 1, broken},
	} {
		dir := filepath.Join(t.TempDir(), "new")
		im, err := NewImporter(ImportOptions{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		im.tree.file.every = c.every
		c.breaks(im)
		var added int64
		for seq := int64(1); seq <= c.adds && err == nil; seq++ {
			r := &eventlog.Record{
				Seq: seq, Position: eventlog.Position(seq), Kind: eventlog.KindPut, Revision: eventlog.Revision{Main: seq + 1},
				Key: []byte("k"), Value: make([]byte, 1000), CreateRevision: 2, Version: seq,
			}
			if err = im.Add(r, nil); err == nil {
				added++
			}
		}
		if noticed := c.adds > 1; (err != nil) != noticed {
			t.Errorf("%s: Add: %v", name, err)
		}
		if err == nil {
			err = im.Finish(eventlog.Head{Position: eventlog.Position(added), Seq: added, Revision: added + 1})
		} else {
			err = errors.Join(err, im.Abort())
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: it left the directory: %v", name, err)
		}
	}
}
