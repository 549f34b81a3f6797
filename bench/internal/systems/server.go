package systems

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Server is a running system.
type Server struct {
	System
	Dir      string // holds data/, the sockets and the log
	Endpoint string
	Ready    time.Duration // from the start of the process to its first answer

	cmd      *exec.Cmd
	done     chan struct{} // closed when the process has ended
	postgres *postgres     // or nil
}

// Start starts the program on the data that dir may hold and waits until it
// answers a linearizable read. With pprof it serves profiles if it can.
func (s System) Start(ctx context.Context, program, dir string, pprof bool) (*Server, error) {
	data := filepath.Join(dir, "data")
	mode := os.FileMode(0o700)
	if s.database != "" {
		mode = 0o711 // another user's files are in it
	}
	if err := os.MkdirAll(filepath.Join(data, s.below), mode); err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "client.sock")
	_ = os.Remove(socket)
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	args := s.args(data, socket)
	if pprof && s.Pprof {
		args = append(args, "--enable-pprof")
	}
	cmd := exec.Command(program, args...)
	cmd.Dir = data // kine's default database is below the working directory
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	srv := &Server{System: s, Dir: dir, Endpoint: "unix://" + socket, cmd: cmd, done: make(chan struct{})}
	if s.database != "" {
		if srv.postgres, err = startPostgres(ctx, postgresDir(data), s.database, filepath.Join(dir, "log-postgres")); err != nil {
			return nil, err
		}
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		srv.stopPostgres(syscall.SIGQUIT)
		return nil, err
	}
	go func() {
		_ = cmd.Wait()
		close(srv.done)
	}()
	if err := srv.waitReady(ctx, socket); err != nil {
		srv.Kill()
		return nil, fmt.Errorf("%s: %w\n%s", s.Name, err, srv.LogTail())
	}
	srv.Ready = time.Since(began)
	return srv, nil
}

// longestStart leaves kine the time to VACUUM some gigabytes.
const longestStart = 5 * time.Minute

// waitReady waits for the socket first: a gRPC client that finds none backs off
// for longer than a server takes to start.
func (s *Server) waitReady(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, longestStart)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if conn, err := net.Dial("unix", socket); err == nil {
			_ = conn.Close()
			if err := s.probe(ctx); err == nil {
				return nil
			}
		}
		select {
		case <-s.done:
			return fmt.Errorf("ended with %s before it was ready", s.cmd.ProcessState)
		case <-ctx.Done():
			return errors.New("not ready in time")
		case <-tick.C:
		}
	}
}

func (s *Server) probe(ctx context.Context) error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err = c.Get(ctx, "ready")
	return err
}

// Client opens a connection of its own.
func (s *Server) Client() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: []string{s.Endpoint}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
}

// HTTP sends a request to the socket that etcd clients use.
func (s *Server) HTTP(ctx context.Context, method, path string) ([]byte, error) {
	var dialer net.Dialer
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, "unix", strings.TrimPrefix(s.Endpoint, "unix://"))
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	return body, err
}

// Usage reads what the server has used.
func (s *Server) Usage() (Usage, error) {
	u, err := ReadUsage(s.cmd.Process.Pid)
	if err != nil || s.postgres == nil {
		return u, err
	}
	below, err := s.postgres.usage()
	u.CPU += below.CPU
	u.Written += below.Written
	return u, err
}

// ResetPeak lets Usage.PeakRSS start again.
func (s *Server) ResetPeak() error { return ResetPeak(s.cmd.Process.Pid) }

// Done is closed when the process has ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// Kill ends the process and waits until it is gone.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill() // an error means that it has ended
	<-s.done
	s.stopPostgres(syscall.SIGQUIT)
}

func (s *Server) stopPostgres(signal syscall.Signal) {
	if s.postgres != nil {
		s.postgres.stop(signal)
	}
}

// Stop ends the process with SIGTERM, after a minute with SIGKILL.
func (s *Server) Stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
		s.stopPostgres(syscall.SIGINT)
	case <-time.After(time.Minute):
		s.Kill()
	}
}

// LogTail returns the end of what the process has logged.
func (s *Server) LogTail() string {
	b, err := os.ReadFile(filepath.Join(s.Dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}
