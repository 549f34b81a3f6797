package pgtest_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/keelson-io/keelson/pkg/drivers/postgres/pgtest"
)

// TestRestart: what was committed survives kill -9 and a stop.
func TestRestart(t *testing.T) {
	s := pgtest.ForTest(t)
	exec := func(sql string) (n int) {
		t.Helper()
		c, err := pgx.Connect(context.Background(), s.URL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close(context.Background())
		if err := c.QueryRow(context.Background(), sql).Scan(&n); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		return n
	}
	c, err := pgx.Connect(context.Background(), s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(context.Background(), "CREATE TABLE t AS SELECT 7 AS n"); err != nil {
		t.Fatal(err)
	}
	for name, end := range map[string]func() error{"Kill": s.Kill, "Stop": s.Stop} {
		if err := end(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := pgx.Connect(context.Background(), s.URL("postgres")); err == nil {
			t.Fatalf("the server answers after %s", name)
		}
		if err := s.Start(); err != nil {
			t.Fatalf("Start after %s: %v", name, err)
		}
		if n := exec("SELECT n FROM t"); n != 7 {
			t.Fatalf("after %s: %d, want 7", name, n)
		}
	}
}
