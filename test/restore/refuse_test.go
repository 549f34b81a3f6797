package restore

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/test/harness"
)

// tree is a digest of everything in a directory.
func tree(t *testing.T, dir string) string {
	t.Helper()
	sum := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fmt.Fprintln(sum, path, d.Type())
		if !d.Type().IsRegular() {
			return nil
		}
		data, err := os.ReadFile(path)
		sum.Write(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

// refused runs a restore that is to fail, saying want on one line, and to leave
// dir as it is.
func refused(t *testing.T, dir, want string, args ...string) {
	t.Helper()
	before := tree(t, dir)
	out, err := try(t, nil, harness.KeelsonBinary(t), append([]string{"snapshot", "restore"}, args...)...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 && exit.ExitCode() != 2 {
		t.Errorf("%q: %v", args, err)
	}
	if !strings.HasPrefix(out, "keelson: ") || strings.Count(out, "\n") != 1 || !strings.Contains(out, want) {
		t.Errorf("%q says %q, want one line with %q", args, out, want)
	}
	if tree(t, dir) != before {
		t.Errorf("%q has changed something", args)
	}
}

// TestBadFiles: what is no snapshot is refused before anything is changed.
func TestBadFiles(t *testing.T) {
	t.Parallel()
	_, _, file := etcdWithHistory(t)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	full, data := filepath.Join(dir, "full"), filepath.Join(dir, "data")
	keelson(t, "snapshot", "restore", file, "--data-dir", full)
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 4
	for name, bad := range map[string]struct {
		content []byte
		says    string
	}{
		"empty":     {nil, "empty"},
		"text":      {[]byte("this is a text, and of some length, so that it is not just too short\n"), "text"},
		"truncated": {whole[:len(whole)-5000], "cut off"},
		"pages":     {whole[:(len(whole)/2)&^511], "cut off"},
		"flipped":   {flipped, "checksum"},
		"gzip":      {append([]byte{0x1f, 0x8b, 8, 0}, whole...), "gzip"},
		"encrypted": {append([]byte("Salted__"), whole...), "encrypted"},
		"newer":     {newer(t, whole), "version 9.9"},
	} {
		path := filepath.Join(dir, name+".db")
		if err := os.WriteFile(path, bad.content, 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, dir, bad.says, path, "--skip-hash-check", "--data-dir", data)
		refused(t, dir, bad.says, path, "--skip-hash-check", "--data-dir", full, "--force")
	}
	refused(t, dir, "no such file", filepath.Join(dir, "absent"), "--data-dir", data)
	refused(t, dir, "not a file of etcd", full, "--data-dir", data)
	refused(t, dir, "has data already", file, "--data-dir", full)
	refused(t, dir, "belong together", file, "--data-dir", data, "--bump-revision", "5")
	refused(t, dir, "belong together", file, "--data-dir", data, "--mark-compacted")
	refused(t, dir, "does not have this node", file, "--data-dir", data, "--initial-cluster", "a=http://10.0.0.1:2380")
	refused(t, dir, "did you mean --data-dir", file, "--data-dri", data)
}

// TestAuth: what users and roles protect is not opened to everybody unless that
// is meant.
func TestAuth(t *testing.T) {
	t.Parallel()
	etcd := harness.StartServer(t, harness.Etcd)
	etcdctl := func(args ...string) {
		t.Helper()
		run(t, harness.Tool(t, "etcdctl"), append([]string{"--endpoints", etcd.Endpoint}, args...)...)
	}
	dir := t.TempDir()
	file, data := filepath.Join(dir, "etcd.db"), filepath.Join(dir, "data")
	etcdctl("put", "secret", "v")
	etcdctl("user", "add", "root:pw")
	etcdctl("user", "grant-role", "root", "root")
	etcdctl("auth", "enable")
	out, err := try(t, nil, harness.KeelsonBinary(t), "snapshot", "save", file, "--endpoints", etcd.Endpoint)
	if err == nil || !strings.Contains(out, "user") {
		t.Errorf("saved without a password: %v, %s", err, out)
	}
	if out, err := try(t, []string{"ETCDCTL_USER=root", "ETCDCTL_PASSWORD=pw"}, harness.KeelsonBinary(t), "snapshot", "save", file, "--endpoints", etcd.Endpoint); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	refused(t, dir, "--without-auth says that this is meant", file, "--data-dir", data)
	if out := keelson(t, "snapshot", "restore", file, "--data-dir", data, "--without-auth"); !strings.Contains(out, "1 keys") {
		t.Errorf("restored: %s", out)
	}
}

// newer is a file of an etcd that is not there yet.
func newer(t *testing.T, file []byte) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, file[:len(file)-sha256.Size], 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("meta")).Put([]byte("storageVersion"), []byte("9.9.0"))
	})
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestRunning: the data of a server that runs is not touched, whatever is said.
func TestRunning(t *testing.T) {
	t.Parallel()
	_, _, file := etcdWithHistory(t)
	srv := newKeelson(t, onSQLite...)
	srv.Restart()
	if _, err := connect(t, srv).Put(t.Context(), "k", "v"); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{}, {"--force"}} {
		refused(t, dataDir(srv), fmt.Sprintf("pid %d", srv.PID()), append([]string{file, "--data-dir", dataDir(srv)}, args...)...)
	}
	got, err := connect(t, srv).Get(t.Context(), "k")
	if err != nil || len(got.Kvs) != 1 {
		t.Errorf("%v, %v", got, err)
	}
}

// TestFullDisk restores with a limit on the size of files, as one that the
// disk is full at.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	etcd := harness.StartServer(t, harness.Etcd)
	c := connect(t, etcd)
	for i := range 40 {
		if _, err := c.Put(t.Context(), fmt.Sprint(i), strings.Repeat("v", 50_000)); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "etcd.db")
	run(t, harness.Tool(t, "etcdctl"), "--endpoints", etcd.Endpoint, "snapshot", "save", file)
	full := filepath.Join(dir, "full")
	keelson(t, "snapshot", "restore", file, "--data-dir", full)
	for _, data := range []string{full, filepath.Join(dir, "absent")} {
		before := tree(t, dir)
		// In units of 512 bytes: half a megabyte.
		out, err := try(t, nil, "sh", "-c", `ulimit -f 1024 && exec "$0" "$@"`,
			harness.KeelsonBinary(t), "snapshot", "restore", file, "--data-dir", data, "--force")
		if err == nil || strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, "keelson: "+data) {
			t.Errorf("a full disk: %v, %s", err, out)
		}
		if tree(t, dir) != before {
			t.Errorf("a full disk has changed something at %s", data)
		}
	}
}

// TestNoPermission runs as somebody who may do little.
func TestNoPermission(t *testing.T) {
	t.Parallel()
	_, _, file := etcdWithHistory(t)
	dir := t.TempDir()
	binary, readable, locked := filepath.Join(dir, "keelson"), filepath.Join(dir, "etcd.db"), filepath.Join(dir, "locked")
	for from, to := range map[string]string{harness.KeelsonBinary(t): binary, file: readable} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, 0o755); err != nil { //nolint:gosec // to be run by another user
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(locked, 0o755); err != nil { //nolint:gosec // as above
		t.Fatal(err)
	}
	for _, d := range []string{dir, filepath.Dir(dir)} { // made for this user alone
		if err := os.Chmod(d, 0o755); err != nil { //nolint:gosec // as above
			t.Fatal(err)
		}
	}
	before := tree(t, dir)
	for _, args := range [][]string{
		{readable, "--data-dir", filepath.Join(locked, "data")},
		{readable, "--data-dir", locked},
		{file, "--data-dir", filepath.Join(dir, "data")},
	} {
		cmd := exec.CommandContext(t.Context(), binary, append([]string{"snapshot", "restore"}, args...)...)
		if os.Getuid() == 0 {
			const nobody = 65534
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		} else if err := errors.Join(os.Chmod(locked, 0o555), os.Chmod(file, 0)); err != nil {
			t.Fatal(err)
		}
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "permission denied") || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%q: %v, %s", args, err, out)
		}
	}
	if tree(t, dir) != before {
		t.Error("something has changed")
	}
}

// TestInterrupted interrupts a restore, and kills one, over and over. What
// there was is there, until one is not interrupted.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	etcd := harness.StartServer(t, harness.Etcd)
	c := connect(t, etcd)
	for i := range 100 {
		var ops []clientv3.Op
		for k := range 100 {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("/%d/%d", i, k), strings.Repeat("v", 300)))
		}
		if _, err := c.Txn(t.Context()).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "etcd.db")
	run(t, harness.Tool(t, "etcdctl"), "--endpoints", etcd.Endpoint, "snapshot", "save", file)
	srv := newKeelson(t, onSQLite...)
	srv.Restart()
	if _, err := connect(t, srv).Put(t.Context(), "mine", "v"); err != nil {
		t.Fatal(err)
	}
	if err := srv.Stop(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	keelson(t, "snapshot", "restore", file, "--data-dir", filepath.Join(t.TempDir(), "whole"))
	whole := time.Since(began)
	outcomes := map[string]int{}
	const rounds = 24
	for round := range rounds {
		cmd := exec.CommandContext(t.Context(), harness.KeelsonBinary(t), "snapshot", "restore", file, "--data-dir", dataDir(srv), "--force")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		if round == rounds-1 {
			whole = timeout
		}
		select { // from at once to when it has ended
		case <-time.After(2 * whole * time.Duration(round) / rounds):
		case err := <-ended:
			ended <- err
		}
		signal := syscall.SIGINT
		if round%2 == 1 {
			signal = syscall.SIGKILL
		}
		_ = cmd.Process.Signal(signal) // it may have ended
		err := <-ended
		if err != nil && signal == syscall.SIGINT && cmd.ProcessState.ExitCode() == 1 && !strings.Contains(out.String(), "interrupted: nothing was changed") {
			t.Errorf("interrupted: %v, %s", err, out.String())
		}
		if err := srv.TryRestart(); err != nil {
			if !strings.Contains(string(srv.Log()), "an import or restore into this directory was cut off: run it again") {
				t.Fatal(err)
			}
			outcomes["refused"]++
			keelson(t, "snapshot", "restore", file, "--data-dir", dataDir(srv), "--force")
			srv.Restart()
		}
		client := connect(t, srv)
		mine, err1 := client.Get(t.Context(), "mine")
		theirs, err2 := client.Get(t.Context(), "/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		outcome := fmt.Sprintf("%d %d", len(mine.Kvs), theirs.Count)
		outcomes[outcome]++
		switch outcome {
		case "1 0":
		case "0 10000":
			if _, err := client.Delete(t.Context(), "", clientv3.WithPrefix()); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Put(t.Context(), "mine", "v"); err != nil {
				t.Fatal(err)
			}
		default:
			t.Fatalf("round %d: %d and %d keys, which is neither before nor after", round, len(mine.Kvs), theirs.Count)
		}
		if err := srv.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("keys of before and after: %v", outcomes)
	if outcomes["1 0"] == 0 || outcomes["0 10000"] == 0 {
		t.Errorf("one of both never came out: %v", outcomes)
	}
	files, err := os.ReadDir(dataDir(srv))
	if err != nil || len(files) > 3 {
		t.Errorf("left in the data directory: %v, %v", files, err)
	}
}
