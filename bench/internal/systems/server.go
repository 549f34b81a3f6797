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

	program   string
	pprof     bool
	places    []place // of the processes
	processes []*process
	ended     chan struct{} // closed when one of them has ended that was not to
	end       sync.Once
	dialed    atomic.Int64 // spreads clients
	gone      Usage        // of the processes that KillNode has ended
	postgres  *postgres    // or nil
	proxy     *proxy       // or nil
}

// process is one instance of a system.
type process struct {
	cmd      *exec.Cmd
	endpoint string
	done     chan struct{} // closed when it has ended
	killed   atomic.Bool   // it was to end, and nobody waits for it to come back
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
	srv := &Server{System: s, Dir: dir, program: program, pprof: pprof, ended: make(chan struct{})}
	var err error
	if srv.places, err = srv.startBelow(ctx, data); err != nil {
		return nil, err
	}
	began := time.Now()
	if err = srv.startAll(ctx); err != nil {
		srv.Kill()
		return nil, fmt.Errorf("%s: %w\n%s", s.Name, err, srv.LogTail())
	}
	srv.Ready = time.Since(began)
	return srv, nil
}

// startAll starts the processes: the nodes of a cluster together, since they
// wait for each other, and others in turn.
func (s *Server) startAll(ctx context.Context) error {
	for _, p := range s.places {
		started, err := s.startProcess(p)
		if err != nil {
			return err
		}
		s.processes = append(s.processes, started)
		if s.Nodes == 0 {
			if err := started.waitReady(ctx); err != nil {
				return err
			}
		}
	}
	for _, started := range s.processes {
		if err := started.waitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// startBelow starts what the system is built on and says where its processes
// are to have their files.
func (s *Server) startBelow(ctx context.Context, data string) (places []place, err error) {
	first := place{data: data, socket: filepath.Join(s.Dir, "client.sock"), postgres: postgresDir(data)}
	switch {
	case s.Nodes > 0:
		return s.nodePlaces(data), nil
	case s.System.postgres == nil:
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

// startProcess starts a process and does not wait for it.
func (s *Server) startProcess(p place) (*process, error) {
	if err := os.MkdirAll(p.data, 0o700); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(s.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	args := s.args(p)
	if s.pprof && s.Pprof {
		args = append(args, "--enable-pprof")
	}
	started := &process{cmd: exec.Command(s.program, args...), endpoint: "unix://" + p.socket, done: make(chan struct{})}
	if p.node != nil {
		started.endpoint = p.node.client
	} else {
		_ = os.Remove(p.socket)
	}
	started.cmd.Dir = p.data // kine's default database is below the working directory
	started.cmd.Stdout, started.cmd.Stderr = log, log
	started.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := started.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = started.cmd.Wait()
		close(started.done)
		if !started.killed.Load() {
			s.end.Do(func() { close(s.ended) })
		}
	}()
	return started, nil
}

// dial connects to where clients do.
func (p *process) dial(ctx context.Context) (net.Conn, error) {
	var dialer net.Dialer
	if socket, ok := strings.CutPrefix(p.endpoint, "unix://"); ok {
		return dialer.DialContext(ctx, "unix", socket)
	}
	return dialer.DialContext(ctx, "tcp", strings.TrimPrefix(p.endpoint, "http://"))
}

// longestStart leaves kine the time to VACUUM some gigabytes.
const longestStart = 5 * time.Minute

// probePause is how long a server that listens and does not answer yet, since it
// waits for others or for data, is left alone.
const probePause = 20 * time.Millisecond

// waitReady waits for the socket first: a gRPC client that finds none backs off
// for longer than a server takes to start.
func (p *process) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, longestStart)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if conn, err := p.dial(ctx); err == nil {
			_ = conn.Close()
			if err := p.probe(ctx); err == nil {
				return nil
			}
			tick.Reset(probePause)
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
	c, err := client(p)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err = c.Get(ctx, "ready")
	return err
}

// client opens a connection that spreads its requests over the processes, one
// after the other.
func client(processes ...*process) (*clientv3.Client, error) {
	var endpoints []string
	for _, p := range processes {
		endpoints = append(endpoints, p.endpoint)
	}
	return clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
}

// Client opens a connection of its own: to all nodes of a cluster, or to one
// process after the other.
func (s *Server) Client() (*clientv3.Client, error) {
	if s.Nodes > 0 {
		return client(s.processes...)
	}
	n := int(s.dialed.Add(1) - 1)
	return client(s.processes[n%len(s.processes)])
}

// Processes is how many there are.
func (s *Server) Processes() int { return len(s.processes) }

// HTTP sends a request to where etcd clients connect to process i.
func (s *Server) HTTP(ctx context.Context, i int, method, path string) ([]byte, error) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return s.processes[i].dial(ctx)
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
	total := s.gone
	for _, p := range s.processes {
		if p.killed.Load() {
			continue
		}
		u, err := ReadUsage(p.cmd.Process.Pid)
		if err != nil {
			return total, err
		}
		total.CPU += u.CPU
		total.Written += u.Written
		total.RSS += u.RSS
		total.PeakRSS += u.PeakRSS
		total.Largest = max(total.Largest, u.PeakRSS)
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
