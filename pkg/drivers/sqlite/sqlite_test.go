package sqlite_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/eventlog/logtest"
)

func openLog(t testing.TB, dir string) *sqlite.Log {
	t.Helper()
	log, err := sqlite.Open(context.Background(), sqlite.Options{Dir: dir})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return log
}

func TestLog(t *testing.T) {
	t.Parallel()
	logtest.Run(t, logtest.Harness{
		Open: func(t testing.TB, dir string) eventlog.Log { return openLog(t, dir) },
		FailAppend: func(_ testing.TB, log eventlog.Log, persisted bool) {
			log.(*sqlite.Log).FailAppend(persisted)
		},
		Corrupt: corruptValue,
	})
}

// corruptValue flips a bit in the value of record seq, which it finds by
// asking for it.
func corruptValue(t testing.TB, dir string, seq int64) {
	t.Helper()
	log := openLog(t, dir)
	values, err := log.Values(context.Background(), []int64{seq})
	if err != nil {
		t.Fatalf("Values: %v", err)
	}
	if err := log.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	flip(t, dir, values[0])
}

// flip flips a bit in the middle of what, wherever in the database it stands.
func flip(t testing.TB, dir string, what []byte) {
	t.Helper()
	path := filepath.Join(dir, sqlite.FileName)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(raw, what)
	if at < 0 {
		t.Fatalf("%d bytes are not found in the database", len(what))
	}
	raw[at+len(what)/2] ^= 0x10
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}
