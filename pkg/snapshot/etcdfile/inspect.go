package etcdfile

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"unicode/utf8"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

// boltMagic stands behind the header of the first page of a bbolt database, in
// the order of bytes of the machine that made it.
const (
	boltMagic       = 0xED0CDAED
	boltMagicOffset = 16
)

// foreign are other files that a path may name by mistake, by how they begin.
var foreign = []struct{ magic, what string }{
	{"SQLite format 3\x00", "an SQLite database: if it is keelson's or kine's, keelson import takes it"},
	{"\x1f\x8b", "compressed with gzip: decompress it first"},
	{"\x28\xb5\x2f\xfd", "compressed with zstd: decompress it first"},
	{"\xfd7zXZ\x00", "compressed with xz: decompress it first"},
	{"BZh", "compressed with bzip2: decompress it first"},
	{"PK\x03\x04", "a zip archive: unpack it first"},
	{"PGDMP", "a dump of PostgreSQL"},
	{"age-encryption.org/", "encrypted with age: decrypt it first"},
	{"Salted__", "encrypted with openssl: decrypt it first"},
}

// inspect returns how large the database is that f has, and whether its checksum
// follows.
func inspect(f *os.File) (size int64, checksum bool, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, false, err
	}
	if !info.Mode().IsRegular() {
		return 0, false, fmt.Errorf("%w: it is not a file", snapshot.ErrInvalid)
	}
	size = info.Size()
	head := make([]byte, min(sector, size))
	if _, err := f.ReadAt(head, 0); err != nil {
		return 0, false, err
	}
	if err := identify(head); err != nil {
		return 0, false, err
	}
	switch size % sector {
	case 0:
		return size, false, nil
	case checksumSize:
		return size - checksumSize, true, nil
	}
	return 0, false, fmt.Errorf("%w: it is cut off: neither a snapshot nor a database has %d bytes", snapshot.ErrInvalid, size)
}

// identify refuses a file that is not a bbolt database.
func identify(head []byte) error {
	if len(head) >= boltMagicOffset+4 {
		magic := head[boltMagicOffset:]
		if binary.LittleEndian.Uint32(magic) == boltMagic || binary.BigEndian.Uint32(magic) == boltMagic {
			return nil
		}
	}
	what := "no database of etcd, or it is encrypted or damaged"
	switch {
	case len(head) == 0:
		what = "empty"
	case utf8.Valid(head) && !bytes.ContainsRune(head, 0):
		what = "text, and no database of etcd"
	}
	for _, f := range foreign {
		if bytes.HasPrefix(head, []byte(f.magic)) {
			what = f.what
		}
	}
	return fmt.Errorf("%w: it is %s", snapshot.ErrInvalid, what)
}

// stamp changes whenever a file does.
type stamp struct{ size, modified int64 }

func stampOf(f *os.File) (stamp, error) {
	info, err := f.Stat()
	if err != nil {
		return stamp{}, err
	}
	return stamp{info.Size(), info.ModTime().UnixNano()}, nil
}

// verifyBytes are read at once.
const verifyBytes = 256 << 10

// verify compares a database of that size with the checksum behind it.
func verify(ctx context.Context, f *os.File, size int64, work *meter) error {
	h := sha256.New()
	buf := make([]byte, verifyBytes)
	for at := int64(0); at < size; {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), size-at)], at)
		if err = cmp.Or(err, context.Cause(ctx)); err != nil {
			return err
		}
		h.Write(buf[:n])
		at += int64(n)
		work.add(n)
	}
	stored := make([]byte, checksumSize)
	if _, err := f.ReadAt(stored, size); err != nil {
		return err
	}
	if !bytes.Equal(stored, h.Sum(nil)) {
		return fmt.Errorf("%w: its checksum does not match: it is damaged or was cut off", snapshot.ErrInvalid)
	}
	return nil
}

// meter counts what is done, for those who wait. Several goroutines may add to
// it.
type meter struct {
	report func(done, total int64) // may be nil
	total  int64

	mu   sync.Mutex // is held while report is called
	done int64
}

// add adds n bytes.
func (m *meter) add(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += int64(n)
	if m.report != nil {
		m.report(min(m.done, m.total), m.total)
	}
}

// decodeRecord makes r of an entry of the bucket of the keys. Key and Value
// are parts of value.
func decodeRecord(name, value []byte, r *eventlog.Record) error {
	revision, tombstone, err := decodeRevision(name)
	if err != nil {
		return err
	}
	*r = eventlog.Record{Kind: eventlog.KindPut, Revision: revision}
	mod, ok := snapshot.ParseKeyValue(value, r)
	switch {
	case !ok:
		return fmt.Errorf("%w: what is stored for revision %v cannot be read", snapshot.ErrInvalid, r.Revision)
	case tombstone:
		*r = eventlog.Record{Kind: eventlog.KindDelete, Revision: r.Revision, Key: r.Key}
	case len(r.Key) > 0 && mod != revision.Main:
		return fmt.Errorf("%w: revision %v has the key of revision %d", snapshot.ErrInvalid, r.Revision, mod)
	case r.Value == nil:
		r.Value = []byte{}
	}
	return nil
}
