package transfer

import (
	"context"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"testing"

	"github.com/keelson-io/keelson/test/harness"
)

// password is that of the user kine in MariaDB.
const password = "of-the-deep-sea"

// startMariaDB starts a MariaDB that listens on a unix socket, and returns the
// URL of a database in it as kine has it. It ends with the test, which is
// skipped where MariaDB is not installed.
func startMariaDB(t *testing.T) string {
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
	data, socket := filepath.Join(dir, "data"), filepath.Join(dir, "sock", "m.sock")
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
	init := filepath.Join(dir, "init.sql")
	check(t, os.WriteFile(init, []byte("CREATE USER kine@localhost IDENTIFIED BY '"+password+"';\nGRANT ALL ON *.* TO kine@localhost;\n"), 0o644))
	process := harness.StartProcess(t, dir, "mariadb", programs[1], "--no-defaults", "--datadir="+data, "--user="+name, "--init-file="+init,
		"--socket="+socket, "--skip-networking", "--pid-file="+filepath.Join(dir, "sock", "pid"), "--innodb-buffer-pool-size=16M")
	check(t, process.WaitReady(patience, func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil {
			return err
		}
		return conn.Close()
	}))
	return "mysql://kine:" + password + "@unix(" + socket + ")/kine"
}
