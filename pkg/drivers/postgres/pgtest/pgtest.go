// Package pgtest runs a PostgreSQL server for tests: one of its own, in a
// temporary directory, on a unix socket, with fsync on. It takes the programs
// that are installed (Debian: postgresql) and, as root, runs them as the user
// postgres or nobody, since they refuse to be root.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The superuser of the server, who asks for a password, so that tests can
// look for it where it must not be.
const (
	User     = "keelson"
	Password = "correct-horse-battery"
)

// BinEnv names the directory of the programs if they are not found.
const BinEnv = "KEELSON_POSTGRES_BIN"

// ErrNotInstalled: there is no PostgreSQL server on this machine.
var ErrNotInstalled = errors.New("no PostgreSQL server is installed: install postgresql, or set " + BinEnv + " to the directory of initdb and postgres")

// startTimeout bounds the wait for a server that starts, recovery included.
const startTimeout = 30 * time.Second

// Server is a PostgreSQL server. Its methods are for one goroutine at a time.
type Server struct {
	dir      string // also of the socket
	bin      string
	attr     *syscall.SysProcAttr
	settings []string // "name=value"
	port     string

	process *exec.Cmd     // nil: stopped
	exited  chan struct{} // closed when process has ended
}

// New makes a server with settings ("name=value") and starts it. Close
// removes it. It listens on its socket alone, unless listen_addresses and port
// are among the settings.
func New(settings ...string) (*Server, error) {
	bin, err := findPrograms()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "keelson-pg-")
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, bin: bin, attr: dieWithParent(), settings: settings, port: "5432"}
	for _, setting := range settings {
		if port, ok := strings.CutPrefix(setting, "port="); ok {
			s.port = port
		}
	}
	if err := s.init(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := s.Start(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// ForTest is New for a test, which ends the server with it, and is skipped where
// PostgreSQL is not installed.
func ForTest(t testing.TB, settings ...string) *Server {
	t.Helper()
	s, err := New(settings...)
	if errors.Is(err, ErrNotInstalled) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// findPrograms returns the directory of the newest PostgreSQL there is.
func findPrograms() (string, error) {
	if dir := os.Getenv(BinEnv); dir != "" {
		return dir, nil
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		path, err = filepath.EvalSymlinks(path) // the others are beside it
		return filepath.Dir(path), err
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(strings.Split(path, "/")[4])
		return n
	}
	slices.SortFunc(found, func(a, b string) int { return version(b) - version(a) })
	if len(found) == 0 {
		return "", ErrNotInstalled
	}
	return filepath.Dir(found[0]), nil
}

// init makes the database cluster.
func (s *Server) init() error {
	if os.Geteuid() == 0 {
		if err := s.dropRoot(); err != nil {
			return err
		}
	}
	password := filepath.Join(s.dir, "password")
	if err := os.WriteFile(password, []byte(Password+"\n"), 0o644); err != nil {
		return err
	}
	out, err := s.command("initdb", "--pgdata="+s.data(), "--username="+User, "--pwfile="+password,
		"--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync").CombinedOutput()
	if err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	return nil
}

// dropRoot makes the server run as somebody else.
func (s *Server) dropRoot() error {
	u, err := user.Lookup("postgres")
	if err != nil {
		u, err = user.Lookup("nobody")
	}
	if err != nil {
		return err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return err
	}
	s.attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return os.Chown(s.dir, int(uid), int(gid))
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) command(program string, args ...string) *exec.Cmd {
	return s.Command(s.Program(program), args...)
}

// URL returns the URL of a database, with params ("name=value").
func (s *Server) URL(database string, params ...string) string {
	query := url.Values{"host": {s.dir}, "port": {s.port}}
	for _, p := range params {
		name, value, _ := strings.Cut(p, "=")
		query.Set(name, value)
	}
	u := url.URL{Scheme: "postgres", User: url.UserPassword(User, Password), Path: "/" + database, RawQuery: query.Encode()}
	return u.String()
}

// Start starts a server that was stopped and returns when it answers.
func (s *Server) Start() error {
	deadline := time.Now().Add(startTimeout)
	for {
		err := s.tryStart(deadline)
		// After a kill the old backends may take a moment to notice.
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (s *Server) tryStart(deadline time.Time) error {
	args := []string{"-D", s.data(), "-k", s.dir, "-c", "listen_addresses="}
	for _, setting := range s.settings {
		args = append(args, "-c", setting)
	}
	log, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd, exited := s.command("postgres", args...), make(chan struct{})
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	s.process, s.exited = cmd, exited
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(exited)
	}()
	for time.Now().Before(deadline) {
		if s.command("pg_isready", "--quiet", "--host="+s.dir, "--port="+s.port).Run() == nil {
			return nil
		}
		select {
		case <-exited:
			s.process = nil
			out, _ := os.ReadFile(s.LogFile())
			return fmt.Errorf("postgres ended: %s", out[max(0, len(out)-1000):])
		case <-time.After(20 * time.Millisecond):
		}
	}
	return errors.Join(fmt.Errorf("postgres was not ready after %v", startTimeout), s.Kill())
}

// Dir is the directory of the server's socket.
func (s *Server) Dir() string { return s.dir }

// Command runs another program as the server's user; it ends with the test.
func (s *Server) Command(path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	cmd.Dir = s.dir
	cmd.SysProcAttr = s.attr
	return cmd
}

// Program returns the path of a program of PostgreSQL, such as pg_dump.
func (s *Server) Program(name string) string { return filepath.Join(s.bin, name) }

// Own gives a directory to the server's user.
func (s *Server) Own(dir string) error {
	if c := s.attr.Credential; c != nil {
		return os.Chown(dir, int(c.Uid), int(c.Gid))
	}
	return nil
}

// LogFile is what the server logs to.
func (s *Server) LogFile() string { return filepath.Join(s.dir, "log") }

// Stop ends the server, cutting its connections off; all commits are kept.
func (s *Server) Stop() error { return s.end(syscall.SIGINT) }

// Kill is kill -9 of all its processes: the next start recovers.
func (s *Server) Kill() error {
	if s.process == nil {
		return nil
	}
	// The backends first: those that outlive their parent go on for a moment,
	// and may even commit. Stopped, it can neither see them die nor make more.
	if err := s.process.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	children, err := childrenOf(s.process.Process.Pid)
	if err != nil {
		return err
	}
	for _, pid := range children {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return s.end(syscall.SIGKILL)
}

func (s *Server) end(signal syscall.Signal) error {
	if s.process == nil {
		return nil
	}
	if err := s.process.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	select {
	case <-s.exited:
	case <-ctx.Done():
		return fmt.Errorf("postgres does not end: %w", ctx.Err())
	}
	s.process = nil
	return nil
}

// Close ends the server and removes it.
func (s *Server) Close() error {
	// SIGQUIT: nothing of it is needed any more.
	return errors.Join(s.end(syscall.SIGQUIT), os.RemoveAll(s.dir))
}
