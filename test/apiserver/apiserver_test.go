package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"

	"github.com/keelson-io/keelson/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// TestAPIServer runs every scenario with the apiserver's watch cache, the way
// it is used, and without it, so that lists and watches reach the backend.
func TestAPIServer(t *testing.T) {
	scenarios := []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"namespaces", namespaces},
		{"configmaps", configMaps},
		{"secrets", secrets},
		{"custom resources", customResources},
		{"server-side apply", serverSideApply},
		{"watch from a resource version", watchFrom},
		{"paged lists", pagedLists},
		{"consistent lists", consistentLists},
		{"events vanish", eventsVanish},
		{"kill -9 of the backend", killBackend},
		{"apiserver restart", apiserverRestart},
		{"compaction", compaction},
	}
	modes := []struct {
		name  string
		flags []string
	}{{"default", nil}, {"without watch cache", []string{"--watch-cache=false"}}}
	for _, backend := range harness.Backends(t) {
		for _, mode := range modes {
			t.Run(string(backend)+"/"+mode.name, func(t *testing.T) {
				c := startCluster(t, backend, mode.flags...)
				for _, s := range scenarios {
					t.Run(s.name, func(t *testing.T) { s.run(t, c) })
				}
				check(t, c.api.Stop())
				check(t, c.backend.Stop())
			})
		}
	}
}

// namespace makes one that is the scenario's own.
func (c *cluster) namespace(t *testing.T, name string) string {
	t.Helper()
	_, err := c.client.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	check(t, err)
	return name
}

func configMap(name, value string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"key": value}}
}

func namespaces(t *testing.T, c *cluster) {
	got := strings.Fields(c.kubectl(t, "", "get", "namespaces", "-o", "name"))
	for _, want := range []string{"namespace/default", "namespace/kube-system"} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is not among %q", want, got)
		}
	}
	c.kubectl(t, "", "create", "namespace", "short-lived")
	if stored := c.stored(t, "namespaces/short-lived"); len(stored) != 1 {
		t.Errorf("the backend holds %q", stored)
	}
	c.kubectl(t, "", "delete", "namespace", "short-lived", "--wait=false")
	// There is no controller here that empties and finalizes it.
	api := c.client.CoreV1().Namespaces()
	ns, err := api.Get(t.Context(), "short-lived", metav1.GetOptions{})
	check(t, err)
	if ns.Status.Phase != corev1.NamespaceTerminating {
		t.Errorf("phase is %s", ns.Status.Phase)
	}
	ns.Spec.Finalizers = nil
	_, err = api.Finalize(t.Context(), ns, metav1.UpdateOptions{})
	check(t, err)
	if _, err := api.Get(t.Context(), "short-lived", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("after it was finalized: %v", err)
	}
	if stored := c.stored(t, "namespaces/short-lived"); len(stored) != 0 {
		t.Errorf("the backend still holds %q", stored)
	}
}

func configMaps(t *testing.T, c *cluster) {
	ns := c.namespace(t, "configmaps")
	c.kubectl(t, "", "-n", ns, "create", "configmap", "a", "--from-literal=key=one")
	get := func() string {
		return c.kubectl(t, "", "-n", ns, "get", "configmap", "a", "-o", "jsonpath={.data.key}")
	}
	if got := get(); got != "one" {
		t.Errorf("created with %q", got)
	}
	c.kubectl(t, "", "-n", ns, "patch", "configmap", "a", "--type=merge", "-p", `{"data":{"key":"two"}}`)
	if got := get(); got != "two" {
		t.Errorf("patched to %q", got)
	}
	api := c.client.CoreV1().ConfigMaps(ns)
	if _, err := api.Create(t.Context(), configMap("a", ""), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("created again: %v", err)
	}
	old, err := api.Get(t.Context(), "a", metav1.GetOptions{})
	check(t, err)
	fresh := old.DeepCopy()
	fresh.Data["key"] = "three"
	fresh, err = api.Update(t.Context(), fresh, metav1.UpdateOptions{})
	check(t, err)
	if fresh.ResourceVersion == old.ResourceVersion {
		t.Error("an update left the resource version")
	}
	if _, err := api.Update(t.Context(), old, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("an update of an old version: %v", err)
	}
	stale := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &old.ResourceVersion}}
	if err := api.Delete(t.Context(), "a", stale); !apierrors.IsConflict(err) {
		t.Errorf("a delete of an old version: %v", err)
	}
	c.kubectl(t, "", "-n", ns, "delete", "configmap", "a")
	if _, err := api.Get(t.Context(), "a", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("after the delete: %v", err)
	}
	for i := range 5 {
		_, err := api.Create(t.Context(), configMap(fmt.Sprint("c", i), ""), metav1.CreateOptions{})
		check(t, err)
	}
	check(t, api.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}))
	if stored := c.stored(t, "configmaps/"+ns+"/"); len(stored) != 0 {
		t.Errorf("the backend still holds %q", stored)
	}
}

func secrets(t *testing.T, c *cluster) {
	ns := c.namespace(t, "secrets")
	c.kubectl(t, "", "-n", ns, "create", "secret", "generic", "s", "--from-literal=password=correct horse")
	got := c.kubectl(t, "", "-n", ns, "get", "secret", "s", "-o", "go-template={{.data.password | base64decode}}")
	if got != "correct horse" {
		t.Errorf("the secret is %q", got)
	}
	big := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "big"},
		Data:       map[string][]byte{"blob": slices.Repeat([]byte{0, 0xff}, 500<<10)},
	}
	api := c.client.CoreV1().Secrets(ns)
	_, err := api.Create(t.Context(), big, metav1.CreateOptions{})
	check(t, err)
	back, err := api.Get(t.Context(), "big", metav1.GetOptions{})
	check(t, err)
	if !slices.Equal(back.Data["blob"], big.Data["blob"]) {
		t.Error("a secret of 1 MB came back otherwise")
	}
	c.kubectl(t, "", "-n", ns, "delete", "secret", "s", "big")
}

const crd = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ships.test.keelson.io}
spec:
  group: test.keelson.io
  scope: Namespaced
  names: {plural: ships, singular: ship, kind: Ship}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, properties: {masts: {type: integer, minimum: 1}}}
          status: {type: object, properties: {afloat: {type: boolean}}}
`

func ship(name string, masts int) string {
	return fmt.Sprintf("apiVersion: test.keelson.io/v1\nkind: Ship\nmetadata: {name: %s}\nspec: {masts: %d}\n", name, masts)
}

func customResources(t *testing.T, c *cluster) {
	ns := c.namespace(t, "ships")
	c.kubectl(t, crd, "apply", "-f", "-")
	c.kubectl(t, "", "wait", "--for=condition=Established", "--timeout=180s", "crd/ships.test.keelson.io")
	eventually(t, "the new resource is served", func() bool {
		_, err := c.tryKubectl(ship("argo", 1), "-n", ns, "apply", "-f", "-")
		return err == nil
	})
	c.kubectl(t, ship("cutty", 3), "-n", ns, "apply", "-f", "-")
	if _, err := c.tryKubectl(ship("raft", 0), "-n", ns, "apply", "-f", "-"); err == nil {
		t.Error("an invalid custom resource was taken")
	}
	ships := c.dynamic.Resource(schema.GroupVersionResource{Group: "test.keelson.io", Version: "v1", Resource: "ships"}).Namespace(ns)
	list, err := ships.List(t.Context(), metav1.ListOptions{})
	check(t, err)
	if len(list.Items) != 2 {
		t.Errorf("%d ships, want 2", len(list.Items))
	}
	_, err = ships.Patch(t.Context(), "argo", types.MergePatchType, []byte(`{"status":{"afloat":true}}`), metav1.PatchOptions{}, "status")
	check(t, err)
	var ev watch.Event
	eventually(t, "a watch is told of something", func() bool { // it ends when the apiserver updates the definition
		w, err := ships.Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.GetResourceVersion()})
		check(t, err)
		defer w.Stop()
		ev = <-w.ResultChan()
		return ev.Type != ""
	})
	if ev.Type != watch.Modified {
		t.Errorf("watched %v", ev)
	}
	if stored := c.stored(t, "test.keelson.io/ships/"); len(stored) != 2 {
		t.Errorf("the backend holds %q", stored)
	}
	c.kubectl(t, "", "delete", "crd", "ships.test.keelson.io", "--timeout=180s")
	if stored := c.stored(t, "test.keelson.io/ships/"); len(stored) != 0 {
		t.Errorf("the backend still holds %q", stored)
	}
}

func serverSideApply(t *testing.T, c *cluster) {
	ns := c.namespace(t, "apply")
	manifest := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {mine: \"1\"}\n"
	c.kubectl(t, manifest, "-n", ns, "apply", "--server-side", "--field-manager=one", "-f", "-")
	api := c.client.CoreV1().ConfigMaps(ns)
	apply := func(manager string, force bool, data map[string]string) (*corev1.ConfigMap, error) {
		return api.Apply(t.Context(), applycorev1.ConfigMap("a", ns).WithData(data),
			metav1.ApplyOptions{FieldManager: manager, Force: force})
	}
	_, err := apply("two", false, map[string]string{"theirs": "1"})
	check(t, err)
	if _, err = apply("two", false, map[string]string{"mine": "2"}); !apierrors.IsConflict(err) {
		t.Errorf("applying another manager's field: %v", err)
	}
	cm, err := apply("two", true, map[string]string{"mine": "2"})
	check(t, err)
	if got := fmt.Sprint(cm.Data); got != "map[mine:2]" {
		t.Errorf("after the forced apply: %s", got)
	}
	before := cm.ResourceVersion
	cm, err = apply("two", true, map[string]string{"mine": "2"})
	check(t, err)
	if cm.ResourceVersion != before {
		t.Error("applying the same again wrote")
	}
}

// watchFrom checks that a watch from a resource version gives every later
// change once and in order, the past ones and those still to come.
func watchFrom(t *testing.T, c *cluster) {
	ns := c.namespace(t, "watch")
	api := c.client.CoreV1().ConfigMaps(ns)
	cm, err := api.Create(t.Context(), configMap("a", "0"), metav1.CreateOptions{})
	check(t, err)
	start := cm.ResourceVersion
	update := func(from, to int) {
		for i := from; i < to; i++ {
			cm.Data["key"] = fmt.Sprint(i)
			cm, err = api.Update(t.Context(), cm, metav1.UpdateOptions{})
			check(t, err)
		}
	}
	update(1, 20)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	w, err := api.Watch(ctx, metav1.ListOptions{ResourceVersion: start, AllowWatchBookmarks: true})
	check(t, err)
	defer w.Stop()
	update(20, 40)
	check(t, api.Delete(t.Context(), "a", metav1.DeleteOptions{}))
	next := 1
	for ev := range w.ResultChan() {
		switch ev.Type {
		case watch.Bookmark:
		case watch.Modified:
			if got := ev.Object.(*corev1.ConfigMap).Data["key"]; got != fmt.Sprint(next) {
				t.Fatalf("got update %s, want %d", got, next)
			}
			next++
		case watch.Deleted:
			gone := ev.Object.(*corev1.ConfigMap)
			if next != 40 || gone.Data["key"] != "39" {
				t.Errorf("deleted %v after update %d", gone.Data, next-1)
			}
			return
		default:
			t.Fatalf("unexpected event %v", ev)
		}
	}
	t.Fatal("the watch ended before the delete")
}

func pagedLists(t *testing.T, c *cluster) {
	ns := c.namespace(t, "pages")
	api := c.client.CoreV1().ConfigMaps(ns)
	const n = 53
	for i := range n {
		_, err := api.Create(t.Context(), configMap(fmt.Sprintf("c%03d", i), ""), metav1.CreateOptions{})
		check(t, err)
	}
	var names []string
	opts := metav1.ListOptions{Limit: 10}
	first := ""
	for page := 0; ; page++ {
		list, err := api.List(t.Context(), opts)
		check(t, err)
		if first == "" {
			first = list.ResourceVersion
		}
		if list.ResourceVersion != first {
			t.Errorf("page %d is of resource version %s, the first of %s", page, list.ResourceVersion, first)
		}
		for i := range list.Items {
			names = append(names, list.Items[i].Name)
		}
		if list.Continue == "" {
			break
		}
		if left := list.RemainingItemCount; left == nil || *left != int64(n-len(names)) {
			t.Errorf("page %d says that %v remain, want %d", page, left, n-len(names))
		}
		// A change between two pages must not show.
		check(t, api.Delete(t.Context(), fmt.Sprintf("c%03d", n-1-page), metav1.DeleteOptions{}))
		opts.Continue = list.Continue
	}
	if len(names) != n || !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != n {
		t.Errorf("the pages hold %d names, want %d: %q", len(names), n, names)
	}
	if got := len(strings.Fields(c.kubectl(t, "", "-n", ns, "get", "configmaps", "-o", "name", "--chunk-size=7"))); got != n-5 {
		t.Errorf("kubectl lists %d in chunks, want %d", got, n-5)
	}
	exact, err := api.List(t.Context(), metav1.ListOptions{
		ResourceVersion: first, ResourceVersionMatch: metav1.ResourceVersionMatchExact,
	})
	check(t, err)
	if len(exact.Items) != n {
		t.Errorf("at the first page's resource version there were %d, want %d", len(exact.Items), n)
	}
}

// consistentLists checks that a list sees the write that was acknowledged just
// before it, from the cache as from the backend.
func consistentLists(t *testing.T, c *cluster) {
	ns := c.namespace(t, "consistent")
	api := c.client.CoreV1().ConfigMaps(ns)
	began := time.Now()
	const n = 40
	for i := range n {
		_, err := api.Create(t.Context(), configMap(fmt.Sprint("c", i), ""), metav1.CreateOptions{})
		check(t, err)
		list, err := api.List(t.Context(), metav1.ListOptions{})
		check(t, err)
		if len(list.Items) != i+1 {
			t.Fatalf("after %d creates a list holds %d", i+1, len(list.Items))
		}
	}
	took := time.Since(began)
	t.Logf("%d creates, each followed by a consistent list: %v", n, took)
	// A cache that gets no progress falls back after 3 s a list.
	if took > n*3*time.Second {
		t.Errorf("%d consistent lists took %v", n, took)
	}
	first, err := api.List(t.Context(), metav1.ListOptions{ResourceVersion: "0"})
	check(t, err)
	if len(first.Items) > n {
		t.Errorf("a list from the cache holds %d", len(first.Items))
	}
}

func eventsVanish(t *testing.T, c *cluster) {
	ns := c.namespace(t, "events")
	api := c.client.CoreV1().Events(ns)
	w, err := api.Watch(t.Context(), metav1.ListOptions{})
	check(t, err)
	defer w.Stop()
	began := time.Now()
	for i := range 5 {
		_, err = api.Create(t.Context(), &corev1.Event{
			ObjectMeta:     metav1.ObjectMeta{Name: fmt.Sprint("e", i)},
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Name: "p", Namespace: ns},
			Reason:         "Testing", Message: "it vanishes",
		}, metav1.CreateOptions{})
		check(t, err)
	}
	if got := len(c.stored(t, "events/"+ns+"/")); got != 5 {
		t.Errorf("the backend holds %d events, want 5", got)
	}
	gone := 0
	timeout := time.After(patience)
	for gone < 5 {
		select {
		case ev := <-w.ResultChan():
			if ev.Type == watch.Deleted {
				gone++
			}
		case <-timeout:
			t.Fatalf("%d of 5 events vanished within %v", gone, patience)
		}
	}
	if lived := time.Since(began); lived < eventTTL {
		t.Errorf("events of a TTL of %s vanished after %v", eventTTL, lived)
	}
	if out := c.kubectl(t, "", "-n", ns, "get", "events", "-o", "name"); out != "" {
		t.Errorf("events left: %s", out)
	}
	if stored := c.stored(t, "events/"+ns+"/"); len(stored) != 0 {
		t.Errorf("the backend still holds %q", stored)
	}
}

// compactionInterval is that of the apiserver once it was restarted.
const compactionInterval = 3 * time.Second

// compaction waits until the apiserver has compacted a resource version away.
func compaction(t *testing.T, c *cluster) {
	ns := c.namespace(t, "compaction")
	api := c.client.CoreV1().ConfigMaps(ns)
	cm, err := api.Create(t.Context(), configMap("a", "0"), metav1.CreateOptions{})
	check(t, err)
	old := cm.ResourceVersion
	i := 0
	eventually(t, "an old resource version is gone", func() bool {
		i++
		cm.Data["key"] = fmt.Sprint(i)
		cm, err = api.Update(t.Context(), cm, metav1.UpdateOptions{})
		check(t, err)
		_, err = api.List(t.Context(), metav1.ListOptions{
			ResourceVersion: old, ResourceVersionMatch: metav1.ResourceVersionMatchExact,
		})
		if err != nil && !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
			t.Fatalf("a list of an old version: %v", err)
		}
		return err != nil
	})
	// The backend has deleted it, whatever the apiserver remembers.
	var status []struct {
		Status struct{ Header struct{ Revision int64 } }
	}
	check(t, json.Unmarshal([]byte(c.etcdctl(t, "endpoint", "status", "-w", "json")), &status))
	out, err := c.tryEtcdctl(t, "get", "--prefix", "/registry/configmaps/"+ns, "--rev", old)
	if err == nil || !strings.Contains(out, "required revision has been compacted") {
		t.Errorf("reading revision %s of %d at the backend: %v %s", old, status[0].Status.Header.Revision, err, out)
	}
	got, err := api.Get(t.Context(), "a", metav1.GetOptions{})
	check(t, err)
	if got.Data["key"] != fmt.Sprint(i) {
		t.Errorf("the newest value is %s, want %d", got.Data["key"], i)
	}
	w, err := api.Watch(t.Context(), metav1.ListOptions{ResourceVersion: got.ResourceVersion})
	check(t, err)
	defer w.Stop()
	check(t, api.Delete(t.Context(), "a", metav1.DeleteOptions{}))
	if ev := <-w.ResultChan(); ev.Type != watch.Deleted {
		t.Errorf("a watch after the compaction gave %v", ev)
	}
}

func apiserverRestart(t *testing.T, c *cluster) {
	ns := c.namespace(t, "restart")
	api := c.client.CoreV1().ConfigMaps(ns)
	cm, err := api.Create(t.Context(), configMap("a", "before"), metav1.CreateOptions{})
	check(t, err)
	check(t, c.api.Stop())
	c.flags = append(c.flags, "--etcd-compaction-interval="+compactionInterval.String())
	c.startAPI()
	got, err := api.Get(t.Context(), "a", metav1.GetOptions{})
	check(t, err)
	if got.Data["key"] != "before" || got.ResourceVersion != cm.ResourceVersion || got.UID != cm.UID {
		t.Errorf("after the restart: %v", got)
	}
	got.Data["key"] = "after"
	_, err = api.Update(t.Context(), got, metav1.UpdateOptions{})
	check(t, err)
	list, err := api.List(t.Context(), metav1.ListOptions{})
	check(t, err)
	if len(list.Items) != 1 || list.Items[0].Data["key"] != "after" {
		t.Errorf("listed after the restart: %v", list.Items)
	}
}
