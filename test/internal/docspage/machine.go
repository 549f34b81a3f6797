package docspage

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keelson-io/keelson/test/harness"
)

// patience bounds what a machine waits for.
const patience = time.Minute

// Machine is where commands of a page run: a directory for the root of its file
// system, in which they run, too. Its methods are for the goroutine of its test.
type Machine struct {
	Root string
	Dir  string // in which commands run: Root, unless it is set to another

	t        testing.TB
	table    []string // what the page has, and what that is here, in turns
	exported string   // commands before every other one
	started  int
}

// NewMachine returns a machine with keelson and other programs, by their names, and
// a table: what the page has, and what that is here.
func NewMachine(t testing.TB, programs []string, table ...string) *Machine {
	t.Helper()
	m := &Machine{Root: harness.TempDir(t), t: t, table: slices.Clone(table)}
	m.Dir = m.Root
	m.Mkdir("/bin")
	m.Link("keelson", harness.KeelsonBinary(t))
	for _, name := range programs {
		m.Link(name, harness.Tool(t, name))
	}
	m.exported = "export PATH=" + m.Path("/bin") + ":$PATH\n"
	return m
}

// Link makes a program known, or another one in its place.
func (m *Machine) Link(name, program string) {
	m.t.Helper()
	_ = os.Remove(m.Path("/bin/" + name))
	check(m.t, os.Symlink(program, m.Path("/bin/"+name)))
}

// Path is a path of the page here.
func (m *Machine) Path(path string) string { return filepath.Join(m.Root, path) }

// Mkdir makes directories of the page.
func (m *Machine) Mkdir(paths ...string) {
	m.t.Helper()
	for _, path := range paths {
		check(m.t, os.MkdirAll(m.Path(path), 0o700))
	}
}

var (
	// absolute is a path of a page: after a blank, a quote, an equals sign or unix://.
	absolute = regexp.MustCompile(`(^|[ ='"]|unix://)/(var|etc|run|root|backup|tmp|usr)\b`)
	// foreign is what a page has of its own world: what is left out, what is to be
	// filled in, addresses, host names and paths.
	foreign = regexp.MustCompile(`…|<[a-z]+>|example\.com|\b10\.0\.0\.\d+|\b127\.0\.0\.1\b|\b0\.0\.0\.0\b|(^|[ ='"]|unix://)/[a-z][^ '"]*`)
)

// Here is a command as it is on this machine. It fails if there is something in it
// that only the page's machines have.
func (m *Machine) Here(command string) string {
	m.t.Helper()
	text := absolute.ReplaceAllString(command, "${1}"+m.Root+"/$2")
	text = strings.NewReplacer(m.table...).Replace(text)
	for _, found := range foreign.FindAllString(text, -1) {
		if !strings.Contains(found, m.Root) {
			m.t.Fatalf("%s\nwhat is %q here? %s", command, found, text)
		}
	}
	return text
}

// Export runs a command that begins with export in the shell of all that follow.
func (m *Machine) Export(command string) {
	m.t.Helper()
	m.exported += m.Here(command) + "\n"
}

// Setenv sets a variable that no page has.
func (m *Machine) Setenv(name, value string) {
	m.exported += fmt.Sprintf("export %s='%s'\n", name, strings.ReplaceAll(value, "'", `'\''`))
}

// Run runs a command, which must succeed, and returns what it printed, without
// what it printed of errors.
func (m *Machine) Run(command string) string {
	m.t.Helper()
	out, said, err := m.run(command)
	if err != nil {
		m.t.Fatalf("%s\n%v\n%s%s", command, err, out, said)
	}
	m.t.Logf("%s\n%.2000s%s", command, out, said)
	return out
}

// Try runs a command and returns all that it printed.
func (m *Machine) Try(command string) (string, error) {
	m.t.Helper()
	out, said, err := m.run(command)
	return out + said, err
}

func (m *Machine) run(command string) (stdout, stderr string, err error) {
	m.t.Helper()
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", m.exported+m.Here(command))
	cmd.Dir = m.Dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

var (
	background = regexp.MustCompile(`\s+&(\s+#.*)?$`)
	// program is a server, or what watches one, where a command begins or after a blank.
	program = regexp.MustCompile(`(?:^| )((?:[/\w.]*/)?(?:keelson|etcdctl|etcd|kine)) `)
)

// Launch starts a command that does not end by itself.
func (m *Machine) Launch(command string) *harness.Process {
	m.t.Helper()
	text := m.Here(background.ReplaceAllString(command, ""))
	at := program.FindStringSubmatchIndex(text + " ")
	if at == nil {
		m.t.Fatalf("what does %q start?", command)
	}
	script := m.exported + text[:at[2]] + "exec " + text[at[2]:] // signals go to the program
	m.started++
	m.t.Logf("%s", command)
	script = "cd " + m.Dir + "\n" + script
	return harness.StartProcess(m.t, m.Root, fmt.Sprint("started", m.started), "bash", "-euo", "pipefail", "-c", script)
}

// Ready waits until a keelson that was launched says that it serves.
func (m *Machine) Ready(p *harness.Process) *harness.Process {
	m.t.Helper()
	m.Says(p, "ready to serve client requests")
	return p
}

// Says waits until a process that was launched has printed a text.
func (m *Machine) Says(p *harness.Process, text string) {
	m.t.Helper()
	deadline := time.After(patience)
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		ended := false
		select {
		case <-p.Done():
			ended = true
		case <-deadline:
			m.t.Fatalf("has not said %q:\n%s", text, p.LogTail(30))
		case <-tick.C: // nothing announces it
		}
		if strings.Contains(string(p.Log()), text) {
			return
		}
		if ended {
			m.t.Fatalf("ended before it said %q:\n%s", text, p.LogTail(30))
		}
	}
}

// Serve starts a keelson that is ready when Serve returns.
func (m *Machine) Serve(command string) *harness.Process {
	m.t.Helper()
	return m.Ready(m.Launch(command))
}
