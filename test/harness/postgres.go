package harness

import (
	"bytes"
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

// postgresUser is the superuser of every server. It needs no password: who may
// enter the directory of the socket may connect.
const postgresUser = "keelson"

// postgresSocket is its name in its directory.
const postgresSocket = ".s.PGSQL.5432"

// Postgres is a PostgreSQL server of its own, in a temporary directory, on a
// unix socket, with fsync on. Run by root it is the user postgres or nobody,
// since it refuses to be root. Its methods are for one goroutine at a time.
type Postgres struct {
	Dir string // of the socket

	bin      string // of the programs
	attr     *syscall.SysProcAttr
	settings []string // "name=value"
	process  *Process // nil: killed
}

// StartPostgres starts a server that ends with the test. It fails where
// PostgreSQL is not installed.
func StartPostgres(t testing.TB, settings ...string) *Postgres {
	t.Helper()
	p, err := newPostgres(settings)
	if err != nil {
		t.Fatal(err)
	}
	p.endWith(t)
	if err := p.create(); err != nil {
		t.Fatal(err)
	}
	return p
}

// create makes an empty database cluster and starts it.
func (p *Postgres) create() error {
	if err := p.run("initdb", "--pgdata=data", "--username="+postgresUser,
		"--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"); err != nil {
		return err
	}
	return p.Start()
}

// newPostgres makes the directory of a server.
func newPostgres(settings []string) (*Postgres, error) {
	bin, err := postgresPrograms()
	if err != nil {
		return nil, err
	}
	p := &Postgres{bin: bin, attr: dieWithParent(), settings: settings}
	if p.Dir, err = os.MkdirTemp("", "kpg"); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return p, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		u, err = user.Lookup("nobody")
	}
	if err != nil {
		return nil, err
	}
	uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(uidErr, gidErr); err != nil {
		return nil, err
	}
	p.attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return p, os.Chown(p.Dir, int(uid), int(gid))
}

// postgresPrograms returns the directory of the newest PostgreSQL there is.
func postgresPrograms() (string, error) {
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
		return "", errors.New("PostgreSQL is not installed: install postgresql, or set KEELSON_POSTGRES_BIN to the directory of initdb and postgres")
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(strings.Split(path, "/")[4])
		return n
	}
	newest := slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })
	return filepath.Dir(newest), nil
}

func (p *Postgres) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(p.bin, program), args...)
	cmd.Dir = p.Dir
	cmd.SysProcAttr = p.attr
	return cmd
}

// run runs a program to its end.
func (p *Postgres) run(program string, args ...string) error {
	if out, err := p.command(program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, out)
	}
	return nil
}

func (p *Postgres) endWith(t testing.TB) {
	t.Cleanup(func() {
		if t.Failed() && p.process != nil {
			t.Logf("end of the log of PostgreSQL:\n%s", p.process.LogTail(25))
		}
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
}

func (p *Postgres) close() error {
	return errors.Join(p.Kill(), os.RemoveAll(p.Dir))
}

// Start starts a server that was killed and returns when it answers.
func (p *Postgres) Start() error {
	args := []string{"-D", "data", "-k", p.Dir, "-c", "listen_addresses="}
	for _, setting := range p.settings {
		args = append(args, "-c", setting)
	}
	logFile := filepath.Join(p.Dir, "log")
	deadline := time.Now().Add(patience)
	for {
		process, err := startCommand(p.command("postgres", args...), logFile)
		if err != nil {
			return err
		}
		for process.running() && time.Now().Before(deadline) {
			if p.command("pg_isready", "--quiet", "--host="+p.Dir, "--dbname=postgres", "--username="+postgresUser).Run() == nil {
				p.process = process
				return nil
			}
			time.Sleep(20 * time.Millisecond) // nothing announces it
		}
		// After a kill it may still see the shared memory of the one before.
		process.Kill()
		if time.Now().After(deadline) {
			return fmt.Errorf("PostgreSQL does not start:\n%s", process.LogTail(20))
		}
	}
}

// Kill is kill -9 of all its processes: the next start recovers.
func (p *Postgres) Kill() error {
	if p.process == nil {
		return nil
	}
	// The backends first: those that outlive their parent go on for a moment,
	// and may even commit. Stopped, it can neither see them die nor make more.
	pid := p.process.PID()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	children, err := childrenOf(pid)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, child := range children {
		if err := syscall.Kill(child, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	p.process.Kill()
	p.process = nil
	return nil
}

// URL is the URL of a keelson's data in a schema, with further parameters.
func (p *Postgres) URL(schema string, params ...string) string {
	return PostgresURL(p.Dir, schema, params...)
}

// PostgresURL is that of a server at host: the directory of its socket, or
// several, separated by commas.
func PostgresURL(host, schema string, params ...string) string {
	query := url.Values{"host": {host}, "schema": {schema}}
	for _, param := range params {
		name, value, _ := strings.Cut(param, "=")
		query.Set(name, value)
	}
	u := url.URL{Scheme: "postgres", User: url.User(postgresUser), Path: "/postgres", RawQuery: query.Encode()}
	return u.String()
}

// Query runs SQL and returns the rows, their columns separated by tabs.
func (p *Postgres) Query(sql string) ([]string, error) {
	cmd := p.command("psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--field-separator=\t",
		"--set=ON_ERROR_STOP=1", "--host="+p.Dir, "--username="+postgresUser, "--dbname=postgres", "--file=-")
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(sql), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("psql: %w: %s", err, &stderr)
	}
	out := strings.TrimSuffix(stdout.String(), "\n")
	if out == "" {
		return nil, nil
	}
	return strings.Split(out, "\n"), nil
}

// StartStandby starts a server that replicates p, asynchronously.
func (p *Postgres) StartStandby(t testing.TB) *Postgres {
	t.Helper()
	standby, err := newPostgres(p.settings)
	if err != nil {
		t.Fatal(err)
	}
	standby.endWith(t)
	if err := standby.run("pg_basebackup", "--pgdata=data", "--host="+p.Dir, "--username="+postgresUser,
		"--write-recovery-conf", "--checkpoint=fast", "--no-sync"); err != nil {
		t.Fatal(err)
	}
	if err := standby.Start(); err != nil {
		t.Fatal(err)
	}
	return standby
}
