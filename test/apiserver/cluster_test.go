package apiserver

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/keelson-io/keelson/test/harness"
)

const (
	eventTTL = 10 * time.Second
	// patience bounds every wait; nothing here takes it when all is well.
	patience = 3 * time.Minute
)

// cluster is a kube-apiserver on a backend, both listening on this machine
// only.
type cluster struct {
	t       *testing.T
	backend *harness.Server
	api     *harness.Process

	dir        string
	kubeconfig string
	flags      []string
	config     *rest.Config
	client     *kubernetes.Clientset
	dynamic    *dynamic.DynamicClient
}

func startCluster(t *testing.T, backend harness.Backend, flags ...string) *cluster {
	t.Helper()
	return startOn(t, harness.StartServer(t, backend), flags...)
}

// startOn is startCluster for a backend that runs.
func startOn(t *testing.T, backend *harness.Server, flags ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, backend: backend, dir: harness.TempDir(t)}
	pki := harness.NewPKI(t, c.dir)
	address := harness.FreeAddress(t)
	_, port, _ := net.SplitHostPort(address)
	c.flags = append([]string{
		"--etcd-compaction-interval=1h", // or a slow machine loses the past that a scenario asks for
		"--event-ttl=" + eventTTL.String(),
		"--bind-address=127.0.0.1",
		"--secure-port=" + port,
		"--tls-cert-file=" + pki.ServerCert,
		"--tls-private-key-file=" + pki.ServerKey,
		"--client-ca-file=" + pki.CA,
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + pki.ServerKey,
		"--service-account-signing-key-file=" + pki.ServerKey,
		"--service-cluster-ip-range=10.96.0.0/24",
		"--authorization-mode=RBAC",
	}, flags...)
	host := "https://" + address
	c.config = &rest.Config{
		Host: host, QPS: 1000, Burst: 1000,
		TLSClientConfig: rest.TLSClientConfig{CAFile: pki.CA, CertFile: pki.ClientCert, KeyFile: pki.ClientKey},
	}
	c.kubeconfig = filepath.Join(c.dir, "kubeconfig")
	kc := clientcmdapi.NewConfig()
	kc.Clusters["c"] = &clientcmdapi.Cluster{Server: host, CertificateAuthority: pki.CA}
	kc.AuthInfos["u"] = &clientcmdapi.AuthInfo{ClientCertificate: pki.ClientCert, ClientKey: pki.ClientKey}
	kc.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	kc.CurrentContext = "x"
	check(t, clientcmd.WriteToFile(*kc, c.kubeconfig))
	var err error
	c.client, err = kubernetes.NewForConfig(c.config)
	check(t, err)
	c.dynamic, err = dynamic.NewForConfig(c.config)
	check(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the log of kube-apiserver:\n%s", c.api.LogTail(40))
		}
	})
	c.startAPI()
	return c
}

// startAPI starts the kube-apiserver and waits until it says that it is ready,
// its post-start hooks included.
func (c *cluster) startAPI() {
	c.t.Helper()
	c.api = harness.StartProcess(c.t, c.dir, "kube-apiserver", harness.Tool(c.t, "kube-apiserver"),
		append([]string{"--etcd-servers=" + c.backend.Endpoint}, c.flags...)...)
	err := c.api.WaitReady(3*time.Minute, func(ctx context.Context) error {
		body, err := c.client.RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		if err != nil {
			return fmt.Errorf("/readyz: %w: %s", err, body)
		}
		return nil
	})
	if err != nil {
		c.t.Fatalf("kube-apiserver: %v", err)
	}
}

// kubectl runs kubectl with stdin and returns what it printed.
func (c *cluster) kubectl(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := c.tryKubectl(stdin, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func (c *cluster) tryKubectl(stdin string, args ...string) (string, error) {
	path, err := harness.BuildTool("kubectl")
	if err != nil {
		return "", err
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.kubeconfig, "HOME="+c.dir)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%w: %s", err, stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

// stored asks the backend itself, with etcdctl, for the keys below a prefix of
// /registry.
func (c *cluster) stored(t *testing.T, prefix string) []string {
	t.Helper()
	cmd := exec.Command(harness.Tool(t, "etcdctl"), "--endpoints", c.backend.Endpoint,
		"get", "--prefix", "--keys-only", "/registry/"+prefix)
	out, err := cmd.Output()
	check(t, err)
	return strings.Fields(string(out))
}

// eventually polls what nothing announces.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline:
			t.Fatalf("not within %v: %s", patience, what)
		case <-tick.C:
		}
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
