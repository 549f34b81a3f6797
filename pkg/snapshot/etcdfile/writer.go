package etcdfile

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/pkg/durable"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

// Options are those of Create.
type Options struct {
	// Members are those of the cluster; unless set, one that an etcd without
	// flags calls itself.
	Members []Member

	// Index and Term are those of Raft; 1 unless set.
	Index, Term uint64

	// Scratch makes a database without a checksum behind it that is not
	// durable: to be sent and removed.
	Scratch bool
}

// A transaction of so much is kept in memory.
const (
	batchRecords = 10_000
	batchBytes   = 4 << 20
)

// Writer is a snapshot.Sink that makes a file as etcdctl snapshot save does.
// Until Finish the file has another name.
type Writer struct {
	path, partial string
	opt           Options
	state         snapshot.State
	last          int64 // main revision

	db     *bbolt.DB
	tx     *bbolt.Tx
	keys   *bbolt.Bucket
	count  int
	bytes  int
	values []byte // of the transaction
}

var _ snapshot.Sink = (*Writer)(nil)

// Create makes a Writer of the file path, which must not be there.
func Create(path string, opt Options) (*Writer, error) {
	if len(opt.Members) == 0 {
		opt.Members = []Member{defaultMember}
	}
	opt.Index, opt.Term = max(opt.Index, 1), max(opt.Term, 1)
	w := &Writer{path: path, opt: opt}
	return w, w.check()
}

// check refuses to write over anything.
func (w *Writer) check() error {
	_, err := os.Lstat(w.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = &fs.PathError{Op: "create", Path: w.path, Err: fs.ErrExist}
	}
	return err
}

// Begin implements snapshot.Sink.
func (w *Writer) Begin(_ context.Context, state snapshot.State) error {
	if err := w.check(); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(w.path), filepath.Base(w.path)+".partial-*")
	if err != nil {
		return err
	}
	w.partial, w.state = f.Name(), state
	if err := f.Close(); err != nil {
		return errors.Join(err, w.Abort())
	}
	// What is written twice is written to the file in the end: it is not
	// looked at before.
	w.db, err = bbolt.Open(w.partial, 0o600, &bbolt.Options{NoSync: true, NoFreelistSync: true, NoGrowSync: true, FreelistType: bbolt.FreelistMapType})
	if err == nil {
		err = w.begin()
	}
	if err == nil {
		err = w.putState()
	}
	if err != nil {
		return errors.Join(err, w.Abort())
	}
	return nil
}

// begin begins the next transaction.
func (w *Writer) begin() (err error) {
	if w.tx, err = w.db.Begin(true); err != nil {
		return err
	}
	if w.keys, err = w.tx.CreateBucketIfNotExists([]byte(bucketKey)); err != nil {
		return err
	}
	w.keys.FillPercent = 1 // they come in order
	w.count, w.bytes, w.values = 0, 0, make([]byte, 0, batchBytes)
	return nil
}

// putState writes everything but the keys.
func (w *Writer) putState() error {
	for _, name := range buckets {
		if _, err := w.tx.CreateBucketIfNotExists([]byte(name)); err != nil {
			return err
		}
	}
	conf, err := confState(w.opt.Members)
	if err != nil {
		return err
	}
	err = errors.Join(
		w.put(bucketMeta, []byte(metaIndex), bigEndian(w.opt.Index)),
		w.put(bucketMeta, []byte(metaTerm), bigEndian(w.opt.Term)),
		w.put(bucketMeta, []byte(metaConf), conf),
		w.put(bucketMeta, []byte(metaVersion), []byte(storageVersion)),
		w.put(bucketCluster, []byte(clusterVersion), []byte(storageVersion)),
		w.put(bucketAuth, []byte(authRevision), bigEndian(1)),
	)
	if compacted := w.state.Compacted; compacted > 0 {
		name := snapshot.AppendRevision(nil, eventlog.Revision{Main: compacted}, false)
		err = errors.Join(err, w.put(bucketMeta, []byte(metaScheduled), name), w.put(bucketMeta, []byte(metaFinished), name))
	}
	for _, m := range w.opt.Members {
		value, jsonErr := m.json()
		err = errors.Join(err, jsonErr, w.put(bucketMembers, m.key(), value))
	}
	for _, a := range w.state.Alarms {
		name, marshalErr := proto.Marshal(&pb.AlarmMember{MemberID: a.Member, Alarm: pb.AlarmType(a.Alarm)})
		err = errors.Join(err, marshalErr, w.put(bucketAlarm, name, nil))
	}
	for _, l := range w.state.Leases {
		value, marshalErr := proto.Marshal(&leasepb.Lease{ID: l.ID, TTL: l.TTL, RemainingTTL: l.Remaining})
		if err = errors.Join(err, marshalErr, w.put(bucketLease, bigEndian(uint64(l.ID)), value)); err != nil {
			return err
		}
	}
	return err
}

func (w *Writer) put(bucket string, key, value []byte) error {
	return w.tx.Bucket([]byte(bucket)).Put(key, value)
}

// Add implements snapshot.Sink.
func (w *Writer) Add(_ context.Context, r *eventlog.Record) error {
	w.last = r.Revision.Main
	w.bytes += len(r.Key) + len(r.Value)
	start := len(w.values)
	w.values = snapshot.AppendRevision(w.values, r.Revision, r.Kind == eventlog.KindDelete)
	middle := len(w.values)
	w.values = snapshot.AppendKeyValue(w.values, r)
	return w.add(w.values[start:middle], w.values[middle:])
}

// add writes to the bucket of the keys.
func (w *Writer) add(name, value []byte) error {
	if err := w.keys.Put(name, value); err != nil {
		return err
	}
	if w.count++; w.count < batchRecords && w.bytes < batchBytes {
		return nil
	}
	if err := w.tx.Commit(); err != nil {
		return err
	}
	return w.begin()
}

// Finish implements snapshot.Sink.
func (w *Writer) Finish(context.Context) error {
	err := w.finish()
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", w.path, err), w.Abort())
	}
	return nil
}

func (w *Writer) finish() error {
	// etcd takes the newest revision there is, or the compact revision, for its
	// own. Where no record has it any more, one without a key stands for it.
	if w.last < w.state.Revision && w.state.Compacted < w.state.Revision && w.state.Revision > 1 {
		if err := w.add(snapshot.AppendRevision(nil, eventlog.Revision{Main: w.state.Revision}, false), []byte{}); err != nil {
			return err
		}
	}
	if err := w.tx.Commit(); err != nil {
		return err
	}
	size, err := w.closeDB()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(w.partial, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = f.Truncate(size) // bbolt makes it larger in advance
	if err == nil && !w.opt.Scratch {
		if err = appendChecksum(f); err == nil {
			err = f.Sync()
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := w.check(); err != nil {
		return err
	}
	if err := os.Rename(w.partial, w.path); err != nil || w.opt.Scratch {
		return err
	}
	return durable.Sync(filepath.Dir(w.path))
}

// closeDB closes the database and returns how large it is.
func (w *Writer) closeDB() (size int64, err error) {
	err = w.db.View(func(tx *bbolt.Tx) error {
		size = tx.Size()
		return nil
	})
	err = errors.Join(err, w.db.Close())
	w.db = nil
	return size, err
}

func appendChecksum(f *os.File) error {
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	_, err := f.Write(h.Sum(nil))
	return err
}

// Abort implements snapshot.Sink.
func (w *Writer) Abort() error {
	var err error
	if w.db != nil {
		_ = w.tx.Rollback() // or it was committed
		err = w.db.Close()
		w.db = nil
	}
	if removeErr := os.Remove(w.partial); !errors.Is(removeErr, fs.ErrNotExist) {
		err = errors.Join(err, removeErr)
	}
	return err
}
