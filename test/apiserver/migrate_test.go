package apiserver

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/keelson-io/keelson/test/harness"
)

// TestMigrate: a kube-apiserver is stopped, its data is brought from kine or
// etcd to keelson, and it goes on there: clients keep the resource versions,
// the watches and the half-read lists that they have.
func TestMigrate(t *testing.T) {
	if !slices.Contains(harness.Backends(t), harness.Keelson) {
		t.Skip("KEELSON_TEST_BACKEND leaves keelson out")
	}
	for _, tt := range []struct {
		name  string
		start func(*testing.T) (*harness.Server, func(to string) []string)
		flag  string
	}{
		{"from kine that was stopped", func(t *testing.T) (*harness.Server, func(string) []string) { return startKine(t, false) }, "--watch-cache=true"},
		// Without its cache watches reach the backend.
		{"from kine that was killed", func(t *testing.T) (*harness.Server, func(string) []string) { return startKine(t, true) }, "--watch-cache=false"},
		{"from etcd", startEtcd, "--watch-cache=false"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			backend, stop := tt.start(t)
			migrate(t, backend, stop, tt.flag)
		})
	}
}

// startEtcd starts an etcd, whose data is taken while it runs.
func startEtcd(t *testing.T) (*harness.Server, func(to string) []string) {
	s := harness.StartServer(t, harness.Etcd)
	return s, func(to string) []string { return []string{"import", "--from", s.Endpoint, "--to", to} }
}

// startKine starts a kine on SQLite, and returns how it is stopped and what
// keelson is told then.
func startKine(t *testing.T, kill bool) (*harness.Server, func(to string) []string) {
	dir := harness.TempDir(t)
	socket := filepath.Join(dir, "kine.sock")
	process := harness.StartProcess(t, dir, "kine", harness.Tool(t, "kine"), "--listen-address", "unix://"+socket, "--metrics-bind-address", "0")
	check(t, process.WaitReady(patience, func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil {
			return err
		}
		return conn.Close()
	}))
	return &harness.Server{Process: process, Endpoint: "unix://" + socket}, func(to string) []string {
		if kill {
			process.Kill()
		} else {
			check(t, process.Stop())
		}
		return []string{"import", "--from", dir, "--to", to}
	}
}

func migrate(t *testing.T, backend *harness.Server, stop func(to string) []string, flag string) {
	c := startOn(t, backend, "--event-ttl=1h", flag) // or they would vanish while it moves
	ns := c.namespace(t, "moving")
	api := c.client.CoreV1().ConfigMaps(ns)
	const n = 30
	var watchFrom string
	for i := range n {
		cm, err := api.Create(t.Context(), configMap(fmt.Sprintf("c%02d", i), "0"), metav1.CreateOptions{})
		check(t, err)
		if i == n/2 {
			watchFrom = cm.ResourceVersion
		}
	}
	check(t, api.Delete(t.Context(), "c29", metav1.DeleteOptions{}))
	_, err := c.client.CoreV1().Events(ns).Create(t.Context(), &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "e"}, InvolvedObject: corev1.ObjectReference{Kind: "Pod", Name: "p", Namespace: ns}, Reason: "Testing",
	}, metav1.CreateOptions{})
	check(t, err)
	before, err := api.List(t.Context(), metav1.ListOptions{})
	check(t, err)
	page, err := api.List(t.Context(), metav1.ListOptions{Limit: 10})
	check(t, err)

	check(t, c.api.Stop())
	server := harness.NewServer(t, harness.Keelson, harness.KeelsonBinary(t), "--datastore", "sqlite")
	args := stop(filepath.Join(server.Dir, "data"))
	if out, err := exec.Command(server.Program, args...).CombinedOutput(); err != nil {
		t.Fatalf("keelson %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	server.Restart()
	c.backend = server
	c.startAPI()

	after, err := api.List(t.Context(), metav1.ListOptions{})
	check(t, err)
	if got, want := versionsOf(after), versionsOf(before); !slices.Equal(got, want) {
		t.Errorf("resource versions %q, want %q", got, want)
	}
	rest, err := api.List(t.Context(), metav1.ListOptions{Continue: page.Continue, Limit: 500})
	check(t, err)
	if got := len(page.Items) + len(rest.Items); got != n-1 || rest.ResourceVersion != page.ResourceVersion {
		t.Errorf("a list that was begun before has %d of %d, at resource version %s, then %s", got, n-1, page.ResourceVersion, rest.ResourceVersion)
	}
	if flag == "--watch-cache=false" {
		watchOn(t, c, ns, watchFrom)
	}
	cm := before.Items[0].DeepCopy()
	cm.Data["key"] = "1"
	fresh, err := api.Update(t.Context(), cm, metav1.UpdateOptions{})
	check(t, err)
	if _, err := api.Update(t.Context(), cm, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("an update of a version from before: %v", err)
	}
	stale := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &cm.ResourceVersion}}
	if err := api.Delete(t.Context(), cm.Name, stale); !apierrors.IsConflict(err) {
		t.Errorf("a delete of a version from before: %v", err)
	}
	check(t, api.Delete(t.Context(), cm.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &fresh.ResourceVersion}}))
	leased := c.etcdctl(t, "get", "--prefix", "/registry/events/"+ns, "-w", "fields")
	if !strings.Contains(leased, `"Lease" : `) || strings.Contains(leased, `"Lease" : 0`) {
		t.Errorf("the event has no lease: %s", leased)
	}
	check(t, c.api.Stop())
	check(t, server.Stop())
}

func versionsOf(list *corev1.ConfigMapList) (versions []string) {
	for _, cm := range list.Items {
		versions = append(versions, cm.Name+" "+cm.ResourceVersion+" "+string(cm.UID))
	}
	return versions
}

// watchOn checks that a watch from a resource version of before is told what
// happened before, and what happens now.
func watchOn(t *testing.T, c *cluster, ns, from string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	api := c.client.CoreV1().ConfigMaps(ns)
	w, err := api.Watch(ctx, metav1.ListOptions{ResourceVersion: from})
	check(t, err)
	defer w.Stop()
	_, err = api.Create(t.Context(), configMap("now", "0"), metav1.CreateOptions{})
	check(t, err)
	var told []string
	for ev := range w.ResultChan() {
		cm, ok := ev.Object.(*corev1.ConfigMap)
		if !ok {
			t.Fatalf("the watch from %s: %v", from, ev)
		}
		if told = append(told, fmt.Sprintf("%s %s", ev.Type, cm.Name)); cm.Name == "now" {
			break
		}
	}
	want := []string{}
	for i := 16; i < 30; i++ {
		want = append(want, fmt.Sprintf("%s c%02d", watch.Added, i))
	}
	want = append(want, "DELETED c29", "ADDED now")
	if !slices.Equal(told, want) {
		t.Errorf("the watch from %s was told %q, want %q", from, told, want)
	}
}
