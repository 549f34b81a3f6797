package sqlite_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

// FuzzOpen damages a database and its WAL: flips says where and how, three
// bytes for each flip (which file in the highest bit, the place in the other
// 15, what to change in the third byte); cutDB and cutWAL are bytes cut off the
// files' ends. What was written is read, or an error says what is wrong;
// damage of the WAL may also take batches from the end, as a crash does.
//
// An input takes milliseconds: those that say what a shorter one says too are
// passed over.
func FuzzOpen(f *testing.F) {
	const checkpointed, batches, perBatch, size = 2, 4, 5, 60
	files := fuzzFiles(f, checkpointed, batches, perBatch, size)
	f.Add([]byte{}, uint16(0), uint16(0))
	f.Add([]byte{0, 18, 3}, uint16(0), uint16(0))
	f.Add([]byte{0, 20, 1, 0, 56, 2}, uint16(0), uint16(0))
	f.Add([]byte{0x1f, 0xf0, 1}, uint16(0), uint16(0))
	f.Add([]byte{0x80, 3, 1}, uint16(0), uint16(0))
	f.Add([]byte{0x90, 0, 0xff}, uint16(0), uint16(0))
	f.Add([]byte{}, uint16(4092), uint16(0)) // no row in kept
	f.Add([]byte{}, uint16(1), uint16(0))
	f.Add([]byte{}, uint16(4096), uint16(0))
	f.Add([]byte{}, uint16(0), uint16(4120))

	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, flips []byte, cutDB, cutWAL uint16) {
		if len(flips)%3 != 0 || len(flips) > 24 || int(cutDB) > len(files[0]) || int(cutWAL) > len(files[1]) {
			return
		}
		damaged := [2][]byte{bytes.Clone(files[0]), bytes.Clone(files[1])}
		touchedWAL := cutWAL > 0
		for ; len(flips) > 0; flips = flips[3:] {
			which := flips[0] >> 7
			at := int(binary.BigEndian.Uint16(flips) & 0x7fff)
			if at >= len(damaged[which]) || flips[2] == 0 {
				return
			}
			damaged[which][at] ^= flips[2]
			touchedWAL = touchedWAL || which == 1
		}
		for i, cut := range []uint16{cutDB, cutWAL} {
			damaged[i] = damaged[i][:len(damaged[i])-int(cut)]
		}
		for i, suffix := range []string{"", "-wal"} {
			if err := os.WriteFile(filepath.Join(dir, sqlite.FileName+suffix), damaged[i], 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_ = os.Remove(filepath.Join(dir, sqlite.FileName+"-shm"))
		n, err := readFuzzed(dir, perBatch, size)
		switch {
		case err != nil:
			for _, sentinel := range []error{sqlite.ErrForeign, sqlite.ErrNewer, eventlog.ErrCorrupt, eventlog.ErrFailed} {
				if errors.Is(err, sentinel) {
					return
				}
			}
			t.Fatalf("%v, which is none of the sentinels", err)
		case n == batches*perBatch:
		case !touchedWAL || n%perBatch != 0 || n < checkpointed*perBatch || n > batches*perBatch:
			t.Fatalf("%d records are left", n)
		}
	})
}

// fuzzFiles returns a database, of which some batches are checkpointed, and
// the WAL with the others.
func fuzzFiles(tb testing.TB, checkpointed, batches, perBatch, size int) [2][]byte {
	tb.Helper()
	dir := tb.TempDir()
	f := fill(tb, dir, 0, size)
	for range checkpointed {
		f.append(tb, perBatch)
	}
	if err := f.log.Close(); err != nil {
		tb.Fatal(err)
	}
	f.log = openLog(tb, dir)
	for range batches - checkpointed {
		f.append(tb, perBatch)
	}
	var files [2][]byte
	for i, suffix := range []string{"", "-wal"} {
		var err error
		if files[i], err = os.ReadFile(filepath.Join(dir, sqlite.FileName+suffix)); err != nil || len(files[i]) == 0 {
			tb.Fatalf("%s: %d bytes, %v", suffix, len(files[i]), err)
		}
	}
	if err := f.log.Close(); err != nil {
		tb.Fatal(err)
	}
	return files
}

// errOther says that a record is not what was written.
var errOther = errors.New("not what was written")

// readFuzzed returns the number of records read, each with its value.
func readFuzzed(dir string, perBatch, size int) (int, error) {
	log, err := quiet(dir)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	ctx := context.Background()
	var seqs []int64
	head, err := log.Load(ctx, func(r *eventlog.Record) error {
		seqs = append(seqs, r.Seq)
		n := int64(len(seqs))
		key := fmt.Sprintf("/registry/pods/namespace-%03d/pod-%08d", n%100, n)
		if r.Seq != n || string(r.Key) != key || r.Kind != eventlog.KindPut || r.Revision != (eventlog.Revision{Main: n}) ||
			r.Position != eventlog.Position((n-1)/int64(perBatch)+1) || r.CreateRevision != n || r.Version != 1 || r.Lease != 0 {
			return fmt.Errorf("%w: record %d: %+v", errOther, n, r)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	n := int64(len(seqs))
	if head != (eventlog.Head{Position: eventlog.Position(n / int64(perBatch)), Seq: n, Revision: n}) {
		return 0, fmt.Errorf("%w: head %+v of %d records", errOther, head, n)
	}
	values, err := log.Values(ctx, seqs)
	if err != nil {
		return 0, err
	}
	want := make([]byte, size)
	for i := range want {
		want[i] = byte(i * 7)
	}
	for i, v := range values {
		if !bytes.Equal(v, want) {
			return 0, fmt.Errorf("%w: value of %d: %x", errOther, i+1, v)
		}
	}
	return len(values), nil
}
