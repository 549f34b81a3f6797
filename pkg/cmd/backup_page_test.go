package cmd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/keelson-io/keelson/pkg/config"
	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/listen/certtest"
)

// TestBackupPage runs the commands of docs/backup.md. Those that serve are only
// read, and the one that asks a database is not sent there.
func TestBackupPage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "backup.md"))
	if err != nil {
		t.Fatal(err)
	}
	data, _ := newData(t)
	backups := t.TempDir()
	mustRun(t, "snapshot", "save", filepath.Join(backups, "keelson-….db"), "--data-dir="+data)
	ca := filepath.Join(t.TempDir(), "ca.crt")
	certtest.New(t).Write(t, ca)
	here := strings.NewReplacer("/var/lib/keelson", data, "/backup/", backups+"/", "=/backup ", "="+backups+" ", "/etc/keelson/s3-ca.crt", ca)
	var ran []string
	for line := range strings.Lines(strings.ReplaceAll(string(page), "\\\n", " ")) {
		command, ok := strings.CutPrefix(line, "    ")
		if !ok {
			continue
		}
		fields := words(here.Replace(strings.TrimSpace(command)))
		switch {
		case fields[0] == "export":
			continue
		case strings.HasPrefix(fields[0], "KEELSON_"):
			if out, errs, code := keelson(t, fields[:1], append(fields[2:], "-w", "xml")...); code != exitUsage || !strings.Contains(errs, "--write-out") {
				t.Errorf("%q: %d, %s%s", fields, code, out, errs)
			}
		case fields[0] != "keelson":
			t.Errorf("what is %q?", fields)
		case strings.HasPrefix(fields[1], "-"):
			all := pflag.NewFlagSet("", pflag.ContinueOnError)
			c := config.New()
			c.AddFlags(all)
			if err := all.Parse(fields[1:]); err != nil {
				t.Fatal(err)
			}
			if err := c.Load(all, nil); err != nil || c.Server.Backup.Schedule == "" {
				t.Errorf("%q: %v", fields, err)
			}
		default:
			mustRun(t, fields[1:]...)
		}
		ran = append(ran, fields[1])
	}
	if len(ran) != 7 {
		t.Errorf("the page has the commands %q", ran)
	}
	if _, err := os.Stat(filepath.Join(data, sqlite.FileName)); err != nil {
		t.Error(err)
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
