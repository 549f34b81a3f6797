package transfer

import (
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/test/harness"
)

// TestAuth: an etcd with users and roles is read and written by those who may,
// and its data is not opened to everybody by mistake.
func TestAuth(t *testing.T) {
	s := harness.StartServer(t, harness.Etcd)
	c := connect(t, s.Endpoint)
	fillEtcd(t, c, 4)
	want := all(t, c)
	enableAuth(t, c)
	t.Setenv("ETCDCTL_PASSWORD", "secret")
	root, reader := []string{"--user", "root"}, []string{"--user", "reader"}
	run := func(user []string, args ...string) string {
		t.Helper()
		return keelson(t, append(args, user...)...)
	}
	refused := func(user []string, said string, args ...string) {
		t.Helper()
		fails(t, said, append(args, user...)...)
	}
	dir := t.TempDir()
	file, data, pages := filepath.Join(dir, "snapshot.db"), filepath.Join(dir, "data"), filepath.Join(dir, "pages")

	refused(nil, "user name is empty", "import", "--dry-run", "--from", s.Endpoint)
	refused([]string{"--user", "root:other"}, "authentication failed", "import", "--dry-run", "--from", s.Endpoint)
	refused(root, "--without-auth", "import", "--dry-run", "--from", s.Endpoint)
	refused(root, "--without-auth", "import", "--dry-run", "--no-snapshot", "--from", s.Endpoint)
	refused(reader, "--without-auth", "import", "--dry-run", "--no-snapshot", "--from", s.Endpoint)

	run(root, "import", "--without-auth", "--from", s.Endpoint, "--to", data)
	run(root, "verify", "--without-auth", s.Endpoint, data)
	run(reader, "import", "--without-auth", "--no-snapshot", "--from", s.Endpoint, "--to", pages)
	run(root, "snapshot", "save", file, "--endpoints", s.Endpoint)
	refused(nil, "--without-auth", "verify", file, data)
	keelson(t, "verify", "--without-auth", file, data)
	for _, dir := range []string{data, pages} {
		k := startKeelson(t, func(to string) {
			keelson(t, "snapshot", "save", file, "--force", "--data-dir", dir)
			keelson(t, "import", "--from", file, "--to", to)
		})
		if got := all(t, connect(t, k.Endpoint)); got != want {
			t.Errorf("keelson has\n%swant\n%s", got, want)
		}
	}

	// Into an etcd with users, from a server and from files.
	other := harness.StartServer(t, harness.Etcd)
	enableAuth(t, connect(t, other.Endpoint))
	refused(nil, "user name is empty", "export", "--from", data, "--to", other.Endpoint)
	refused(reader, "permission denied", "export", "--from", data, "--to", other.Endpoint)
	run(root, "export", "--from", data, "--to", other.Endpoint)
	run(root, "verify", "--values", "--without-auth", data, other.Endpoint)
}

// enableAuth lets only the users root, who may do everything, and reader in.
func enableAuth(t *testing.T, c *clientv3.Client) {
	t.Helper()
	ctx := t.Context()
	for _, name := range []string{"root", "reader"} {
		_, err := c.RoleAdd(ctx, name)
		if err != nil && !strings.Contains(err.Error(), "already exists") {
			t.Fatal(err)
		}
		_, err = c.UserAdd(ctx, name, "secret")
		check(t, err)
		_, err = c.UserGrantRole(ctx, name, name)
		check(t, err)
	}
	_, err := c.RoleGrantPermission(ctx, "reader", "\x00", "\x00", clientv3.PermissionType(clientv3.PermRead))
	check(t, err)
	_, err = c.AuthEnable(ctx)
	check(t, err)
}
