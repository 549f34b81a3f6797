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
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Server is a running system: one process or several.
type Server struct {
	System
	Dir   string        // holds data/, the sockets and the log
	Ready time.Duration // from the start of the process to its first answer

	processes []*process
	ended     chan struct{} // closed when one of them has ended
	end       sync.Once
	dialed    atomic.Int64 // spreads clients
	postgres  *postgres    // or nil
	proxy     *proxy       // or nil
}

// process is one instance of a system.
type process struct {
	cmd      *exec.Cmd
	endpoint string
	done     chan struct{} // closed when it has ended
}

// Start starts the program on the data that dir may hold and waits until it
// answers a linearizable read. With pprof it serves profiles if it can.
func (s System) Start(ctx context.Context, program, dir string, pprof bool) (*Server, error) {
	data := filepath.Join(dir, "data")
	mode := os.FileMode(0o700)
	if s.postgres != nil {
		mode = 0o711 // another user's files are in it
	}
	if err := os.MkdirAll(filepath.Join(data, s.below), mode); err != nil {
		return nil, err
	}
	srv := &Server{System: s, Dir: dir, ended: make(chan struct{})}
	places, err := srv.startBelow(ctx, data)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	for _, p := range places {
		if err = srv.startProcess(ctx, program, p, pprof); err != nil {
			break
		}
	}
	if err != nil {
		srv.Kill()
		return nil, fmt.Errorf("%s: %w\n%s", s.Name, err, srv.LogTail())
	}
	srv.Ready = time.Since(began)
	return srv, nil
}

// startBelow starts what the system is built on and says where its processes
// are to have their files.
func (s *Server) startBelow(ctx context.Context, data string) (places []place, err error) {
	first := place{data: data, socket: filepath.Join(s.Dir, "client.sock"), postgres: postgresDir(data)}
	if s.System.postgres == nil {
		return []place{first}, nil
	}
	if s.postgres, err = startPostgres(ctx, first.postgres, s.System.postgres.database, filepath.Join(s.Dir, "log-postgres")); err != nil {
		return nil, err
	}
	if delay := s.System.postgres.delay; delay > 0 {
		near := filepath.Join(s.Dir, "proxy")
		if s.proxy, err = startProxy(near, first.postgres, delay); err != nil {
			s.stopBelow(syscall.SIGQUIT)
			return nil, err
		}
		first.postgres = near
	}
	for i := range s.System.postgres.instances {
		p := first
		if i > 0 {
			p.data = filepath.Join(data, fmt.Sprint("instance", i))
			p.socket = filepath.Join(s.Dir, fmt.Sprintf("client%d.sock", i))
		}
		places = append(places, p)
	}
	return places, nil
}

// startProcess returns when the process answers.
func (s *Server) startProcess(ctx context.Context, program string, p place, pprof bool) error {
	if err := os.MkdirAll(p.data, 0o700); err != nil {
		return err
	}
	_ = os.Remove(p.socket)
	log, err := os.OpenFile(filepath.Join(s.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	args := s.args(p)
	if pprof && s.Pprof {
		args = append(args, "--enable-pprof")
	}
	started := &process{cmd: exec.Command(program, args...), endpoint: "unix://" + p.socket, done: make(chan struct{})}
	started.cmd.Dir = p.data // kine's default database is below the working directory
	started.cmd.Stdout, started.cmd.Stderr = log, log
	started.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := started.cmd.Start(); err != nil {
		return err
	}
	s.processes = append(s.processes, started)
	go func() {
		_ = started.cmd.Wait()
		close(started.done)
		s.end.Do(func() { close(s.ended) })
	}()
	return started.waitReady(ctx, p.socket)
}

// longestStart leaves kine the time to VACUUM some gigabytes.
const longestStart = 5 * time.Minute

// waitReady waits for the socket first: a gRPC client that finds none backs off
// for longer than a server takes to start.
func (p *process) waitReady(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, longestStart)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if conn, err := net.Dial("unix", socket); err == nil {
			_ = conn.Close()
			if err := p.probe(ctx); err == nil {
				return nil
			}
		}
		select {
		case <-p.done:
			return fmt.Errorf("ended with %s before it was ready", p.cmd.ProcessState)
		case <-ctx.Done():
			return errors.New("not ready in time")
		case <-tick.C:
		}
	}
}

func (p *process) probe(ctx context.Context) error {
	c, err := p.client()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err = c.Get(ctx, "ready")
	return err
}

func (p *process) client() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: []string{p.endpoint}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
}

// Client opens a connection of its own, to one process after the other.
func (s *Server) Client() (*clientv3.Client, error) {
	n := int(s.dialed.Add(1) - 1)
	return s.processes[n%len(s.processes)].client()
}

// HTTP sends a request to the socket that etcd clients use, of the first process.
func (s *Server) HTTP(ctx context.Context, method, path string) ([]byte, error) {
	var dialer net.Dialer
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, "unix", strings.TrimPrefix(s.processes[0].endpoint, "unix://"))
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

// Usage reads what the server's processes have used, with those of PostgreSQL.
func (s *Server) Usage() (Usage, error) {
	var total Usage
	for _, p := range s.processes {
		u, err := ReadUsage(p.cmd.Process.Pid)
		if err != nil {
			return total, err
		}
		total.CPU += u.CPU
		total.Written += u.Written
		total.RSS += u.RSS
		total.PeakRSS += u.PeakRSS
	}
	if s.postgres == nil {
		return total, nil
	}
	below, err := s.postgres.usage()
	total.CPU += below.CPU
	total.Written += below.Written
	return total, err
}

// ResetPeak lets Usage.PeakRSS start again.
func (s *Server) ResetPeak() error {
	for _, p := range s.processes {
		if err := ResetPeak(p.cmd.Process.Pid); err != nil {
			return err
		}
	}
	return nil
}

// Done is closed when a process has ended.
func (s *Server) Done() <-chan struct{} { return s.ended }

// Kill ends the processes and waits until they are gone.
func (s *Server) Kill() {
	for _, p := range s.processes {
		_ = p.cmd.Process.Kill() // an error means that it has ended
		<-p.done
	}
	s.stopBelow(syscall.SIGQUIT)
}

func (s *Server) stopBelow(signal syscall.Signal) {
	if s.proxy != nil {
		s.proxy.close()
	}
	if s.postgres != nil {
		s.postgres.stop(signal)
	}
}

// Stop ends the processes with SIGTERM, after a minute with SIGKILL.
func (s *Server) Stop() {
	for _, p := range s.processes {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
	}
	patience := time.NewTimer(time.Minute)
	defer patience.Stop()
	for _, p := range s.processes {
		select {
		case <-p.done:
		case <-patience.C:
			s.Kill()
			return
		}
	}
	s.stopBelow(syscall.SIGINT)
}

// LogTail returns the end of what the process has logged.
func (s *Server) LogTail() string {
	b, err := os.ReadFile(filepath.Join(s.Dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}
