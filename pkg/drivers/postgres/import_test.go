package postgres_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/keelson-io/keelson/pkg/drivers/postgres"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

// tablesOf is how many tables schema name has; -1 if there is no schema.
func tablesOf(t *testing.T, name string) (n int) {
	t.Helper()
	c, err := pgx.Connect(context.Background(), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	if err := c.QueryRow(context.Background(), `SELECT count(c.oid) - (count(n.oid) = 0)::int
		FROM (SELECT oid FROM pg_namespace WHERE nspname = $1) n LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind = 'r'`,
		schema(name)).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestImportLeavesNothing: an import that does not come to its end leaves no
// schema where there was none, and none of its own in one that was empty.
func TestImportLeavesNothing(t *testing.T) {
	ctx := context.Background()
	at := url(t, t.Name())
	record := put(eventlog.Head{}, "key")
	begin := func() *postgres.Importer {
		im, err := postgres.NewImporter(ctx, postgres.ImportOptions{URL: at, Logger: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		if err := im.Add(ctx, &record.Records[0], &record.ID); err != nil {
			t.Fatal(err)
		}
		return im
	}
	for _, want := range []int{-1, 0} {
		if want == 0 {
			execSQL(t, "CREATE SCHEMA "+schema(t.Name()))
		}
		if err := begin().Abort(); err != nil {
			t.Fatal(err)
		}
		if n := tablesOf(t, t.Name()); n != want {
			t.Errorf("%d tables after an import that was given up, want %d", n, want)
		}
		canceled, cancel := context.WithCancel(ctx)
		cancel()
		if err := begin().Finish(canceled, eventlog.Head{Position: 1, Seq: 1, Revision: 1}); !errors.Is(err, context.Canceled) {
			t.Fatalf("Finish: %v", err)
		}
		if n := tablesOf(t, t.Name()); n != want {
			t.Errorf("%d tables after an import that failed, want %d", n, want)
		}
	}

	// One that begins meanwhile waits, and sees what the first has made.
	im := begin()
	second := make(chan error, 1)
	go func() {
		_, err := postgres.NewImporter(ctx, postgres.ImportOptions{URL: at, Logger: quiet()})
		second <- err
	}()
	if err := im.Finish(ctx, eventlog.Head{Position: 1, Seq: 1, Revision: 1}); err != nil {
		t.Fatal(err)
	}
	if err := <-second; !errors.Is(err, postgres.ErrExists) {
		t.Errorf("the second import: %v", err)
	}
	if head, records := load(t, opened(t, t.Name())); head.Position != 1 || len(records) != 1 {
		t.Errorf("%+v, %d records", head, len(records))
	}
}
