package docs

import (
	"strings"
	"testing"

	"github.com/keelson-io/keelson/test/harness"
	"github.com/keelson-io/keelson/test/internal/docspage"
)

// The sections of docs/cluster.md.
const (
	clusterStart    = "Start one"
	clusterGrow     = "Grow from one node"
	clusterSnapshot = "Begin with a snapshot"
	clusterReplace  = "Replace a node that is lost"
	clusterMajority = "When the majority is lost for good"
	clusterRestart  = "Restart and upgrade"
	clusterDoes     = "What a node does"
	clusterDisk     = "On disk"
)

// TestClusterPage runs every command of docs/cluster.md.
func TestClusterPage(t *testing.T) {
	t.Parallel()
	page := docspage.Open(t, "docs/cluster.md")
	start := page.Take(t, clusterStart, "keelson --name=a")
	apiserver := page.Take(t, clusterStart, "kube-apiserver")
	exports := []string{page.Take(t, clusterStart, "export ETCDCTL_ENDPOINTS"), page.Take(t, clusterStart, "export ETCDCTL_CACERT")}
	add := page.Take(t, clusterGrow, "keelson --name=b")
	page.Leave(t, "TestSaveOfNode of pkg/cmd tests what it refuses", clusterDisk, "keelson snapshot save --data-dir")
	promote := page.Take(t, clusterGrow, "etcdctl member promote")

	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		ms := newMachines(t, page, "a", "b", "c", "d")
		a := ms.all["a"]
		ms.export(exports)
		ms.serve(start, "a", "b", "c")
		a.Link("kube-apiserver", harness.Tool(t, "kube-apiserver"))
		a.Run(strings.ReplaceAll(apiserver, "…", "--version")) // are these its flags?
		a.Run("etcdctl put first 1")
		a.members("a", "b", "c")
		a.Run(page.Take(t, clusterDoes, "etcdctl endpoint status --cluster"))
		a.Run(page.Take(t, clusterMajority, "etcdctl endpoint status"))
		if hashes := strings.Fields(a.Run(page.Take(t, clusterDoes, "etcdctl endpoint hashkv --cluster"))); len(hashes) < 3 {
			t.Errorf("hashes: %q", hashes)
		}
		a.Run(page.Take(t, clusterDoes, "etcdctl alarm disarm"))
		metricsAre(t, a.Run("curl --silent --cacert ca.crt --cert client.crt --key client.key https://10.0.0.1:2379/metrics"), true)
		ms.restarts(start)
		ms.replaces(start, add, promote)
		ms.loses(start)
	})
	t.Run("grow", func(t *testing.T) {
		t.Parallel()
		ms := newMachines(t, page, "a", "b", "c")
		ms.export(exports)
		ms.grows(start, add, promote)
	})
	t.Run("https", func(t *testing.T) {
		t.Parallel()
		ms := newMachines(t, page, "a", "b", "c")
		ms.export(exports)
		ms.encrypts(start)
	})
	t.Run("snapshot", func(t *testing.T) {
		t.Parallel()
		ms := newMachines(t, page, "a", "b", "c")
		ms.begins(page.Take(t, clusterSnapshot, "keelson snapshot restore"), start, exports)
	})
}
