// Package transfer moves data between real servers, with keelson's commands:
// from kine's databases, between etcd and keelson, and back.
package transfer

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/keelson-io/keelson/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

const patience = 3 * time.Minute

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// keelson runs a command of keelson's, which must succeed, and returns what it
// printed.
func keelson(t *testing.T, args ...string) string {
	t.Helper()
	out, err := tryKeelson(t, nil, args...)
	if err != nil {
		t.Fatalf("keelson %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func tryKeelson(t *testing.T, env []string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(harness.KeelsonBinary(t), args...)
	cmd.Env = append(os.Environ(), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// fails runs a command that must fail and say want, on one line.
func fails(t *testing.T, want string, args ...string) {
	t.Helper()
	out, err := tryKeelson(t, nil, args...)
	if err == nil || !strings.Contains(out, want) || strings.Count(out, "\n") != 1 {
		t.Errorf("keelson %s: %v, want an error of one line with %q\n%s", strings.Join(args, " "), err, want, out)
	}
}

func connect(t *testing.T, endpoint string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	check(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// kine is a running kine.
type kine struct {
	*harness.Process
	dir      string // db/state.db is below, unless it has another datastore
	endpoint string
}

// startKine starts a kine on a datastore, or on SQLite if that is empty. It
// compacts only when told to, and then everything.
func startKine(t *testing.T, dir, datastore string, more ...string) *kine {
	t.Helper()
	if dir == "" {
		dir = harness.TempDir(t)
	}
	socket := filepath.Join(dir, "kine.sock")
	check(t, os.RemoveAll(socket))
	args := []string{"--listen-address", "unix://" + socket, "--metrics-bind-address", "0", "--compact-min-retain", "0"}
	if datastore != "" {
		args = append(args, "--endpoint", datastore, "--datastore-max-open-connections", "20")
	}
	k := &kine{dir: dir, endpoint: "unix://" + socket}
	k.Process = harness.StartProcess(t, dir, "kine", harness.Tool(t, "kine"), append(args, more...)...)
	check(t, k.WaitReady(patience, func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil {
			return err
		}
		return conn.Close()
	}))
	return k
}

// startKeelson starts a keelson on the data that prepare makes in a directory.
func startKeelson(t *testing.T, prepare func(dir string)) *harness.Server {
	t.Helper()
	s := harness.NewServer(t, harness.Keelson, harness.KeelsonBinary(t), "--datastore", "sqlite")
	prepare(filepath.Join(s.Dir, "data"))
	s.Restart()
	return s
}
