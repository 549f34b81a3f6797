package etcdfile

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
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

// foreign are other files that a path may name by mistake, by what is at an
// offset.
var foreign = []struct {
	offset      int
	magic, what string
}{
	{0, "SQLite format 3\x00", "an SQLite database: if it is keelson's or kine's, keelson import takes it"},
	{0, "\x1f\x8b", "compressed with gzip: decompress it first"},
	{0, "\x28\xb5\x2f\xfd", "compressed with zstd: decompress it first"},
	{0, "\xfd7zXZ\x00", "compressed with xz: decompress it first"},
	{0, "\x04\x22\x4d\x18", "compressed with lz4: decompress it first"},
	{0, "BZh", "compressed with bzip2: decompress it first"},
	{0, "PK\x03\x04", "a zip archive: unpack it first"},
	{0, "7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"},
	{257, "ustar", "a tar archive: unpack it first"},
	{0, "PGDMP", "a dump of PostgreSQL"},
	{0, "age-encryption.org/", "encrypted with age: decrypt it first"},
	{0, "-----BEGIN AGE ENCRYPTED FILE-----", "encrypted with age: decrypt it first"},
	{0, "-----BEGIN PGP MESSAGE-----", "encrypted or signed with OpenPGP (gpg): decrypt it first"},
	{0, "Salted__", "encrypted with openssl: decrypt it first"},
	{0, "U2FsdGVkX1", "encrypted with openssl: decrypt it first"}, // the same in base64
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
	return fmt.Errorf("%w: it is %s", snapshot.ErrInvalid, describe(head))
}

// describe says what a file is that begins with head, as far as people can do
// something about it.
func describe(head []byte) string {
	for _, f := range foreign {
		if len(head) > f.offset && bytes.HasPrefix(head[f.offset:], []byte(f.magic)) {
			return f.what
		}
	}
	switch {
	case len(head) == 0:
		return "empty"
	case isOpenPGP(head):
		return "encrypted or signed with OpenPGP (gpg): decrypt it first"
	case utf8.Valid(head) && !bytes.ContainsRune(head, 0):
		return "text, and no database of etcd"
	}
	return "no database of etcd, or it is encrypted or damaged"
}

// openPGP are the packets (RFC 9580) that an encrypted, signed or compressed
// message begins with, by their tags, and the first bytes that they can have:
// the version, or the algorithm.
var openPGP = map[byte]string{
	1: "\x02\x03\x06",     // a session key for a recipient
	3: "\x04\x05\x06",     // a session key for a passphrase
	4: "\x03\x06",         // a signature is to follow
	8: "\x00\x01\x02\x03", // compressed data
}

// isOpenPGP reports whether head is that of a message of OpenPGP. There is no
// magic number: a packet has a tag and a length, in one of two forms.
func isOpenPGP(head []byte) bool {
	if len(head) < 2 || head[0]&0x80 == 0 {
		return false
	}
	tag, at := head[0]>>2&0xf, 1
	if head[0]&0x40 == 0 { // the older form: how long the length is stands beside the tag
		at += [...]int{1, 2, 4, 0}[head[0]&3]
	} else {
		tag = head[0] & 0x3f
		switch first := head[1]; {
		case first == 255:
			at += 5
		case first >= 192 && first < 224:
			at += 2
		default:
			at++
		}
	}
	return at < len(head) && strings.IndexByte(openPGP[tag], head[at]) >= 0
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
