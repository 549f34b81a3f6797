package apiserver

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/keelson-io/keelson/test/harness"
)

func (c *cluster) tryEtcdctl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(harness.Tool(t, "etcdctl"), append([]string{"--endpoints", c.backend.Endpoint, "--command-timeout", "1m"}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c *cluster) etcdctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.tryEtcdctl(t, args...)
	if err != nil {
		t.Fatalf("etcdctl %v: %v: %s", args, err, out)
	}
	return out
}

// acknowledged are the objects that the apiserver said it has created.
type acknowledged struct {
	mu       sync.Mutex
	versions map[string]string // resource version by name; guarded by mu
	count    atomic.Int64
}

func (a *acknowledged) add(cm *corev1.ConfigMap) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.versions[cm.Name] = cm.ResourceVersion
	a.count.Add(1)
}

// create creates objects until ctx ends, whatever fails on the way.
func (a *acknowledged) create(ctx context.Context, api typedcorev1.ConfigMapInterface, writer int) {
	for i := 0; ctx.Err() == nil; i++ {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		cm, err := api.Create(try, configMap(fmt.Sprintf("w%d-%06d", writer, i), fmt.Sprint(i)), metav1.CreateOptions{})
		cancel()
		if err == nil {
			a.add(cm)
		}
	}
}

// killBackend kills the backend three times while objects are created and
// watched.
func killBackend(t *testing.T, c *cluster) {
	ns := c.namespace(t, "kill")
	// The watch has a connection of its own, as a controller's has.
	watching, err := kubernetes.NewForConfig(rest.CopyConfig(c.config))
	check(t, err)
	api := c.client.CoreV1().ConfigMaps(ns)
	list, err := api.List(t.Context(), metav1.ListOptions{})
	check(t, err)
	watcher, err := watchtools.NewRetryWatcherWithContext(t.Context(), list.ResourceVersion, &cache.ListWatch{
		WatchFuncWithContext: watching.CoreV1().ConfigMaps(ns).Watch,
	})
	check(t, err)
	defer watcher.Stop()

	acked := &acknowledged{versions: map[string]string{}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() { acked.create(ctx, api, w) })
	}
	progress := func(what string, n int64) {
		t.Helper()
		target := acked.count.Load() + n
		eventually(t, what, func() bool { return acked.count.Load() >= target })
	}
	for round := range 3 {
		progress("writes before the kill", 100)
		c.backend.Restart()
		progress(fmt.Sprintf("writes after kill %d", round+1), 50)
	}
	cancel()
	writers.Wait()

	final, err := api.List(t.Context(), metav1.ListOptions{})
	check(t, err)
	present := map[string]string{}
	for i := range final.Items {
		present[final.Items[i].Name] = final.Items[i].ResourceVersion
	}
	for name, version := range acked.versions {
		if present[name] != version {
			t.Errorf("%s was acknowledged at %s and is there at %q", name, version, present[name])
		}
	}
	t.Logf("%d creates acknowledged, %d objects there", len(acked.versions), len(present))
	watchedAll(t, watcher, present)
}

// watchedAll checks that the watch gave every object once, in order.
func watchedAll(t *testing.T, w *watchtools.RetryWatcher, present map[string]string) {
	t.Helper()
	last := int64(0)
	timeout := time.After(patience)
	seen := map[string]string{}
	for len(seen) < len(present) {
		select {
		case ev, ok := <-w.ResultChan():
			if !ok {
				t.Fatalf("the watch ended after %d of %d objects", len(seen), len(present))
			}
			if ev.Type != watch.Added {
				t.Fatalf("watched %v %v", ev.Type, ev.Object)
			}
			cm := ev.Object.(*corev1.ConfigMap)
			if _, twice := seen[cm.Name]; twice {
				t.Errorf("%s was watched twice", cm.Name)
			}
			seen[cm.Name] = cm.ResourceVersion
			rv, err := strconv.ParseInt(cm.ResourceVersion, 10, 64)
			check(t, err)
			if rv <= last {
				t.Errorf("watched resource version %d after %d", rv, last)
			}
			last = rv
		case <-timeout:
			t.Fatalf("the watch gave %d of %d objects within %v", len(seen), len(present), patience)
		}
	}
	for name, version := range present {
		if seen[name] != version {
			t.Errorf("%s is there at %s and was watched at %q", name, version, seen[name])
		}
	}
}
