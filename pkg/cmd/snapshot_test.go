package cmd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/snapshot"
	"github.com/keelson-io/keelson/pkg/store"
)

// keelson runs a command in this process.
func keelson(t *testing.T, environ []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	root := newRoot(args, environ)
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&errs)
	code = report(root.ExecuteContext(t.Context()), &errs)
	return out.String(), errs.String(), code
}

func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, code := keelson(t, nil, args...)
	if code != exitOK {
		t.Fatalf("keelson %s: exit code %d, %s", strings.Join(args, " "), code, errs)
	}
	return out
}

// newData makes a data directory with a history: keys that were changed,
// deleted and made again before and after a compaction, and a lease.
func newData(t *testing.T) (dir string, keys int) {
	t.Helper()
	dir = t.TempDir()
	log, err := sqlite.Open(t.Context(), sqlite.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), log, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	_, err = s.LeaseGrant(ctx, 7, 100)
	for i := range 120 {
		key := []byte(fmt.Sprint(i % 7))
		if i%5 == 0 {
			_, e := s.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key})
			err = errors.Join(err, e)
		} else {
			_, e := s.Put(ctx, &pb.PutRequest{Key: key, Value: []byte("value"), Lease: int64(7 * (i % 2))})
			err = errors.Join(err, e)
		}
		if i == 60 {
			current, _ := s.Revision()
			_, e := s.Compact(ctx, &pb.CompactionRequest{Revision: current})
			err = errors.Join(err, e)
		}
	}
	keys = s.Keys()
	cancel()
	if err = errors.Join(err, <-done, log.Close()); err != nil {
		t.Fatal(err)
	}
	return dir, keys
}

func TestSnapshotThereAndBack(t *testing.T) {
	dir, keys := newData(t)
	work := t.TempDir()
	file, again := filepath.Join(work, "a.db"), filepath.Join(work, "b.db")
	out := mustRun(t, "snapshot", "save", file, "--data-dir", dir)
	if want := fmt.Sprintf("compacted 60, %d keys", keys); !strings.Contains(out, "saved "+file) || !strings.Contains(out, want) {
		t.Errorf("save: %s; want %q", out, want)
	}
	var first, second fileStatus
	status := func(file string, s *fileStatus) {
		t.Helper()
		if err := json.Unmarshal([]byte(mustRun(t, "snapshot", "status", file, "-w", "json")), s); err != nil {
			t.Fatal(err)
		}
	}
	status(file, &first)
	if first.TotalKey != int64(keys) || first.Compacted != 60 || first.Leases != 1 || !first.Checksum || first.Version != "3.6.0" {
		t.Errorf("status: %+v; want %d keys", first, keys)
	}
	to := filepath.Join(work, "data")
	if out := mustRun(t, "snapshot", "restore", file, "--data-dir", to, "--dry-run"); !strings.Contains(out, fmt.Sprintf("%d keys", keys)) {
		t.Errorf("dry run: %s", out)
	}
	if _, err := os.Stat(to); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a dry run has made something: %v", err)
	}
	mustRun(t, "snapshot", "restore", file, "--data-dir", to)
	mustRun(t, "snapshot", "save", again, "--datastore", "sqlite://"+to)
	status(again, &second)
	if first != second {
		t.Errorf("there and back: %+v, want %+v", second, first)
	}
	mustRun(t, "snapshot", "restore", file, "--data-dir", to, "--force", "--bump-revision=1000", "--mark-compacted")
	mustRun(t, "snapshot", "save", again, "--force", "--data-dir", to)
	status(again, &second)
	if second.Revision != first.Revision+1000 || second.Compacted != second.Revision || second.TotalKey != first.TotalKey || second.Versions != first.TotalKey {
		t.Errorf("raised: %+v, from %+v", second, first)
	}
	entries, err := os.ReadDir(work)
	if err != nil || len(entries) != 3 {
		t.Errorf("files %v, %v", entries, err)
	}
}

func TestSnapshotRefused(t *testing.T) {
	dir, _ := newData(t)
	work := t.TempDir()
	file := filepath.Join(work, "a.db")
	mustRun(t, "snapshot", "save", file, "--data-dir", dir)
	text := filepath.Join(work, "text")
	if err := os.WriteFile(text, []byte("no snapshot at all"), 0o600); err != nil {
		t.Fatal(err)
	}
	absent, link := filepath.Join(work, "absent"), filepath.Join(work, "link")
	must(t, os.Symlink(file, link))
	for _, c := range []struct {
		args []string
		want string
		code int
	}{
		{[]string{}, "say what to do: keelson snapshot save, status or restore", exitUsage},
		{[]string{"sav", "x"}, `unknown command "sav"`, exitUsage},
		{[]string{"save"}, "name one file", exitUsage},
		{[]string{"save", ""}, "name one file", exitUsage},
		{[]string{"save", "x", "y"}, "name one file", exitUsage},
		{[]string{"restore"}, "name one file", exitUsage},
		{[]string{"status"}, "name one file", exitUsage},
		{[]string{"save", file, "--data-dir", dir}, file + " is there already", exitFailed},
		{[]string{"save", work, "--force", "--data-dir", dir}, work + " is a directory", exitFailed},
		{[]string{"save", absent + "/", "--data-dir", dir}, "is a directory", exitFailed},
		{[]string{"save", link, "--force", "--data-dir", dir}, "no regular file", exitFailed},
		{[]string{"save", absent, "--data-dir", work}, "not a data directory of keelson", exitFailed},
		{[]string{"save", absent, "--data-dir", dir, "--endpoints", "http://127.0.0.1:1"}, "use one of them", exitUsage},
		{[]string{"save", absent, "--endpoints", "a,b"}, "name one server", exitUsage},
		{[]string{"save", absent, "--endpoints", "unix://" + work + "/none.sock", "--dial-timeout=100ms"}, "none.sock", exitFailed},
		{[]string{"save", filepath.Join(absent, "x"), "--data-dir", dir}, "the directory " + absent + " is not there: make it first", exitFailed},
		{[]string{"save", "-", "--data-dir", dir}, "to a file, not to stdout", exitFailed},
		{[]string{"status", text}, "it is text", exitFailed},
		{[]string{"status", file, "-w", "xml"}, "--write-out xml: use simple", exitUsage},
		{[]string{"status", absent}, "no such file", exitFailed},
		{[]string{"restore", text, "--data-dir", absent}, "it is text", exitFailed},
		{[]string{"restore", file, "--data-dir", dir}, "has data already: nothing was changed; --force replaces it", exitFailed},
		{[]string{"restore", dir, "--data-dir", absent}, "is not a file of etcd's", exitUsage},
		{[]string{"restore", file, "--data-dir", absent, "--bump-revision=3"}, "belong together", exitUsage},
		{[]string{"restore", file, "--data-dir", absent, "--bump-revision=18446744073709551615", "--mark-compacted"}, "too large", exitUsage},
		{[]string{"restore", file, "--data-dir", absent, "--bump-revision=9223372036854775807", "--mark-compacted"}, "cannot be raised", exitFailed},
		{[]string{"restore", file, "--data-dir", absent, "--initial-cluster-token=x"}, "add --initial-cluster", exitUsage},
		{[]string{"restore", file, "--datastore=postgres://x/y", "--initial-cluster=default=http://a:1"}, "for SQLite", exitUsage},
		{[]string{"restore", file, "--datastore=mysql://x/y"}, `no driver "mysql`, exitUsage},
		{[]string{"restore", file, "--data-dir", absent, "--initial-cluster=default=http://a:1", "--initial-advertise-peer-urls=http://b:1"}, "they must be the same", exitUsage},
	} {
		out, errs, code := keelson(t, nil, append([]string{"snapshot"}, c.args...)...)
		if code != c.code || out != "" || strings.Count(errs, "\n") != 1 || !strings.HasPrefix(errs, "keelson: ") || !strings.Contains(errs, c.want) {
			t.Errorf("%q: exit code %d, %q, %q; want %d and %q", c.args, code, out, errs, c.code, c.want)
		}
		if _, err := os.Stat(absent); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%q has made something", c.args)
		}
	}
}

// TestSnapshotEnvironment: where the data is may be said as to the server.
func TestSnapshotEnvironment(t *testing.T) {
	dir, _ := newData(t)
	work := t.TempDir()
	file := filepath.Join(work, "a.db")
	if _, errs, code := keelson(t, []string{"KEELSON_DATA_DIR=" + dir}, "snapshot", "save", file, "--offline"); code != exitOK {
		t.Fatal(errs)
	}
	yaml := filepath.Join(work, "keelson.yaml")
	to := filepath.Join(work, "data")
	if err := os.WriteFile(yaml, []byte("data-dir: "+to+"\nlisten-client-urls: unix:///k.sock\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "snapshot", "restore", file, "--config-file", yaml)
	if _, err := os.Stat(filepath.Join(to, sqlite.FileName)); err != nil {
		t.Error(err)
	}
	_, errs, code := keelson(t, []string{"ETCDCTL_ENDPOINTS=unix://" + work + "/ours.sock", "ETCDCTL_DIAL_TIMEOUT=50ms"}, "snapshot", "save", file+"2")
	if code != exitFailed || !strings.Contains(errs, "ours.sock") {
		t.Errorf("exit code %d, %s", code, errs)
	}
}

// TestSavesAtOnce: of two saves to one file the one that fails, or ends later,
// does not touch what the other writes; nor is anything else of a like name.
func TestSavesAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.db")
	must(t, os.WriteFile(file+".part", []byte("somebody's"), 0o600))
	s := saving{force: true}
	write := func(text string, during func()) error {
		_, err := s.write(file, func(part *os.File) error {
			_, err := part.WriteString(text[:1])
			during()
			if err == nil {
				_, err = part.WriteString(text[1:])
			}
			return err
		})
		return err
	}
	must(t, write("first", func() {
		must(t, write("second", func() {}))
		if text, err := os.ReadFile(file); err != nil || string(text) != "second" {
			t.Errorf("the second has %q, %v", text, err)
		}
	}))
	if text, err := os.ReadFile(file); err != nil || string(text) != "first" {
		t.Errorf("the first has %q, %v", text, err)
	}
	broken := errors.New("broken")
	if _, err := s.write(file, func(*os.File) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("one that fails: %v", err)
	}
	files, err := os.ReadDir(filepath.Dir(file))
	if text, readErr := os.ReadFile(file + ".part"); string(text) != "somebody's" || readErr != nil || len(files) != 2 {
		t.Errorf("files %v, %v; %q, %v", files, err, text, readErr)
	}
}

// TestTypedDirectory: no variable and no file turns a directory that is typed
// into another place, of which what there is would be read or replaced.
func TestTypedDirectory(t *testing.T) {
	here, keys := newData(t)
	there := t.TempDir()
	work := t.TempDir()
	file, yaml := filepath.Join(work, "a.db"), filepath.Join(work, "keelson.yaml")
	mustRun(t, "snapshot", "save", file, "--data-dir", here)
	must(t, os.WriteFile(yaml, []byte("datastore: sqlite://"+there+"\n"), 0o600))
	for _, args := range [][]string{
		{"snapshot", "restore", file, "--force"}, {"snapshot", "restore", file, "--dry-run"}, {"snapshot", "save", file + "2"}, {"check"},
	} {
		args = append(args, "--data-dir", here)
		for _, datastore := range []string{"sqlite://" + there, "postgres://127.0.0.1:1/none"} {
			if out, errs, code := keelson(t, []string{"KEELSON_DATASTORE=" + datastore}, args...); code != exitUsage || out != "" || !strings.Contains(errs, "add --datastore=sqlite") {
				t.Errorf("KEELSON_DATASTORE=%s keelson %q: exit code %d, %s%s", datastore, args, code, out, errs)
			}
		}
		if _, errs, code := keelson(t, nil, append(args, "--config-file", yaml)...); code != exitUsage || !strings.Contains(errs, "add --datastore=sqlite") {
			t.Errorf("keelson %q with a file: exit code %d, %s", args, code, errs)
		}
	}
	out, errs, code := keelson(t, []string{"KEELSON_DATASTORE=postgres://127.0.0.1:1/none"}, "check", "--data-dir", here, "--datastore=sqlite")
	if code != exitOK || !strings.Contains(out, fmt.Sprintf("%d keys", keys)) {
		t.Errorf("the way out: exit code %d, %s%s", code, out, errs)
	}
	if _, errs, code := keelson(t, []string{"KEELSON_DATASTORE=sqlite://"}, "check", "--data-dir", here); code != exitOK {
		t.Errorf("a variable that names no other place: %s", errs)
	}
}

func TestSnapshotHelp(t *testing.T) {
	for _, command := range [][]string{{"snapshot"}, {"snapshot", "save"}, {"snapshot", "status"}, {"snapshot", "restore"}} {
		out := mustRun(t, append(command, "--help")...)
		if !strings.Contains(out, "Examples:\n  ") || !strings.Contains(out, "keelson snapshot") {
			t.Errorf("%q --help: %s", command, out)
		}
		if out := mustRun(t, "--help"); !strings.Contains(out, "keelson "+strings.Join(command, " ")) {
			t.Errorf("keelson --help does not list %q", command)
		}
	}
}

func TestProgressLines(t *testing.T) {
	var out bytes.Buffer
	records := startProgress(&out, "restoring", 400)
	records.report(snapshot.Progress{Records: 50}) // too early
	records.said = time.Now().Add(-sayEvery)
	records.report(snapshot.Progress{Records: 100})
	records.report(snapshot.Progress{Records: 101})
	records.end()
	bytes := startBytes(&out, "saving")
	bytes.said = time.Now().Add(-sayEvery)
	bytes.set(3 << 20)
	bytes.end()
	if got, want := out.String(), "keelson: restoring: 100 of 400 records (25 %)\nkeelson: saving: 3.0 MiB\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 5 << 40: "5.0 TiB", 5 << 50: "5120.0 TiB"} {
		if got := formatBytes(n); got != want {
			t.Errorf("formatBytes(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestPlaces(t *testing.T) {
	work := t.TempDir()
	ours, etcds := filepath.Join(work, "ours"), filepath.Join(work, "etcds")
	for _, dir := range []string{ours, filepath.Join(etcds, "member", "snap")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	db := filepath.Join(etcds, etcdFile)
	if err := os.WriteFile(db, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]place{
		"postgres://me:secret@h/d?password=x":    {placePostgres, "postgres://me:secret@h/d?password=x"},
		"postgres://me:secret@h/d?sslpassword=x": {placePostgres, "postgres://me:secret@h/d?sslpassword=x"},
		"sqlite:///var/lib":                      {placeSQLite, "/var/lib"},
		"http://h:1":                             {placeServer, "http://h:1"},
		"unixs:///k.sock":                        {placeServer, "unixs:///k.sock"},
		"file://" + db:                           {placeFile, db},
		etcds:                                    {placeFile, db},
		ours:                                     {placeSQLite, ours},
		work + "/new/":                           {placeSQLite, work + "/new/"},
		work + "/new":                            {placeFile, work + "/new"},
	} {
		got, err := parsePlace(text)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", text, got, err, want)
		}
		if strings.Contains(got.String(), "secret") || strings.Contains(got.String(), "=x") {
			t.Errorf("%s shows a password", got)
		}
	}
	for _, text := range []string{"", "ftp://h/d", "postgres://h/d?schema=no+name"} {
		if p, err := parsePlace(text); err == nil {
			t.Errorf("%q is %+v", text, p)
		}
	}
}
