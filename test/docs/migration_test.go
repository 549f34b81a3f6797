package docs

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/keelson-io/keelson/test/harness"
	"github.com/keelson-io/keelson/test/internal/docspage"
)

// Sections of docs/migration.md.
const (
	migrationPlanes   = "Several control planes"
	migrationSQLite   = "SQLite" // after a disaster, as the next two
	migrationPostgres = "PostgreSQL"
	migrationCluster  = "A cluster"
)

// TestControlPlanes runs on three machines what docs/migration.md has for them:
// keelson has etcd's data, addresses and certificates there afterwards.
func TestControlPlanes(t *testing.T) {
	t.Parallel()
	page := docspage.Open(t, "docs/migration.md", migrationPlanes)
	ms := newMachines(t, page, "cp1", "cp2", "cp3")
	for _, m := range ms.all {
		m.controlPlane(ms.ca)
	}
	cp1 := ms.all["cp1"]
	cp1.Link("etcd", harness.Tool(t, "etcd"))
	etcd := cp1.Launch("etcd --data-dir=/var/lib/etcd --listen-client-urls=https://127.0.0.1:2379 --advertise-client-urls=https://127.0.0.1:2379" +
		" --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 --initial-cluster=default=http://127.0.0.1:2380" +
		" --cert-file=/etc/kubernetes/pki/etcd/server.crt --key-file=/etc/kubernetes/pki/etcd/server.key" +
		" --client-cert-auth --trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt")
	cp1.Says(etcd, "ready to serve client requests")
	for _, m := range ms.all {
		m.Export("export ETCDCTL_ENDPOINTS=https://127.0.0.1:2379 ETCDCTL_CACERT=/etc/kubernetes/pki/etcd/ca.crt" +
			" ETCDCTL_CERT=/etc/kubernetes/pki/etcd/healthcheck-client.crt ETCDCTL_KEY=/etc/kubernetes/pki/etcd/healthcheck-client.key")
	}
	cp1.Run("etcdctl put before 1")

	stop := []string{page.Take(t, migrationPlanes, "mv /etc/kubernetes/manifests/kube-apiserver"), page.Take(t, migrationPlanes, "until")}
	save := page.Take(t, migrationPlanes, "keelson snapshot save")
	replace := []string{page.Take(t, migrationPlanes, "mv /etc/kubernetes/manifests/etcd"), page.Take(t, migrationPlanes, "until"),
		page.Take(t, migrationPlanes, "keelson snapshot restore")}
	service := page.Take(t, migrationPlanes, "keelson --name=cp1")
	for _, m := range ms.all {
		for _, command := range stop {
			m.Run(command)
		}
	}
	cp1.Run(save)
	check(t, etcd.Stop())
	for _, m := range ms.all {
		if m != cp1 {
			link(t, cp1.Path("/backup/control-planes.db"), m.Path("/backup/control-planes.db"))
		}
		for _, command := range replace {
			m.Run(m.of(command))
		}
		if kept, err := os.ReadDir(m.Path("/root")); err != nil || len(kept) != 2 {
			t.Errorf("%s keeps %v, %v, want both manifests", m.name, kept, err)
		}
	}
	ms.serve(service, "cp1", "cp2", "cp3")
	cp1.members("cp1", "cp2", "cp3")
	ms.all["cp2"].has("before")
	ms.all["cp3"].Run("etcdctl put after 1")
	cp1.has("after", "before")
}

// controlPlane makes of a machine a control plane node by kubeadm.
func (m *machine) controlPlane(ca *docspage.Authority) {
	const manifests, pki = "/etc/kubernetes/manifests/", "/etc/kubernetes/pki/etcd/"
	m.Mkdir("/root", "/backup", manifests, pki)
	for _, name := range []string{"etcd.yaml", "kube-apiserver.yaml"} {
		check(m.t, os.WriteFile(m.Path(manifests+name), []byte("kind: Pod\n"), 0o600))
	}
	link(m.t, ca.CA, m.Path(pki+"ca.crt"))
	ca.Issue(m.Path(pki+"server.crt"), m.Path(pki+"server.key"), true, m.here...)
	ca.Issue(m.Path(pki+"peer.crt"), m.Path(pki+"peer.key"), true, m.here...)
	ca.Issue(m.Path(pki+"healthcheck-client.crt"), m.Path(pki+"healthcheck-client.key"), false)
	check(m.t, os.WriteFile(m.Path("/bin/crictl"), []byte("#!/bin/sh\n"), 0o700)) // there is no container any more
}

// TestClusterDisaster restores a backup on every node, as docs/migration.md has it
// where all data of a cluster is lost, and starts them.
func TestClusterDisaster(t *testing.T) {
	t.Parallel()
	page := docspage.Open(t, "docs/migration.md", migrationCluster)
	ms := newMachines(t, page, "a", "b", "c")
	restore := page.Take(t, migrationCluster, "keelson snapshot restore")
	a := ms.all["a"]
	a.serve("keelson --data-dir=/var/lib/other --listen-client-urls=unix:///run/other.sock")
	a.Run("etcdctl --endpoints=unix:///run/other.sock put saved 1")
	a.Mkdir("/backup")
	a.Run("keelson snapshot save /backup/keelson.db --endpoints=unix:///run/other.sock")
	for _, m := range ms.all {
		if m != a {
			m.Mkdir("/backup")
			link(t, a.Path("/backup/keelson.db"), m.Path("/backup/keelson.db"))
		}
		m.Run(m.of(restore))
	}
	ms.serve("keelson --name=a --data-dir=/var/lib/keelson-a --listen-client-urls=https://10.0.0.1:2379 --cert-file=a.crt --key-file=a.key --trusted-ca-file=ca.crt"+
		" --listen-peer-urls=https://10.0.0.1:2380 --peer-cert-file=a.crt --peer-key-file=a.key --peer-trusted-ca-file=ca.crt", "a", "b", "c")
	a.Export("export ETCDCTL_ENDPOINTS=https://10.0.0.1:2379 ETCDCTL_CACERT=ca.crt ETCDCTL_CERT=client.crt ETCDCTL_KEY=client.key")
	a.members("a", "b", "c")
	restored(t, a.Machine, "etcdctl ")
}

// TestSQLiteDisaster damages a database, and restores a backup in its place as
// docs/migration.md has it.
func TestSQLiteDisaster(t *testing.T) {
	t.Parallel()
	page := docspage.Open(t, "docs/migration.md", migrationSQLite)
	m := docspage.NewMachine(t, []string{"etcdctl"})
	m.Mkdir("/var/lib", "/run", "/backup")
	const service = "keelson --data-dir=/var/lib/keelson --listen-client-urls=unix:///run/k.sock"
	const etcdctl = "etcdctl --endpoints=unix:///run/k.sock "
	server := m.Serve(service)
	m.Run(etcdctl + "put saved " + strings.Repeat("x", 5000))
	m.Run("keelson snapshot save /backup/keelson.db --endpoints=unix:///run/k.sock")
	m.Run(etcdctl + "put lost 1")
	page.Take(t, migrationSQLite, "systemctl stop keelson")
	check(t, server.Stop())
	database, err := os.ReadFile(m.Path("/var/lib/keelson/keelson.db"))
	check(t, err)
	check(t, os.WriteFile(m.Path("/var/lib/keelson/keelson.db"), bytes.Replace(database, []byte("xxxx"), []byte("xyxx"), 1), 0o600))
	look := page.Take(t, migrationSQLite, "keelson check")
	if out, err := m.Try(look); err == nil || !strings.Contains(out, "checksum") {
		t.Errorf("%s: %v\n%s", look, err, out)
	}
	for _, command := range []string{"mv", "keelson snapshot restore", "chown"} {
		m.Run(page.Take(t, migrationSQLite, command))
	}
	page.Take(t, migrationSQLite, "systemctl start keelson")
	m.Serve(service)
	restored(t, m, etcdctl)
}

// restored checks that what a backup had is there, and only that, at a revision that
// no client has seen.
func restored(t *testing.T, m *docspage.Machine, etcdctl string) {
	t.Helper()
	if keys := m.Run(etcdctl + "get --prefix '' --keys-only"); strings.TrimSpace(keys) != "saved" {
		t.Errorf("the keys are %q", keys)
	}
	if out, err := m.Try(etcdctl + "get saved --rev=1000000000"); err == nil || !strings.Contains(out, "compacted") {
		t.Errorf("a revision that clients may have seen: %v, %s", err, out)
	}
	m.Run(etcdctl + "put saved again")
}
