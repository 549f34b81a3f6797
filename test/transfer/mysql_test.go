package transfer

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelson-io/keelson/test/harness"
)

// password is that of the user kine in MariaDB.
const password = "of-the-deep-sea"

// startMariaDB starts a MariaDB that listens on a unix socket, and returns the
// URL of a database in it as kine has it.
func startMariaDB(t *testing.T) string {
	t.Helper()
	socket := runMariaDB(t, "CREATE USER kine@localhost IDENTIFIED BY '"+password+"';\nGRANT ALL ON *.* TO kine@localhost;\n", "--skip-networking")
	return "mysql://kine:" + password + "@unix(" + socket + ")/kine"
}

// runMariaDB starts a MariaDB that runs the statements of init, and returns its
// unix socket. It ends with the test, which is skipped where MariaDB is not
// installed.
func runMariaDB(t *testing.T, init string, args ...string) (socket string) {
	t.Helper()
	var programs [2]string
	for i, name := range []string{"mariadb-install-db", "mariadbd"} {
		path, err := exec.LookPath(name)
		if err != nil {
			path = filepath.Join("/usr/sbin", name) // there Debian has it
			if _, err := os.Stat(path); err != nil {
				t.Skip("MariaDB is not installed: install mariadb-server")
			}
		}
		programs[i] = path
	}
	// Run by root it becomes another user, which must be able to reach it.
	dir := harness.TempDir(t)
	check(t, os.Chmod(dir, 0o755))
	data := filepath.Join(dir, "data")
	socket = filepath.Join(dir, "sock", "m.sock")
	check(t, os.MkdirAll(filepath.Dir(socket), 0o755))
	check(t, os.Chmod(filepath.Dir(socket), 0o777))
	me, err := user.Current()
	check(t, err)
	name := me.Username
	if os.Geteuid() == 0 {
		name = "mysql"
	}
	out, err := exec.Command(programs[0], "--no-defaults", "--datadir="+data, "--user="+name, "--auth-root-authentication-method=normal", "--skip-test-db").CombinedOutput()
	if err != nil {
		t.Fatalf("mariadb-install-db: %v\n%s", err, out)
	}
	file := filepath.Join(dir, "init.sql")
	check(t, os.WriteFile(file, []byte(init), 0o644))
	process := harness.StartProcess(t, dir, "mariadb", programs[1], append([]string{
		"--no-defaults", "--datadir=" + data, "--user=" + name, "--init-file=" + file,
		"--socket=" + socket, "--pid-file=" + filepath.Join(dir, "sock", "pid"), "--innodb-buffer-pool-size=16M",
	}, args...)...)
	check(t, process.WaitReady(patience, func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil {
			return err
		}
		return conn.Close()
	}))
	return socket
}

// TestMySQLOverTLS reaches MariaDB as kine does: by kine's flags for
// certificates, and by the forms of tls that a URL has.
func TestMySQLOverTLS(t *testing.T) {
	dir := harness.TempDir(t)
	check(t, os.Chmod(dir, 0o755))
	pki := harness.NewPKI(t, dir)
	for _, file := range []string{pki.CA, pki.ServerCert, pki.ServerKey} {
		check(t, os.Chmod(file, 0o644)) // run by root, MariaDB is another user
	}
	address := harness.FreeAddress(t)
	host, port, err := net.SplitHostPort(address)
	check(t, err)
	init := ""
	for user, must := range map[string]string{"kine": "X509", "anybody": "SSL"} {
		init += "CREATE USER " + user + "@'" + host + "' IDENTIFIED BY '" + password + "' REQUIRE " + must + ";\nGRANT ALL ON *.* TO " + user + "@'" + host + "';\n"
	}
	runMariaDB(t, init, "--skip-name-resolve", "--bind-address="+host, "--port="+port,
		"--ssl-ca="+pki.CA, "--ssl-cert="+pki.ServerCert, "--ssl-key="+pki.ServerKey)
	certificates := []string{"--cacert", pki.CA, "--cert", pki.ClientCert, "--key", pki.ClientKey}
	place := func(user, parameters string) string {
		return "mysql://" + user + "@tcp(" + address + ")/kine" + parameters
	}
	k := startKine(t, "", "mysql://kine:"+password+"@tcp("+address+")/kine", "--ca-file", pki.CA, "--cert-file", pki.ClientCert, "--key-file", pki.ClientKey)
	_, want := fill(t, k, 1)
	check(t, k.Stop())

	t.Setenv("MYSQL_PWD", password)
	for _, from := range [][]string{
		append([]string{place("kine", "")}, certificates...),
		append([]string{place("kine", "?tls=false")}, certificates...), // the flags count, as with kine
		{place("anybody", ""), "--cacert", pki.CA},
		{place("anybody", ""), "--insecure-skip-tls-verify"},
		{place("anybody", "?tls=skip-verify")},
		{place("anybody", "?tls=preferred")},
	} {
		if said := keelson(t, append([]string{"import", "--dry-run", "--from"}, from...)...); !strings.Contains(said, fmt.Sprint("revision ", want.revision)) {
			t.Errorf("%s: %s", from, said)
		}
	}
	for said, from := range map[string][]string{
		"certificate signed by unknown authority": {place("anybody", "?tls=true")},
		"Access denied for user 'anybody'":        {place("anybody", "")},
		"Access denied for user 'kine'":           {place("kine", ""), "--cacert", pki.CA},
		"URL of kine's datastore":                 {place("kine", "?tls=another")},
	} {
		fails(t, said, append([]string{"import", "--dry-run", "--from"}, from...)...)
	}
	data := filepath.Join(t.TempDir(), "data")
	keelson(t, append([]string{"import", "--to", data, "--from", place("kine", "")}, certificates...)...)
	keelson(t, append([]string{"verify", place("kine", ""), data}, certificates...)...)
}
