package docs

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelson-io/keelson/test/harness"
	"github.com/keelson-io/keelson/test/internal/docspage"
)

// The sections of README.md.
const (
	readmeTwo       = "Two commands"
	readmeAPIServer = "With kube-apiserver"
	readmePostgres  = "With PostgreSQL"
	readmeCluster   = "In a cluster"
	readmeEtcdctl   = "With etcdctl"
	readmeTLS       = "TLS"
	readmeFlags     = "Configuration"
	readmeBackup    = "Backup"
	readmeMoving    = "Moving"
	readmeProgram   = "In your own program"
)

// readme is the README, run in parts on machines of their own.
type readme struct{ *docspage.Page }

// TestReadme runs every command of README.md.
func TestReadme(t *testing.T) {
	t.Parallel()
	page := readme{docspage.Open(t, "README.md")}
	page.Leave(t, "it runs the other tests", readmeTwo, "make test")
	for name, part := range map[string]func(*testing.T){
		"build": page.build, "local": page.local, "network": page.network, "cluster": page.cluster,
		"etcdctl": page.etcdctl, "moving": page.moving, "program": page.program,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			part(t)
		})
	}
}

// build is the first command there is.
func (p readme) build(t *testing.T) {
	m := docspage.NewMachine(t, []string{"etcdctl"})
	var err error
	m.Dir, err = harness.Root()
	check(t, err)
	m.Serve(p.Take(t, readmeTwo, "make build && bin/keelson"))
	m.Run("etcdctl --endpoints=unix:///tmp/keelson-data/keelson.sock put a 1")
}

// local is what is on one machine, with a unix socket.
func (p readme) local(t *testing.T) {
	m := docspage.NewMachine(t, []string{"etcdctl", "kube-apiserver"})
	m.Mkdir("/run/keelson", "/var/lib", "/backup", "/usr/local/bin")
	m.Run(strings.Replace(p.Take(t, readmeAPIServer, "kube-apiserver --etcd-servers=unix"), "…", "--version", 1)) // are these its flags?
	server := m.Serve(p.Take(t, readmeAPIServer, "keelson --data-dir"))
	etcdctl := p.Take(t, readmeEtcdctl, "etcdctl --endpoints=unix")
	m.Run(strings.Replace(etcdctl, "…", "put greeting hello", 1))
	if out := m.Run(p.Take(t, readmeEtcdctl, "curl --unix-socket")); !strings.Contains(out, "\netcd_server_has_leader 1\n") {
		t.Errorf("the metrics are %s", out)
	}
	m.Run(p.Take(t, readmeBackup, "keelson snapshot save backup.db --endpoints"))
	m.Run(p.Take(t, readmeBackup, "sqlite3 -readonly"))
	check(t, server.Stop())
	m.Run(p.Take(t, readmeBackup, "keelson snapshot save stopped.db"))
	m.Run(p.Take(t, readmeBackup, "keelson check") + " --data-dir=/var/lib/keelson")
	if out := m.Run(p.Take(t, readmeBackup, "keelson snapshot status")); !strings.Contains(out, "REVISION") {
		t.Errorf("the status is %s", out)
	}
	m.Run(p.Take(t, readmeBackup, "keelson snapshot restore backup.db"))
	m.Run(p.Take(t, readmeBackup, "keelson import --from=/backup/keelson.db") + " --to=/var/lib/keelson-of-copy")
	m.Mkdir("/var/lib/keelson-by-hand")
	link(t, m.Path("/backup/keelson.db"), m.Path("/var/lib/keelson-by-hand/keelson.db"))
	for _, made := range []string{"new", "of-copy", "by-hand"} {
		m.Run("keelson verify /var/lib/keelson /var/lib/keelson-" + made)
	}
	if out := m.Run(p.Take(t, readmeBackup, "keelson snapshot restore --help")); !strings.Contains(out, "--skip-hash-check") {
		t.Errorf("the help does not have what it is said to have: %s", out)
	}
	m.Run(p.Take(t, readmeFlags, "keelson --help"))
	p.unit(t, m)
}

// unit starts the service as systemd does.
func (p readme) unit(t *testing.T, m *docspage.Machine) {
	m.Link("../usr/local/bin/keelson", harness.KeelsonBinary(t))
	p.Leave(t, "they are systemd's", readmeAPIServer, "[Service]", "User=keelson", "StateDirectory=keelson", "RuntimeDirectory=keelson",
		"Restart=always", "RestartPreventExitStatus=3")
	p.Take(t, readmeAPIServer, "Type=notify")
	socket := m.Path("notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	check(t, err)
	defer func() { _ = systemd.Close() }()
	m.Setenv("NOTIFY_SOCKET", socket)
	server := m.Launch(strings.TrimPrefix(p.Take(t, readmeAPIServer, "ExecStart="), "ExecStart="))
	told := func(state string) {
		t.Helper()
		check(t, systemd.SetReadDeadline(time.Now().Add(patience)))
		for said := ""; !strings.Contains(said, state); {
			message := make([]byte, 4096)
			n, err := systemd.Read(message)
			check(t, err)
			said = string(message[:n])
		}
	}
	told("READY=1")
	check(t, server.Stop())
	told("STOPPING=1")
}

// network is what listens at addresses, with TLS, and with data in PostgreSQL.
func (p readme) network(t *testing.T) {
	addresses := docspage.Addresses(t, 2)
	m := docspage.NewMachine(t, []string{"etcdctl", "kube-apiserver"}, "10.0.0.5", addresses[0], "0.0.0.0", addresses[0], "db.example.com", addresses[1],
		"…", "--cert-file=server.crt --key-file=server.key")
	m.Mkdir("/etc/keelson")
	ca := docspage.NewAuthority(t)
	link(t, ca.CA, m.Path("ca.crt"))
	link(t, ca.CA, m.Path("/etc/keelson/db-ca.crt"))
	ca.Issue(m.Path("server.crt"), m.Path("server.key"), false, addresses[0])
	ca.Issue(m.Path("apiserver.crt"), m.Path("apiserver.key"), false)
	m.Run(strings.Replace(p.Take(t, readmeAPIServer, "kube-apiserver --etcd-servers=https"), "…", "--version", 1))
	const client = "etcdctl --endpoints=https://10.0.0.5:2379 --cacert=ca.crt "
	server := m.Serve(p.Take(t, readmeTLS, "keelson"))
	m.Run(client + "--cert=apiserver.crt --key=apiserver.key put a 1")
	if out, err := m.Try(client + "--command-timeout=1s --dial-timeout=1s put a 2"); err == nil {
		t.Errorf("a client without a certificate is served: %s", out)
	}
	check(t, server.Stop())

	db := docspage.StartDatabase(t, ca, addresses[1])
	_, err := db.Query("CREATE DATABASE keelson")
	check(t, err)
	m.Serve(p.Take(t, readmePostgres, "KEELSON_DATASTORE="))
	m.Run(client + "put in database")
}

// cluster starts the first node of three, and the others.
func (p readme) cluster(t *testing.T) {
	ms := newMachines(t, p.Page, "a", "b", "c")
	ms.serve(strings.Replace(p.Take(t, readmeCluster, "keelson --name=a"), "…", "--listen-client-urls=https://10.0.0.1:2379 --cert-file=a.crt --key-file=a.key"+
		" --peer-cert-file=a.crt --peer-key-file=a.key --peer-trusted-ca-file=ca.crt", 1), "a", "b", "c")
	a := ms.all["a"]
	a.Export("export ETCDCTL_CACERT=ca.crt ETCDCTL_ENDPOINTS=https://10.0.0.1:2379")
	a.members("a", "b", "c")
	a.Run("etcdctl put a 1")
	a.has("a")
}

// etcdctl is what needs no flags.
func (p readme) etcdctl(t *testing.T) {
	address := docspage.Addresses(t, 1)[0]
	m := docspage.NewMachine(t, []string{"etcdctl"}, "127.0.0.1", address)
	// That nothing is said is the point, but the port may be another's here.
	m.Setenv("KEELSON_LISTEN_CLIENT_URLS", "http://"+address+":2379")
	m.Setenv("ETCDCTL_ENDPOINTS", "http://"+address+":2379")
	m.Serve(p.Take(t, readmeEtcdctl, "keelson &"))
	m.Run(p.Take(t, readmeEtcdctl, "etcdctl put"))
	if out := m.Run(p.Take(t, readmeEtcdctl, "etcdctl get")); !strings.Contains(out, "greeting\n") {
		t.Errorf("the keys are %q", out)
	}
	m.Says(m.Launch(p.Take(t, readmeEtcdctl, "etcdctl watch")), "PUT\ngreeting\nhello\n")
	if out := m.Run(p.Take(t, readmeEtcdctl, "etcdctl endpoint status")); !strings.Contains(out, "3.7.3") {
		t.Errorf("the status is %s", out)
	}
	if out := m.Run(p.Take(t, readmeEtcdctl, "curl http://127.0.0.1:2379/health")); !strings.Contains(out, `"health":"true"`) {
		t.Errorf("the health is %s", out)
	}
	if out := m.Run(p.Take(t, readmeEtcdctl, "curl -X POST")); !strings.Contains(out, `"value":"aGVsbG8="`) {
		t.Errorf("the gateway answers %s", out)
	}
}

// moving brings the data of a k3s, and of an etcd.
func (p readme) moving(t *testing.T) {
	address := docspage.Addresses(t, 1)[0]
	m := docspage.NewMachine(t, []string{"etcd", "etcdctl", "kine"}, "127.0.0.1", address)
	m.Mkdir("/var/lib/rancher/k3s/server", "/run")
	m.Dir = m.Path("/var/lib/rancher/k3s/server")
	kine := m.Launch("kine --listen-address=unix:///run/kine.sock --metrics-bind-address=0")
	m.Says(kine, "Kine available at")
	check(t, kine.Stop())
	m.Dir = m.Root
	m.Run(p.Take(t, readmeMoving, "keelson import --from=/var/lib/rancher"))
	m.Run(p.Take(t, readmeMoving, "keelson verify"))
	m.Run(p.Take(t, readmeMoving, "keelson export") + " --from=/var/lib/keelson --to=keelson.db")

	check(t, os.Rename(m.Path("/var/lib/keelson"), m.Path("/var/lib/keelson-of-k3s")))
	ca := docspage.NewAuthority(t)
	link(t, ca.CA, m.Path("ca.crt"))
	ca.Issue(m.Path("server.crt"), m.Path("server.key"), false, address)
	ca.Issue(m.Path("client.crt"), m.Path("client.key"), false)
	m.Says(m.Launch("etcd --data-dir=etcd --listen-client-urls=https://127.0.0.1:2379 --advertise-client-urls=https://127.0.0.1:2379"+
		" --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 --initial-cluster=default=http://127.0.0.1:2380"+
		" --cert-file=server.crt --key-file=server.key --client-cert-auth --trusted-ca-file=ca.crt"), "ready to serve client requests")
	fetch := p.Take(t, readmeMoving, "keelson import --from=https")
	m.Run(strings.NewReplacer("--cacert=…", "--cacert=ca.crt", "--cert=…", "--cert=client.crt", "--key=…", "--key=client.key").Replace(fetch))
}

// program builds the example in Go.
func (p readme) program(t *testing.T) {
	var body strings.Builder
	for _, line := range []string{"server, err", "DataDir:", "ListenClientURLs:", "})", "if err", "return err", "}", "defer server", "client, err"} {
		body.WriteString(p.Take(t, readmeProgram, line) + "\n")
	}
	root, err := harness.Root()
	check(t, err)
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "mine.go"), []byte(`package mine

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/pkg/embed"
)

func serve(ctx context.Context) error {
`+body.String()+`
	if err != nil {
		return err
	}
	return client.Close()
}
`), 0o600))
	overlay := filepath.Join(dir, "overlay.json")
	check(t, os.WriteFile(overlay, []byte(`{"Replace": {"`+root+`/mine/mine.go": "`+dir+`/mine.go"}}`), 0o600))
	build := exec.Command("go", "build", "-overlay", overlay, "./mine")
	build.Dir, build.Env = root, append(os.Environ(), "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Errorf("the example does not compile: %v\n%s", err, out)
	}
}
