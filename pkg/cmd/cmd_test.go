package cmd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// The test binary is the command when this variable is set.
const beCommand = "KEELSON_TEST_BE_THE_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(beCommand) != "" {
		_ = os.Unsetenv(beCommand)
		os.Exit(Execute(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// command is keelson with args, in dir, with a clean environment.
func command(dir string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Dir = dir
	cmd.Env = []string{beCommand + "=1", "PATH=" + os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0"}
	return cmd
}

// outcome runs a command to its end.
func outcome(t *testing.T, dir string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := command(dir, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = time.Minute // for pipes that stay open
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	patience := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Signal(syscall.SIGQUIT) }) // it says where it stands
	defer patience.Stop()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// process is a running server.
type process struct {
	*exec.Cmd
	t     *testing.T
	lines chan string // of its log; closed at its end
	log   bytes.Buffer
	mu    sync.Mutex // guards log
}

func startProcess(t *testing.T, dir string, env []string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: command(dir, args...), t: t, lines: make(chan string, 10000)}
	p.Env = append(p.Env, env...)
	stderr, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.lines)
		for scan := bufio.NewScanner(stderr); scan.Scan(); {
			p.mu.Lock()
			p.log.WriteString(scan.Text() + "\n")
			p.mu.Unlock()
			p.lines <- scan.Text()
		}
	}()
	t.Cleanup(func() {
		if p.ProcessState == nil {
			_ = p.Process.Kill()
			_ = p.Wait()
		}
		if t.Failed() {
			p.mu.Lock()
			defer p.mu.Unlock()
			t.Logf("log of pid %d:\n%s", p.Process.Pid, p.log.String())
		}
	})
	return p
}

// says waits until the log has text, and returns that line.
func (p *process) says(text string) string {
	p.t.Helper()
	deadline := time.After(2 * time.Minute)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("it ended without saying %q", text)
			}
			if strings.Contains(line, text) {
				return line
			}
		case <-deadline:
			p.t.Fatalf("it does not say %q", text)
		}
	}
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// ends waits for the end and returns the exit code, -1 after a signal.
func (p *process) ends() int {
	p.t.Helper()
	for range p.lines { // the pipe must be drained before Wait
	}
	_ = p.Wait()
	return p.ProcessState.ExitCode()
}

const ready = "ready to serve client requests"

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func connect(t *testing.T, endpoint string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestVersionAndHelp(t *testing.T) {
	for _, args := range [][]string{{"version"}, {"--version"}} {
		code, stdout, stderr := outcome(t, t.TempDir(), args...)
		if code != 0 || !strings.HasPrefix(stdout, "keelson ") || !strings.Contains(stdout, "etcd API: 3.7.3") || stderr != "" {
			t.Errorf("%v: %d %q %q", args, code, stdout, stderr)
		}
	}
	code, stdout, _ := outcome(t, t.TempDir(), "--help")
	for _, want := range []string{"kube-apiserver --etcd-servers=unix://", "etcdctl --endpoints", "Storage:", "TLS:", "--listen-client-urls", "KEELSON_DATA_DIR",
		"as a cluster", "PostgreSQL", "  keelson --name=a", "  keelson --datastore=postgres://", "--snapshot-schedule='30 3"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("the help does not say %q", want)
		}
	}
	if code != 0 {
		t.Errorf("--help: exit code %d", code)
	}
}

// TestHelpExamples: the flags in the examples are keelson's.
func TestHelpExamples(t *testing.T) {
	n := 0
	for line := range strings.Lines(strings.ReplaceAll(examples, "\\\n", " ")) {
		command, _, _ := strings.Cut(strings.TrimSpace(line), " #")
		all := words(command)
		if len(all) < 2 || all[0] != "keelson" {
			continue
		}
		n++
		root := newRoot(all[1:], nil)
		if err := root.ParseFlags(all[1:]); err != nil || root.Flags().NArg() > 0 {
			t.Errorf("%s: %v", command, err)
		}
	}
	if n != 6 {
		t.Errorf("%d examples start a server with flags", n)
	}
}

func TestUsageErrors(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--initial-cluster=a=b"}, `keelson: --initial-cluster: "a=b" is not name=URL`},
		{[]string{"--initial-cluster=a=http://127.0.0.1:1"}, `--initial-cluster does not have this node, "default": add default=peer-URL`},
		{[]string{"--listen-peer-urls=http://127.0.0.1:1"}, "add --initial-cluster"},
		{[]string{"--name=a", "--initial-cluster=a=https://127.0.0.1:1"}, "needs --peer-cert-file and --peer-key-file"},
		{[]string{"--name=a", "--initial-cluster=a=http://127.0.0.1:1", "--election-timeout=200"}, "at least five times"},
		{[]string{"--pre-vote=false"}, "keelson: keelson has no --pre-vote: "},
		{[]string{"--data-directory=x"}, "keelson: unknown flag --data-directory; did you mean --data-dir?"},
		{[]string{"serve"}, `keelson: unexpected argument "serve": keelson --help`},
		{[]string{"--client-cert-auth", "true"}, "--client-cert-auth=true"},
		{[]string{"--config-file=none.yaml"}, "none.yaml"},
		{[]string{"--datastore=postgres://localhost/k?pool_max_conns=1"}, "pool_max_conns 1 is too few"},
		{[]string{"--quota-backend-bytes=4GB"}, "without a unit"},
		{[]string{"--listen-client-urls=https://127.0.0.1:0"}, "https://127.0.0.1:0: this URL needs a certificate"},
		{[]string{"version", "please"}, `unexpected argument "please"`},
	} {
		dir := t.TempDir()
		code, stdout, stderr := outcome(t, dir, tt.args...)
		if code != exitUsage || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, tt.want) {
			t.Errorf("%v: exit code %d, %q, %q; want %d and one line that says %q", tt.args, code, stdout, stderr, exitUsage, tt.want)
		}
		if made, _ := os.ReadDir(dir); len(made) > 0 {
			t.Errorf("%v: made %v", tt.args, made)
		}
	}
}

// Nothing of the configuration itself says that a file is not there.
func TestMissingCertificateIsUsage(t *testing.T) {
	code, _, stderr := outcome(t, t.TempDir(), "--listen-client-urls=https://127.0.0.1:0", "--cert-file=none.crt", "--key-file=none.key")
	if code != exitUsage || !strings.Contains(stderr, "none.crt") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}

func TestSecondStartNamesTheFirst(t *testing.T) {
	dir := shortDir(t)
	p := startProcess(t, dir, nil, "--listen-client-urls=unix://k.sock", "--name=first")
	p.says(ready)
	code, _, stderr := outcome(t, dir, "--listen-client-urls=unix://other.sock", "--name=first", "--log-format=json")
	if code != exitFailed || !strings.Contains(stderr, fmt.Sprintf("pid %d", p.Process.Pid)) {
		t.Errorf("exit code %d, %q", code, stderr)
	}
	p.signal(syscall.SIGINT)
	if code := p.ends(); code != 0 {
		t.Errorf("after SIGINT: exit code %d", code)
	}
	if _, err := os.Stat(filepath.Join(dir, "first.keelson", "keelson.db")); err != nil {
		t.Error(err)
	}
}

// A full disk that a checkpoint meets ends the process, although no write
// hears of it, and what was acknowledged is there when it can start again.
func TestFullDiskInACheckpoint(t *testing.T) {
	dir := shortDir(t)
	endpoint := "unix://" + filepath.Join(dir, "k.sock")
	args := []string{"--data-dir", filepath.Join(dir, "data"), "--listen-client-urls", endpoint}
	p := startProcess(t, dir, nil, args...)
	p.says(ready)
	c := connect(t, endpoint)
	value := strings.Repeat("v", 1<<20)
	if _, err := c.Put(t.Context(), "k", value); err != nil {
		t.Fatal(err)
	}
	// No file may grow beyond this, as if the disk were full.
	if err := unix.Prlimit(p.Process.Pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 256 << 10, Max: unix.RLIM_INFINITY}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Defragment(t.Context(), endpoint); err == nil {
		t.Error("defragmented a full disk")
	}
	p.says("keelson had to stop")
	if code := p.ends(); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	p = startProcess(t, dir, nil, args...)
	p.says(ready)
	resp, err := connect(t, endpoint).Get(t.Context(), "k")
	if err != nil || len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != value {
		t.Errorf("after the second start: %v", err)
	}
	p.signal(syscall.SIGTERM)
	if code := p.ends(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// Every put that was acknowledged is there after SIGTERM under load, and
// after kill -9 under load.
func TestNoAcknowledgedPutIsLost(t *testing.T) {
	dir := shortDir(t)
	endpoint := "unix://" + filepath.Join(dir, "k.sock")
	args := []string{"--data-dir", filepath.Join(dir, "data"), "--listen-client-urls", endpoint}
	acked := make(map[string]bool)
	for i, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		p := startProcess(t, dir, nil, args...)
		p.says(ready)
		checkAcked(t, connect(t, endpoint), acked)
		load(t, p, endpoint, fmt.Sprintf("run%d", i), sig, acked)
	}
	p := startProcess(t, dir, nil, args...)
	p.says(ready) // the killed one's socket is replaced
	checkAcked(t, connect(t, endpoint), acked)
	p.signal(syscall.SIGTERM)
	if code := p.ends(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// load puts keys from many goroutines, ends the server with sig when enough
// were acknowledged, and adds those to acked.
func load(t *testing.T, p *process, endpoint, prefix string, sig syscall.Signal, acked map[string]bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var (
		mu     sync.Mutex
		wg     sync.WaitGroup
		enough = make(chan struct{})
		before = len(acked)
	)
	for w := range 16 {
		c := connect(t, endpoint)
		wg.Go(func() {
			for n := 0; ; n++ {
				key := fmt.Sprintf("%s/%02d/%06d", prefix, w, n)
				if _, err := c.Put(ctx, key, key); err != nil {
					return
				}
				mu.Lock()
				acked[key] = true
				if len(acked) == before+500 {
					close(enough)
				}
				mu.Unlock()
			}
		})
	}
	select {
	case <-enough:
	case <-ctx.Done():
		t.Fatal("too few puts were acknowledged")
	}
	p.signal(sig)
	code := p.ends()
	cancel() // clients would wait for the server to come back
	wg.Wait()
	if want := map[syscall.Signal]int{syscall.SIGTERM: 0, syscall.SIGKILL: -1}[sig]; code != want {
		t.Errorf("after %v: exit code %d, want %d", sig, code, want)
	}
}

func checkAcked(t *testing.T, c *clientv3.Client, acked map[string]bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	resp, err := c.Get(ctx, "run", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	there := make(map[string]bool)
	for _, kv := range resp.Kvs {
		there[string(kv.Key)] = string(kv.Value) == string(kv.Key)
	}
	for key := range acked {
		if !there[key] {
			t.Errorf("%s was acknowledged and is not there", key)
		}
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	dir := shortDir(t)
	p := startProcess(t, dir, nil, "--listen-client-urls=unix://k.sock", "--drain-timeout=1h", "--enable-pprof")
	p.says(ready)
	// A request whose body does not come keeps the drain waiting. The answer
	// to Expect says that it is under way.
	conn, err := net.Dial("unix", filepath.Join(dir, "k.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "POST /debug/pprof/symbol HTTP/1.1\r\nHost: k\r\nContent-Length: 8\r\nExpect: 100-continue\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") {
		t.Fatalf("%q, %v", line, err)
	}
	p.signal(syscall.SIGTERM)
	p.says("a second signal stops at once")
	p.signal(syscall.SIGTERM)
	if code := p.ends(); code != -1 {
		t.Errorf("exit code %d, want the end by a signal", code)
	}
}

func TestTellsSystemd(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "notify")
	next := startSystemd(t, path)
	p := startProcess(t, dir, []string{"NOTIFY_SOCKET=" + path}, "--listen-client-urls=unix://k.sock")
	if got := next(); !strings.HasPrefix(got, "READY=1\nSTATUS=serving unix://") {
		t.Errorf("got %q", got)
	}
	if _, err := connect(t, "unix://"+filepath.Join(dir, "k.sock")).Put(t.Context(), "k", "v"); err != nil {
		t.Errorf("ready, and yet: %v", err)
	}
	p.signal(syscall.SIGTERM)
	if got := next(); got != "STOPPING=1" {
		t.Errorf("got %q", got)
	}
	p.says("a second signal stops at once")
	p.says("all connections and the data are closed")
	if code := p.ends(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// The default addresses are the socket in the data directory and port 2379;
// only the socket is certain to be free here.
func TestEnvironmentAndFile(t *testing.T) {
	dir := shortDir(t)
	file := filepath.Join(dir, "keelson.yaml")
	if err := os.WriteFile(file, []byte("name: filed\nlog-format: json\nlisten-client-urls: [\"unix://"+dir+"/f.sock\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startProcess(t, dir, []string{"KEELSON_CONFIG_FILE=" + file, "KEELSON_DATA_DIR=" + filepath.Join(dir, "from-env"), "ETCD_NAME=x"})
	p.says("ETCD_NAME is not read, since there is a --config-file")
	p.says(`"msg":"` + ready + `"`)
	members, err := connect(t, "unix://"+dir+"/f.sock").MemberList(t.Context())
	if err != nil || members.Members[0].Name != "filed" {
		t.Errorf("%v, %v", members, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "from-env", "keelson.db")); err != nil {
		t.Error(err)
	}
	p.signal(syscall.SIGTERM)
	if code := p.ends(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// A unit made for etcd, with nothing but the program's name changed.
func TestEtcdsVariables(t *testing.T) {
	dir := shortDir(t)
	endpoint := "unix://" + filepath.Join(dir, "k.sock")
	unit := []string{
		"ETCD_NAME=infra0", "ETCD_DATA_DIR=" + filepath.Join(dir, "data"), "ETCD_LISTEN_CLIENT_URLS=" + endpoint,
		"ETCD_ADVERTISE_CLIENT_URLS=http://10.0.0.5:2379", "ETCD_MAX_TXN_OPS=2", "ETCD_LOG_LEVEL=info", "ETCD_METRICS=extensive",
		"ETCDCTL_ENDPOINTS=" + endpoint, "ETCD_UNSUPPORTED_ARCH=arm", "ETCD_SERVICE_HOST=10.0.0.1",
	}
	p := startProcess(t, dir, unit)
	p.says("ETCD_ADVERTISE_CLIENT_URLS,ETCD_DATA_DIR,ETCD_LISTEN_CLIENT_URLS,ETCD_LOG_LEVEL,ETCD_MAX_TXN_OPS,ETCD_METRICS,ETCD_NAME")
	p.says(ready)
	c := connect(t, endpoint)
	members, err := c.MemberList(t.Context())
	if err != nil || members.Members[0].Name != "infra0" || members.Members[0].ClientURLs[0] != "http://10.0.0.5:2379" {
		t.Errorf("%v, %v", members, err)
	}
	if _, err := c.Txn(t.Context()).Then(clientv3.OpGet("a"), clientv3.OpGet("b"), clientv3.OpGet("c")).Commit(); err == nil {
		t.Error("three operations in a transaction of two")
	}
	p.signal(syscall.SIGTERM)
	if code := p.ends(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	cmd := command(dir)
	cmd.Env = append(cmd.Env, append(unit, "ETCD_DISCOVERY=http://10.0.0.5:2380", "ETCD_MAX_WALS=5")...)
	out, err := cmd.CombinedOutput()
	for _, want := range []string{"ETCD_DISCOVERY: keelson has no --discovery: ", "ETCD_MAX_WALS: keelson has no --max-wals: "} {
		if cmd.ProcessState.ExitCode() != exitUsage || !strings.Contains(string(out), want) {
			t.Errorf("%v, %s; want it to say %q", err, out, want)
		}
	}
}
