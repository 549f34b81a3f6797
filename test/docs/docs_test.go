// Package docs runs the commands of the documentation: those of README.md,
// docs/cluster.md and docs/postgres.md, and of docs/migration.md what needs several
// machines, or ends with a server that has the data again. All of docs/migration.md
// is run in package transfer, docs/backup.md in pkg/cmd.
package docs

import (
	"os"
	"testing"

	"github.com/keelson-io/keelson/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func link(t testing.TB, from, to string) {
	t.Helper()
	check(t, os.Link(from, to))
}
