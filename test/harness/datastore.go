package harness

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
)

// shared is the PostgreSQL of a test process: each server has a schema of its
// own there.
var shared struct {
	mu sync.Mutex
	// Guarded by mu.
	main     bool // Main will end it
	postgres *Postgres
	err      error // of its start
	schemas  int
}

// Main runs the tests of a package, and ends the PostgreSQL that they shared.
// Each package that starts a keelson calls it from its TestMain.
func Main(m *testing.M) {
	shared.mu.Lock()
	shared.main = true
	shared.mu.Unlock()
	code := m.Run()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.postgres != nil {
		if err := shared.postgres.close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// DatastoreArgs returns the flags that say where a new keelson's data is, by
// KEELSON_TEST_DATASTORE: none for SQLite in its data directory, or a new
// schema of a PostgreSQL that the tests of this process share. With "cluster"
// it is in SQLite too: see inCluster.
func DatastoreArgs(t testing.TB) []string {
	t.Helper()
	switch name := os.Getenv("KEELSON_TEST_DATASTORE"); name {
	case "", "sqlite", "cluster":
		return nil
	case "postgres":
		url, err := newSchema()
		if err != nil {
			t.Fatal(err)
		}
		return []string{"--datastore", url}
	default:
		t.Fatalf("KEELSON_TEST_DATASTORE=%q: it is sqlite, postgres or cluster", name)
		return nil
	}
}

func newSchema() (string, error) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if !shared.main {
		return "", errors.New("harness.Main was not called: its TestMain is missing")
	}
	if shared.postgres == nil && shared.err == nil {
		shared.postgres, shared.err = sharedPostgres()
	}
	if shared.err != nil {
		return "", shared.err
	}
	shared.schemas++
	return shared.postgres.URL(fmt.Sprintf("test_%d", shared.schemas)), nil
}

func sharedPostgres() (*Postgres, error) {
	p, err := newPostgres([]string{"max_connections=300"})
	if err != nil {
		return nil, err
	}
	if err := p.create(); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}
