package docs

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keelson-io/keelson/test/harness"
	"github.com/keelson-io/keelson/test/internal/docspage"
)

// patience bounds what a test waits for.
const patience = time.Minute

// machines are those of a section of a page: a, b and so on, with addresses that
// the page has as 10.0.0.1, 10.0.0.2, and with certificates.
type machines struct {
	t    *testing.T
	page *docspage.Page
	ca   *docspage.Authority
	all  map[string]*machine
}

// machine is one of them, with a server.
type machine struct {
	*docspage.Machine
	t             *testing.T
	name, address string           // the page's
	here          []string         // the address here, and what is 127.0.0.1 here
	server        *harness.Process // the one that was started last
}

func newMachines(t *testing.T, page *docspage.Page, names ...string) *machines {
	t.Helper()
	ms := &machines{t: t, page: page, ca: docspage.NewAuthority(t), all: map[string]*machine{}}
	n := len(names)
	addresses := docspage.Addresses(t, 2*n)
	there := func(i int) string { return "10.0.0." + string(rune('1'+i)) }
	var table []string
	for i, address := range addresses[:n] {
		table = append(table, there(i), address)
	}
	for i, name := range names {
		m := &machine{t: t, name: name, address: there(i), here: []string{addresses[i], addresses[n+i]}}
		m.Machine = docspage.NewMachine(t, []string{"etcdctl"}, append(table, "127.0.0.1", m.here[1])...)
		m.Mkdir("/var/lib", "/run")
		link(t, ms.ca.CA, m.Path("ca.crt"))
		ms.ca.Issue(m.Path(name+".crt"), m.Path(name+".key"), true, m.here[0])
		ms.ca.Issue(m.Path("client.crt"), m.Path("client.key"), false)
		ms.all[name] = m
	}
	return ms
}

// export runs commands in the shells of all machines.
func (ms *machines) export(commands []string) {
	for _, m := range ms.all {
		for _, command := range commands {
			m.Export(command)
		}
	}
}

// serve starts a service on some machines, and waits until all are ready.
func (ms *machines) serve(command string, names ...string) {
	ms.t.Helper()
	for _, name := range names {
		ms.all[name].launch(command)
	}
	for _, name := range names {
		ms.all[name].Ready(ms.all[name].server)
	}
}

// others are the flags of a command but for some.
func others(command string, but ...string) string {
	return strings.Join(slices.DeleteFunc(strings.Fields(command)[1:], func(flag string) bool {
		name, _, _ := strings.Cut(flag, "=")
		return slices.Contains(but, name)
	}), " ")
}

// of is a command for the first machine as it is for m: with its own name, address
// and files.
func (m *machine) of(command string) string {
	return strings.NewReplacer("--name=a ", "--name="+m.name+" ", "--name=cp1 ", "--name="+m.name+" ",
		"=a.crt", "="+m.name+".crt", "=a.key", "="+m.name+".key", "/var/lib/keelson-a ", "/var/lib/keelson-"+m.name+" ",
		"-urls=https://10.0.0.1:", "-urls=https://"+m.address+":", ",https://10.0.0.1:2379", ",https://"+m.address+":2379").Replace(command)
}

// joins is the command that the page has for b, which joins the members that there
// are; the rest of it is as in start.
func (m *machine) joins(add, start string) string {
	if m.name != "b" {
		add = strings.NewReplacer("--name=b ", "--name="+m.name+" ",
			",b=https://10.0.0.2:2380", ",b=https://10.0.0.2:2380,"+m.name+"=https://"+m.address+":2380").Replace(add)
	}
	return strings.Replace(add, "…", others(start, "--name", "--initial-cluster"), 1)
}

// launch starts a service and does not wait until it is ready.
func (m *machine) launch(command string) {
	m.t.Helper()
	m.server = m.Launch(m.of(command))
}

// serve starts a service and waits until it is ready.
func (m *machine) serve(command string) {
	m.t.Helper()
	m.launch(command)
	m.Ready(m.server)
}

// member is one of etcdctl's list.
type member struct{ id, name string }

// members waits until etcdctl member list has these names, those of learners with a
// question mark, and returns it by names. A node is ready before the others have
// its name.
func (m *machine) members(names ...string) map[string]member {
	m.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) { // nothing announces it
		found := map[string]member{}
		var got []string
		for line := range strings.Lines(m.Run("etcdctl member list")) {
			fields := strings.Split(strings.TrimSpace(line), ", ") // id, status, name, peer URLs, client URLs, learner
			if len(fields) != 6 {
				m.t.Fatalf("etcdctl member list: %q", line)
			}
			x := member{id: fields[0], name: fields[2]}
			found[x.name] = x
			if fields[5] == "true" {
				x.name += "?"
			}
			got = append(got, x.name)
		}
		slices.Sort(got)
		if slices.Equal(got, names) {
			return found
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("the members are %q, want %q", got, names)
		}
	}
}

// has checks that the cluster has these keys.
func (m *machine) has(keys ...string) {
	m.t.Helper()
	if got := strings.Fields(m.Run("etcdctl get --prefix '' --keys-only")); !slices.Equal(got, keys) {
		m.t.Errorf("the keys are %q, want %q", got, keys)
	}
}

// promote promotes a learner, which is refused until that has all data.
func (m *machine) promote(command, id string) {
	m.t.Helper()
	command = strings.Replace(command, "<id>", id, 1)
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) { // nothing announces it
		out, err := m.Try(command)
		if err == nil {
			return
		}
		if !strings.Contains(out, "in sync with leader") || time.Now().After(deadline) {
			m.t.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
}
