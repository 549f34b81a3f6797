package etcdfile

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"slices"

	"github.com/coreos/go-semver/semver"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

// Reader is a snapshot.Source of a file that etcd has made: a snapshot, or the
// database of a member (member/snap/db), whose log is not read.
type Reader struct {
	file     *os.File
	checksum bool
	bolt     *boltFile
	version  string
	accounts int
	index    uint64 // of the last entry of etcd's log that it has
	state    snapshot.State
	stamp    stamp // of what was verified

	finished, scheduled int64 // compact revisions; see compaction
}

var _ snapshot.Source = (*Reader)(nil)

// OpenOptions are those of Open.
type OpenOptions struct {
	// WithoutAuth takes data that is protected by users and roles, which are
	// left out.
	WithoutAuth bool

	// Report, if not nil, is told how much of the verifying is done, and of how
	// much, in bytes. It is called by one goroutine at a time.
	Report func(done, total int64)
}

// Open opens the file path and verifies all of it: its checksum, if it is a
// snapshot, and its structure. Errors are ErrAuth, snapshot.ErrInvalid, the
// cause of the end of ctx, or those of the file system.
func Open(ctx context.Context, path string, opt OpenOptions) (*Reader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	r, err := OpenFile(ctx, f, opt)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// OpenFile is Open of a file that is open, and is closed after an error, or by
// Close.
func OpenFile(ctx context.Context, f *os.File, opt OpenOptions) (*Reader, error) {
	r := &Reader{file: f}
	if err := r.load(ctx, opt); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return r, nil
}

// load verifies the file and reads everything but the keys. Nothing is believed
// of a file whose checksum is wrong: that is its error, whatever else is found.
func (r *Reader) load(ctx context.Context, opt OpenOptions) error {
	// bbolt has the file locked as long as it may write.
	if err := unix.Flock(int(r.file.Fd()), unix.LOCK_SH|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return errors.New("another process has it open: stop etcd, or take a snapshot of it")
	}
	size, checksum, err := inspect(r.file)
	if err != nil {
		return err
	}
	r.checksum = checksum
	if r.stamp, err = stampOf(r.file); err != nil {
		return err
	}
	work := &meter{total: size, report: opt.Report}
	verified := make(chan error, 1)
	if checksum {
		work.total += size
		go func() { verified <- verify(ctx, r.file, size, work) }() // takes the longer time
	} else {
		verified <- nil
	}
	err = r.read(ctx, size, work, opt.WithoutAuth)
	return cmp.Or(<-verified, err, r.unchanged())
}

// unchanged makes sure that what was read is what was verified. Who replaces the
// file by another one does no harm: that is not the one which is open.
func (r *Reader) unchanged() error {
	now, err := stampOf(r.file)
	if err == nil && now != r.stamp {
		err = fmt.Errorf("%w: it was changed while it was read", snapshot.ErrInvalid)
	}
	return err
}

// read reads all pages of the database that size bytes of the file are.
func (r *Reader) read(ctx context.Context, size int64, work *meter, withoutAuth bool) (err error) {
	if r.bolt, err = openBolt(r.file, size); err != nil {
		return err
	}
	r.bolt.onRead = func(n int) error {
		work.add(n)
		return context.Cause(ctx)
	}
	defer func() { r.bolt.onRead = nil }()
	keys, ok := r.bolt.buckets[bucketKey]
	if _, hasMeta := r.bolt.buckets[bucketMeta]; !ok || !hasMeta {
		return fmt.Errorf("%w: it is a bbolt database, but not etcd's: it has no buckets %s and %s", snapshot.ErrInvalid, bucketKey, bucketMeta)
	}
	if err := r.loadMeta(withoutAuth); err != nil {
		return err
	}
	if err := r.loadLeases(); err != nil {
		return err
	}
	return r.loadKeys(keys)
}

func (r *Reader) loadMeta(withoutAuth bool) error {
	meta, err := r.bolt.all(bucketMeta)
	if err != nil {
		return err
	}
	if r.version, err = checkVersion(meta[metaVersion]); err != nil {
		return err
	}
	if index := meta[metaIndex]; len(index) == 8 {
		r.index = binary.BigEndian.Uint64(index)
	}
	auth, err := r.bolt.all(bucketAuth)
	if err != nil {
		return err
	}
	if bytes.Equal(auth[authEnabled], []byte{1}) && !withoutAuth {
		return ErrAuth
	}
	for _, bucket := range []string{bucketRoles, bucketUsers} {
		accounts, err := r.bolt.all(bucket)
		if err != nil {
			return err
		}
		r.accounts += len(accounts)
	}
	if r.finished, err = compactRevision(meta[metaFinished]); err != nil {
		return err
	}
	r.scheduled, err = compactRevision(meta[metaScheduled])
	return err
}

// checkVersion refuses data of an etcd after the one whose format this is. Those
// before 3.6 do not say.
func checkVersion(stored []byte) (string, error) {
	if stored == nil {
		return "", nil
	}
	version, err := semver.NewVersion(string(stored))
	if err != nil {
		return "", fmt.Errorf("%w: %q is not a storage version", snapshot.ErrInvalid, stored)
	}
	newest := semver.New(newestVersion)
	if version.Major != newest.Major || version.Minor > newest.Minor {
		return "", fmt.Errorf("%w: it has etcd's storage version %s; this keelson knows up to %s", snapshot.ErrInvalid, version, newest)
	}
	return version.String(), nil
}

func compactRevision(stored []byte) (int64, error) {
	if stored == nil {
		return 0, nil
	}
	revision, _, err := decodeRevision(stored)
	return revision.Main, err
}

func (r *Reader) loadLeases() error {
	leases, err := r.bolt.all(bucketLease)
	if err != nil {
		return err
	}
	for id, value := range leases {
		var l leasepb.Lease
		if err := proto.Unmarshal(value, &l); err != nil || len(id) != 8 || uint64(l.ID) != binary.BigEndian.Uint64([]byte(id)) {
			return fmt.Errorf("%w: lease %x cannot be read", snapshot.ErrInvalid, id)
		}
		r.state.Leases = append(r.state.Leases, snapshot.Lease{ID: l.ID, TTL: l.TTL, Remaining: l.RemainingTTL})
	}
	slices.SortFunc(r.state.Leases, func(a, b snapshot.Lease) int { return cmp.Compare(a.ID, b.ID) })
	alarms, err := r.bolt.all(bucketAlarm)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(alarms)) {
		var a pb.AlarmMember
		if err := proto.Unmarshal([]byte(name), &a); err != nil {
			return fmt.Errorf("%w: alarm %x cannot be read", snapshot.ErrInvalid, name)
		}
		r.state.Alarms = append(r.state.Alarms, snapshot.Alarm{Member: a.MemberID, Alarm: int32(a.Alarm)})
	}
	return nil
}

// loadKeys reads all keys once.
func (r *Reader) loadKeys(keys boltBucket) error {
	r.state.Compacted = max(r.finished, r.scheduled)
	r.state.Revision = max(1, r.state.Compacted)
	var record eventlog.Record
	err := r.bolt.walk(keys, func(_ uint32, name, value []byte) error {
		if err := decodeRecord(name, value, &record); err != nil {
			return err
		}
		r.state.Revision = max(r.state.Revision, record.Revision.Main)
		if len(record.Key) > 0 {
			r.state.Records++
			r.state.Bytes += int64(len(record.Key) + len(record.Value))
		}
		return nil
	})
	if r.scheduled > r.finished {
		r.state.Records, r.state.Bytes = 0, 0 // not known
	}
	return err
}

// HasChecksum reports whether the file ends with a checksum, as snapshots do. It
// was right then.
func (r *Reader) HasChecksum() bool { return r.checksum }

// Accounts returns how many users and roles there are, which no record is of.
func (r *Reader) Accounts() int { return r.accounts }

// State implements snapshot.Source.
func (r *Reader) State() snapshot.State { return r.state }

// Records implements snapshot.Source. A compaction that etcd has scheduled and
// not finished is as good as done: etcd would do it at its next start.
func (r *Reader) Records(ctx context.Context, fn func(*eventlog.Record) error) error {
	if r.scheduled <= r.finished {
		return r.records(ctx, fn)
	}
	c := &compaction{at: r.scheduled, newest: make(map[string]eventlog.Revision)}
	if err := r.records(ctx, c.note); err != nil {
		return err
	}
	return r.records(ctx, func(record *eventlog.Record) error {
		if !c.keeps(record) {
			return nil
		}
		return fn(record)
	})
}

// compaction is one at a revision that is to be done while reading. It keeps of
// each key the newest version before, but of tombstones only one at the
// revision itself.
type compaction struct {
	at     int64
	newest map[string]eventlog.Revision
}

func (c *compaction) note(r *eventlog.Record) error {
	if r.Revision.Main <= c.at {
		c.newest[string(r.Key)] = r.Revision
	}
	return nil
}

func (c *compaction) keeps(r *eventlog.Record) bool {
	main := r.Revision.Main
	return main > c.at || c.newest[string(r.Key)] == r.Revision && (r.Kind == eventlog.KindPut || main == c.at)
}

// records calls fn with everything in the bucket of the keys.
func (r *Reader) records(ctx context.Context, fn func(*eventlog.Record) error) error {
	var record eventlog.Record
	n := 0
	err := r.bolt.walk(r.bolt.buckets[bucketKey], func(_ uint32, name, value []byte) error {
		if n++; n%1024 == 0 {
			if err := context.Cause(ctx); err != nil {
				return err
			}
		}
		if err := decodeRecord(name, value, &record); err != nil {
			return err
		}
		if len(record.Key) == 0 {
			return nil // stands for a revision that no record has any more
		}
		return fn(&record)
	})
	if err != nil {
		return err
	}
	return r.unchanged()
}

// Info is what there is to know of a file beside its data.
type Info struct {
	Hash    uint32 // as etcdutl's: CRC-32C over all buckets and what is in them
	Size    int64  // of the database, in bytes
	Version string // etcd's storage version; empty before 3.6
}

// Info reads all of the file.
func (r *Reader) Info() (Info, error) {
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	for _, name := range slices.Sorted(maps.Keys(r.bolt.buckets)) {
		h.Write([]byte(name))
		if err := r.bolt.walk(r.bolt.buckets[name], func(_ uint32, key, value []byte) error {
			h.Write(key)
			h.Write(value)
			return nil
		}); err != nil {
			return Info{}, err
		}
	}
	if err := r.unchanged(); err != nil {
		return Info{}, err
	}
	return Info{Hash: h.Sum32(), Size: r.bolt.pageSize * int64(r.bolt.meta.pages), Version: r.version}, nil
}

// Close implements snapshot.Source.
func (r *Reader) Close() error { return r.file.Close() }
