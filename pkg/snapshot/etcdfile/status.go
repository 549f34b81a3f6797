package etcdfile

import (
	"hash/crc32"

	"go.etcd.io/bbolt"

	"github.com/coreos/go-semver/semver"
)

// Info is what there is to know of a file beside its data.
type Info struct {
	Hash    uint32 // as etcdutl's: CRC-32C over all buckets and what is in them
	Size    int64  // of the database, in bytes
	Version string // etcd's storage version; empty before 3.6
}

// Info reads all of the file.
func (r *Reader) Info() (info Info, err error) {
	err = r.view(func(tx *bbolt.Tx) error {
		info.Size = tx.Size()
		if meta := tx.Bucket([]byte(bucketMeta)); meta != nil {
			if version, err := semver.NewVersion(string(meta.Get([]byte(metaVersion)))); err == nil {
				info.Version = version.String()
			}
		}
		h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
		err := tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			h.Write(name)
			return b.ForEach(func(key, value []byte) error {
				h.Write(key)
				h.Write(value)
				return nil
			})
		})
		info.Hash = h.Sum32()
		return err
	})
	return info, err
}
