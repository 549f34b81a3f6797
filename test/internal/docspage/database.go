package docspage

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/keelson-io/keelson/test/harness"
)

// StartDatabase starts a PostgreSQL at an address, with TLS and the port that all
// expect, which asks nobody for a password.
func StartDatabase(t testing.TB, ca *Authority, address string) *harness.Postgres {
	t.Helper()
	db := harness.StartPostgres(t, "listen_addresses="+address)
	cert, key := filepath.Join(db.Dir, "db.crt"), filepath.Join(db.Dir, "db.key")
	ca.Issue(cert, key, false, address)
	stat, err := os.Stat(db.Dir)
	check(t, err)
	owner := stat.Sys().(*syscall.Stat_t)
	for _, file := range []string{cert, key} {
		check(t, os.Chown(file, int(owner.Uid), int(owner.Gid)))
	}
	rules, err := os.OpenFile(filepath.Join(db.Dir, "data", "pg_hba.conf"), os.O_WRONLY|os.O_APPEND, 0)
	check(t, err)
	_, err = rules.WriteString("hostssl all all 127.0.0.0/8 trust\n")
	check(t, err)
	check(t, rules.Close())
	for _, set := range []string{"ssl_cert_file = '" + cert + "'", "ssl_key_file = '" + key + "'", "ssl = on"} {
		_, err := db.Query("ALTER SYSTEM SET " + set)
		check(t, err)
	}
	_, err = db.Query("SELECT pg_reload_conf()")
	check(t, err)
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) { // nothing announces it
		is, err := db.Query("SHOW ssl")
		check(t, err)
		if is[0] == "on" {
			return db
		}
		if time.Now().After(deadline) {
			t.Fatal("PostgreSQL does not take its certificate")
		}
	}
}
