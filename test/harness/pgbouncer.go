package harness

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// StartPgBouncer starts PgBouncer in transaction mode before p and returns the
// directory of its socket. Without PgBouncer the test is skipped.
func (p *Postgres) StartPgBouncer(t testing.TB) (dir string) {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		t.Skip("PgBouncer is not installed: install pgbouncer")
	}
	if dir, err = os.MkdirTemp(p.Dir, "bouncer"); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(config, fmt.Appendf(nil, `[databases]
postgres = host=%s user=%s
[pgbouncer]
unix_socket_dir = %s
listen_port = 5432
auth_type = any
pool_mode = transaction
default_pool_size = 20
max_client_conn = 500
server_login_retry = 1
`, p.Dir, postgresUser, dir), 0o644); err != nil {
		t.Fatal(err)
	}
	if c := p.attr.Credential; c != nil {
		if err := os.Chown(dir, int(c.Uid), int(c.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, "--quiet", config)
	cmd.Dir = dir
	cmd.SysProcAttr = p.attr
	process, err := startCommand(cmd, filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(process.Kill)
	if err := process.WaitReady(patience, func(ctx context.Context) error {
		c, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, postgresSocket))
		if err != nil {
			return err
		}
		return c.Close()
	}); err != nil {
		t.Fatal(err)
	}
	return dir
}
