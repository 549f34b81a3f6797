package transfer

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/keelson-io/keelson/test/harness"
)

// world is the machine that a section of docs/migration.md is about: a
// directory for the root of its file system, and other addresses.
type world struct {
	t       *testing.T
	root    string
	replace []string          // what the page has, and what it is here
	env     []string          // what was exported
	units   map[string]func() // what systemctl does, such as "stop k3s"
	after   map[string]func() // what happens when a command was run
	service string            // the command of the service keelson, if the page has it
}

// Where servers listen that no command of the page names, and keelson's service
// as well.
const (
	etcdSocket    = "/run/etcd.sock"
	keelsonSocket = "/run/keelson/keelson.sock"
	keelsonURL    = "unix://" + keelsonSocket
)

// The sections that have commands, and what there is before they are run.
var sections = map[string]func(*world){
	"From k3s": func(w *world) {
		k3s := w.kine("/var/lib/rancher/k3s/server")
		w.units["stop k3s"] = k3s.Kill
		w.mkdir("/etc/rancher/k3s")
		w.units["start k3s"] = func() {
			w.contains("/etc/rancher/k3s/config.yaml", "datastore-endpoint: ")
			w.keys("http://127.0.0.1:2379", "/registry/health")
		}
		inside := w.etcd("/var/lib/rancher/k3s/server/db/etcd")
		w.fill("unix://" + etcdSocket)
		check(w.t, inside.Stop())
	},
	"From kine on PostgreSQL or MySQL": func(w *world) {
		postgres, mysql := startPostgres(w.t), startMariaDB(w.t)
		for url, page := range map[string]string{
			postgres: "postgres://kine:secret@db.example.com:5432/kine", mysql: "mysql://kine:secret@tcp(db.example.com:3306)/kine",
		} {
			k := startKine(w.t, "", url)
			fill(w.t, k, 1)
			check(w.t, k.Stop())
			w.replace = append(w.replace, page, url)
		}
		w.replace = append(w.replace, "http://127.0.0.1:12379", w.kine("/third").endpoint)
	},
	"From etcd": func(w *world) {
		w.mkdir("/root", "/backup", "/etc/kubernetes/manifests", "/etc/kubernetes/pki/etcd")
		pki := harness.NewPKI(w.t, w.t.TempDir())
		for name, from := range map[string]string{
			"ca.crt": pki.CA, "server.crt": pki.ServerCert, "server.key": pki.ServerKey,
			"healthcheck-client.crt": pki.ClientCert, "healthcheck-client.key": pki.ClientKey,
		} {
			check(w.t, os.Link(from, w.path("/etc/kubernetes/pki/etcd/"+name)))
		}
		for _, name := range []string{"etcd.yaml", "kube-apiserver.yaml"} {
			check(w.t, os.WriteFile(w.path("/etc/kubernetes/manifests/"+name), []byte("kind: Pod\n"), 0o600))
		}
		etcd := w.etcd("/var/lib/etcd", "https://127.0.0.1:2379", "--cert-file", pki.ServerCert, "--key-file", pki.ServerKey,
			"--client-cert-auth", "--trusted-ca-file", pki.CA)
		w.fill("unix://" + etcdSocket)
		const moveEtcd, etcdYAML = "mv /etc/kubernetes/manifests/etcd.yaml /root/", "/etc/kubernetes/manifests/etcd.yaml"
		w.after[moveEtcd] = func() {
			check(w.t, etcd.Stop())
			// What follows is about other control planes, one of which keelson stands in for.
			check(w.t, os.WriteFile(w.path(etcdYAML), nil, 0o600))
			delete(w.after, moveEtcd)
		}
	},
	"Into PostgreSQL or a cluster": func(w *world) {
		w.mkdir("/backup")
		w.kine("/var/lib/rancher/k3s/server").Kill()
		w.replace = append(w.replace, "postgres://keelson@db.example.com/keelson", harness.StartPostgres(w.t).URL("keelson"))
	},
	"Back to etcd": func(w *world) {
		w.mkdir("/backup")
		w.service = "keelson --data-dir=/var/lib/keelson --listen-client-urls=" + keelsonURL
		w.keelson()
		w.fill(keelsonURL)
		w.mkdir("/var/lib/etcd/member") // from before
		w.units["start etcd"] = func() { w.etcd("/var/lib/etcd", "http://127.0.0.1:2379") }
		other := harness.StartServer(w.t, harness.Etcd)
		w.replace = append(w.replace, "http://127.0.0.1:12379", other.Endpoint)
	},
	"After a disaster": func(w *world) {
		w.mkdir("/backup")
		w.keelson()
		w.fill(keelsonURL)
		w.run("keelson snapshot save /backup/keelson.db --endpoints=unix:///run/keelson/keelson.sock")
		w.replace = append(w.replace, "postgres://keelson@db.example.com/keelson", harness.StartPostgres(w.t).URL("keelson"))
	},
}

// TestMigrationPage runs every command of docs/migration.md, section by section.
func TestMigrationPage(t *testing.T) {
	root, err := harness.Root()
	check(t, err)
	page, err := os.ReadFile(filepath.Join(root, "docs", "migration.md"))
	check(t, err)
	seen := 0
	for _, section := range strings.Split("\n"+string(page), "\n## ")[1:] {
		title, text, _ := strings.Cut(section, "\n")
		commands := commandsOf(text)
		if len(commands) == 0 {
			continue
		}
		prepare := sections[title]
		if prepare == nil {
			t.Errorf("nothing is known of the section %q", title)
			continue
		}
		seen++
		t.Run(title, func(t *testing.T) {
			w := newWorld(t)
			for _, command := range commands {
				if w.service == "" && strings.HasPrefix(command, "keelson --") {
					w.service = command
				}
			}
			service := w.service
			prepare(w)
			for _, part := range strings.Split(text, "\n### ") {
				w.env = nil // of another shell
				for _, command := range commandsOf(part) {
					switch {
					case command == service:
					case strings.HasPrefix(command, "keelson --"): // another machine's: are these its flags?
						w.run(command + " --version")
					default:
						w.run(command)
					}
				}
			}
		})
	}
	if seen != len(sections) {
		t.Errorf("the page has %d of %d sections", seen, len(sections))
	}
}

// commandsOf returns the commands of a text: what is indented by four, joined
// where a line ends with a backslash.
func commandsOf(text string) (commands []string) {
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", "")) {
		if command, ok := strings.CutPrefix(line, "    "); ok {
			commands = append(commands, strings.TrimSpace(command))
		}
	}
	return commands
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, root: harness.TempDir(t), units: map[string]func(){}, after: map[string]func(){}}
	w.replace = []string{"127.0.0.1:2379", harness.FreeAddress(t)}
	w.units["start keelson"] = w.keelson
	w.mkdir("/run/keelson", "/bin")
	for name, program := range map[string]string{"keelson": harness.KeelsonBinary(t), "etcdctl": harness.Tool(t, "etcdctl"), "etcdutl": harness.Tool(t, "etcdutl")} {
		check(t, os.Symlink(program, w.path("/bin/"+name)))
	}
	for _, name := range []string{"chown", "crictl"} { // there is no user of that name, and no container
		check(t, os.WriteFile(w.path("/bin/"+name), []byte("#!/bin/sh\n"), 0o700))
	}
	return w
}

func (w *world) path(path string) string { return filepath.Join(w.root, path) }

func (w *world) mkdir(paths ...string) {
	for _, path := range paths {
		check(w.t, os.MkdirAll(w.path(path), 0o700))
	}
}

// absolute is a path of the page: after a blank, a quote, an equals sign or
// unix://.
var absolute = regexp.MustCompile(`(^|[ ='"]|unix://)/(var|etc|run|root|backup)\b`)

// here is a text of the page as it is on this machine.
func (w *world) here(text string) string {
	return absolute.ReplaceAllString(strings.NewReplacer(w.replace...).Replace(text), "${1}"+w.root+"/$2")
}

// run runs a command of the page, which must succeed.
func (w *world) run(command string) {
	w.t.Helper()
	if unit, ok := strings.CutPrefix(command, "systemctl "); ok {
		if w.units[unit] == nil {
			w.t.Fatalf("%s: there is no such unit", command)
		}
		w.units[unit]()
		return
	}
	if variable, ok := strings.CutPrefix(command, "export "); ok {
		w.env = append(w.env, strings.ReplaceAll(w.here(variable), "'", ""))
		return
	}
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", w.here(command))
	cmd.Env = append(append(os.Environ(), "PATH="+w.path("/bin")+":"+os.Getenv("PATH")), w.env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("%s\nwhich is here\n%s\n%v: %s", command, w.here(command), err, out)
	}
	w.t.Logf("%s\n%s", command, out)
	if w.after[command] != nil {
		w.after[command]()
	}
}

// kine starts a kine that has its data in a directory, and fills it.
func (w *world) kine(dir string) *kine {
	w.mkdir(dir)
	k := startKine(w.t, w.path(dir), "")
	fill(w.t, k, 1)
	return k
}

// etcd starts an etcd on a data directory, with a socket beside other URLs for
// clients, which come first among args.
func (w *world) etcd(dir string, args ...string) *harness.Process {
	w.t.Helper()
	peer := "http://" + harness.FreeAddress(w.t)
	urls := "unix://" + w.path(etcdSocket)
	for len(args) > 0 && !strings.HasPrefix(args[0], "--") {
		urls += "," + w.here(args[0])
		args = args[1:]
	}
	p := harness.StartProcess(w.t, w.root, "etcd", harness.Tool(w.t, "etcd"), append([]string{
		"--data-dir", w.path(dir), "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default=" + peer,
		"--listen-client-urls", urls, "--advertise-client-urls", urls,
	}, args...)...)
	w.waits(p, "unix", w.path(etcdSocket))
	return p
}

// fill gives a server some data.
func (w *world) fill(endpoint string) {
	w.t.Helper()
	fillEtcd(w.t, connect(w.t, w.here(endpoint)), 2)
}

func (w *world) waits(p *harness.Process, network, address string) {
	w.t.Helper()
	check(w.t, p.WaitReady(patience, func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return err
		}
		return conn.Close()
	}))
}

// keelson starts the service, as the page has it or on a port and a socket.
func (w *world) keelson() {
	w.t.Helper()
	command := w.service
	if command == "" {
		command = "keelson --data-dir=/var/lib/keelson --listen-client-urls=http://127.0.0.1:2379," + keelsonURL
	}
	args := append(strings.Fields(w.here(command))[1:], "--datastore=sqlite")
	p := harness.StartProcess(w.t, w.root, "keelson", harness.KeelsonBinary(w.t), args...)
	w.units["stop keelson"] = func() { check(w.t, p.Stop()) }
	if strings.Contains(command, keelsonURL) {
		w.waits(p, "unix", w.path(keelsonSocket))
	} else {
		w.waits(p, "tcp", w.here("127.0.0.1:2379"))
	}
}

// keys checks that a server has a key.
func (w *world) keys(endpoint, key string) {
	w.t.Helper()
	resp, err := connect(w.t, w.here(endpoint)).Get(w.t.Context(), key)
	check(w.t, err)
	if len(resp.Kvs) != 1 {
		w.t.Errorf("%s has no %s", endpoint, key)
	}
}

func (w *world) contains(path, text string) {
	w.t.Helper()
	data, err := os.ReadFile(w.path(path))
	check(w.t, err)
	if !strings.Contains(string(data), text) {
		w.t.Errorf("%s has %s", path, data)
	}
}
