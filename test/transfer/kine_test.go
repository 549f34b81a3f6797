package transfer

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelson-io/keelson/test/harness"
)

// TestKine: what a keelson says after an import is what kine said, for random
// histories: lists at each revision, what watchers from old revisions are told,
// leases; and clients go on with the revisions they know.
func TestKine(t *testing.T) {
	for seed := range uint64(rounds(t)) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			k := startKine(t, "", "")
			w, want := fill(t, k, seed)
			if seed == 0 {
				fails(t, "kine is running: process "+fmt.Sprint(k.PID()), "import", "--from", k.dir, "--dry-run")
			}
			// Killed, it leaves a write-ahead log; stopped, none.
			if seed%2 == 0 {
				k.Kill()
			} else {
				check(t, k.Stop())
			}
			before := contents(t, filepath.Join(k.dir, "db"))
			w.moves(k.dir, want)
			if after := contents(t, filepath.Join(k.dir, "db")); after != before {
				t.Error("kine's files were changed")
			}
		})
	}
}

// TestKineOnServers is TestKine for the databases that kine reaches by a URL.
func TestKineOnServers(t *testing.T) {
	for name, start := range map[string]func(*testing.T) string{"postgres": startPostgres, "mysql": startMariaDB} {
		t.Run(name, func(t *testing.T) {
			url := start(t)
			k := startKine(t, "", url)
			w, want := fill(t, k, 3)
			t.Setenv("MYSQL_PWD", password)
			place := "kine:" + strings.Replace(url, ":"+password, "", 1)
			fails(t, "kine is running: ", "import", "--from", place, "--dry-run")
			if said := keelson(t, "import", "--from", place, "--dry-run", "--while-running"); !strings.Contains(said, fmt.Sprint("revision ", want.revision)) {
				t.Errorf("while kine runs: %s", said)
			}
			check(t, k.Stop())
			w.moves(place, want)
		})
	}
}

// TestKinePasswords: MariaDB's password comes from a variable, and is shown
// nowhere.
func TestKinePasswords(t *testing.T) {
	url := startMariaDB(t)
	k := startKine(t, "", url)
	check(t, k.Stop())
	without := "KEELSON_FROM=" + strings.Replace(url, ":"+password, "", 1)
	if out, err := tryKeelson(t, []string{without, "MYSQL_PWD=" + password}, "import", "--dry-run"); err != nil || strings.Contains(out, password) {
		t.Errorf("with MYSQL_PWD: %v %s", err, out)
	}
	if out, err := tryKeelson(t, []string{without, "MYSQL_PWD=another"}, "import", "--dry-run"); err == nil || strings.Contains(out, "another") || !strings.Contains(out, "Access denied") {
		t.Errorf("with another password: %v %s", err, out)
	}
	if out, err := tryKeelson(t, []string{"KEELSON_FROM=" + url}, "import", "--dry-run"); err != nil || strings.Contains(out, password) {
		t.Errorf("with the password in the URL: %v %s", err, out)
	}
}

// TestKineRefuses: what is in PostgreSQL and is not kine's table, or not all of
// it.
func TestKineRefuses(t *testing.T) {
	p := harness.StartPostgres(t)
	place := func(host string) string { return "kine:postgres://keelson@/postgres?host=" + host }
	dir := filepath.Join(t.TempDir(), "data")
	refuses := func(want string) {
		t.Helper()
		fails(t, want, "import", "--from", place(p.Dir), "--to", dir)
		if _, err := os.Stat(dir); err == nil {
			t.Error("there is a data directory")
		}
	}
	query := func(sql string) {
		t.Helper()
		_, err := p.Query(sql)
		check(t, err)
	}
	refuses(`relation "kine" does not exist`)
	query("CREATE TABLE kine (id BIGINT, name TEXT)")
	refuses("it has no created, deleted, create_revision, prev_revision, lease, value, old_value")
	query("DROP TABLE kine; CREATE TABLE kine (id BIGINT, name TEXT, created INT, deleted INT, create_revision BIGINT, prev_revision BIGINT, lease INT, value BYTEA, old_value BYTEA, compressed BOOL)")
	refuses("too new: keelson does not know its compressed")
	query("ALTER TABLE kine DROP compressed")
	refuses("kine has never run on its table")
	query("INSERT INTO kine VALUES (1, 'compact_rev_key', 1, 0, 0, 0, 0, '', NULL), (1, 'twice', 1, 0, 0, 0, 0, '', NULL)")
	refuses("id 1 follows 1")
	standby := p.StartStandby(t)
	fails(t, "this is a standby", "import", "--from", place(standby.Dir), "--to", dir)
}

func startPostgres(t *testing.T) string {
	return "postgres://keelson@/kine?host=" + harness.StartPostgres(t).Dir
}

// moves imports what is at a place and compares it with what kine has said.
func (w *writer) moves(place string, want expected) {
	w.t.Helper()
	t := w.t
	s := startKeelson(t, func(dir string) {
		counted := keelson(t, "import", "--from", place, "--dry-run")
		keelson(t, "import", "--from", place, "--to", dir)
		if !strings.Contains(counted, fmt.Sprintf("revision %d, compacted %d", want.revision, w.compacted)) {
			t.Errorf("the dry run says %s", counted)
		}
		if said := keelson(t, "verify", place, dir); !strings.HasPrefix(said, "the same: ") {
			t.Errorf("verify says %s", said)
		}
		fails(t, "has data already: nothing was changed; --force replaces it", "import", "--from", place, "--to", dir)
	})
	c := connect(t, s.Endpoint)
	w.same(c, want)
	w.goesOn(c)
}

// rounds is how many histories there are: KEELSON_TRANSFER_ROUNDS, or a few.
func rounds(t *testing.T) int {
	n := 4
	if text := os.Getenv("KEELSON_TRANSFER_ROUNDS"); text != "" {
		if _, err := fmt.Sscan(text, &n); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// fill gives kine a random history, with compactions in the middle of it.
func fill(t *testing.T, k *kine, seed uint64) (*writer, expected) {
	t.Helper()
	w := newWriter(t, k.endpoint, seed)
	for i := range 300 {
		w.step()
		if seed > 0 && i%100 == 50 {
			w.compact()
		}
	}
	return w, w.ask(w.c)
}

// contents is all that is in a directory.
func contents(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	check(t, err)
	var b strings.Builder
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		check(t, err)
		fmt.Fprintf(&b, "%s %s\n", e.Name(), data)
	}
	return b.String()
}
