package harness

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Backend names a server that speaks the etcd API.
type Backend string

// The backends. A test that etcd fails is wrong; one that only keelson fails
// has found something.
const (
	Etcd    Backend = "etcd"
	Keelson Backend = "keelson"
)

// Backends returns those to test, by KEELSON_TEST_BACKEND.
func Backends(t testing.TB) []Backend {
	t.Helper()
	switch name := os.Getenv("KEELSON_TEST_BACKEND"); name {
	case "":
		return []Backend{Etcd, Keelson}
	case string(Etcd), string(Keelson):
		return []Backend{Backend(name)}
	default:
		t.Fatalf("KEELSON_TEST_BACKEND=%q: it is etcd or keelson", name)
		return nil
	}
}

// Server is a backend with one data directory, listening on one unix socket.
// Kill and Restart model a crash: the data and the endpoint stay.
type Server struct {
	*Process // the running process; replaced by Restart

	Backend  Backend
	Dir      string // holds the socket, the log and data/
	Socket   string
	Endpoint string // unix://<socket>
	Program  string // what Restart starts

	t    testing.TB
	args []string
}

// StartServer starts the backend and waits until it is healthy. Further
// arguments are passed on; both take etcd's flag names. keelson's data is where
// DatastoreArgs says, unless args have a --datastore.
func StartServer(t testing.TB, backend Backend, args ...string) *Server {
	t.Helper()
	if backend == Etcd {
		return StartProgram(t, backend, Tool(t, "etcd"), args...)
	}
	return StartProgram(t, backend, KeelsonBinary(t), args...)
}

// StartProgram is StartServer for another program of the backend: another
// version.
func StartProgram(t testing.TB, backend Backend, program string, args ...string) *Server {
	t.Helper()
	s := NewServer(t, backend, program, args...)
	s.Restart()
	return s
}

// NewServer is StartProgram for a server that is yet to be started, with
// Restart or TryRestart.
func NewServer(t testing.TB, backend Backend, program string, args ...string) *Server {
	t.Helper()
	s := &Server{Backend: backend, Dir: TempDir(t), Program: program, t: t}
	s.Socket = filepath.Join(s.Dir, "client.sock")
	s.Endpoint = "unix://" + s.Socket
	s.args = []string{
		"--data-dir", filepath.Join(s.Dir, "data"),
		"--listen-client-urls", s.Endpoint,
		"--advertise-client-urls", s.Endpoint,
	}
	if backend == Etcd {
		peer := "unix://" + filepath.Join(s.Dir, "peer.sock")
		s.args = append(s.args,
			"--listen-peer-urls", peer,
			"--initial-advertise-peer-urls", peer,
			"--initial-cluster", "default="+peer)
	} else if !slices.Contains(args, "--datastore") {
		s.args = append(s.args, DatastoreArgs(t)...)
	}
	s.args = append(s.args, args...)
	if backend == Keelson && os.Getenv("KEELSON_TEST_DATASTORE") == "cluster" && !slices.Contains(args, "--initial-cluster") {
		s.startOthers(args)
		s.args = append(s.args, clusterArgs(s.Dir, 0)...)
	}
	t.Cleanup(func() {
		// A server that is killed cannot say by its exit status that it raced.
		if bytes.Contains(s.Log(), []byte("WARNING: DATA RACE")) {
			t.Errorf("%s has a data race:\n%s", backend, s.Log())
		}
		if t.Failed() {
			t.Logf("end of the log of %s:\n%s", backend, s.LogTail(25))
		}
	})
	return s
}

// Restart ends the process with SIGKILL if it still runs, starts it again on
// its data and waits until it is healthy.
func (s *Server) Restart() {
	s.t.Helper()
	if err := s.TryRestart(); err != nil {
		s.t.Fatal(err)
	}
}

// TryRestart is Restart for goroutines other than the test's own.
func (s *Server) TryRestart() error {
	if s.Process != nil {
		s.Kill()
	}
	s.Process = StartProcess(s.t, s.Dir, string(s.Backend), s.Program, s.args...)
	err := s.WaitReady(time.Minute, func(ctx context.Context) error {
		status, body, err := s.Get(ctx, "/health?exclude=NOSPACE")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("/health: %d %s", status, body)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", s.Backend, err)
	}
	return nil
}

// Get sends an HTTP GET to the client socket.
func (s *Server) Get(ctx context.Context, path string) (status int, body string, err error) {
	return s.Do(ctx, http.MethodGet, path, "")
}

// Do sends an HTTP request to the client socket.
func (s *Server) Do(ctx context.Context, method, path, request string) (status int, body string, err error) {
	var dialer net.Dialer
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", s.Socket)
		},
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, strings.NewReader(request))
	if err != nil {
		return 0, "", err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// TempDir is t.TempDir with a path short enough for a unix socket in it.
func TempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
