package sqlite

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// kept is the row of the table kept: what is known of the records that Compact
// deleted. See migrations.
type kept struct {
	floor, deleted, revision int64
}

const (
	// keptVersion is the schema version from which on the row has a checksum.
	keptVersion = 2

	selectKept = "SELECT floor, deleted, revision FROM kept"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc is that of the three numbers, big endian.
func (k kept) crc() int64 {
	var b []byte
	for _, n := range []int64{k.floor, k.deleted, k.revision} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	return int64(crc32.Checksum(b, castagnoli))
}

// readKept returns the row; with an eventlog.ErrCorrupt as it is, whatever that
// is.
func readKept(c *conn) (kept, error) {
	v, err := c.ints("SELECT floor, deleted, revision, crc FROM kept")
	if err != nil {
		return kept{}, err
	}
	k := kept{floor: v[0], deleted: v[1], revision: v[2]}
	if v[3] != k.crc() {
		err = fmt.Errorf("%w: what is kept of deleted records (%d up to %d, revision %d) has another checksum", eventlog.ErrCorrupt, k.deleted, k.floor, k.revision)
	}
	return k, err
}

func writeKept(c *conn, k kept) error {
	return c.exec("UPDATE kept SET floor = ?, deleted = ?, revision = ?, crc = ?", k.floor, k.deleted, k.revision, k.crc())
}
