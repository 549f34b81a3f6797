package systems

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Clusters are three processes on this machine, each with addresses of its own
// in the loopback network and a directory of its own on the same disk.

// node is a member of a cluster.
type node struct {
	name         string
	client, peer string // URLs
	initial      string // all nodes, as --initial-cluster has them
	state        string // --initial-cluster-state
}

const clusterNodes = 3

// Both run with etcd's defaults for these, said so that nobody has to look.
const (
	heartbeat = "100"
	election  = "1000"
)

// onClusters are the workloads for clusters.
var onClusters = []string{
	"get1", "get200", "sget200", "list", "put1", "put200", "create200", "update200", "watch100", "start@20k", "failover", "catch-up",
}

var clusters = []System{
	{
		Name: "etcd-cluster", Bulk: true, Pprof: true, program: "etcd", Nodes: clusterNodes, port: 2379, only: onClusters,
		Doc:  "three etcds " + EtcdVersion + ", heartbeat " + heartbeat + " ms, election timeout " + election + " ms; all figures are sums",
		args: clusterArgs,
	},
	{
		Name: "keelson-cluster", Base: "etcd-cluster", Bulk: true, Pprof: true, program: "keelson", Nodes: clusterNodes, port: 12379, only: onClusters,
		Doc:  "three keelsons on SQLite, the same flags; all figures are sums",
		args: clusterArgs,
	},
}

func clusterArgs(p place) []string {
	n := p.node
	return []string{
		"--name", n.name, "--data-dir", p.data,
		"--listen-client-urls", n.client, "--advertise-client-urls", n.client,
		"--listen-peer-urls", n.peer, "--initial-advertise-peer-urls", n.peer,
		"--initial-cluster", n.initial, "--initial-cluster-state", n.state,
		"--heartbeat-interval", heartbeat, "--election-timeout", election,
		"--quota-backend-bytes", fmt.Sprint(quota),
	}
}

// nodePlaces are those of a cluster's nodes. Their addresses are this
// process's, so that two runs do not meet.
func (s *Server) nodePlaces(data string) (places []place) {
	pid := os.Getpid()
	network := fmt.Sprintf("127.%d.%d.", 64+pid>>8&63, pid&255)
	var initial []string
	for i := range s.Nodes {
		n := &node{
			name: fmt.Sprint("n", i), state: "new",
			client: fmt.Sprintf("http://%s%d:%d", network, i+1, s.port),
			peer:   fmt.Sprintf("http://%s%d:%d", network, i+1, s.port+1),
		}
		initial = append(initial, n.name+"="+n.peer)
		places = append(places, place{data: filepath.Join(data, n.name), node: n})
	}
	for _, p := range places {
		p.node.initial = strings.Join(initial, ",")
	}
	return places
}

// NodeClient opens a connection to some nodes of a cluster.
func (s *Server) NodeClient(nodes ...int) (*clientv3.Client, error) {
	var some []*process
	for _, i := range nodes {
		some = append(some, s.processes[i])
	}
	return client(some...)
}

// NodeURLs are where clients and other nodes reach node i.
func (s *Server) NodeURLs(i int) (client, peer string) {
	n := s.places[i].node
	return n.client, n.peer
}

// KillNode ends node i with SIGKILL.
func (s *Server) KillNode(i int) error {
	p := s.processes[i]
	u, err := ReadUsage(p.cmd.Process.Pid)
	if err != nil {
		return err
	}
	p.killed.Store(true)
	s.gone.CPU += u.CPU
	s.gone.Written += u.Written
	err = p.cmd.Process.Signal(syscall.SIGKILL)
	<-p.done
	return err
}

// EmptyNode removes the data of node i, which does not run: it will join the
// cluster as a new member.
func (s *Server) EmptyNode(i int) error {
	s.places[i].node.state = "existing"
	return os.RemoveAll(s.places[i].data)
}

// StartNode starts node i, which does not run, and waits until it answers a
// linearizable read.
func (s *Server) StartNode(ctx context.Context, i int) error {
	p, err := s.startProcess(s.places[i])
	if err != nil {
		return err
	}
	s.processes[i] = p
	return p.waitReady(ctx)
}
