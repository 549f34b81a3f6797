package postgres_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keelson-io/keelson/pkg/drivers/postgres"
	"github.com/keelson-io/keelson/pkg/drivers/postgres/pgtest"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

// impatient opens and loads a log that waits for less long, but for longer than
// a busy machine takes.
func impatient(t *testing.T, params ...string) *postgres.Log {
	t.Helper()
	log, err := postgres.Open(context.Background(), postgres.Options{
		URL: url(t, t.Name(), params...), Timeout: 3 * time.Second, Logger: quiet(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	load(t, log)
	return log
}

// TestDiskFull: on a full disk appends fail in a bounded time, and it is known
// that nothing was appended; reads go on; and once there is room so do
// appends.
func TestDiskFull(t *testing.T) {
	url(t, t.Name()) // skips without a server
	dir, err := os.MkdirTemp("", "keelson-disk-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	mount := func(args ...string) error { return exec.Command("mount", append(args, dir)...).Run() }
	if err := mount("-t", "tmpfs", "-o", "size=8m", "none"); err != nil {
		t.Skipf("only root may mount a file system: %v", err)
	}
	t.Cleanup(func() {
		if err := exec.Command("umount", dir).Run(); err != nil {
			t.Error(err)
		}
	})
	if err := server.Own(dir); err != nil {
		t.Fatal(err)
	}
	execSQL(t, "CREATE TABLESPACE tiny LOCATION '"+dir+"'")
	t.Cleanup(func() {
		execSQL(t, "DROP SCHEMA IF EXISTS "+schema(t.Name())+" CASCADE")
		execSQL(t, "DROP TABLESPACE tiny")
	})
	log := impatient(t, "default_tablespace=tiny")
	head := eventlog.Head{}
	var seqs []int64
	for err = nil; err == nil && head.Seq < 100; {
		b := put(head, "k")
		b.Records[0].Value = incompressible(256 << 10)
		if err = log.Append(context.Background(), &b); err == nil {
			head = eventlog.Head{Position: head.Position + 1, Seq: head.Seq + 1, Revision: head.Revision + 1}
			seqs = append(seqs, head.Seq)
		}
	}
	if !errors.Is(err, postgres.ErrUnavailable) || errors.Is(err, eventlog.ErrUnknown) || !strings.Contains(err.Error(), "53100") {
		t.Fatalf("Append %d: %v, want ErrUnavailable with the reason", head.Seq, err)
	}
	if got, err := log.Head(context.Background()); err != nil || got != head.Position {
		t.Errorf("Head: %d, %v, want %d", got, err, head.Position)
	}
	if values, err := log.Values(context.Background(), seqs); err != nil || len(values) != len(seqs) {
		t.Errorf("Values: %d, %v", len(values), err)
	}
	if err := log.Err(); err != nil {
		t.Error(err)
	}
	if err := mount("-o", "remount,size=64m"); err != nil {
		t.Fatal(err)
	}
	appendPut(t, log, &head, "after")
}

// incompressible returns bytes that the database cannot make smaller.
func incompressible(n int) []byte {
	b := make([]byte, n)
	x := uint64(1)
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return b
}

// TestStatementTimeout: the server's own limit on a statement is a passing
// trouble, and leaves nothing unknown.
func TestStatementTimeout(t *testing.T) {
	log := impatient(t, "statement_timeout=500")
	head := eventlog.Head{}
	appendPut(t, log, &head, "a")
	release := holdHead(t, t.Name())
	b := put(head, "b")
	err := log.Append(context.Background(), &b)
	release()
	if !errors.Is(err, postgres.ErrUnavailable) || errors.Is(err, eventlog.ErrUnknown) || !strings.Contains(err.Error(), "statement timeout") {
		t.Fatalf("Append: %v, want ErrUnavailable with the reason", err)
	}
	appendPut(t, log, &head, "b")
}

// TestTooManyConnections: where the server has no connection left, calls wait
// and then say so; later they find one.
func TestTooManyConnections(t *testing.T) {
	url(t, t.Name())
	s := schema(t.Name())
	execSQL(t, "DROP ROLE IF EXISTS few; CREATE ROLE few LOGIN PASSWORD 'few'; CREATE SCHEMA "+s+" AUTHORIZATION few")
	raw := strings.Replace(url(t, t.Name()), pgtest.User+":"+pgtest.Password+"@", "few:few@", 1)
	log, err := postgres.Open(context.Background(), postgres.Options{URL: raw, Timeout: 3 * time.Second, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	load(t, log)
	execSQL(t, "ALTER ROLE few CONNECTION LIMIT 0; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'few'")
	if _, err := log.Head(context.Background()); !errors.Is(err, postgres.ErrUnavailable) || !strings.Contains(err.Error(), "too many connections") {
		t.Errorf("Head: %v, want ErrUnavailable with the reason", err)
	}
	execSQL(t, "ALTER ROLE few CONNECTION LIMIT 100")
	head := eventlog.Head{}
	appendPut(t, log, &head, "a")
	if stats := log.Stats(); stats.Opened < 2 || stats.MaxConns != 8 || stats.Acquires == 0 {
		t.Errorf("Stats: %+v", stats)
	}
}

// TestLongTransaction: one elsewhere in the database, such as a dump, does not
// keep anything from being written or deleted.
func TestLongTransaction(t *testing.T) {
	log := impatient(t)
	c, err := pgx.Connect(context.Background(), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	if _, err := c.Exec(context.Background(), "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT count(*) FROM "+schema(t.Name())+".log"); err != nil {
		t.Fatal(err)
	}
	head := eventlog.Head{}
	for range 500 {
		appendPut(t, log, &head, "a")
	}
	b := put(head, "")
	b.Records[0] = eventlog.Record{Seq: 501, Position: 501, Kind: eventlog.KindCompact, Revision: eventlog.Revision{Main: 500}}
	if err := log.Append(context.Background(), &b); err != nil {
		t.Fatal(err)
	}
	if err := log.Compact(context.Background(), []int64{1, 2, 3}); err != nil {
		t.Error(err)
	}
}
