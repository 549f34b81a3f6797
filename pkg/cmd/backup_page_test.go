package cmd

import (
	"encoding/pem"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/keelson-io/keelson/pkg/drivers/postgres/pgtest"
)

// backupPage is what the commands of docs/backup.md find: their directories,
// and an S3 server.
type backupPage struct {
	*testing.T
	data, backups string
	storage       *s3mem.Backend
	here          *strings.Replacer // what the page names, and what that is here
	env           []string          // what was exported
}

// Where the page's backups go in S3.
const (
	pageBucket = "backups"
	pagePrefix = "production/"
)

func newBackupPage(t *testing.T) *backupPage {
	t.Helper()
	p := &backupPage{T: t, backups: shortDir(t), storage: s3mem.New()}
	p.data, _ = newData(t)
	must(t, p.storage.CreateBucket(pageBucket))
	s3 := httptest.NewTLSServer(gofakes3.New(p.storage, gofakes3.WithLogger(gofakes3.DiscardLog())).Server())
	t.Cleanup(s3.Close)
	t.Cleanup(s3.CloseClientConnections)
	ca := filepath.Join(t.TempDir(), "ca.crt")
	must(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s3.Certificate().Raw}), 0o600))
	p.here = strings.NewReplacer("/var/lib/keelson", p.data, "/backup/", p.backups+"/", "=/backup ", "="+p.backups+" ",
		"/etc/keelson/s3-ca.crt", ca, "https://s3.example.com:9000", s3.URL)
	return p
}

// serve runs a server until it has made a backup: that is due sooner than on the
// page, and the server is on a socket.
func (p *backupPage) serve(args []string) {
	p.Helper()
	dir := shortDir(p.T)
	server := startProcess(p.T, dir, p.env, append(slices.Clone(args), "--snapshot-schedule=@every 1s", "--listen-client-urls=unix://"+dir+"/k.sock")...)
	server.says(ready)
	server.says("backup done")
	server.signal(syscall.SIGTERM)
	if code := server.ends(); code != exitOK {
		p.Errorf("%q: exit code %d", args, code)
	}
}

// fetch brings a backup of S3 to the others, as the page says.
func (p *backupPage) fetch(as string) {
	p.Helper()
	list, err := p.storage.ListBucket(pageBucket, &gofakes3.Prefix{HasPrefix: true, Prefix: pagePrefix}, gofakes3.ListBucketPage{})
	must(p.T, err)
	if len(list.Contents) == 0 {
		p.Fatal("there is no backup in S3")
	}
	object, err := p.storage.GetObject(pageBucket, list.Contents[0].Key, nil)
	must(p.T, err)
	content, err := io.ReadAll(object.Contents)
	must(p.T, err)
	must(p.T, os.WriteFile(filepath.Join(p.backups, as), content, 0o600))
}

// TestBackupPage runs the commands of docs/backup.md in order.
func TestBackupPage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "backup.md"))
	must(t, err)
	p := newBackupPage(t)
	served, ran := 0, 0
	for line := range strings.Lines(strings.ReplaceAll(string(page), "\\\n", " ")) {
		command, ok := strings.CutPrefix(line, "    ")
		if !ok {
			continue
		}
		fields := words(p.here.Replace(strings.TrimSpace(command)))
		switch {
		case fields[0] == "export":
			p.env = append(p.env, fields[1:]...)
		case strings.HasPrefix(fields[0], "KEELSON_DATASTORE="):
			ran++
			t.Run("PostgreSQL", func(t *testing.T) { checkInPostgres(t, filepath.Join(p.backups, "keelson-….db"), fields[2:]) })
		case fields[0] != "keelson":
			t.Errorf("what is %q?", fields)
		case strings.HasPrefix(fields[1], "-"):
			served++
			p.serve(fields[1:])
		default:
			if ran++; ran == 1 {
				p.fetch("keelson-….db")
			}
			mustRun(t, fields[1:]...)
		}
	}
	if served != 2 || ran != 5 {
		t.Errorf("the page has %d commands that serve, and %d others", served, ran)
	}
	made, err := filepath.Glob(filepath.Join(p.backups, "keelson-*-*.db"))
	if err != nil || len(made) == 0 {
		t.Errorf("backups in the directory: %q, %v", made, err)
	}
}

// checkInPostgres runs a command on data in PostgreSQL that comes from a file.
func checkInPostgres(t *testing.T, file string, args []string) {
	db := []string{"KEELSON_DATASTORE=" + pgtest.ForTest(t).URL("postgres")}
	if out, errs, code := keelson(t, db, "snapshot", "restore", file); code != exitOK {
		t.Fatalf("restore: exit code %d, %s%s", code, out, errs)
	}
	if out, errs, code := keelson(t, db, args...); code != exitOK {
		t.Errorf("%q: exit code %d, %s%s", args, code, out, errs)
	}
}

// words splits a command as a shell does, as far as the page goes.
func words(command string) (all []string) {
	for i, part := range strings.Split(command, "'") {
		if i%2 == 1 { // quoted
			all[len(all)-1] += part
		} else {
			all = append(all, strings.Fields(part)...)
		}
	}
	return all
}
