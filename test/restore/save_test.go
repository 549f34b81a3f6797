package restore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keelson-io/keelson/test/harness"
)

// TestSave: keelson saves of a server, etcd or keelson, what etcdctl saves.
func TestSave(t *testing.T) {
	t.Parallel()
	for _, backend := range []harness.Backend{harness.Etcd, harness.Keelson} {
		t.Run(string(backend), func(t *testing.T) {
			t.Parallel()
			srv := harness.StartServer(t, backend)
			h := fill(t, connect(t, srv))
			dir := t.TempDir()
			theirs, ours := filepath.Join(dir, "etcdctl.db"), filepath.Join(dir, "keelson.db")
			run(t, harness.Tool(t, "etcdctl"), "--endpoints", srv.Endpoint, "snapshot", "save", theirs)
			out := keelson(t, "snapshot", "save", ours, "--endpoints", srv.Endpoint)
			if !strings.HasPrefix(out, "saved "+ours) {
				t.Errorf("save: %s", out)
			}
			for _, args := range [][]string{{harness.KeelsonBinary(t)}, {harness.Tool(t, "etcdutl")}} {
				a, b := run(t, args[0], "snapshot", "status", theirs), run(t, args[0], "snapshot", "status", ours)
				if a != b || !strings.Contains(a, fmt.Sprint(h.current)) {
					t.Errorf("status %s, want %s", b, a)
				}
			}
			restored := newKeelson(t, onSQLite...)
			keelson(t, "snapshot", "restore", ours, "--data-dir", dataDir(restored))
			restored.Restart()
			h.same(t, restored)
		})
	}
}

// TestSaveTLS saves of servers that want a certificate.
func TestSaveTLS(t *testing.T) {
	t.Parallel()
	pki := harness.NewPKI(t, t.TempDir())
	for _, program := range []string{harness.Tool(t, "etcd"), harness.KeelsonBinary(t)} {
		endpoint := "https://" + harness.FreeAddress(t)
		dir := harness.TempDir(t)
		args := []string{
			"--data-dir", filepath.Join(dir, "data"), "--listen-client-urls", endpoint, "--advertise-client-urls", endpoint,
			"--cert-file", pki.ServerCert, "--key-file", pki.ServerKey, "--trusted-ca-file", pki.CA, "--client-cert-auth",
		}
		if program == harness.Tool(t, "etcd") {
			peer := "unix://" + filepath.Join(dir, "peer.sock")
			args = append(args, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
		}
		srv := harness.StartProcess(t, dir, "server", program, args...)
		file := filepath.Join(dir, "a.db")
		save := append([]string{"snapshot", "save", file, "--endpoints", endpoint, "--dial-timeout", "2s"}, "--cacert", pki.CA)
		client := []string{"--cert", pki.ClientCert, "--key", pki.ClientKey}
		if err := srv.WaitReady(timeout, func(context.Context) error {
			out, err := try(t, nil, harness.KeelsonBinary(t), append(save, client...)...)
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		keelson(t, "snapshot", "status", file)
		if out, err := try(t, nil, harness.KeelsonBinary(t), append(save, "--force")...); err == nil || strings.Count(out, "\n") != 1 {
			t.Errorf("without a certificate: %v, %s", err, out)
		}
	}
}

// TestSaveCutOff: no file has the snapshot's name before it is whole.
func TestSaveCutOff(t *testing.T) {
	t.Parallel()
	srv := harness.StartServer(t, harness.Etcd)
	c := connect(t, srv)
	for i := range 300 {
		if _, err := c.Put(t.Context(), fmt.Sprint(i), strings.Repeat("v", 100_000)); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "a.db")
	for round := range 8 {
		p := harness.StartProcess(t, t.TempDir(), "save", harness.KeelsonBinary(t), "snapshot", "save", file, "--endpoints", srv.Endpoint, "--force")
		time.Sleep(time.Duration(round*15) * time.Millisecond)
		signal := syscall.SIGKILL
		if round%2 == 0 {
			signal = syscall.SIGINT
		}
		_ = syscall.Kill(p.PID(), signal)
		<-p.Done()
		if _, err := os.Stat(file); err == nil {
			keelson(t, "snapshot", "status", file)
		}
		left, err := filepath.Glob(file + ".part*")
		if err != nil || len(left) > 0 && signal == syscall.SIGINT {
			t.Errorf("%v are left, %v", left, err)
		}
		for _, part := range left {
			if err := os.Remove(part); err != nil {
				t.Error(err)
			}
		}
	}
	keelson(t, "snapshot", "save", file, "--endpoints", srv.Endpoint, "--force")
	keelson(t, "snapshot", "status", file)
}
