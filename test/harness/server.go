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

	// Nodes are those of the cluster that the server is a node of, by their
	// number, itself included. Without a cluster it is the only one.
	Nodes []*Server

	t    testing.TB
	name string // of the log
	args []string
}

// StartServer starts the backend and waits until it is healthy. Further
// arguments are passed on; both take etcd's flag names. keelson's data is where
// DatastoreArgs says, unless args have a --datastore.
func StartServer(t testing.TB, backend Backend, args ...string) *Server {
	t.Helper()
	return StartProgram(t, backend, program(t, backend), args...)
}

// program is the path of the backend's program.
func program(t testing.TB, backend Backend) string {
	t.Helper()
	if backend == Etcd {
		return Tool(t, "etcd")
	}
	return KeelsonBinary(t)
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
// Restart or TryRestart. Where it is a node of a cluster (see inCluster), the
// others run already, and until the test ends.
func NewServer(t testing.TB, backend Backend, program string, args ...string) *Server {
	t.Helper()
	if inCluster(backend) && !slices.Contains(args, "--initial-cluster") && !slices.Contains(args, "--datastore") {
		nodes := newNodes(t, backend, program, args)
		for _, other := range nodes[1:] {
			other.start()
		}
		return nodes[0]
	}
	s := newServer(t, backend, program, TempDir(t), "")
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
	return s
}

// newServer returns a server whose files in dir have names that end with
// number.
func newServer(t testing.TB, backend Backend, program, dir, number string) *Server {
	s := &Server{Backend: backend, Dir: dir, Program: program, t: t, name: string(backend) + number}
	s.Nodes = []*Server{s}
	s.Socket = filepath.Join(dir, "client"+number+".sock")
	s.Endpoint = "unix://" + s.Socket
	s.args = []string{
		"--data-dir", filepath.Join(dir, "data"+number),
		"--listen-client-urls", s.Endpoint,
		"--advertise-client-urls", s.Endpoint,
	}
	t.Cleanup(func() {
		if s.Process == nil {
			return
		}
		// A server that is killed cannot say by its exit status that it raced.
		if bytes.Contains(s.Log(), []byte("WARNING: DATA RACE")) {
			t.Errorf("%s has a data race:\n%s", s.name, s.Log())
		}
		if t.Failed() {
			t.Logf("end of the log of %s:\n%s", s.name, s.LogTail(25))
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
	s.start()
	err := s.WaitReady(patience, func(ctx context.Context) error {
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

// start starts the process and does not wait until it is healthy.
func (s *Server) start() {
	s.t.Helper()
	s.Process = StartProcess(s.t, s.Dir, s.name, s.Program, s.args...)
}

// Get sends an HTTP GET to the client socket.
func (s *Server) Get(ctx context.Context, path string) (status int, body string, err error) {
	return s.Do(ctx, http.MethodGet, path, "")
}

// Do sends an HTTP request to the client socket.
func (s *Server) Do(ctx context.Context, method, path, request string) (status int, body string, err error) {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return DialUnix(ctx, s.Socket) },
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
