package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// patience bounds a start and an end; neither takes it when all is well.
const patience = 3 * time.Minute

// Process is a running program. It is ended by its process id, at the latest
// when its test ends.
type Process struct {
	LogFile string
	cmd     *exec.Cmd
	done    chan struct{} // closed when the process has ended
	err     error         // of Wait; read only after done
}

// StartProcess starts the program at path, its output appended to
// dir/<name>.log.
func StartProcess(t testing.TB, dir, name, path string, args ...string) *Process {
	t.Helper()
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	cmd.SysProcAttr = dieWithParent()
	p, err := startCommand(cmd, filepath.Join(dir, name+".log"))
	if err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	t.Cleanup(p.Kill)
	return p
}

func startCommand(cmd *exec.Cmd, logFile string) (*Process, error) {
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		_ = out.Close()
		return nil, err
	}
	p := &Process{LogFile: logFile, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		_ = out.Close()
		close(p.done)
	}()
	return p, nil
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

func (p *Process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill ends the process with SIGKILL and waits until it is gone.
func (p *Process) Kill() {
	// An error means that it has ended already.
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Stop ends the process with SIGTERM. It returns an error if the process does
// not exit with status 0 within three minutes, the way a service manager sees it;
// ending by the signal itself counts as a clean end.
func (p *Process) Stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
	case <-time.After(patience):
		p.Kill()
		return fmt.Errorf("still running %v after SIGTERM", patience)
	}
	var exit *exec.ExitError
	if errors.As(p.err, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signal() == syscall.SIGTERM {
			return nil
		}
	}
	return p.err
}

// Log returns everything the process has written.
func (p *Process) Log() []byte {
	b, err := os.ReadFile(p.LogFile)
	if err != nil {
		return []byte(err.Error())
	}
	return b
}

// LogTail returns the last lines that the process has written.
func (p *Process) LogTail(lines int) string {
	b := bytes.TrimRight(p.Log(), "\n")
	at := len(b)
	for range lines {
		if at = bytes.LastIndexByte(b[:at], '\n'); at < 0 {
			return string(b)
		}
	}
	return string(b[at+1:])
}

// WaitReady calls probe until it succeeds, the process ends or the time is up.
func (p *Process) WaitReady(limit time.Duration, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := probe(try)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("ended with %s before it was ready\n%s", p.cmd.ProcessState, p.LogTail(30))
		case <-ctx.Done():
			return fmt.Errorf("not ready after %v: %w\n%s", limit, err, p.LogTail(30))
		case <-tick.C:
		}
	}
}
