// Package workload has what the servers are asked to do. Everything goes
// through the official client, clientv3, in a process that is not a server's.
//
// A workload runs in windows. A closed one has a number of clients each of
// which sends its next request when the last was answered: its figure is the
// throughput. A paced one sends at a fixed rate and measures from the moment
// when a request was due, so that a stalled server cannot hide the requests
// that it held up: its figures are latency and CPU time.
//
// Every workload checks what it gets; a wrong answer or an error is the end of
// the workload on that system.
package workload

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Spec describes a workload.
type Spec struct {
	Name     string
	Doc      string
	Unit     string // what one operation is
	Clients  int
	Watchers int
	Rate     int  // operations per second if it is paced
	Data     Data // what the server holds before
	// Shared: it changes nothing, so that the next one on the same data can
	// have the same servers.
	Shared bool
	// Fresh: every round has a server with the data as it was loaded.
	Fresh bool
	// Restart: every round starts the server again; the window is part of its life.
	Restart bool
	// Parallel: the systems run at the same time, since only bytes count.
	Parallel bool
	// Nodes: it is about nodes that end and begin, and so for clusters.
	Nodes  bool
	Scale  float64 // windows are this many times as long as others; 0: as long
	Rounds int     // at most; 0: as the command line says
	// Limit is how long beyond its window a system may hold the workload up
	// before it is said to have given up; 0: as long as most.
	Limit time.Duration
	// Beyond is about how much longer than its window a turn takes.
	Beyond time.Duration

	open func(ctx context.Context, env *Env) (Runner, error)
}

// Runner is a workload connected to one server.
type Runner interface {
	// Prepare does what one window needs and is not measured.
	Prepare(ctx context.Context) error
	// Run sends requests for about d.
	Run(ctx context.Context, d time.Duration) (Measured, error)
	// Check looks, after the last window, whether the server holds what it was told.
	Check(ctx context.Context) error
}

// Measured is what the clients saw in one window.
type Measured struct {
	Ops       int
	Elapsed   time.Duration
	Latencies []time.Duration
	Extra     map[string]float64 // further figures, by name
}

// Env is what a workload gets of its server.
type Env struct {
	Spec
	Dial func() (*clientv3.Client, error)
	Bulk bool // the server takes transactions of many puts
	// Loaders is how many clients load data, if not in bulk.
	Loaders int
	// Forgets: the server answers and keeps nothing; what it holds in the end
	// is not looked at.
	Forgets bool
	Nodes   Nodes // of a cluster

	clients []*clientv3.Client
}

// Nodes are those of a cluster, by their numbers.
type Nodes interface {
	// Processes is how many there are.
	Processes() int
	// NodeURLs are where clients and other nodes reach node i.
	NodeURLs(i int) (client, peer string)
	// NodeClient connects to some of them.
	NodeClient(nodes ...int) (*clientv3.Client, error)
	// KillNode ends node i as kill -9 does, EmptyNode removes its data then.
	KillNode(i int) error
	EmptyNode(i int) error
	// StartNode starts it again and waits until it answers a linearizable read.
	StartNode(ctx context.Context, i int) error
}

// clientsPerConnection is the proportion that etcd's own documentation
// benchmarks with.
const clientsPerConnection = 10

// Open connects the workload to a server.
func (s Spec) Open(ctx context.Context, env *Env) (Runner, error) {
	env.Spec = s
	return s.open(ctx, env)
}

// Client returns the connection that client i uses.
func (e *Env) client(i int) *clientv3.Client { return e.clients[i%len(e.clients)] }

// connect opens what n clients need.
func (e *Env) connect(n int) error {
	for len(e.clients) < max(1, (n+clientsPerConnection-1)/clientsPerConnection) {
		c, err := e.Dial()
		if err != nil {
			return err
		}
		e.clients = append(e.clients, c)
	}
	return nil
}

// Close closes the connections.
func (e *Env) Close() {
	for _, c := range e.clients {
		_ = c.Close()
	}
	e.clients = nil
}

// ErrGaveUp is the end of a workload that a system does not finish in time.
var ErrGaveUp = errors.New("gave up")

// Unsupported says whether err means that the server does not have what was
// asked for.
func Unsupported(err error) bool {
	for e := err; e != nil; e = errors.Unwrap(e) {
		if status.Code(e) == codes.Unimplemented {
			return true
		}
	}
	return err != nil && strings.Contains(err.Error(), "not supported")
}

// count asks how many keys have the prefix.
func (e *Env) count(ctx context.Context, prefix string) (int, error) {
	resp, err := e.client(0).Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return 0, err
	}
	return int(resp.Count), nil
}

func (e *Env) expectCount(ctx context.Context, prefix string, want int) error {
	n, err := e.count(ctx, prefix)
	if err == nil && n != want {
		err = fmt.Errorf("%d keys below %s; there should be %d", n, prefix, want)
	}
	return err
}
