package etcdfile

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/coreos/go-semver/semver"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

// Reader is a snapshot.Source of a file that etcd has made: a snapshot, or the
// database of a member (member/snap/db), whose log is not read.
type Reader struct {
	path     string
	checksum bool
	db       *bbolt.DB
	state    snapshot.State

	finished, scheduled int64 // compact revisions; see compaction
}

var _ snapshot.Source = (*Reader)(nil)

// lockTimeout is how long to wait for another process that has the file open.
const lockTimeout = time.Second

// Open opens the file path and verifies all of it: a snapshot by its checksum, a
// database by its structure. Errors are ErrAuth, snapshot.ErrInvalid, or those
// of the file system.
func Open(path string) (*Reader, error) { return open(path, false) }

// OpenWithoutAuth is Open for data that is protected by users and roles, which
// are left out.
func OpenWithoutAuth(path string) (*Reader, error) { return open(path, true) }

func open(path string, withoutAuth bool) (*Reader, error) {
	checksum, err := inspect(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	r := &Reader{path: path, checksum: checksum}
	err = guard(func() (err error) {
		r.db, err = bbolt.Open(path, 0, &bbolt.Options{ReadOnly: true, Timeout: lockTimeout})
		return err
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("%s: another process has it open: stop etcd, or copy the file of one that is stopped", path)
	case isDamage(err):
		err = fmt.Errorf("%w: the database is damaged: %w", snapshot.ErrInvalid, err)
	}
	if err == nil {
		err = r.view(func(tx *bbolt.Tx) error { return r.load(tx, withoutAuth) })
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), r.Close())
	}
	return r, nil
}

func isDamage(err error) bool {
	return errors.Is(err, bolterrors.ErrInvalid) || errors.Is(err, bolterrors.ErrChecksum) || errors.Is(err, bolterrors.ErrVersionMismatch)
}

// guard runs fn, which reads a database that may be damaged: bbolt panics then,
// or reads what is not there.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("%w: the database is damaged: %v", snapshot.ErrInvalid, cause)
		}
	}()
	return fn()
}

// view runs fn in a transaction.
func (r *Reader) view(fn func(*bbolt.Tx) error) error {
	if r.db == nil {
		return bolterrors.ErrDatabaseNotOpen
	}
	return guard(func() error { return r.db.View(fn) })
}

// load reads everything but the keys.
func (r *Reader) load(tx *bbolt.Tx, withoutAuth bool) error {
	if err := r.check(tx); err != nil {
		return err
	}
	keys, meta := tx.Bucket([]byte(bucketKey)), tx.Bucket([]byte(bucketMeta))
	if keys == nil || meta == nil {
		return fmt.Errorf("%w: it is a bbolt database, but not etcd's: it has no buckets %s and %s", snapshot.ErrInvalid, bucketKey, bucketMeta)
	}
	if err := checkVersion(meta.Get([]byte(metaVersion))); err != nil {
		return err
	}
	if auth := tx.Bucket([]byte(bucketAuth)); auth != nil && !withoutAuth && bytes.Equal(auth.Get([]byte(authEnabled)), []byte{1}) {
		return ErrAuth
	}
	var err error
	if r.finished, err = compactRevision(meta, metaFinished); err != nil {
		return err
	}
	if r.scheduled, err = compactRevision(meta, metaScheduled); err != nil {
		return err
	}
	r.state.Compacted = max(r.finished, r.scheduled)
	r.state.Revision = max(1, r.state.Compacted)
	if r.scheduled <= r.finished {
		r.state.Records = int64(keys.Stats().KeyN)
	}
	if name, value := keys.Cursor().Last(); name != nil {
		var last eventlog.Record
		if err := decodeRecord(name, value, &last); err != nil {
			return err
		}
		r.state.Revision = max(r.state.Revision, last.Revision.Main)
		if len(last.Key) == 0 && r.state.Records > 0 {
			r.state.Records--
		}
	}
	r.state.Bytes = tx.Size()
	return r.loadLeases(tx)
}

// check verifies the structure of a database that has no checksum.
func (r *Reader) check(tx *bbolt.Tx) error {
	info, err := os.Stat(r.path)
	if err != nil {
		return err
	}
	if info.Size() < tx.Size() {
		return fmt.Errorf("%w: it is cut off: it has %d bytes of %d", snapshot.ErrInvalid, info.Size(), tx.Size())
	}
	if r.checksum {
		return nil
	}
	damage := error(nil)
	for err := range tx.Check() { // to the end: it runs beside
		if damage == nil {
			damage = fmt.Errorf("%w: the database is damaged: %w", snapshot.ErrInvalid, err)
		}
	}
	return damage
}

// checkVersion refuses data of an etcd after the one whose format this is. Those
// before 3.6 do not say.
func checkVersion(stored []byte) error {
	if stored == nil {
		return nil
	}
	version, err := semver.NewVersion(string(stored))
	if err != nil {
		return fmt.Errorf("%w: %q is not a storage version", snapshot.ErrInvalid, stored)
	}
	newest := semver.New(storageVersion)
	if version.Major != newest.Major || version.Minor > newest.Minor {
		return fmt.Errorf("%w: it has etcd's storage version %s; this keelson knows up to %s", snapshot.ErrInvalid, version, newest)
	}
	return nil
}

func compactRevision(meta *bbolt.Bucket, name string) (int64, error) {
	stored := meta.Get([]byte(name))
	if stored == nil {
		return 0, nil
	}
	main, _, _, err := decodeRevision(stored)
	return main, err
}

func (r *Reader) loadLeases(tx *bbolt.Tx) error {
	if leases := tx.Bucket([]byte(bucketLease)); leases != nil {
		if err := leases.ForEach(func(id, value []byte) error {
			var l leasepb.Lease
			if err := proto.Unmarshal(value, &l); err != nil || len(id) != 8 || uint64(l.ID) != binary.BigEndian.Uint64(id) {
				return fmt.Errorf("%w: lease %x cannot be read", snapshot.ErrInvalid, id)
			}
			r.state.Leases = append(r.state.Leases, snapshot.Lease{ID: l.ID, TTL: l.TTL, Remaining: l.RemainingTTL})
			return nil
		}); err != nil {
			return err
		}
	}
	if alarms := tx.Bucket([]byte(bucketAlarm)); alarms != nil {
		return alarms.ForEach(func(name, _ []byte) error {
			var a pb.AlarmMember
			if err := proto.Unmarshal(name, &a); err != nil {
				return fmt.Errorf("%w: alarm %x cannot be read", snapshot.ErrInvalid, name)
			}
			r.state.Alarms = append(r.state.Alarms, snapshot.Alarm{Member: a.MemberID, Alarm: int32(a.Alarm)})
			return nil
		})
	}
	return nil
}

// HasChecksum reports whether the file ends with a checksum, as snapshots do. It
// was right then.
func (r *Reader) HasChecksum() bool { return r.checksum }

// State implements snapshot.Source.
func (r *Reader) State() snapshot.State { return r.state }

// Records implements snapshot.Source. A compaction that etcd has scheduled and
// not finished is as good as done: etcd would do it at its next start.
func (r *Reader) Records(ctx context.Context, fn func(*eventlog.Record) error) error {
	var c *compaction
	if r.scheduled > r.finished {
		c = &compaction{at: r.scheduled, newest: make(map[string]eventlog.Revision)}
		if err := r.records(ctx, c.note); err != nil {
			return err
		}
	}
	return r.records(ctx, func(record *eventlog.Record) error {
		if c != nil && !c.keeps(record) {
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
	var refused any // what fn panics with
	err := r.view(func(tx *bbolt.Tx) error {
		var record eventlog.Record
		cursor := tx.Bucket([]byte(bucketKey)).Cursor()
		n := 0
		for name, value := cursor.First(); name != nil; name, value = cursor.Next() {
			if n++; n%1024 == 0 {
				if err := context.Cause(ctx); err != nil {
					return err
				}
			}
			if err := decodeRecord(name, value, &record); err != nil {
				return err
			}
			if len(record.Key) == 0 {
				continue // stands for a revision that no record has any more
			}
			if err := call(fn, &record, &refused); err != nil || refused != nil {
				return err
			}
		}
		return nil
	})
	if refused != nil {
		panic(refused)
	}
	return err
}

// call calls fn outside the guard: what it panics with has another reason.
func call(fn func(*eventlog.Record) error, r *eventlog.Record, panicked *any) error {
	defer func() { *panicked = recover() }()
	return fn(r)
}

// Close implements snapshot.Source.
func (r *Reader) Close() error {
	if r.db == nil {
		return nil
	}
	err := r.db.Close()
	r.db = nil
	return err
}
