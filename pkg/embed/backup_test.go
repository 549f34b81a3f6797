package embed

import (
	"context"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/sirupsen/logrus/hooks/test"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/snapshot"
	"github.com/keelson-io/keelson/pkg/snapshot/datalog"
	"github.com/keelson-io/keelson/pkg/snapshot/etcdfile"
)

// everySecond keeps two backups.
var everySecond = BackupConfig{Schedule: "@every 1s", Retention: "2"}

// backupsIn returns the backups in a directory, the oldest first, and what else
// is there.
func backupsIn(t *testing.T, dir string) (found, others []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "keelson-") && strings.HasSuffix(e.Name(), ".db") {
			found = append(found, e.Name())
		} else {
			others = append(others, e.Name())
		}
	}
	slices.SortFunc(found, func(a, b string) int {
		return strings.Compare(a[strings.LastIndex(a, "-"):], b[strings.LastIndex(b, "-"):])
	})
	return found, others
}

// awaitLog waits until so many lines with the text are logged.
func awaitLog(t *testing.T, hook *test.Hook, text string, n int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if countLog(hook, text) >= n {
			return
		}
	}
	for _, e := range hook.AllEntries() {
		line, _ := e.String()
		t.Log(line)
	}
	t.Fatalf("%q is not logged %d times", text, n)
}

func countLog(hook *test.Hook, text string) (n int) {
	for _, e := range hook.AllEntries() {
		if line, err := e.String(); err == nil && strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// putSome puts keys and returns the revision after that.
func putSome(t *testing.T, c *clientv3.Client, keys ...string) int64 {
	t.Helper()
	var revision int64
	for _, key := range keys {
		resp, err := c.Put(timeout(t), key, strings.Repeat(key, 100))
		if err != nil {
			t.Fatal(err)
		}
		revision = resp.Header.Revision
	}
	return revision
}

// TestBackups: of a server that is stopped and started again.
func TestBackups(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	place := filepath.Join(dir, "snapshots")
	s, hook := start(t, Config{DataDir: dir, Backup: everySecond})
	revision := putSome(t, clientOf(t, s), "a", "b", "a")
	awaitLog(t, hook, "backup done", max(3, countLog(hook, "backup done")+2)) // the last one has begun after the puts
	began := time.Now()
	if err := s.Close(); err != nil || time.Since(began) > 15*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	found, others := backupsIn(t, place)
	if len(found) != 2 || len(others) != 0 {
		t.Fatalf("%q and %q", found, others)
	}
	file, err := etcdfile.Open(t.Context(), filepath.Join(place, found[1]), etcdfile.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if file.State().Revision != revision || !strings.Contains(found[1], "-4-") {
		t.Errorf("%q has revision %d, want %d", found[1], file.State().Revision, revision)
	}
	if err := file.Close(); err != nil {
		t.Error(err)
	}

	s, hook = start(t, Config{DataDir: dir, Backup: everySecond})
	putSome(t, clientOf(t, s), "c")
	awaitLog(t, hook, "backup done", countLog(hook, "backup done")+2)
	metrics := metricsOf(t, s)
	for _, name := range []string{"last_success_timestamp_seconds", "age_seconds", "last_size_bytes", "last_duration_seconds", "next_timestamp_seconds", "active 1", "successes_total", "failures_total 0", "removal_failures_total 0"} {
		if !strings.Contains(metrics, "\nkeelson_backup_"+name) {
			t.Errorf("no metric %s", name)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	later, _ := backupsIn(t, place)
	if len(later) != 2 || slices.Contains(later, found[0]) || !strings.Contains(later[1], "-5-") || later[1][:24] != found[1][:24] {
		t.Errorf("%q, then %q", found, later)
	}
}

// TestBackupsOfOtherData: backups of what was there before a restore, or before
// the database was taken away, are left alone.
func TestBackupsOfOtherData(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	place := filepath.Join(dir, "snapshots")
	one := BackupConfig{Schedule: "@every 1s", Retention: "1"}
	run := func(n int) (newest string, all []string) {
		t.Helper()
		s, hook := start(t, Config{DataDir: dir, Backup: one})
		if n > 0 {
			putSome(t, clientOf(t, s), strings.Split("abcdefgh", "")[:n]...)
		}
		awaitLog(t, hook, "backup done", 2)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		all, _ = backupsIn(t, place)
		return filepath.Join(place, all[len(all)-1]), all
	}
	first, _ := run(3)
	again, all := run(1)
	if len(all) != 1 {
		t.Errorf("%q", all)
	}
	src, err := etcdfile.Open(t.Context(), again, etcdfile.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := snapshot.Copy(t.Context(), datalog.SQLite(dir, datalog.Options{Replace: true}), src, nil); err != nil {
		t.Fatal(err)
	}
	if err := src.Close(); err != nil {
		t.Fatal(err)
	}
	if _, all = run(2); len(all) != 2 || filepath.Join(place, all[0]) != again || strings.Contains(all[1], filepath.Base(first)[:24]) {
		t.Errorf("after a restore: %q", all)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(filepath.Join(dir, sqlite.FileName+suffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if _, all = run(0); len(all) != 3 {
		t.Errorf("after the database was gone: %q", all)
	}
}

// TestBackupsOfDoubtfulData: while the alarm CORRUPT is raised nothing is removed.
func TestBackupsOfDoubtfulData(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	s, hook := start(t, Config{DataDir: dir, Backup: BackupConfig{Schedule: "@every 1s", Retention: "1"}})
	c := clientOf(t, s)
	putSome(t, c, "a")
	alarm := &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: 1, Alarm: pb.AlarmType_CORRUPT}
	if _, err := pb.NewMaintenanceClient(c.ActiveConnection()).Alarm(timeout(t), alarm); err != nil {
		t.Fatal(err)
	}
	awaitLog(t, hook, "old backups are not removed: the alarm CORRUPT is raised", 2)
	if found, _ := backupsIn(t, filepath.Join(dir, "snapshots")); len(found) < 2 {
		t.Errorf("%q", found)
	}
}

// TestMakesBackups: who cannot, says so.
func TestMakesBackups(t *testing.T) {
	t.Parallel()
	s, _ := start(t, Config{})
	if mine, err := s.backend.makesBackups(); err != nil || !mine {
		t.Errorf("%v, %v", mine, err)
	}
	b := &backend{}
	b.now.Store(&moment{phase: reopening, generation: s.backend.newest()})
	if _, err := b.makesBackups(); err == nil {
		t.Error("data that is not served can be backed up")
	}
}

// TestStopWithBackup: a backup that hangs in the file system does not keep the
// server from ending.
func TestStopWithBackup(t *testing.T) {
	t.Parallel()
	s, hook := start(t, Config{})
	s.backups = &backups{end: func() {}, done: make(chan struct{})}
	began := time.Now()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > backupPatience+10*time.Second || countLog(hook, "a backup under way does not end") != 1 {
		t.Errorf("it took %v", took)
	}
}

// TestBackupFails: a server goes on without.
func TestBackupFails(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := everySecond
	b.Dir = filepath.Join(file, "snapshots")
	s, hook := start(t, Config{DataDir: dir, Backup: b})
	awaitLog(t, hook, "backup failed", 2)
	putSome(t, clientOf(t, s), "a")
	if m := metricsOf(t, s); !strings.Contains(m, "\nkeelson_backup_age_seconds +Inf") || strings.Contains(m, "\nkeelson_backup_failures_total 0") {
		t.Error("the metrics do not show it")
	}
}

func TestBackupsToS3(t *testing.T) {
	backend := s3mem.New()
	if err := backend.CreateBucket("backups"); err != nil {
		t.Fatal(err)
	}
	storage := httptest.NewServer(gofakes3.New(backend, gofakes3.WithLogger(gofakes3.DiscardLog())).Server())
	t.Cleanup(storage.Close)
	t.Setenv("AWS_ACCESS_KEY_ID", "key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "correct-horse-battery")
	b := everySecond
	b.Dir, b.S3Endpoint = "s3://backups/prefix", storage.URL
	s, hook := start(t, Config{Backup: b})
	putSome(t, clientOf(t, s), "a")
	awaitLog(t, hook, "backup done", 3)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	list, err := backend.ListBucket("backups", nil, gofakes3.ListBucketPage{})
	if err != nil || len(list.Contents) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	if countLog(hook, "correct-horse") > 0 || countLog(hook, "backups, which have everything, go there unencrypted") != 1 {
		t.Error("not what should be logged")
	}
}

// TestBackupsOfCluster: the leader makes them, and the next one goes on.
func TestBackupsOfCluster(t *testing.T) {
	t.Parallel()
	dir, place := shortDir(t), t.TempDir()
	var nodes []clusterNode
	hooks := make(map[*Server]*test.Hook)
	for i := range 3 {
		cfg := nodeConfig(dir, i, ClusterStateNew, 0, 1, 2)
		cfg.Backup = everySecond
		cfg.Backup.Dir = place
		s, hook := start(t, cfg)
		nodes = append(nodes, clusterNode{s, clientOf(t, s)})
		hooks[s] = hook
	}
	leader, follower := leaderAmong(t, nodes)
	putSome(t, leader.client, "a")
	awaitLog(t, hooks[leader.Server], "backup done", 2)
	if countLog(hooks[follower.Server], "backup done") > 0 {
		t.Error("a follower makes backups")
	}
	if err := leader.Close(); err != nil {
		t.Error(err)
	}
	before, _ := backupsIn(t, place)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for ctx.Err() == nil {
		if found, _ := backupsIn(t, place); !slices.Contains(found, before[0]) && len(found) == 2 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("nobody goes on")
}

func TestBackupConfig(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		backup    BackupConfig
		datastore string
		want      string
	}{
		{BackupConfig{Dir: "/backup"}, "", "without --snapshot-schedule"},
		{BackupConfig{Retention: "30d"}, "", "without --snapshot-schedule"},
		{BackupConfig{S3Region: "eu"}, "", "without --snapshot-schedule"},
		{BackupConfig{Schedule: "daily"}, "", "--snapshot-schedule: \"daily\""},
		{BackupConfig{Schedule: "@daily", Retention: "a week"}, "", "--snapshot-retention: \"a week\""},
		{BackupConfig{Schedule: "@daily", Dir: "s3://"}, "", "write s3://bucket/prefix"},
		{BackupConfig{Schedule: "@daily", Dir: "ftp://x"}, "", "use a directory or s3://"},
		{BackupConfig{Schedule: "@daily", Dir: "/backup", S3Endpoint: "https://x"}, "", "without --snapshot-dir=s3://"},
		{BackupConfig{Schedule: "@daily"}, "postgres://u@h/d", "needs --snapshot-dir"},
	} {
		err := Config{DataDir: t.TempDir(), Datastore: tt.datastore, Backup: tt.backup}.Validate()
		if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v", tt.backup, err)
		}
	}
	for _, b := range []BackupConfig{{Schedule: "CRON_TZ=UTC 0 3 * * *", Retention: "30d"}, {Schedule: "@daily", Dir: "s3://bucket/x", S3Endpoint: "https://h:9000", S3PathStyle: true}} {
		if err := (Config{DataDir: t.TempDir(), Backup: b}).Validate(); err != nil {
			t.Errorf("%+v: %v", b, err)
		}
	}
}
