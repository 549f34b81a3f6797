package systems

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// postgres is a PostgreSQL that one server has to itself, with its defaults,
// on a unix socket in its own directory.
type postgres struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
}

const (
	postgresUser   = "bench"
	postgresSocket = ".s.PGSQL.5432"
)

// postgresDir is where the PostgreSQL of a server with its data in dir is.
func postgresDir(data string) string { return filepath.Join(data, "pg") }

// postgresURL is that of a database of the PostgreSQL with its socket in dir.
func postgresURL(dir, database string) string {
	u := url.URL{Scheme: "postgres", User: url.User(postgresUser), Path: "/" + database, RawQuery: url.Values{"host": {dir}}.Encode()}
	return u.String()
}

// postgresBin returns the directory of the newest PostgreSQL's programs.
func postgresBin() (string, error) {
	if dir := os.Getenv("KEELSON_POSTGRES_BIN"); dir != "" {
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
	if len(found) == 0 {
		return "", errors.New("no PostgreSQL is installed; KEELSON_POSTGRES_BIN may name the directory of initdb and postgres")
	}
	return filepath.Dir(slices.Max(found)), nil
}

// startPostgres starts a PostgreSQL on what dir holds, or on a new cluster with
// the database in it.
func startPostgres(ctx context.Context, dir, database, log string) (*postgres, error) {
	bin, err := postgresBin()
	if err != nil {
		return nil, err
	}
	command := func(program string, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, filepath.Join(bin, program), args...)
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
		return cmd
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	credential, err := postgresCredential(dir)
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "cluster")
	_, err = os.Stat(data)
	isNew := err != nil
	if isNew {
		initdb := command("initdb", "--pgdata="+data, "--username="+postgresUser, "--auth=trust", "--encoding=UTF8", "--no-locale")
		initdb.SysProcAttr.Credential = credential
		if out, err := initdb.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("initdb (the user that PostgreSQL runs as must be able to reach %s; see -dir): %w: %s", dir, err, out)
		}
	}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	cmd := command("postgres", "-D", data, "-k", dir, "-c", "listen_addresses=")
	cmd.SysProcAttr.Credential = credential
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &postgres{cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	err = p.waitReady(dir, command)
	if err == nil && isNew {
		if output, failed := command("createdb", "--host="+dir, "--username="+postgresUser, database).CombinedOutput(); failed != nil {
			err = fmt.Errorf("createdb: %w: %s", failed, output)
		}
	}
	if err != nil {
		p.stop(syscall.SIGQUIT)
		return nil, err
	}
	return p, nil
}

// postgresCredential gives dir to another user if this one is root, as who
// PostgreSQL does not run.
func postgresCredential(dir string) (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return nil, err
		}
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, os.Chown(dir, int(uid), int(gid))
}

func (p *postgres) waitReady(dir string, command func(string, ...string) *exec.Cmd) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var lastErr error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); <-tick.C {
		select {
		case <-p.done:
			return fmt.Errorf("PostgreSQL ended with %s before it was ready", p.cmd.ProcessState)
		default:
		}
		conn, err := net.Dial("unix", filepath.Join(dir, postgresSocket))
		if err != nil {
			lastErr = err
			continue
		}
		_ = conn.Close()
		if lastErr = command("pg_isready", "--quiet", "--host="+dir).Run(); lastErr == nil {
			return nil
		}
	}
	return fmt.Errorf("PostgreSQL is not ready after a minute: %w", lastErr)
}

// stop ends it: SIGINT in order, SIGQUIT at once.
func (p *postgres) stop(signal os.Signal) {
	_ = p.cmd.Process.Signal(signal) // an error means that it has ended
	<-p.done
}

// usage is that of all its processes, those that have ended included. Their
// memory is left out: most of it is shared.
func (p *postgres) usage() (Usage, error) {
	pid := p.cmd.Process.Pid
	total, err := readUsage(pid, true)
	if err != nil {
		return total, err
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return total, err
	}
	for _, child := range strings.Fields(string(children)) {
		pid, err := strconv.Atoi(child)
		if err != nil {
			return total, err
		}
		u, err := readUsage(pid, true)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended since; its parent has what it used
		}
		if err != nil {
			return total, err
		}
		total.CPU += u.CPU
		total.Written += u.Written
	}
	return total, nil
}
