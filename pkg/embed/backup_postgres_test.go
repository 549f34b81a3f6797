package embed_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logrustest "github.com/sirupsen/logrus/hooks/test"

	"github.com/keelson-io/keelson/pkg/drivers/postgres/pgtest"
	"github.com/keelson-io/keelson/pkg/embed"
)

// TestBackupsOfInstances: of several on one PostgreSQL one makes them.
func TestBackupsOfInstances(t *testing.T) {
	t.Parallel()
	db := pgtest.ForTest(t)
	place := t.TempDir()
	done := make(map[string]*logrustest.Hook)
	count := func(name string) (n int) {
		for _, e := range done[name].AllEntries() {
			if e.Message == "backup done" {
				n++
			}
		}
		return n
	}
	for _, name := range []string{"a", "b"} {
		logger, hook := logrustest.NewNullLogger()
		s, err := embed.Start(t.Context(), embed.Config{
			Name: name, DataDir: t.TempDir(), Datastore: db.URL("postgres"), ListenClientURLs: []string{"http://127.0.0.1:0"},
			Backup: embed.BackupConfig{Schedule: "@every 1s", Dir: place, Retention: "0"}, Logger: logrus.NewEntry(logger),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		done[name] = hook
	}
	for end := time.Now().Add(20 * time.Second); count("a")+count("b") < 3; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no backups are made")
		}
	}
	if count("a") > 0 && count("b") > 0 {
		t.Error("both make backups")
	}
	if entries, err := os.ReadDir(place); err != nil || len(entries) < 3 {
		t.Errorf("%v, %v", entries, err)
	}
}

// TestBackupsWhileDatabaseIsDown: they fail, and are made once it is back.
func TestBackupsWhileDatabaseIsDown(t *testing.T) {
	t.Parallel()
	db := pgtest.ForTest(t)
	logger, hook := logrustest.NewNullLogger()
	s, err := embed.Start(t.Context(), embed.Config{
		DataDir: t.TempDir(), Datastore: db.URL("postgres"), ListenClientURLs: []string{"http://127.0.0.1:0"},
		Backup: embed.BackupConfig{Schedule: "@every 1s", Dir: t.TempDir(), Retention: "0"}, Logger: logrus.NewEntry(logger),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	await := func(message, reason string, after int) int {
		t.Helper()
		for end := time.Now().Add(40 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			for i, e := range hook.AllEntries() {
				if err, _ := e.Data[logrus.ErrorKey].(error); i >= after && strings.HasPrefix(e.Message, message) && (reason == "" || err != nil && err.Error() == reason) {
					return i
				}
			}
		}
		t.Fatalf("nothing says %q", message)
		return 0
	}
	await("backup done", "", 0)
	if err := db.Kill(); err != nil {
		t.Fatal(err)
	}
	down := await("backup failed", "the database does not answer", 0)
	if err := db.Start(); err != nil {
		t.Fatal(err)
	}
	await("backup done", "", down)
}
