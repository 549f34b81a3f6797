package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keelson-io/keelson/pkg/drivers/postgres"
	"github.com/keelson-io/keelson/pkg/drivers/postgres/pgtest"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

// load loads a log and returns its head and records.
func load(t testing.TB, log *postgres.Log) (eventlog.Head, []eventlog.Record) {
	t.Helper()
	var records []eventlog.Record
	head, err := log.Load(context.Background(), func(r *eventlog.Record) error {
		records = append(records, *r)
		return nil
	})
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	return head, records
}

// opened opens a log and loads it; it is closed at the end of the test.
func opened(t testing.TB, name string, params ...string) *postgres.Log {
	t.Helper()
	log := openLog(t, name, params...)
	t.Cleanup(func() {
		if err := log.Close(); err != nil && !errors.Is(err, eventlog.ErrClosed) {
			t.Errorf("Close: %v", err)
		}
	})
	load(t, log)
	return log
}

// put makes a batch of one put that follows head.
func put(head eventlog.Head, key string) eventlog.Batch {
	return eventlog.Batch{ID: eventlog.NewBatchID(), Base: head.Position, Records: []eventlog.Record{{
		Seq: head.Seq + 1, Position: head.Position + 1, Kind: eventlog.KindPut,
		Revision: eventlog.Revision{Main: head.Revision + 1}, Key: []byte(key), Value: []byte("value"), CreateRevision: 1, Version: 1,
	}}}
}

// appendPut appends one put after head, which it moves on.
func appendPut(t testing.TB, log *postgres.Log, head *eventlog.Head, key string) {
	t.Helper()
	b := put(*head, key)
	if err := log.Append(context.Background(), &b); err != nil {
		t.Fatalf("Append at %d: %v", b.Base, err)
	}
	*head = eventlog.Head{Position: head.Position + 1, Seq: head.Seq + 1, Revision: head.Revision + 1}
}

// TestRace has several instances append at once: each batch is there once,
// and positions, seqs and revisions are dense.
func TestRace(t *testing.T) {
	const instances, each = 4, 25
	var wg sync.WaitGroup
	for i := range instances {
		log := opened(t, t.Name())
		wg.Go(func() {
			head := eventlog.Head{}
			for n := 0; n < each; {
				b := put(head, fmt.Sprintf("%d/%d", i, n))
				err := log.Append(context.Background(), &b)
				if err == nil {
					n++
				} else if !errors.Is(err, eventlog.ErrStale) {
					t.Errorf("Append: %v", err)
					return
				}
				tail, err := log.Tail(context.Background(), head.Position, 1000)
				if err != nil {
					t.Errorf("Tail: %v", err)
					return
				}
				records := int64(len(tail)) // of one record each
				head = eventlog.Head{Position: head.Position + eventlog.Position(records), Seq: head.Seq + records, Revision: head.Revision + records}
			}
		})
	}
	wg.Wait()
	log := openLog(t, t.Name())
	defer log.Close()
	head, records := load(t, log)
	if want := int64(instances * each); head.Seq != want || int64(head.Position) != want || head.Revision != want {
		t.Fatalf("the head is %+v, want %d each", head, want)
	}
	seen := make(map[string]bool)
	for i, r := range records {
		if seen[string(r.Key)] || r.Seq != int64(i+1) {
			t.Errorf("record %d is %+v", i, r)
		}
		seen[string(r.Key)] = true
	}
}

// holdHead locks the head row, as an Append that takes long does.
func holdHead(t *testing.T, name string) (release func()) {
	t.Helper()
	c, err := pgx.Connect(context.Background(), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(context.Background(), "BEGIN; SELECT FROM "+schema(name)+".head FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	return func() { _ = c.Close(context.Background()) }
}

// TestTerminated cuts Append off in the middle.
func TestTerminated(t *testing.T) {
	log := opened(t, t.Name())
	head := eventlog.Head{}
	appendPut(t, log, &head, "a")
	release := holdHead(t, t.Name())
	defer release()
	b := put(head, "b")
	result := make(chan error, 1)
	go func() { result <- log.Append(context.Background(), &b) }()
	terminate(t, t.Name())
	if err := <-result; !errors.Is(err, eventlog.ErrUnknown) || !strings.Contains(err.Error(), "57P01") {
		t.Fatalf("Append that was cut off: %v, want ErrUnknown with the reason", err)
	}
	release()
	if tail, err := log.Tail(context.Background(), head.Position, 1); err != nil || len(tail) != 0 {
		t.Fatalf("Tail: %d batches, %v, want none", len(tail), err)
	}
	appendPut(t, log, &head, "b")
}

// terminate ends the connection that waits for the head row, once there is
// one.
func terminate(t *testing.T, name string) {
	t.Helper()
	c, err := pgx.Connect(context.Background(), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		tag, err := c.Exec(context.Background(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE wait_event_type = 'Lock' AND query LIKE '%'||$1||'%'`, schema(name))
		if err != nil {
			t.Fatal(err)
		}
		if tag.RowsAffected() > 0 {
			return
		}
	}
	t.Fatal("nobody waits for the head row")
}

// TestTimeout: a database that does not answer is not waited for without end,
// and what was sent to it does not take effect later.
func TestTimeout(t *testing.T) {
	opened(t, t.Name()) // makes the schema
	log, err := postgres.Open(context.Background(), postgres.Options{URL: url(t, t.Name()), Timeout: time.Second, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	load(t, log)
	release := holdHead(t, t.Name())
	b := put(eventlog.Head{}, "a")
	start := time.Now()
	if err := log.Append(context.Background(), &b); !errors.Is(err, eventlog.ErrUnknown) {
		t.Fatalf("Append: %v, want ErrUnknown", err)
	}
	if _, err := log.Tail(context.Background(), 0, 1); !errors.Is(err, postgres.ErrUnavailable) {
		t.Fatalf("Tail, which must wait for that: %v, want ErrUnavailable", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("that took %v", took)
	}
	release()
	tail, err := log.Tail(context.Background(), 0, 1)
	for errors.Is(err, postgres.ErrUnavailable) {
		tail, err = log.Tail(context.Background(), 0, 1)
	}
	if err != nil || len(tail) != 0 {
		t.Fatalf("Tail: %d batches, %v, want none", len(tail), err)
	}
}

// TestLateAppend: once Tail has said that a batch is not there, it never will
// be, even if its statement reaches the server only then; and other instances
// are not disturbed.
func TestLateAppend(t *testing.T) {
	log, other := opened(t, t.Name()), opened(t, t.Name())
	head := eventlog.Head{}
	late := put(head, "late")
	deliver, err := log.DelayAppend(&late)
	if err != nil {
		t.Fatal(err)
	}
	if tail, err := log.Tail(context.Background(), 0, 1); err != nil || len(tail) != 0 {
		t.Fatalf("Tail: %d batches, %v, want none", len(tail), err)
	}
	if appended, err := deliver(); err != nil || appended {
		t.Fatalf("the late statement: %v, %v, want it to do nothing", appended, err)
	}
	appendPut(t, other, &head, "other")
	if err := log.Append(context.Background(), &late); !errors.Is(err, eventlog.ErrStale) {
		t.Fatalf("Append behind another instance: %v, want ErrStale", err)
	}
	appendPut(t, log, &head, "log")
}

// TestInTimeAppend: one that arrives before Tail asks is there.
func TestInTimeAppend(t *testing.T) {
	log := opened(t, t.Name())
	b := put(eventlog.Head{}, "a")
	deliver, err := log.DelayAppend(&b)
	if err != nil {
		t.Fatal(err)
	}
	if appended, err := deliver(); err != nil || !appended {
		t.Fatalf("the statement: %v, %v, want it to append", appended, err)
	}
	tail, err := log.Tail(context.Background(), 0, 1)
	if err != nil || len(tail) != 1 || tail[0].ID != b.ID {
		t.Fatalf("Tail: %d batches, %v, want the one", len(tail), err)
	}
}

// TestRestart: a call waits for a server that is away; if that takes long it
// fails, and the next one finds the server again.
func TestRestart(t *testing.T) {
	opened(t, t.Name())
	log := impatient(t)
	head := eventlog.Head{}
	appendPut(t, log, &head, "a")
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	b := put(head, "b")
	if _, err := log.Head(context.Background()); !errors.Is(err, postgres.ErrUnavailable) {
		t.Errorf("Head: %v, want ErrUnavailable", err)
	}
	if err := log.Append(context.Background(), &b); !errors.Is(err, postgres.ErrUnavailable) || errors.Is(err, eventlog.ErrUnknown) {
		t.Errorf("Append that could not be sent: %v, want ErrUnavailable and nothing of ErrUnknown", err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	got, err := log.Head(context.Background())
	for errors.Is(err, postgres.ErrUnavailable) {
		got, err = log.Head(context.Background())
	}
	if err != nil || got != 1 {
		t.Fatalf("Head after the start: %d, %v", got, err)
	}
	appendPut(t, log, &head, "b")
}

// TestReadOnly: a primary that becomes read-only is neither read from nor
// given up.
func TestReadOnly(t *testing.T) {
	opened(t, t.Name())
	log := impatient(t)
	head := eventlog.Head{}
	appendPut(t, log, &head, "a")
	const cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'keelson'"
	execSQL(t, "ALTER DATABASE postgres SET default_transaction_read_only = on")
	execSQL(t, cut)
	b := put(head, "b")
	if _, err := log.Head(context.Background()); !errors.Is(err, postgres.ErrUnavailable) {
		t.Errorf("Head: %v, want ErrUnavailable", err)
	}
	if err := log.Append(context.Background(), &b); !errors.Is(err, postgres.ErrUnavailable) {
		t.Errorf("Append: %v, want ErrUnavailable", err)
	}
	execSQL(t, "BEGIN READ WRITE; ALTER DATABASE postgres RESET default_transaction_read_only; COMMIT")
	appendPut(t, log, &head, "b")
}

// fallBack lets the database forget what came after position, as a failover
// to a standby that was behind does.
func fallBack(t *testing.T, name string, position eventlog.Position) {
	t.Helper()
	s := schema(name)
	execSQL(t, fmt.Sprintf(`DELETE FROM %[1]s.log WHERE position > %[2]d;
		UPDATE %[1]s.head SET position = %[2]d, seq = %[2]d, revision = %[2]d,
			batch = (SELECT substr(batch, 1, 16) FROM %[1]s.log WHERE position = %[2]d)`, s, position))
}

// TestLost: an instance that has seen what the database has forgotten stops,
// and from then on revisions are beyond all that it has seen.
func TestLost(t *testing.T) {
	for name, notice := range map[string]func(*postgres.Log) error{
		"Head": func(log *postgres.Log) error {
			_, err := log.Head(context.Background())
			return err
		},
		"Append": func(log *postgres.Log) error {
			b := put(eventlog.Head{Position: 5, Seq: 5, Revision: 5}, "z")
			return log.Append(context.Background(), &b)
		},
	} {
		t.Run(name, func(t *testing.T) { testLost(t, notice) })
	}
	t.Run("overwritten", func(t *testing.T) {
		testLost(t, func(log *postgres.Log) error {
			other, head := opened(t, t.Name()), eventlog.Head{Position: 3, Seq: 3, Revision: 3}
			for range 3 { // the last one is at a position that log has not seen
				appendPut(t, other, &head, "other")
			}
			if _, err := log.Head(context.Background()); err != nil {
				return err
			}
			_, err := log.Tail(context.Background(), 5, 10)
			return err
		})
	})
	t.Run("overwritten, by Values", func(t *testing.T) {
		testLost(t, func(log *postgres.Log) error {
			other, head := opened(t, t.Name()), eventlog.Head{Position: 3, Seq: 3, Revision: 3}
			for range 3 {
				appendPut(t, other, &head, "other")
			}
			values, err := log.Values(context.Background(), []int64{5, 1})
			if err == nil {
				t.Errorf("Values of another past: %q", values)
			}
			return err
		})
	})
	t.Run("overwritten in place", func(t *testing.T) {
		testLost(t, func(log *postgres.Log) error {
			other, head := opened(t, t.Name()), eventlog.Head{Position: 3, Seq: 3, Revision: 3}
			for range 2 {
				appendPut(t, other, &head, "other")
			}
			_, err := log.Head(context.Background())
			return err
		})
	})
}

func testLost(t *testing.T, notice func(*postgres.Log) error) {
	log, behind := opened(t, t.Name()), opened(t, t.Name())
	head := eventlog.Head{}
	for range 5 {
		appendPut(t, log, &head, "a")
	}
	fallBack(t, t.Name(), 3)
	if err := notice(log); !errors.Is(err, postgres.ErrLost) || !errors.Is(err, eventlog.ErrFailed) {
		t.Fatalf("after commits were lost: %v, want ErrLost, which is ErrFailed", err)
	}
	select {
	case <-log.Failed():
	default:
		t.Error("Failed is not closed")
	}
	if _, err := behind.Head(context.Background()); !errors.Is(err, postgres.ErrLost) {
		t.Errorf("another instance: %v, want ErrLost", err)
	}

	log = openLog(t, t.Name())
	defer log.Close()
	after, records := load(t, log)
	mark := records[len(records)-1]
	if after.Revision <= head.Revision+1000 || mark.Kind != eventlog.KindCompact || mark.Revision.Main != after.Revision {
		t.Fatalf("the head is %+v and the last record %+v; want a compaction at a revision far beyond %d", after, mark, head.Revision)
	}
	appendPut(t, log, &after, "b")
}

// TestCompactWaits: what another instance has not read is not deleted, as
// long as that one is there.
func TestCompactWaits(t *testing.T) {
	log, other := opened(t, t.Name()), opened(t, t.Name())
	head := eventlog.Head{}
	appendPut(t, log, &head, "a")
	appendPut(t, log, &head, "a")
	b := put(head, "")
	b.Records[0] = eventlog.Record{Seq: 3, Position: 3, Kind: eventlog.KindCompact, Revision: eventlog.Revision{Main: 2}}
	if err := log.Append(context.Background(), &b); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	if err := log.Compact(ctx, []int64{1}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Compact of what another has not read: %v, want it to wait", err)
	}
	if tail, err := other.Tail(context.Background(), 0, 10); err != nil || len(tail) != 3 {
		t.Fatalf("Tail: %d batches, %v, want 3", len(tail), err)
	}
	if err := other.Report(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := log.Compact(context.Background(), []int64{1}); err != nil {
		t.Fatalf("Compact: %v", err)
	}
	if took := time.Since(start); took > postgres.ReaderTerm/2 {
		t.Errorf("Compact took %v", took)
	}
	if _, err := log.Values(context.Background(), []int64{1}); !errors.Is(err, eventlog.ErrCompacted) {
		t.Errorf("Values: %v, want ErrCompacted", err)
	}
}

// TestManyLargeValues: values that are too much for one answer come in several.
func TestManyLargeValues(t *testing.T) {
	const n, size = 25, 1 << 20
	log := opened(t, t.Name())
	head, seqs := eventlog.Head{}, []int64(nil)
	for i := range n {
		b := put(head, "k")
		b.Records[0].Value = []byte(strings.Repeat(string(rune('a'+i)), size))
		if err := log.Append(context.Background(), &b); err != nil {
			t.Fatal(err)
		}
		head = eventlog.Head{Position: head.Position + 1, Seq: head.Seq + 1, Revision: head.Revision + 1}
		seqs = append([]int64{head.Seq}, seqs...)
	}
	values, err := log.Values(context.Background(), seqs)
	if err != nil {
		t.Fatal(err)
	}
	for i, value := range values {
		if want := byte('a' + n - 1 - i); len(value) != size || value[0] != want {
			t.Errorf("value %d has %d bytes and begins with %q, want %d and %q", i, len(value), value[:1], size, want)
		}
	}
	if _, err := log.Values(context.Background(), append(seqs, head.Seq+1)); !errors.Is(err, eventlog.ErrCompacted) {
		t.Errorf("Values with one that is not there: %v, want ErrCompacted", err)
	}
	var got int
	for after := eventlog.Position(0); after < head.Position; after = eventlog.Position(got) {
		tail, err := log.Tail(context.Background(), after, 1000)
		if err != nil || len(tail) == 0 {
			t.Fatalf("Tail(%d): %d batches, %v", after, len(tail), err)
		}
		got += len(tail)
	}
}

// TestModes: every way of sending queries works, for poolers need some.
func TestModes(t *testing.T) {
	for _, mode := range []string{"cache_describe", "describe_exec", "exec", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			log := opened(t, t.Name(), "default_query_exec_mode="+mode)
			head := eventlog.Head{}
			appendPut(t, log, &head, "a\x00\xff'\"\\")
			appendPut(t, log, &head, "b")
			b := put(head, "")
			b.Records[0] = eventlog.Record{Seq: 3, Position: 3, Kind: eventlog.KindCompact, Revision: eventlog.Revision{Main: 2}}
			if err := log.Append(context.Background(), &b); err != nil {
				t.Fatal(err)
			}
			tail, err := log.Tail(context.Background(), 0, 10)
			if err != nil || len(tail) != 3 || string(tail[0].Records[0].Key) != "a\x00\xff'\"\\" {
				t.Fatalf("Tail: %v, %v", tail, err)
			}
			values, err := log.Values(context.Background(), []int64{2, 1})
			if err != nil || string(values[0]) != "value" {
				t.Fatalf("Values: %q, %v", values, err)
			}
			if err := log.Compact(context.Background(), []int64{1}); err != nil {
				t.Fatal(err)
			}
			if err := log.Defragment(context.Background()); err != nil {
				t.Fatal(err)
			}
			if ok, err := log.RenewLease(context.Background(), 7, time.Minute); err != nil || !ok {
				t.Fatalf("RenewLease: %v, %v", ok, err)
			}
			if held, err := log.Claim(); err != nil || !held {
				t.Fatalf("Claim: %v, %v", held, err)
			}
			if ok, err := log.RenewLease(context.Background(), 7, time.Minute); err != nil || !ok {
				t.Fatalf("RenewLease: %v, %v", ok, err)
			}
			if left, err := log.ExpireLeases(context.Background(), []int64{7, 8}); err != nil || len(left) != 1 || left[7] < 50*time.Second {
				t.Fatalf("ExpireLeases: %v, %v, want 7 to have a minute", left, err)
			}
			if ok, err := log.RenewLease(context.Background(), 8, time.Minute); err != nil || ok {
				t.Fatalf("RenewLease of one that has expired: %v, %v", ok, err)
			}
		})
	}
}

// TestRights: a role that may neither create nor own anything can run keelson
// once its tables are there.
func TestRights(t *testing.T) {
	opened(t, t.Name())
	s := schema(t.Name())
	execSQL(t, fmt.Sprintf(`DROP ROLE IF EXISTS modest; CREATE ROLE modest LOGIN PASSWORD '%[2]s'; GRANT USAGE ON SCHEMA %[1]s TO modest;
		GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %[1]s TO modest`, s, pgtest.Password))
	raw := strings.Replace(url(t, t.Name()), pgtest.User+":", "modest:", 1)
	log, err := postgres.Open(context.Background(), postgres.Options{URL: raw, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	load(t, log)
	head := eventlog.Head{}
	appendPut(t, log, &head, "a")
	if size := log.Size(); size.Total == 0 {
		t.Errorf("Size: %+v", size)
	}
	if _, err := postgres.Open(context.Background(), postgres.Options{URL: raw + "x", Logger: quiet()}); err == nil || strings.Contains(err.Error(), pgtest.Password) {
		t.Errorf("a schema that cannot be made: %v", err)
	}
}

// TestRefused: what Open does not take.
func TestRefused(t *testing.T) {
	opened(t, t.Name())
	execSQL(t, "UPDATE "+schema(t.Name())+".version SET version = 99")
	execSQL(t, "DROP ROLE IF EXISTS hasty; CREATE ROLE hasty LOGIN SUPERUSER PASSWORD '"+pgtest.Password+"'; ALTER ROLE hasty SET synchronous_commit = off")
	good := url(t, "refused")
	for name, tt := range map[string]struct {
		url  string
		want error
	}{
		"newer":          {url(t, t.Name()), postgres.ErrNewer},
		"not durable":    {strings.Replace(good, pgtest.User+":", "hasty:", 1), postgres.ErrNotDurable},
		"scheme":         {"mysql://u:" + pgtest.Password + "@h/d", postgres.ErrURL},
		"port":           {"postgres://u:" + pgtest.Password + "@h:x/d", postgres.ErrURL},
		"parameter":      {"postgres://u:" + pgtest.Password + "@h/d?sslmode=" + pgtest.Password, postgres.ErrURL},
		"schema":         {"postgres://u:" + pgtest.Password + "@h/d?schema=a.b", postgres.ErrURL},
		"wrong password": {strings.Replace(good, pgtest.Password, "secret", 1), nil},
	} {
		_, err := postgres.Open(context.Background(), postgres.Options{URL: tt.url, Timeout: time.Second, Logger: quiet()})
		if tt.want != nil && !errors.Is(err, tt.want) || err == nil {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
		if err != nil && (strings.Contains(err.Error(), pgtest.Password) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%s: %v shows the password", name, err)
		}
	}
}

// TestNotifyQueueFull: where the queue of notifications is full, batches are
// appended without them, and other instances find them by polling.
func TestNotifyQueueFull(t *testing.T) {
	// As with the real one, the commit is what fails.
	url(t, t.Name())
	s := schema(t.Name())
	execSQL(t, strings.ReplaceAll(`CREATE SCHEMA THIS; CREATE TABLE THIS.notified (payload text);
		CREATE FUNCTION THIS.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			RAISE EXCEPTION 'too many notifications in the NOTIFY queue' USING ERRCODE = '54000';
		END $$;
		CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON THIS.notified DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW EXECUTE FUNCTION THIS.refuse();
		CREATE FUNCTION THIS.pg_notify(text, text) RETURNS void LANGUAGE sql VOLATILE AS 'INSERT INTO THIS.notified VALUES ($2)'`, "THIS", s))
	log, other := opened(t, t.Name(), "search_path="+s+",pg_catalog"), opened(t, t.Name())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	told, done := make(chan eventlog.Position, 1000), make(chan error, 1)
	go func() { done <- other.Follow(ctx, func(p eventlog.Position) { told <- p }) }()
	head := eventlog.Head{}
	appendPut(t, log, &head, "a")
	appendPut(t, log, &head, "b")
	for p := range told {
		if p == head.Position {
			break
		}
	}
	if stats := log.Stats(); stats.Unnotified != 2 {
		t.Errorf("%d batches were appended without a notification, want 2", stats.Unnotified)
	}
	b := put(head, "")
	b.Records[0] = eventlog.Record{Seq: 3, Position: 3, Kind: eventlog.KindCompact, Revision: eventlog.Revision{Main: 2}}
	if err := log.Append(ctx, &b); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Tail(ctx, 0, 10); err != nil {
		t.Fatal(err)
	}
	if err := log.Compact(ctx, []int64{1}); err != nil { // asks others to report
		t.Errorf("Compact: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Follow: %v", err)
	}
}
