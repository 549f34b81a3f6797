package etcdfile_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
	"github.com/keelson-io/keelson/pkg/snapshot/etcdfile"
)

func TestBadInput(t *testing.T) {
	good := write(t, example(), etcdfile.Options{})
	raw, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	file := func(content []byte) string {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	flipped := func(at int) []byte {
		c := bytes.Clone(raw)
		c[at] ^= 4
		return c
	}
	random := make([]byte, 8192)
	_, _ = rand.Read(random)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write(raw)
	_ = z.Close()
	pageSize := bytes.Clone(raw[:len(raw)-32])
	for _, meta := range []int{0, 4096} {
		binary.LittleEndian.PutUint32(pageSize[meta+24:], 12345)
	}
	for _, c := range []struct{ name, path, want string }{
		{"empty", file(nil), "it is empty"},
		{"short", file(raw[:100]), "it is cut off"},
		{"cut off", file(raw[:len(raw)-500]), "it is cut off"},
		{"without its last byte", file(raw[:len(raw)-1]), "it is cut off"},
		{"cut off at a page", file(raw[:len(raw)/2/4096*4096]), "it is cut off"},
		{"cut off like a checksum", file(raw[:len(raw)/2/4096*4096+32]), "checksum does not match"},
		{"flipped bit", file(flipped(len(raw) / 2)), "checksum does not match"},
		{"flipped bit of the checksum", file(flipped(len(raw) - 1)), "checksum does not match"},
		{"gzip", file(zipped.Bytes()), "compressed with gzip"},
		{"SQLite", file(append([]byte("SQLite format 3\x00"), random...)), "an SQLite database"},
		{"text", file([]byte(strings.Repeat("apiVersion: v1\n", 200))), "it is text"},
		{"encrypted", file(random), "encrypted"},
		{"page size", file(pageSize), "damaged"},
		{"directory", t.TempDir(), "is not a file"},
		{"too new", change(t, good, meta("storageVersion", "3.8.0")), "storage version 3.8.0; this keelson knows up to 3.7.0"},
		{"no version", change(t, good, meta("storageVersion", "new")), "not a storage version"},
		{"compact revision", change(t, good, meta("finishedCompactRev", "7")), "not the name of a revision"},
		{"no keys", change(t, good, func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte("key")) }), "no buckets key and meta"},
		{"no meta", change(t, good, func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte("meta")) }), "no buckets key and meta"},
		{"lease", change(t, good, func(tx *bbolt.Tx) error { return tx.Bucket([]byte("lease")).Put([]byte("x"), nil) }), "lease 78 cannot be read"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before, _ := os.ReadFile(c.path)
			r, err := etcdfile.Open(t.Context(), c.path, etcdfile.OpenOptions{})
			if err == nil {
				_ = r.Close()
			}
			if !errors.Is(err, snapshot.ErrInvalid) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("Open: %v, want %q", err, c.want)
			}
			if after, _ := os.ReadFile(c.path); !bytes.Equal(before, after) {
				t.Error("the file was changed")
			}
		})
	}
	if _, err := etcdfile.Open(t.Context(), filepath.Join(t.TempDir(), "none"), etcdfile.OpenOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of what is not there: %v", err)
	}
}

// TestOpenReports: verifying says how far it is, with and without a checksum,
// and ends with its context.
func TestOpenReports(t *testing.T) {
	with := write(t, example(), etcdfile.Options{})
	for path, passes := range map[string]int64{with: 2, change(t, with, func(*bbolt.Tx) error { return nil }): 1} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		size := info.Size() / 512 * 512 // without the checksum
		var last int64
		r, err := etcdfile.Open(t.Context(), path, etcdfile.OpenOptions{Report: func(done, total int64) {
			if done <= last && last < total || total != passes*size {
				t.Errorf("%d of %d after %d, the database has %d bytes", done, total, last, size)
			}
			last = done
		}})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil || last < passes*size/2 {
			t.Errorf("%d of %d bytes were reported, %v", last, passes*size, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := etcdfile.Open(ctx, with, etcdfile.OpenOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Open with a context that has ended: %v", err)
	}
}

// TestBadRecords: what the checksums cannot tell.
func TestBadRecords(t *testing.T) {
	good := write(t, example(), etcdfile.Options{})
	for name, value := range map[string]string{
		"x": "", "\x00\x00\x00\x00\x00\x00\x00\x63_\x00\x00\x00\x00\x00\x00\x00\x00": "\xff",
		"\x00\x00\x00\x00\x00\x00\x00\x63_\x00\x00\x00\x00\x00\x00\x00\x01": "\n\x01a\x18\x07",
	} {
		path := change(t, good, func(tx *bbolt.Tx) error { return tx.Bucket([]byte("key")).Put([]byte(name), []byte(value)) })
		r, err := etcdfile.Open(t.Context(), path, etcdfile.OpenOptions{})
		if err == nil {
			err = r.Records(t.Context(), func(*eventlog.Record) error { return nil })
			_ = r.Close()
		}
		if !errors.Is(err, snapshot.ErrInvalid) {
			t.Errorf("a record %q of %q: %v, want ErrInvalid", name, value, err)
		}
	}
}

// TestHostileSizes: a page is believed neither before the checksum was compared
// nor beyond what a page can be, whatever size the file seems to have.
func TestHostileSizes(t *testing.T) {
	good, err := os.ReadFile(write(t, example(), etcdfile.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	page := bytes.Index(good, []byte("storageVersion")) / 4096 * 4096 // of the bucket meta
	flipped := bytes.Clone(good)
	flipped[page+15] ^= 1 << 6
	const pages = 1 << 24
	sparse := bytes.Clone(good[:len(good)-32])
	binary.LittleEndian.PutUint32(sparse[page+12:], pages/2)
	for _, at := range []int{0, 4096} {
		meta, h := sparse[at+16:], fnv.New64a()
		binary.LittleEndian.PutUint64(meta[40:], pages)
		h.Write(meta[:56])
		binary.LittleEndian.PutUint64(meta[56:], h.Sum64())
	}
	path := filepath.Join(t.TempDir(), "f")
	for _, c := range []struct {
		content []byte
		size    int64
		want    string
	}{
		{flipped, int64(len(good)), "checksum does not match"},
		{sparse, pages * 4096, "with 8388608 more"},
	} {
		if err := errors.Join(os.WriteFile(path, c.content, 0o600), os.Truncate(path, c.size)); err != nil {
			t.Fatal(err)
		}
		if _, err := etcdfile.Open(t.Context(), path, etcdfile.OpenOptions{}); !errors.Is(err, snapshot.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("a file of %d bytes: %v, want %q", c.size, err, c.want)
		}
	}
}

// TestChangedMeanwhile: what was verified is what is read, or that is noticed.
func TestChangedMeanwhile(t *testing.T) {
	path := write(t, example(), etcdfile.Options{})
	r := open(t, path)
	nothing := func(*eventlog.Record) error { return nil }
	if err := r.Records(t.Context(), nothing); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	_, err = f.ReadAt(b, 5000)
	if err == nil {
		_, err = f.WriteAt(b, 5000)
	}
	if err := errors.Join(err, f.Close(), os.Chtimes(path, time.Time{}, time.Now().Add(time.Second))); err != nil {
		t.Fatal(err)
	}
	if err := r.Records(t.Context(), nothing); !errors.Is(err, snapshot.ErrInvalid) || !strings.Contains(err.Error(), "changed while") {
		t.Errorf("Records: %v", err)
	}
	if _, err := r.Info(); !errors.Is(err, snapshot.ErrInvalid) {
		t.Errorf("Info: %v", err)
	}
}

func TestInUse(t *testing.T) {
	path := change(t, write(t, example(), etcdfile.Options{}), func(*bbolt.Tx) error { return nil })
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := etcdfile.Open(t.Context(), path, etcdfile.OpenOptions{}); err == nil || !strings.Contains(err.Error(), "another process has it open") {
		t.Errorf("Open of a file in use: %v", err)
	}
}

// FuzzFlip flips a byte: of a snapshot that is always noticed, and of a database
// nothing worse happens than that it is not.
func FuzzFlip(f *testing.F) {
	path := write(f, example(), etcdfile.Options{})
	raw, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	for at := range 200 {
		f.Add(uint32(at*4099), byte(1<<(at%8)))
	}
	f.Fuzz(func(t *testing.T, at uint32, mask byte) {
		if mask == 0 {
			t.Skip("nothing is flipped")
		}
		damaged := bytes.Clone(raw)
		damaged[int(at)%len(raw)] ^= mask
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := etcdfile.Open(t.Context(), path, etcdfile.OpenOptions{}); !errors.Is(err, snapshot.ErrInvalid) {
			_ = r.Close()
			t.Fatalf("a snapshot with byte %d changed by %x: %v", at, mask, err)
		}
		if err := os.Truncate(path, int64(len(raw)-32)); err != nil {
			t.Fatal(err)
		}
		r, err := etcdfile.Open(t.Context(), path, etcdfile.OpenOptions{WithoutAuth: true})
		if err == nil {
			err = errors.Join(r.Records(t.Context(), func(*eventlog.Record) error { return nil }), r.Close())
		}
		if err != nil && !errors.Is(err, snapshot.ErrInvalid) {
			t.Fatalf("a database with byte %d changed by %x: %v", at, mask, err)
		}
	})
}
