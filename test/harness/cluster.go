package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// clusterNodes is how many nodes a server has in a cluster, itself included.
const clusterNodes = 3

// InCluster says whether tests run in clusters, by KEELSON_TEST_DATASTORE.
func InCluster() bool { return os.Getenv("KEELSON_TEST_DATASTORE") == "cluster" }

// inCluster says whether a server that a test starts is a node of a cluster. An
// etcd is one only where it is the backend to test: where keelson is compared
// with it, what they answer is the same either way.
func inCluster(backend Backend) bool {
	return InCluster() && (backend == Keelson || os.Getenv("KEELSON_TEST_BACKEND") == string(Etcd))
}

// StartCluster starts the nodes of a cluster of the backend, each as StartServer
// does one server, and waits until they are healthy.
func StartCluster(t testing.TB, backend Backend, args ...string) []*Server {
	t.Helper()
	nodes := newNodes(t, backend, program(t, backend), args)
	var starting sync.WaitGroup
	for _, s := range nodes { // none is healthy before a majority is up
		starting.Go(func() {
			if err := s.TryRestart(); err != nil {
				t.Error(err)
			}
		})
	}
	starting.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return nodes
}

// newNodes returns the nodes of a cluster, all with the same settings. They
// share a directory: etcd takes the names of its peers' sockets as relative to
// the one that it runs in.
func newNodes(t testing.TB, backend Backend, program string, settings []string) []*Server {
	t.Helper()
	dir := TempDir(t)
	var nodes []*Server
	var initial []string
	for i := range clusterNodes {
		number := fmt.Sprint(i)
		if i == 0 {
			number = "" // as a server that is none
		}
		s := newServer(t, backend, program, dir, number)
		peer := "unix://" + filepath.Join(dir, fmt.Sprint("peer", i))
		if backend == Etcd {
			peer = fmt.Sprint("unix://peer:", i)
		}
		name := fmt.Sprint("node", i)
		initial = append(initial, name+"="+peer)
		s.args = append(s.args, "--name", name, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer)
		// The longest with which a lease may be as short as without a cluster: nodes
		// that a busy machine lets wait do not elect another leader so soon.
		s.args = append(s.args, "--heartbeat-interval", "50", "--election-timeout", "1300")
		s.args = append(s.args, settings...)
		nodes = append(nodes, s)
	}
	for _, s := range nodes {
		s.Nodes = nodes
		s.args = append(s.args, "--initial-cluster", strings.Join(initial, ","))
	}
	return nodes
}
