package workload

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// object is a key that is written by one request at a time.
type object struct {
	mu       sync.Mutex
	key      string
	revision int64
	step     int // of a pod's life
}

func (o *object) put(ctx context.Context, c *clientv3.Client, value string) (err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.revision == 0 {
		o.revision, err = succeeded(createTxn(ctx, c, o.key, value))
	} else {
		o.revision, err = succeeded(updateTxn(ctx, c, o.key, value, o.revision))
	}
	return err
}

// podSteps is how often a pod is written before it is deleted: created, bound,
// and three times its status.
const podSteps = 5

// live takes a pod one step further, from its creation to its deletion.
func (o *object) live(ctx context.Context, c *clientv3.Client, value string) error {
	if o.step < podSteps {
		o.step++
		return o.put(ctx, c, value)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	_, err := succeeded(deleteTxn(ctx, c, o.key, o.revision))
	o.revision, o.step = 0, 0
	return err
}

// What one second of a cluster of 1,000 nodes asks for.
const (
	clusterNodes = 1000
	clusterPods  = 5000

	leaseUpdates  = 100 // each node renews its lease every 10 s
	podWrites     = 60  // 10 pods come and go, 6 writes each
	eventCreates  = 30
	singleGets    = 25
	statusUpdates = 3 // each node reports its status every 5 minutes
	podPages      = 1
	podCounts     = 1
	clusterRate   = leaseUpdates + podWrites + eventCreates + singleGets + statusUpdates + podPages + podCounts

	// kube-apiserver watches each resource once.
	clusterResources = 60
)

// cluster is the mix.
type cluster struct {
	env         *Env
	kinds       []byte // of the operations of a second, shuffled
	leases      []*object
	nodes       []*object
	pods        chan *object // those that nobody writes
	leaseEvents *fanOut
	eventLease  clientv3.LeaseID
	events      atomic.Int64
}

func openCluster(ctx context.Context, e *Env) (Runner, error) {
	if err := e.connect(max(e.Clients, clusterResources)); err != nil {
		return nil, err
	}
	c := &cluster{env: e, pods: make(chan *object, clusterPods)}
	for kind, n := range map[byte]int{'l': leaseUpdates, 'p': podWrites, 'e': eventCreates, 'g': singleGets, 's': statusUpdates, 'L': podPages, 'c': podCounts} {
		for range n {
			c.kinds = append(c.kinds, kind)
		}
	}
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(c.kinds), func(i, j int) { c.kinds[i], c.kinds[j] = c.kinds[j], c.kinds[i] })
	if err := c.fill(ctx); err != nil {
		return nil, err
	}
	return &runner{run: c.run, check: func(ctx context.Context) error {
		return e.expectCount(ctx, "/registry/events/", int(c.events.Load()))
	}}, nil
}

// fill makes what the cluster begins with, and the watches of kube-apiserver.
func (c *cluster) fill(ctx context.Context) error {
	for i := range clusterNodes {
		c.leases = append(c.leases, &object{key: fmt.Sprintf("/registry/leases/kube-node-lease/node-%04d", i)})
		c.nodes = append(c.nodes, &object{key: fmt.Sprintf("/registry/minions/node-%04d", i)})
	}
	pods := make([]*object, clusterPods)
	err := c.env.each(ctx, clusterPods, func(ctx context.Context, client *clientv3.Client, i int) error {
		pods[i] = &object{key: fmt.Sprintf("/registry/pods/namespace-%02d/pod-%05d", i%50, i)}
		for range i % (podSteps + 1) {
			if err := pods[i].live(ctx, client, value(2*kib)); err != nil {
				return err
			}
		}
		if i >= clusterNodes {
			return nil
		}
		if err := c.nodes[i].put(ctx, client, value(8*kib)); err != nil {
			return err
		}
		return c.leases[i].put(ctx, client, stamped(kib/2))
	})
	if err != nil {
		return err
	}
	for _, pod := range pods {
		c.pods <- pod
	}
	lease, err := c.env.client(0).Grant(ctx, leaseTTL)
	if err != nil {
		return err
	}
	c.eventLease = lease.ID
	return c.watch(ctx)
}

func (c *cluster) watch(ctx context.Context) (err error) {
	options := []clientv3.OpOption{clientv3.WithPrevKV(), clientv3.WithProgressNotify()}
	if c.leaseEvents, err = c.env.watch(ctx, 1, "/registry/leases/", options...); err != nil {
		return err
	}
	busy := []string{"/registry/pods/", "/registry/events/", "/registry/minions/"}
	for i := range clusterResources - 1 {
		resource := fmt.Sprintf("/registry/resource-%02d/", i)
		if i < len(busy) {
			resource = busy[i]
		}
		if _, err := c.env.watch(ctx, 1, resource, options...); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) run(ctx context.Context, d time.Duration) (Measured, error) {
	var renewed atomic.Int64
	m, err := pacedLoop(ctx, c.env.Clients, c.env.Rate, d, func(ctx context.Context, i int) error {
		kind := c.kinds[i%len(c.kinds)]
		if kind == 'l' {
			renewed.Add(1)
		}
		return c.do(ctx, c.env.client(i), kind)
	})
	if err != nil {
		return m, err
	}
	seen, err := c.leaseEvents.wait(ctx, int(renewed.Load()))
	m.Extra = map[string]float64{"watch_p99_us": p99us(seen)}
	return m, err
}

func (c *cluster) do(ctx context.Context, client *clientv3.Client, kind byte) error {
	switch kind {
	case 'l':
		return c.leases[rand.IntN(clusterNodes)].put(ctx, client, stamped(kib/2))
	case 's':
		return c.nodes[rand.IntN(clusterNodes)].put(ctx, client, value(8*kib))
	case 'p':
		pod := <-c.pods
		defer func() { c.pods <- pod }()
		return pod.live(ctx, client, value(2*kib))
	case 'e':
		name := fmt.Sprintf("/registry/events/namespace-%02d/pod.%016x", rand.IntN(50), c.events.Add(1))
		_, err := succeeded(createTxn(ctx, client, name, value(kib), clientv3.WithLease(c.eventLease)))
		return err
	case 'g':
		name := c.nodes[rand.IntN(clusterNodes)].key
		resp, err := client.Get(ctx, name)
		if err == nil && len(resp.Kvs) != 1 {
			err = fmt.Errorf("%s is not there", name)
		}
		return err
	case 'L':
		resp, err := client.Get(ctx, "/registry/pods/", clientv3.WithPrefix(), clientv3.WithLimit(pageSize))
		if err == nil && len(resp.Kvs) != pageSize {
			err = fmt.Errorf("a page of %d pods", len(resp.Kvs))
		}
		return err
	default:
		resp, err := client.Get(ctx, "/registry/minions/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err == nil && resp.Count != clusterNodes {
			err = fmt.Errorf("a count of %d nodes", resp.Count)
		}
		return err
	}
}

// What an idle Kubernetes of one node writes: three leaders that renew their
// leases every 2 s; the leases of the node and of the API server every 10 s; a
// pod's status or an event every 10 s; the node's status every 5 minutes.
const (
	edgeTick       = time.Second
	edgeCompaction = 5 * time.Minute
)

// openEdge plays that in real time. Compressing it would let a server put
// together what comes apart in truth.
func openEdge(ctx context.Context, e *Env) (Runner, error) {
	if err := e.connect(1); err != nil {
		return nil, err
	}
	c := e.client(0)
	names := []string{"leader-0", "leader-1", "leader-2", "node-lease", "apiserver-lease", "pod", "node"}
	objects := make([]*object, len(names))
	for i, name := range names {
		objects[i] = &object{key: "/registry/edge/" + name}
	}
	writes := func(second int) (due []*object) {
		if second%2 == 0 {
			due = append(due, objects[:3]...)
		}
		if second%10 == 0 {
			due = append(due, objects[3:6]...)
		}
		if second%300 == 0 {
			due = append(due, objects[6])
		}
		return due
	}
	return &runner{run: func(ctx context.Context, d time.Duration) (Measured, error) {
		var m Measured
		var compacted int64 // up to which revision at the next compaction
		began := time.Now()
		tick := time.NewTicker(edgeTick)
		defer tick.Stop()
		for second := 1; time.Since(began) < d; second++ {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return m, ctx.Err()
			}
			for _, o := range writes(second) {
				size := kib / 2
				switch o {
				case objects[5]:
					size = 2 * kib
				case objects[6]:
					size = 8 * kib
				}
				start := time.Now()
				if err := o.put(ctx, c, value(size)); err != nil {
					return m, err
				}
				m.Latencies = append(m.Latencies, time.Since(start))
			}
			if second%int(edgeCompaction/edgeTick) == 0 {
				if compacted > 0 {
					if _, err := c.Compact(ctx, compacted); err != nil {
						return m, err
					}
				}
				compacted = objects[0].revision
			}
		}
		m.Ops, m.Elapsed = len(m.Latencies), time.Since(began)
		return m, nil
	}}, nil
}
