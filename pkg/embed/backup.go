package embed

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/pkg/backup"
	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/durable"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
	"github.com/keelson-io/keelson/pkg/snapshot/etcdfile"
)

// DefaultSnapshotRetention is how many backups are kept.
const DefaultSnapshotRetention = "7"

// BackupConfig says when backups are made by themselves, and where they are
// kept. In a cluster the leader makes them, of several instances on PostgreSQL
// the one that expires leases.
type BackupConfig struct {
	Schedule  string // --snapshot-schedule: as for cron; empty is never
	Dir       string // --snapshot-dir: a directory or s3://bucket/prefix; <data-dir>/snapshots if empty
	Retention string // --snapshot-retention: a number such as 7, or an age such as 30d

	// What follows is for s3:// only; credentials are AWS's variables and files.
	S3Endpoint  string // --snapshot-s3-endpoint: URL; AWS if empty
	S3Region    string // --snapshot-s3-region
	S3CAFile    string // --snapshot-s3-ca-file
	S3PathStyle bool   // --snapshot-s3-path-style
}

// backupSettings is a BackupConfig that was understood.
type backupSettings struct {
	schedule  backup.Schedule
	retention backup.Retention
	place     backup.Place
	dir       string // of files that are being made
	insecure  bool   // the place is reached without TLS
}

func (s *settings) resolveBackup() error {
	c := s.Backup
	if c.Schedule == "" {
		if c.Dir != "" || c.Retention != DefaultSnapshotRetention || c.S3Endpoint != "" || c.S3Region != "" || c.S3CAFile != "" || c.S3PathStyle {
			return errors.New("--snapshot-dir, --snapshot-retention and --snapshot-s3-… are of no use without --snapshot-schedule, such as @daily")
		}
		return nil
	}
	var b backupSettings
	var err error
	if b.schedule, err = backup.ParseSchedule(c.Schedule); err != nil {
		return flagError("--snapshot-schedule", err)
	}
	if b.retention, err = backup.ParseRetention(c.Retention); err != nil {
		return flagError("--snapshot-retention", err)
	}
	b.dir = filepath.Join(s.DataDir, "snapshots")
	switch {
	case strings.HasPrefix(c.Dir, backup.S3Scheme):
		place, err := backup.NewS3(backup.S3Options{URL: c.Dir, Endpoint: c.S3Endpoint, Region: c.S3Region, CAFile: c.S3CAFile, PathStyle: c.S3PathStyle})
		if err != nil {
			return flagError("--snapshot-dir and --snapshot-s3-…", err)
		}
		b.place, b.insecure = place, !place.Secure()
	case c.S3Endpoint != "" || c.S3Region != "" || c.S3CAFile != "" || c.S3PathStyle:
		return errors.New("--snapshot-s3-… are of no use without --snapshot-dir=s3://bucket/prefix")
	case strings.Contains(c.Dir, "://"):
		return fmt.Errorf("--snapshot-dir: use a directory or %sbucket/prefix", backup.S3Scheme)
	case c.Dir == "" && s.postgres != "":
		return errors.New("--snapshot-schedule needs --snapshot-dir where the data is in PostgreSQL: a directory that all instances share, or s3://bucket/prefix")
	default:
		if c.Dir != "" {
			if b.dir, err = filepath.Abs(c.Dir); err != nil {
				return fmt.Errorf("--snapshot-dir: %w", err)
			}
		}
		b.place = backup.Directory(b.dir)
	}
	s.backup = &b
	return nil
}

// flagError is what package backup says of a flag.
func flagError(flag string, err error) error {
	return fmt.Errorf("%s: %s", flag, strings.TrimPrefix(err.Error(), backup.ErrUsage.Error()+": "))
}

// backups is the part of the server that makes backups; nil if there is none.
type backups struct {
	run  *backup.Backups
	end  context.CancelFunc
	done chan struct{}
}

// newBackups prepares what start starts.
func newBackups(b *backend, registry prometheus.Registerer) (*backups, error) {
	set := b.set.backup
	if set == nil {
		return nil, nil
	}
	if _, err := b.backupID(context.Background()); b.set.sqliteDir != "" && err != nil { // a database may come later
		return nil, fmt.Errorf("name the backups: %w", err)
	}
	if set.insecure {
		b.log.WithField("place", set.place.String()).Warn("backups, which have everything, go there unencrypted: use an https:// URL for --snapshot-s3-endpoint")
	}
	return &backups{
		done: make(chan struct{}),
		run: backup.New(backup.Options{
			Schedule: set.schedule, Retention: set.retention, Place: set.place, Dir: set.dir,
			ID:      b.backupID,
			Write:   b.writeSnapshot,
			Verify:  readSnapshot,
			Size:    func() int64 { return b.newest().store.Size().InUse },
			Mine:    b.makesBackups,
			Doubt:   b.doubt,
			Metrics: backup.NewMetrics(registry),
			Log:     b.log,
		}),
	}, nil
}

// start begins.
func (b *backups) start() {
	if b == nil {
		return
	}
	ctx, end := context.WithCancel(context.Background())
	b.end = end
	go func() {
		defer close(b.done)
		_ = b.run.Run(ctx) // has none
	}()
}

// cancel ends a backup that is under way, too; wait waits for that.
func (b *backups) cancel() {
	if b != nil && b.end != nil {
		b.end()
	}
}

// wait returns false if the backup has not ended in time: no call of the file
// system can be ended, and one over a network may take forever.
func (b *backups) wait() bool {
	if b == nil || b.end == nil {
		return true
	}
	select {
	case <-b.done:
		return true
	case <-time.After(backupPatience):
		return false
	}
}

// backupPatience is how long a stop waits for a backup.
const backupPatience = 10 * time.Second

// makesBackups reports whether this is the one of several servers that does; the
// error is why none can now.
func (b *backend) makesBackups() (bool, error) {
	m := b.now.Load()
	switch g := m.generation; {
	case m.phase != serving:
		return false, errors.New("the data is not served")
	case g.raft != nil:
		s := g.raft.Status()
		if s.Leader == 0 {
			return false, errors.New("the cluster has no leader")
		}
		return s.Leads, nil
	case g.shared != nil:
		if _, ok := g.shared.Answers(); !ok {
			return false, errors.New("the database does not answer")
		}
		return g.shared.Stats().Lessor, nil
	}
	return true, nil
}

// doubt says why older backups may be better than new ones.
func (b *backend) doubt() string {
	for _, a := range b.newest().store.Alarms() {
		if a.Alarm == pb.AlarmType_CORRUPT {
			return "the alarm CORRUPT is raised: the nodes do not have the same data, and older backups may be needed"
		}
	}
	return ""
}

// backupID returns what tells the backups of this data from others in the same
// place, which are not to be removed.
func (b *backend) backupID(ctx context.Context) (string, error) {
	g := b.newest()
	switch {
	case b.cluster != nil:
		return fmt.Sprintf("%016x", b.cluster.id.Cluster), nil
	case g.shared != nil:
		return g.shared.Name(ctx)
	}
	path := filepath.Join(b.set.sqliteDir, sqlite.NameFile)
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if id := strings.TrimSpace(string(data)); err == nil && b.dataID == "" && g.store.Position() == 0 {
		b.log.WithField("id", id).Info("the data directory is empty, but for the name of the backups that there were: new ones get another name")
	} else if err == nil {
		if raw, err := hex.DecodeString(id); err != nil || len(raw) != 8 {
			return "", fmt.Errorf("%s does not have 16 hexadecimal digits: remove it; backups get another name then", path)
		}
		b.dataID = id
		return id, nil
	}
	var raw [8]byte
	_, _ = rand.Read(raw[:]) // never fails (crypto/rand)
	b.dataID = hex.EncodeToString(raw[:])
	return b.dataID, durable.Write(path, []byte(b.dataID+"\n"))
}

// writeSnapshot writes the data of now to a new file.
func (b *backend) writeSnapshot(ctx context.Context, path string) (c backup.Contents, err error) {
	g, err := b.generation(ctx)
	if err != nil {
		return c, err
	}
	src, err := g.store.Export(ctx)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	file, err := etcdfile.Create(path, etcdfile.Options{})
	if err != nil {
		return c, err
	}
	sink := &hashingSink{Sink: file, hash: snapshot.NewHasher()}
	done, err := snapshot.Copy(ctx, sink, src, nil)
	c = contents(src.State())
	c.Records, c.Hash = done.Records, sink.hash.Sum()
	return c, err
}

// contents is what a state says; the records are to be counted.
func contents(s snapshot.State) backup.Contents {
	return backup.Contents{Revision: s.Revision, Compacted: s.Compacted, Leases: len(s.Leases)}
}

// readSnapshot reads all of a file, and compares its checksum.
func readSnapshot(ctx context.Context, path string) (c backup.Contents, err error) {
	file, err := etcdfile.Open(ctx, path, etcdfile.OpenOptions{})
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if !file.HasChecksum() {
		return c, fmt.Errorf("%w: there is no checksum at the end", snapshot.ErrInvalid)
	}
	hash := snapshot.NewHasher()
	c = contents(file.State())
	err = file.Records(ctx, func(r *eventlog.Record) error {
		c.Records++
		hash.Add(r)
		return nil
	})
	c.Hash = hash.Sum()
	return c, err
}

// hashingSink hashes what is added.
type hashingSink struct {
	snapshot.Sink
	hash *snapshot.Hasher
}

// Add implements snapshot.Sink.
func (s *hashingSink) Add(ctx context.Context, r *eventlog.Record) error {
	s.hash.Add(r)
	return s.Sink.Add(ctx, r)
}
