package docs

import (
	"errors"
	"os/exec"
	"regexp"
	"strings"
	"time"
)

// restarts restarts the nodes one after the other, and then all of them at once.
func (ms *machines) restarts(start string) {
	t, page, a := ms.t, ms.page, ms.all["a"]
	restart := page.Take(t, clusterRestart, "systemctl restart")
	page.Leave(t, "the README's unit is tested with the README", clusterRestart, "systemctl status")
	for _, name := range []string{"a", "b", "c"} {
		ms.all[name].systemctl(restart, start)
		ms.all[name].Run("curl --silent --fail --cacert ca.crt --cert client.crt --key client.key https://" + ms.all[name].address + ":2379/readyz")
		a.Run("etcdctl put " + name + " restarted")
	}
	together := page.Take(t, clusterRestart, "systemctl start --no-block")
	for _, name := range []string{"a", "b", "c"} {
		check(t, ms.all[name].server.Stop())
	}
	for _, name := range []string{"a", "b", "c"} {
		ms.all[name].systemctl(together, start)
	}
	for _, m := range ms.all {
		if m.server != nil {
			m.Ready(m.server)
		}
	}
	a.has("a", "b", "c", "first")
}

// systemctl is what systemd does with a service.
func (m *machine) systemctl(command, service string) {
	switch command {
	case "systemctl restart keelson":
		check(m.t, m.server.Stop())
		m.serve(service)
	case "systemctl start --no-block keelson":
		m.launch(service)
	default:
		m.t.Fatalf("what is %q?", command)
	}
}

// replaces loses c for good and has d in its place, while c, which was removed, is
// refused.
func (ms *machines) replaces(start, add, promote string) {
	t, page, a, c, d := ms.t, ms.page, ms.all["a"], ms.all["c"], ms.all["d"]
	c.server.Kill()
	a.Run("etcdctl put second 2")
	id := a.members("a", "b", "c")["c"].id
	a.Run(strings.Replace(page.Take(t, clusterReplace, "etcdctl member remove"), "<id>", id, 1))
	a.Run(page.Take(t, clusterReplace, "etcdctl member add d"))
	d.serve(d.joins(add, start))
	a.promote(promote, a.members("a", "b", "d?")["d"].id)
	a.members("a", "b", "d")

	c.launch(start)
	select {
	case <-c.server.Done():
	case <-time.After(patience):
		t.Fatalf("a node that was removed goes on:\n%s", c.server.LogTail(10))
	}
	var exit *exec.ExitError
	if err := c.server.Stop(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("a node that was removed ends with %v\n%s", err, c.server.LogTail(10))
	}
}

// figures are numbers and ids.
var figures = regexp.MustCompile(`\b[0-9a-f]*\d[0-9a-f]*\b`)

// loses loses a majority, and goes on with a.
func (ms *machines) loses(start string) {
	t, page, a := ms.t, ms.page, ms.all["a"]
	for _, name := range []string{"b", "d", "a"} {
		ms.all[name].server.Kill()
	}
	out := a.Run(page.Take(t, clusterMajority, "keelson check"))
	said := figures.ReplaceAllString(page.Take(t, clusterMajority, "note: node"), "N")
	if !strings.Contains(figures.ReplaceAllString(out, "N"), said) {
		t.Errorf("keelson check does not say what the page shows: %s", out)
	}
	force := page.Take(t, clusterMajority, "keelson --name=a")
	ms.serve(strings.Replace(force, "…", others(start, "--name", "--data-dir"), 1), "a")
	a.members("a")
	a.has("a", "b", "c", "first", "second")
	check(t, a.server.Stop())
	ms.serve(start, "a")
	a.Run("etcdctl put third 3")
}

// grows makes a cluster of the server that ran alone on a.
func (ms *machines) grows(start, add, promote string) {
	t, page, a, b := ms.t, ms.page, ms.all["a"], ms.all["b"]
	alone := "keelson " + others(start, "--name", "--initial-cluster", "--peer-cert-file", "--peer-key-file", "--peer-trusted-ca-file")
	a.serve(alone)
	a.Run("etcdctl put before 1")
	check(t, a.server.Stop())
	a.serve(strings.Replace(page.Take(t, clusterGrow, "keelson --name=a"), "…", others(start, "--name", "--data-dir", "--initial-cluster"), 1))
	a.Run(page.Take(t, clusterGrow, "etcdctl member add"))
	b.serve(b.joins(add, start))
	id := a.members("a", "b?")["b"].id
	if out := a.Run(page.Take(t, clusterGrow, "etcdctl member list")); !strings.Contains(out, id+", started, b, ") {
		t.Errorf("the members are %s", out)
	}
	a.promote(promote, id)
	a.members("a", "b")
	a.has("before")
	check(t, a.server.Stop())
	a.serve("keelson --listen-peer-urls=https://10.0.0.1:2380 " + others(start, "--initial-cluster")) // as the page says of another start
	a.has("before")
}

// begins restores a snapshot on every node, and starts them.
func (ms *machines) begins(restore, start string, exports []string) {
	t, a := ms.t, ms.all["a"]
	a.serve("keelson --data-dir=/var/lib/other --listen-client-urls=unix:///run/other.sock")
	a.Run("etcdctl --endpoints=unix:///run/other.sock put saved 1")
	a.Run("keelson snapshot save backup.db --endpoints=unix:///run/other.sock")
	check(t, a.server.Stop())
	ms.export(exports)
	for _, m := range ms.all {
		if m != a {
			link(t, a.Path("backup.db"), m.Path("backup.db"))
		}
		m.Run(m.of(restore))
	}
	ms.serve(start, "a", "b", "c")
	a.members("a", "b", "c")
	ms.all["b"].has("saved")
	ms.all["c"].Run("etcdctl put new 1")
	a.has("new", "saved")
}

// encrypts changes the peer URLs from http to https, as the page says in its text.
func (ms *machines) encrypts(start string) {
	a, plain := ms.all["a"], "keelson "+strings.ReplaceAll(
		others(start, "--peer-cert-file", "--peer-key-file", "--peer-trusted-ca-file"), "=https://10.0.0.1:2380,b=https://10.0.0.2:2380,c=https://10.0.0.3:2380",
		"=http://10.0.0.1:2380,b=http://10.0.0.2:2380,c=http://10.0.0.3:2380")
	ms.serve(plain, "a", "b", "c")
	a.Run("etcdctl put before 1")
	for _, m := range ms.all {
		check(ms.t, m.server.Stop())
	}
	ms.serve(start, "a", "b", "c")
	for name, x := range a.members("a", "b", "c") {
		a.Run("etcdctl member update " + x.id + " --peer-urls=https://" + ms.all[name].address + ":2380")
	}
	if list := a.Run("etcdctl member list"); strings.Contains(list, "http:") {
		ms.t.Errorf("the members are %s", list)
	}
	a.has("before")
	ms.all["b"].systemctl("systemctl restart keelson", start)
	ms.all["b"].has("before")
}
