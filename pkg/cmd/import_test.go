package cmd

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/keelson-io/keelson/pkg/snapshot"
)

// newKine makes a database as k3s leaves it, and returns k3s's directory.
func newKine(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "server", "db", "state.db")
	must(t, os.MkdirAll(filepath.Dir(path), 0o700))
	db, err := sql.Open("sqlite", path)
	must(t, err)
	for _, statement := range []string{
		`CREATE TABLE kine (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, created INTEGER, deleted INTEGER,
			create_revision INTEGER, prev_revision INTEGER, lease INTEGER, value BLOB, old_value BLOB)`,
		`INSERT INTO kine VALUES (1, 'compact_rev_key', 1, 0, 0, 2, 0, '', NULL)`,
		`INSERT INTO kine VALUES (2, 'a', 1, 0, 0, 0, 0, 'one', NULL), (4, 'b', 1, 0, 0, 0, 60, 'two', NULL), (5, 'a', 0, 0, 2, 2, 0, 'three', 'one')`,
	} {
		_, err := db.Exec(statement)
		must(t, err)
	}
	must(t, db.Close())
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// says runs a command that must end with code, and checks what it prints: one
// line.
func says(t *testing.T, code int, want string, args ...string) {
	t.Helper()
	got, stdout, stderr := outcome(t, t.TempDir(), args...)
	if all := stdout + stderr; got != code || !strings.Contains(all, want) || strings.Count(all, "\n") != 1 {
		t.Errorf("keelson %s: exit code %d, want %d and one line with %q\n%s", strings.Join(args, " "), got, code, want, all)
	}
}

// TestMoves goes from kine to keelson and on to a snapshot and into another
// keelson; what is there is never replaced by itself.
func TestMoves(t *testing.T) {
	t.Parallel()
	k3s, here := newKine(t), t.TempDir()
	dir, file, again := filepath.Join(here, "data"), filepath.Join(here, "snapshot.db"), filepath.Join(here, "again")
	counts := "revision 5, compacted 2, 2 keys, 3 versions in 3 revisions, 1 leases"
	says(t, exitOK, "nothing was written; there is in "+k3s, "import", "--from", k3s, "--dry-run")
	says(t, exitOK, counts, "import", "--from", k3s, "--to", dir)
	says(t, exitOK, "the same: ", "verify", k3s, dir)
	says(t, exitFailed, "has data already: nothing was changed; --force", "import", "--from", k3s, "--to", dir)
	says(t, exitOK, counts, "import", "--from", k3s, "--to", dir, "--force")
	says(t, exitOK, counts, "export", "--from", dir, "--to", file)
	says(t, exitFailed, "is there already", "export", "--from", dir, "--to", file)
	says(t, exitOK, counts, "export", "--from", "kine:"+k3s, "--to", file, "--force")
	says(t, exitOK, counts, "import", "--from", file, "--to", again)
	says(t, exitOK, "the same: revision 5, compacted 2: 2 keys, 3 versions, 1 leases", "verify", again, k3s)
}

// TestMovesCopy: a copy of keelson's own database is what the data directory is,
// and is not changed; so is the file in the directory.
func TestMovesCopy(t *testing.T) {
	t.Parallel()
	dir, keys := newData(t)
	backup, here := t.TempDir(), t.TempDir()
	original, file := filepath.Join(dir, "keelson.db"), filepath.Join(backup, "keelson.db")
	db, err := sql.Open("sqlite", "file:"+original+"?mode=ro")
	must(t, err)
	_, err = db.Exec("VACUUM INTO ?", file)
	must(t, err)
	must(t, db.Close())
	before, err := os.ReadFile(file)
	must(t, err)
	says(t, exitOK, fmt.Sprintf("%d keys", keys), "import", "--from", file, "--to", filepath.Join(here, "data"))
	says(t, exitOK, "the same: ", "verify", file, dir)
	says(t, exitOK, "the same: ", "verify", original, filepath.Join(here, "data"))
	says(t, exitUsage, "keelson import takes other places", "snapshot", "restore", file, "--dry-run")
	says(t, exitFailed, "an SQLite database: if it is keelson's or kine's, keelson import takes it", "snapshot", "status", file)
	after, err := os.ReadFile(file)
	must(t, err)
	if files, err := os.ReadDir(backup); err != nil || len(files) != 1 || !bytes.Equal(before, after) {
		t.Errorf("the copy was changed; there are %v, %v", files, err)
	}

	must(t, os.WriteFile(file, before[:len(before)/2], 0o600))
	temporary := t.TempDir()
	for from, want := range map[string]int{file: exitFailed, original: exitOK} {
		other := filepath.Join(here, "other.db") // by another name, and no directory's
		must(t, snapshot.CopyFile(other, from))
		cmd := command(here, "import", "--dry-run", "--from", other)
		cmd.Env = append(cmd.Env, "TMPDIR="+temporary)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != want || !strings.Contains(string(out), other) {
			t.Errorf("a copy of %s: exit code %d, %s", from, code, out)
		}
		must(t, os.Remove(other))
	}
	if files, err := os.ReadDir(temporary); err != nil || len(files) > 0 {
		t.Errorf("copies are left: %v, %v", files, err)
	}

	socket := shortDir(t) + "/k.sock"
	p := startProcess(t, dir, nil, "--data-dir="+dir, "--listen-client-urls=unix://"+socket)
	p.says(ready)
	says(t, exitFailed, "in use by another process", "import", "--from", original, "--dry-run")
	link := filepath.Join(here, "current.db")
	must(t, os.Symlink(original, link))
	says(t, exitFailed, "in use by another process", "import", "--from", link, "--dry-run")

	client := connect(t, "unix://"+socket)
	for range 20 {
		_, err := client.Put(t.Context(), "new", "new")
		must(t, err)
	}
	other := filepath.Join(here, "other.db")
	must(t, errors.Join(snapshot.CopyFile(other, original), snapshot.CopyFile(other+"-wal", original+"-wal")))
	says(t, exitOK, fmt.Sprintf("%d keys", keys+1), "import", "--from", other, "--dry-run")
	wal, err := os.ReadFile(other + "-wal")
	must(t, err)
	wal[len(wal)/4] ^= 1 // there is more behind it, which was acknowledged
	must(t, os.WriteFile(other+"-wal", wal, 0o600))
	says(t, exitFailed, "corrupt", "import", "--from", other, "--dry-run")
}

// TestDryRuns: a dry run reads everything, and fails if it would be refused as
// things are; what always would be is refused at once.
func TestDryRuns(t *testing.T) {
	t.Parallel()
	dir, keys := newData(t)
	k3s, work := newKine(t), t.TempDir()
	file := filepath.Join(work, "a.db")
	mustRun(t, "export", "--from", dir, "--to", file)
	for _, c := range []struct {
		refused, want string
		args          []string
	}{
		{dir + " has data already", "2 keys", []string{"import", "--from", k3s, "--to", dir}},
		{"", "2 keys", []string{"import", "--from", k3s, "--to", filepath.Join(work, "new")}},
		{file + " is there already", "2 keys", []string{"export", "--from", k3s, "--to", file}},
		{"", "2 keys", []string{"export", "--from", k3s, "--to", file, "--force"}},
		{dir + " has data already", fmt.Sprintf("%d keys", keys), []string{"snapshot", "restore", file, "--data-dir", dir}},
		{"", "compacted 1119", []string{"snapshot", "restore", file, "--data-dir", dir, "--force", "--bump-revision=1000", "--mark-compacted"}},
	} {
		out, errs, code := keelson(t, nil, append(c.args, "--dry-run")...)
		want := exitOK
		if c.refused != "" {
			want = exitFailed
		}
		said := strings.Contains(errs, "as things are, it would be refused: "+c.refused)
		if code != want || said != (c.refused != "") || !strings.Contains(out, c.want) {
			t.Errorf("keelson %q: exit code %d, %s%s", c.args, code, out, errs)
		}
	}
	if _, errs, code := keelson(t, nil, "snapshot", "restore", file, "--dry-run", "--bump-revision=9223372036854775000", "--mark-compacted"); code != exitFailed || !strings.Contains(errs, "cannot be raised") {
		t.Errorf("a revision that is too large: exit code %d, %s", code, errs)
	}
	if files, err := os.ReadDir(work); err != nil || len(files) != 1 {
		t.Errorf("there are %v, %v", files, err)
	}
}

// TestPipes: a pipe is no place, and is not waited for.
func TestPipes(t *testing.T) {
	t.Parallel()
	pipe := filepath.Join(t.TempDir(), "pipe")
	must(t, syscall.Mkfifo(pipe, 0o600))
	says(t, exitUsage, "neither a file nor a directory", "import", "--dry-run", "--from", pipe)
	says(t, exitFailed, "neither a file nor a directory", "import", "--dry-run", "--from", "kine:"+pipe)
	says(t, exitUsage, "neither a file nor a directory", "snapshot", "restore", pipe, "--dry-run")
	says(t, exitFailed, "is not a file", "snapshot", "status", pipe)
}

// TestMovesRefusedEarly: a place that must not be written is refused before
// anything is read, which may take long, or fail as here.
func TestMovesRefusedEarly(t *testing.T) {
	t.Parallel()
	dir, _ := newData(t)
	file := filepath.Join(t.TempDir(), "taken.db")
	must(t, os.WriteFile(file, nil, 0o600))
	const nobody = "http://127.0.0.1:1"
	says(t, exitFailed, "has data already: nothing was changed; --force", "import", "--from", nobody, "--to", dir)
	says(t, exitFailed, "has data already: nothing was changed; --force", "snapshot", "restore", file, "--data-dir", dir)
	says(t, exitFailed, file+" is there already", "export", "--from", nobody, "--to", file)
	says(t, exitFailed, file+" is there already", "snapshot", "save", file, "--endpoints", nobody)

	socket := shortDir(t) + "/k.sock"
	p := startProcess(t, dir, nil, "--data-dir="+dir, "--listen-client-urls=unix://"+socket)
	p.says(ready)
	says(t, exitFailed, "a server uses it", "import", "--from", nobody, "--to", dir)
	says(t, exitFailed, "a server uses it", "import", "--force", "--from", nobody, "--to", dir)
	says(t, exitFailed, "nothing was written; --existing", "export", "--from", nobody, "--to", "unix://"+socket)
}

func TestMoveUsage(t *testing.T) {
	t.Parallel()
	k3s := newKine(t)
	nowhere := filepath.Join(t.TempDir(), "none.db")
	says(t, exitUsage, "--from is missing", "import", "--to", "x")
	says(t, exitUsage, "--to is missing", "import", "--from", k3s)
	says(t, exitUsage, "is not a place for keelson's data", "import", "--from", k3s, "--to", "http://127.0.0.1:1")
	says(t, exitUsage, "--to: x/ is not for export", "export", "--from", k3s, "--to", "x/")
	says(t, exitUsage, "--etcd-version 3.4: use one of 3.7, 3.6, 3.5", "export", "--from", k3s, "--to", "x.db", "--etcd-version=3.4")
	says(t, exitUsage, "unexpected argument", "import", k3s)
	says(t, exitUsage, "name two places", "verify", k3s)
	says(t, exitUsage, "oracle://… is not a place", "import", "--dry-run", "--from", "oracle://x")
	says(t, exitUsage, "URL of kine's datastore", "import", "--dry-run", "--from", "kine:oracle://x")
	says(t, exitFailed, nowhere, "import", "--dry-run", "--from", nowhere)
	says(t, exitFailed, "no server/db/state.db", "import", "--dry-run", "--from", "kine:"+t.TempDir())
	says(t, exitUsage, "127.0.0.1:1", "verify", k3s, "http://127.0.0.1:1")
	says(t, exitUsage, "not a duration", "verify", k3s, "http://127.0.0.1:1", "--dial-timeout=x")
}

// TestMovePasswords: a password is taken from a variable, warned of on the
// command line, and shown nowhere.
func TestMovePasswords(t *testing.T) {
	t.Parallel()
	for _, endpoint := range []string{
		"kine:postgres://u:secret@127.0.0.1:1/d", "kine:postgres://u@127.0.0.1:1/d?password=secret", "mysql://u:secret@tcp(127.0.0.1:1)/d",
	} {
		_, stdout, stderr := outcome(t, t.TempDir(), "import", "--dry-run", "--from", endpoint)
		if strings.Contains(stdout+stderr, "secret") || strings.Count(stderr, "\n") != 2 || !strings.Contains(stderr, "every user of this machine") || !strings.Contains(stderr, "127.0.0.1") {
			t.Errorf("%s: %s%s", endpoint, stdout, stderr)
		}
		cmd := command(t.TempDir(), "import", "--dry-run")
		cmd.Env = append(cmd.Env, "KEELSON_FROM="+endpoint)
		out, err := cmd.CombinedOutput()
		if text := string(out); err == nil || strings.Contains(text, "secret") || strings.Contains(text, "every user") || !strings.Contains(text, "127.0.0.1") {
			t.Errorf("KEELSON_FROM=%s: %v: %s", endpoint, err, text)
		}
	}
}

// TestWarnings: what the parts of a server log is a warning like the command's own.
func TestWarnings(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	cmd := &cobra.Command{}
	cmd.SetErr(&out)
	log := quietLogger(cmd)
	log.Info("nothing of interest")
	log.WithError(os.ErrExist).WithField("database", "/data").Warn("something fails")
	warn(cmd, "%d things", 2)
	if got, want := out.String(), "keelson: warning: something fails; database: /data; error: file already exists\nkeelson: warning: 2 things\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// TestSecondServer: of two servers the second is told its own user, never that of
// the first; where there is one server, it is told the only user there is.
func TestSecondServer(t *testing.T) {
	t.Parallel()
	environ := []string{"ETCDCTL_USER=first:secret", "ETCDCTL_DIAL_TIMEOUT=70ms", "ETCDCTL_INSECURE_SKIP_TLS_VERIFY=true", "KEELSON_TO_PASSWORD=other"}
	for _, c := range []struct {
		both         bool
		args         []string
		second, word string
	}{
		{true, nil, "", "other"},
		{true, []string{"--to-user=second"}, "second", "other"},
		{true, []string{"--to-user=second:third"}, "second", "third"},
		{false, nil, "first", "secret"},
		{false, []string{"--to-user=second"}, "second", "other"},
	} {
		cmd := &cobra.Command{}
		access := addAccessFlags(cmd, true)
		must(t, cmd.ParseFlags(c.args))
		must(t, access.complete(cmd.Flags(), environ))
		access.both = c.both
		first, second := access.reach(false), access.reach(true)
		if first.User != "first" || first.Password != "secret" || first.DialTimeout != 70*time.Millisecond || !first.InsecureSkipTLSVerify {
			t.Errorf("%+v: the first is reached by %+v", c, first)
		}
		if second.User != c.second || second.User != "" && second.Password != c.word {
			t.Errorf("%+v: the second is reached by %+v", c, second)
		}
	}
}

func TestParsePlace(t *testing.T) {
	k3s := newKine(t)
	state := filepath.Join(k3s, "server", "db", "state.db")
	etcd := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(etcd, "member", "snap"), 0o700))
	db := filepath.Join(etcd, "member", "snap", "db")
	must(t, os.WriteFile(db, nil, 0o600))
	for text, want := range map[string]place{
		k3s:                       {placeKine, state},
		state:                     {placeKine, state},
		"kine:/x":                 {placeKine, "/x"},
		"kine:postgres://h/d":     {placeKine, "postgres://h/d"},
		"mysql://u@tcp(h)/d":      {placeKine, "mysql://u@tcp(h)/d"},
		"postgres://h/d":          {placePostgres, "postgres://h/d"},
		etcd:                      {placeFile, db},
		"https://h:1,https://h:2": {placeServer, "https://h:1,https://h:2"},
	} {
		if got, err := parsePlace(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
}
