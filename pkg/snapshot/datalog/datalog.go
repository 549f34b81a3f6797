// Package datalog is the sinks that make a log of keelson's of a snapshot: the
// database in a data directory, or a schema of PostgreSQL.
//
// The log is what a server would have that had seen all of it happen: leases
// are granted, then come the versions of the keys, whole revisions in each
// batch, and last a compaction mark. The same snapshot makes the same log each
// time, batch by batch.
package datalog

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"math"
	"slices"

	"github.com/sirupsen/logrus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/pkg/drivers/postgres"
	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/raftlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

// A batch ends with the revision that reaches one of these.
const (
	batchRecords = 1000
	batchBytes   = 1 << 20
)

// maxRevision leaves the revisions and versions to come more room than a store
// can use up.
const maxRevision = 1 << 62

// ErrExists: there is data in the place, and the sink is not to replace it.
var ErrExists = errors.New("there is data already")

// ErrInUse: a server uses the place.
var ErrInUse = errors.New("a server uses it")

// Options are those of a Sink.
type Options struct {
	// Replace allows to replace the data that there is; on PostgreSQL, also
	// under instances that run.
	Replace bool

	// BumpRevision, if it is not 0, raises the revision by so much and
	// compacts everything before the result, as etcdutl's --bump-revision
	// with --mark-compacted: clients that have seen revisions after those of
	// the snapshot list anew.
	BumpRevision int64

	// Cluster, if set, makes the data directory that of a node of a new
	// cluster. It is for SQLite.
	Cluster *Cluster

	// Logger is logrus's standard logger unless set.
	Logger *logrus.Entry
}

// Cluster is a new cluster all of whose nodes begin with the same snapshot. Its
// id and those of its nodes are made of a digest of the log, among others, so
// that nodes which were made of other snapshots do not know each other.
type Cluster struct {
	Name    string           // of the node
	Members []raftlog.Member // their names and peer URLs, the same for each node
	Token   string           // tells the cluster from others with the same peer URLs
}

// Sink is a snapshot.Sink that makes a log.
type Sink struct {
	opt   Options
	open  func(context.Context) (target, error)
	check func(context.Context) error // is Check

	target    target // nil before Begin
	head      eventlog.Head
	compacted int64
	main      int64           // revision of the newest record
	records   int             // in the open batch
	bytes     int             // in the open batch
	digest    hash.Hash       // of the records; nil without a cluster
	record    eventlog.Record // of Add
	scratch   []byte
	dropped   []snapshot.Alarm
}

var _ snapshot.Sink = (*Sink)(nil)

// target is an import of a driver.
type target interface {
	Base() (eventlog.Position, int64)
	Add(ctx context.Context, r *eventlog.Record, id *eventlog.BatchID) error
	Finish(ctx context.Context, head eventlog.Head) error
	Abort() error
}

// SQLite returns the sink that makes the database of data directory dir.
func SQLite(dir string, opt Options) *Sink {
	o := sqlite.ImportOptions{Dir: dir, Replace: opt.Replace, OnReplace: func() error { return raftlog.Forget(dir) }}
	s := &Sink{opt: opt}
	if opt.Cluster != nil {
		s.digest = sha256.New()
		o.OnInstalled = func() error {
			digest := binary.BigEndian.AppendUint64(s.digest.Sum(nil), uint64(s.head.Revision))
			return opt.Cluster.begin(dir, s.head.Position, digest)
		}
	}
	s.open = func(context.Context) (target, error) { return openSQLite(o) }
	s.check = func(context.Context) error { return sqliteError(o, sqlite.CheckImport(o)) }
	return s
}

// Postgres returns the sink that makes the data of the schema that url names.
func Postgres(url string, opt Options) *Sink {
	o := postgres.ImportOptions{URL: url, Replace: opt.Replace, Logger: opt.Logger}
	return &Sink{
		opt:   opt,
		check: func(ctx context.Context) error { return postgresError(postgres.CheckImport(ctx, o)) },
		open: func(ctx context.Context) (target, error) {
			im, err := postgres.NewImporter(ctx, o)
			if err != nil {
				return nil, postgresError(err)
			}
			return im, nil
		},
	}
}

// postgresError is an error of the driver as this package has it.
func postgresError(err error) error {
	switch {
	case errors.Is(err, postgres.ErrExists):
		return ErrExists
	case errors.Is(err, postgres.ErrInUse):
		return fmt.Errorf("%w: %w", ErrInUse, err)
	}
	return err
}

// sqliteTarget is an import into a data directory.
type sqliteTarget struct{ *sqlite.Importer }

func (sqliteTarget) Base() (eventlog.Position, int64) { return 0, 0 }

func (t sqliteTarget) Add(_ context.Context, r *eventlog.Record, id *eventlog.BatchID) error {
	return t.Importer.Add(r, id)
}

func (t sqliteTarget) Finish(_ context.Context, head eventlog.Head) error {
	return t.Importer.Finish(head)
}

func openSQLite(o sqlite.ImportOptions) (target, error) {
	if err := sqliteError(o, nil); err != nil {
		return nil, err
	}
	im, err := sqlite.NewImporter(o)
	if err != nil {
		return nil, sqliteError(o, err)
	}
	return sqliteTarget{im}, nil
}

// sqliteError is an error of the driver as this package has it, or says that
// the place is a node's.
func sqliteError(o sqlite.ImportOptions, err error) error {
	_, node, identifyErr := raftlog.Identify(o.Dir)
	switch {
	case (node || identifyErr != nil) && !o.Replace:
		return errors.Join(identifyErr, fmt.Errorf("%w: %s is the data directory of a node of a cluster", ErrExists, o.Dir))
	case errors.Is(err, sqlite.ErrExists):
		return fmt.Errorf("%w: %s", ErrExists, o.Dir)
	case errors.Is(err, sqlite.ErrLocked):
		return fmt.Errorf("%w: %w", ErrInUse, err)
	}
	return err
}

// Check refuses a place that Begin would refuse. It is for those who have much
// to do before; it only looks.
func (s *Sink) Check(ctx context.Context) error { return s.check(ctx) }

// Revision returns the current and the compact revision of the log, after
// Begin; the latter is 0 if nothing is compacted.
func (s *Sink) Revision() (current, compacted int64) { return s.head.Revision, s.compacted }

// Dropped returns the alarms that the log does not have, after Begin. A server
// raises NOSPACE by itself if it still has reason to; restored, it would only
// stop writes.
func (s *Sink) Dropped() []snapshot.Alarm { return s.dropped }

// Begin implements snapshot.Sink. The errors wrap ErrExists or ErrInUse, or are
// those of the driver.
func (s *Sink) Begin(ctx context.Context, state snapshot.State) error {
	if err := s.plan(state); err != nil {
		return err
	}
	t, err := s.open(ctx)
	if err != nil {
		return err
	}
	s.target = t
	s.head.Position, s.head.Seq = t.Base()
	if err := s.grant(ctx, state); err != nil {
		return errors.Join(err, t.Abort())
	}
	return nil
}

// plan finds out the revisions, and refuses what no store can have.
func (s *Sink) plan(state snapshot.State) error {
	revision, compacted, bump := state.Revision, state.Compacted, s.opt.BumpRevision
	switch {
	case revision < 1 || compacted < 0 || compacted > revision || revision > maxRevision:
		return fmt.Errorf("%w: revision %d, compacted %d", snapshot.ErrInvalid, revision, compacted)
	case bump < 0 || bump > maxRevision-revision:
		return fmt.Errorf("revision %d cannot be raised by %d", revision, bump)
	case bump > 0:
		revision += bump
		compacted = revision
	}
	for _, l := range state.Leases {
		switch {
		case l.ID == 0:
			return fmt.Errorf("%w: a lease has no id", snapshot.ErrInvalid)
		case l.TTL < 1 || l.TTL > snapshot.MaxTTL:
			return fmt.Errorf("%w: lease %x has a TTL of %d seconds", snapshot.ErrInvalid, l.ID, l.TTL)
		}
	}
	s.head.Revision, s.compacted = revision, compacted
	return nil
}

// grant adds what there is beside the versions of keys.
func (s *Sink) grant(ctx context.Context, state snapshot.State) error {
	for _, l := range state.Leases {
		if err := s.add(ctx, &eventlog.Record{Kind: eventlog.KindLeaseGrant, Lease: l.ID, TTL: l.TTL}, true); err != nil {
			return err
		}
	}
	for _, a := range state.Alarms {
		if a.Alarm == int32(pb.AlarmType_NOSPACE) {
			s.dropped = append(s.dropped, a)
			continue
		}
		if err := s.add(ctx, &eventlog.Record{Kind: eventlog.KindAlarmRaise, Member: a.Member, Alarm: a.Alarm}, true); err != nil {
			return err
		}
	}
	return nil
}

// Add implements snapshot.Sink.
func (s *Sink) Add(ctx context.Context, r *eventlog.Record) error {
	if err := checkRecord(r); err != nil {
		return err
	}
	whole := r.Revision.Main != s.main
	s.main = r.Revision.Main
	s.record = *r
	return s.add(ctx, &s.record, whole)
}

// checkRecord refuses what the log cannot have, or go on from.
func checkRecord(r *eventlog.Record) error {
	if r.Revision.Main < 1 || r.Revision.Sub < 0 || r.Revision.Sub > math.MaxInt32 || len(r.Value) > math.MaxInt32 || r.Version > maxRevision {
		return fmt.Errorf("%w: revision %v, version %d, with a value of %d bytes", snapshot.ErrInvalid, r.Revision, r.Version, len(r.Value))
	}
	return nil
}

// DryRun returns a sink that refuses what s would refuse of a source, and makes
// nothing. It does not look at the place, as Check does.
func (s *Sink) DryRun() snapshot.Sink { return dryRun{s} }

type dryRun struct{ sink *Sink }

func (d dryRun) Begin(_ context.Context, state snapshot.State) error { return d.sink.plan(state) }
func (dryRun) Add(_ context.Context, r *eventlog.Record) error       { return checkRecord(r) }
func (dryRun) Finish(context.Context) error                          { return nil }
func (dryRun) Abort() error                                          { return nil }

// add adds a record; whole says that those before it are whole revisions, so
// that a batch may end there.
func (s *Sink) add(ctx context.Context, r *eventlog.Record, whole bool) error {
	var id *eventlog.BatchID
	if s.records == 0 || whole && (s.records >= batchRecords || s.bytes >= batchBytes) {
		s.head.Position++
		s.records, s.bytes = 0, 0
		id = batchID(s.head.Position, s.head.Revision)
	}
	s.head.Seq++
	s.records++
	s.bytes += len(r.Key) + len(r.Value)
	r.Seq, r.Position = s.head.Seq, s.head.Position
	if s.digest != nil {
		s.scratch = eventlog.AppendHeader(s.scratch[:0], r) // it has the lengths and checksums of what follows
		s.digest.Write(s.scratch)
		s.digest.Write(r.Key)
		s.digest.Write(r.Value)
	}
	return s.target.Add(ctx, r, id)
}

// batchID is the same for the same batch of the same snapshot.
func batchID(position eventlog.Position, revision int64) *eventlog.BatchID {
	seed := binary.BigEndian.AppendUint64([]byte("keelson datalog"), uint64(position))
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(seed, uint64(revision)))
	return (*eventlog.BatchID)(sum[:])
}

// Finish implements snapshot.Sink.
func (s *Sink) Finish(ctx context.Context) error {
	if s.compacted > 0 {
		mark := &eventlog.Record{Kind: eventlog.KindCompact, Revision: eventlog.Revision{Main: s.compacted}}
		if err := s.add(ctx, mark, true); err != nil {
			return errors.Join(err, s.Abort())
		}
	}
	t := s.target
	s.target = nil
	return t.Finish(ctx, s.head)
}

// begin makes dir, which has the data by now, that of the node. Before that it
// is refused to the node, since it is not empty.
func (c *Cluster) begin(dir string, position eventlog.Position, digest []byte) error {
	cluster, members := raftlog.NewMembers(fmt.Sprintf("%s %x", c.Token, digest), c.Members)
	at := slices.IndexFunc(members, func(m raftlog.Member) bool { return m.Name == c.Name })
	if at < 0 {
		return fmt.Errorf("the cluster has no node %q", c.Name)
	}
	id := raftlog.Identity{Cluster: cluster, Node: members[at].ID}
	if err := raftlog.Begin(dir, position, id, raftlog.Members{Members: members}); err != nil {
		return fmt.Errorf("the data is there, but not yet that of a node of a cluster; restore it again: %w", err)
	}
	return nil
}

// Abort implements snapshot.Sink.
func (s *Sink) Abort() error {
	t := s.target
	s.target = nil
	return t.Abort()
}
