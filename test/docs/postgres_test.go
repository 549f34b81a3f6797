package docs

import (
	"os"
	"strings"
	"testing"

	"github.com/keelson-io/keelson/test/harness"
	"github.com/keelson-io/keelson/test/internal/docspage"
)

// The sections of docs/postgres.md.
const (
	postgresTop    = "keelson on PostgreSQL"
	postgresRights = "Rights"
	postgresBackup = "Backup and restore"
	postgresLong   = "Slow or large"
	postgresMany   = "Several instances"
)

// TestPostgresPage runs every command of docs/postgres.md: in an empty server the
// page's SQL makes the role and the database that the page's keelson uses.
func TestPostgresPage(t *testing.T) {
	t.Parallel()
	page := docspage.Open(t, "docs/postgres.md")
	addresses := docspage.Addresses(t, 2)
	ca := docspage.NewAuthority(t)
	m := docspage.NewMachine(t, []string{"etcdctl"}, "db.example.com", addresses[1])
	m.Mkdir("/etc/keelson", "/run")
	link(t, ca.CA, m.Path("/etc/keelson/db-ca.crt"))
	db := docspage.StartDatabase(t, ca, addresses[1])
	bin, err := db.Query("SELECT setting FROM pg_config WHERE name = 'BINDIR'")
	check(t, err)
	m.Link("pg_dump", bin[0]+"/pg_dump")
	m.Link("pg_restore", bin[0]+"/pg_restore")
	m.Link("psql", bin[0]+"/psql")
	prepare(t, page, db)

	m.Export(page.Take(t, postgresTop, "export KEELSON_DATASTORE="))
	m.Setenv("KEELSON_LISTEN_CLIENT_URLS", "unix://"+m.Path("/run/a.sock")) // the default port may be another's here
	m.Setenv("ETCDCTL_ENDPOINTS", "unix://"+m.Path("/run/a.sock"))
	one := page.Take(t, postgresTop, "keelson --name=a")
	a := m.Serve(one)
	b := m.Serve(strings.Replace(one, "=a", "=b", 1) + " --listen-client-urls=unix:///run/b.sock --snapshot-schedule=@daily --snapshot-dir=/backup")
	metricsAre(t, m.Run("curl --silent --unix-socket /run/b.sock http://localhost/metrics"), false)
	m.Run("etcdctl put before 1")
	m.Run(page.Take(t, postgresRights, "etcdctl defrag"))
	look := page.Take(t, postgresLong, "keelson check")
	m.Run(look)
	const service = "--datastore='postgres:///?service=keelson'"
	if !strings.Contains(docspage.Read(t, "docs/postgres.md"), "`"+service+"`") {
		t.Errorf("the page does not have %s", service)
	}
	check(t, os.WriteFile(m.Path("services"), []byte("[keelson]\nhost="+addresses[1]+"\nuser=keelson\ndbname=keelson\n"+
		"sslmode=verify-full\nsslrootcert="+m.Path("/etc/keelson/db-ca.crt")+"\n"), 0o600))
	m.Run("PGSERVICEFILE=services " + look + " " + service)
	if members := m.Run(page.Take(t, postgresMany, "etcdctl member list")); strings.Count(members, "\n") != 1 || !strings.Contains(members, ", a, ") {
		t.Errorf("the members are %s", members)
	}
	m.Run("etcdctl put before 2")
	m.Run(strings.Replace(page.Take(t, postgresMany, "etcdctl compact --physical"), "--physical", "--physical 2", 1))
	if out, err := m.Try("etcdctl get before --rev=1"); err == nil || !strings.Contains(out, "compacted") {
		t.Errorf("a revision that was compacted: %v, %s", err, out)
	}

	m.Setenv("URL", m.Here("postgres://keelson@db.example.com/keelson?sslmode=verify-full&sslrootcert=/etc/keelson/db-ca.crt"))
	m.Run(page.Take(t, postgresBackup, "pg_dump"))
	m.Run("etcdctl put after 3")
	restore := page.Take(t, postgresBackup, "pg_restore")
	m.Run(restore)
	m.Says(a, "the data is open again")
	m.Run("etcdctl put more 4")
	if keys := strings.Fields(m.Run("etcdctl get --prefix '' --keys-only")); strings.Join(keys, " ") != "before more" {
		t.Errorf("after a restore the keys are %q", keys)
	}
	m.Run(page.Take(t, postgresBackup, "keelson snapshot save") + " saved.db --offline")
	m.Run("keelson snapshot restore saved.db --force")
	check(t, a.Stop())
	check(t, b.Stop())
	empty(m)
	m.Run(restore)
	if out := m.Run("keelson check"); !strings.Contains(out, " 1 keys, ") {
		t.Errorf("what was restored into an empty schema: %s", out)
	}
	afterDisaster(t, m, one)
}

// empty makes the database as it was when the page's SQL had made it.
func empty(m *docspage.Machine) {
	for _, sql := range []string{"DROP SCHEMA keelson CASCADE", "CREATE SCHEMA keelson AUTHORIZATION keelson"} {
		m.Run("psql --quiet --dbname=\"${URL/keelson@/postgres@}\" --command='" + sql + "'")
	}
}

// afterDisaster runs what docs/migration.md has for a database that is gone.
func afterDisaster(t *testing.T, m *docspage.Machine, service string) {
	page := docspage.Open(t, "docs/migration.md", migrationPostgres)
	m.Mkdir("/backup")
	a := m.Serve(service)
	m.Run("etcdctl del --prefix ''")
	m.Run("etcdctl put saved 1")
	m.Run("keelson snapshot save /backup/keelson.db --endpoints=unix:///run/a.sock")
	check(t, a.Stop())
	empty(m)
	m.Export(page.Take(t, migrationPostgres, "export KEELSON_DATASTORE="))
	m.Run(page.Take(t, migrationPostgres, "keelson snapshot restore"))
	m.Serve(service)
	restored(t, m, "etcdctl ")
}

// prepare runs the page's SQL as the superuser of a new server. That has the name
// of the page's role before, which goes.
func prepare(t *testing.T, page *docspage.Page, db *harness.Postgres) {
	t.Helper()
	_, err := db.Query("CREATE ROLE postgres SUPERUSER LOGIN")
	check(t, err)
	sql := "\\c postgres postgres\nALTER ROLE keelson RENAME TO before;\n"
	for _, line := range []string{"CREATE ROLE", "CREATE DATABASE", `\c keelson`, "CREATE SCHEMA"} {
		sql += page.Take(t, postgresRights, line) + "\n"
	}
	_, err = db.Query(sql)
	check(t, err)
}
