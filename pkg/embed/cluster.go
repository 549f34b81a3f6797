package embed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/keelson-io/keelson/pkg/listen"
	"github.com/keelson-io/keelson/pkg/raftlog"
	"github.com/keelson-io/keelson/pkg/server"
	"github.com/keelson-io/keelson/pkg/store"
)

const (
	// joinTimeout is how long a node that joins asks one of the others.
	joinTimeout = 5 * time.Second

	// noLeaderElections is how many election timeouts there may be no leader
	// before streams that want one end, as in etcd.
	noLeaderElections = 3

	// unusedTimeout is how long a node of a new cluster asks one of the others.
	unusedTimeout = 2 * time.Second

	peerConns = 256

	// publishPause is between the tries to make this node's name and URLs known:
	// without it a node counts as one that has never been up.
	publishPause = 100 * time.Millisecond
)

// cluster is this node's part in a cluster, whatever generation its data is in.
type cluster struct {
	set     *clusterSettings
	log     *logrus.Entry
	backend *backend

	id     raftlog.Identity
	self   raftlog.Member
	first  []raftlog.Member // the members of a new cluster; nil if this node joins one
	joined []raftlog.Member // the members, for a node that has no data yet
	peers  *raftlog.Peers
	trips  roundTrips
	forced bool // ForceNewCluster is done

	uncompared atomic.Int64 // how often a node's data could not be compared

	waitsFor atomic.Pointer[string] // before this node is ready; empty: nothing

	certs     *listen.Certs // nil without TLS
	listeners []net.Listener
	mux       *listen.Mux
	api       *server.Server // nil until it serves, as grpc and http are
	grpc      *grpc.Server
	http      *http.Server

	mu   sync.Mutex
	lost chan struct{} // mu; closed while there is no leader

	cancel  context.CancelFunc
	running sync.WaitGroup
}

// openCluster finds out who this node is, and listens for the others.
func openCluster(ctx context.Context, b *backend) (_ *cluster, err error) {
	c := &cluster{set: b.set.cluster, log: b.log, backend: b, self: b.set.cluster.self, lost: make(chan struct{}), trips: newRoundTrips()}
	c.waitsFor.Store(new(waitsForLeader))
	if c.set.secure {
		if c.certs, err = listen.LoadCerts(c.set.tls, b.log); err != nil {
			return nil, fmt.Errorf("%w: peers: %w", ErrConfig, err)
		}
	}
	if err := c.identify(ctx); err != nil {
		return nil, err
	}
	c.self.ID = c.id.Node
	c.peers = raftlog.NewPeers(raftlog.PeersOptions{
		Cluster: c.id.Cluster, ID: c.id.Node, Credentials: c.credentials(), OnRoundTrip: c.trips.observe, Logger: b.log,
	})
	for _, u := range c.set.listen {
		l, err := listen.Listen(ctx, u, listen.SocketOptions{})
		if err != nil {
			return nil, errors.Join(err, c.closeListeners())
		}
		c.listeners = append(c.listeners, l)
	}
	return c, nil
}

// identify sets the ids of the cluster and of this node.
func (c *cluster) identify(ctx context.Context) error {
	cluster, members := raftlog.NewMembers(c.set.InitialClusterToken, c.set.members)
	if c.set.known {
		c.id = c.set.identity
		// It may have been stopped before it had written them.
		if c.set.InitialClusterState == ClusterStateNew && cluster == c.id.Cluster {
			c.first = members
		}
		return nil
	}
	if c.set.InitialClusterState != ClusterStateNew {
		return c.join(ctx)
	}
	c.first, c.id.Cluster = members, cluster
	for _, m := range members {
		if m.Name == c.self.Name {
			c.id.Node = m.ID
		}
	}
	return c.checkUnused(ctx)
}

// errUsed: a node's promises of before would be broken by one without its data.
func (c *cluster) errUsed() error {
	return fmt.Errorf("%w: the cluster has a member with the peer URLs %v that has been up before, and this data directory is empty: bring its data back, or remove the member and add it anew (etcdctl member remove, add)", ErrConfig, c.self.PeerURLs)
}

// checkUnused makes sure that this node is new, as far as the others that are
// up know: one whose data is gone must not vote as the one it was.
func (c *cluster) checkUnused(ctx context.Context) error {
	for _, m := range c.first {
		if m.ID == c.id.Node {
			continue
		}
		for _, address := range addresses(m.PeerURLs) {
			asking, cancel := context.WithTimeout(ctx, unusedTimeout)
			_, members, err := raftlog.AskCluster(asking, address, c.credentials(), false)
			cancel()
			if err != nil {
				continue // it is not up yet: the cluster begins
			}
			for _, known := range members {
				if known.ID == c.id.Node && len(known.ClientURLs) > 0 {
					return c.errUsed()
				}
			}
		}
	}
	return nil
}

// join asks the other nodes which ids the cluster has given, and where its
// nodes are.
func (c *cluster) join(ctx context.Context) error {
	if len(c.set.members) == 0 {
		return fmt.Errorf("%w: this node has not got the cluster's data yet: start it with the same --initial-cluster as before", ErrConfig)
	}
	var errs []error
	for _, m := range c.set.members {
		if m.Name == c.self.Name {
			continue
		}
		for _, address := range addresses(m.PeerURLs) {
			asking, cancel := context.WithTimeout(ctx, joinTimeout)
			id, members, err := raftlog.AskCluster(asking, address, c.credentials(), true)
			err = late(asking, joinTimeout, err)
			cancel()
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", address, err))
				continue
			}
			for _, known := range members {
				if slices.ContainsFunc(known.PeerURLs, func(u string) bool { return slices.Contains(c.self.PeerURLs, u) }) {
					if !c.set.known && len(known.ClientURLs) > 0 {
						return c.errUsed()
					}
					c.id, c.joined = raftlog.Identity{Cluster: id, Node: known.ID}, members
					return nil
				}
			}
			return fmt.Errorf("%w: the cluster has no member with the peer URLs %v: add it first, with etcdctl member add", ErrConfig, c.self.PeerURLs)
		}
	}
	return fmt.Errorf("no node of the cluster that --initial-cluster names could be asked, which takes a leader there: %w", errors.Join(errs...))
}

// late is err, or nil, of a call to another node with a limit, and says so if it is
// about that: the other node knows of the limit, and may end the call a little before
// ctx does.
func late(ctx context.Context, limit time.Duration, err error) error {
	if deadline, limited := ctx.Deadline(); err != nil && limited && time.Until(deadline) < min(limit/10, time.Second) {
		return fmt.Errorf("it has not answered within %v: %w", limit, err)
	}
	return err
}

// addresses are where package raftlog reaches a node with these peer URLs.
func addresses(peerURLs []string) (all []string) {
	for _, text := range peerURLs {
		u, err := listen.ParseURL(text)
		switch {
		case err != nil: // such as an earlier keelson let in
		case u.Network() == "unix":
			all = append(all, "unix:"+u.Address)
		default:
			all = append(all, u.Address)
		}
	}
	return all
}

// credentials are those of connections to other nodes; nil without TLS.
func (c *cluster) credentials() credentials.TransportCredentials {
	if c.certs == nil {
		return nil
	}
	return c.certs.Credentials()
}

// openLog opens the node's data.
func (c *cluster) openLog(ctx context.Context) (*raftlog.Log, error) {
	opt := raftlog.Options{
		Dir:               c.backend.set.sqliteDir,
		Cluster:           c.id.Cluster,
		ID:                c.id.Node,
		Members:           c.first,
		OnMembers:         c.connect,
		Transport:         c.peers,
		HeartbeatInterval: c.set.HeartbeatInterval,
		ElectionTimeout:   c.set.ElectionTimeout,
		SnapshotCount:     c.set.SnapshotCount,
		Logger:            c.log,
	}
	if c.set.ForceNewCluster && !c.forced {
		if err := raftlog.ForceNewCluster(ctx, opt, c.self); err != nil {
			return nil, fmt.Errorf("--force-new-cluster: %w", err)
		}
		c.forced = true
	}
	log, err := raftlog.Open(ctx, opt)
	if err != nil {
		return nil, err
	}
	if len(log.Members().Members) == 0 {
		if c.joined == nil {
			if err := c.join(ctx); err != nil {
				return nil, errors.Join(err, log.Close())
			}
		}
		c.connect(raftlog.Members{Members: c.joined})
	}
	c.peers.Use(log)
	return log, nil
}

// connect makes the way to the members, and to nobody else.
func (c *cluster) connect(ms raftlog.Members) {
	for _, m := range ms.Members {
		if m.ID == c.id.Node {
			continue
		}
		if err := c.peers.Set(m.ID, addresses(m.PeerURLs)...); err != nil {
			c.log.WithError(err).Error("a node cannot be reached")
		}
	}
	for _, id := range ms.Removed {
		c.peers.Remove(id)
	}
}

// serve takes what other nodes send: messages of raft, and requests that are
// passed on to the leader, which are api's. It calls ready once clients get answers.
func (c *cluster) serve(api *server.Server, clientURLs []string, ready func(), fail func(error)) {
	c.self.ClientURLs = clientURLs
	c.grpc = grpc.NewServer(append(append(api.GRPCOptions(), raftlog.ServerOptions()...), grpc.WaitForHandlers(true),
		grpc.ConnectionTimeout(grpcHandshakeTimeout), grpc.MaxHeaderListSize(maxHeaderBytes))...)
	c.api = api
	api.Register(c.grpc)
	api.RegisterForwarded(c.grpc)
	c.serveHash(c.grpc)
	c.peers.Serve(c.grpc, c.newest())
	c.mux = listen.NewMux(c.log, 0, peerConns)
	plain := http.NewServeMux()
	plain.Handle("/version", api.Handler()) // as etcd's
	c.http = newHTTPServer(c.log, plain)
	c.running.Go(func() { fail(ignoreClosed(c.http.Serve(c.mux.HTTP()))) })
	c.running.Go(func() { fail(ignoreClosed(c.grpc.Serve(c.mux.GRPC()))) })
	for _, l := range c.listeners {
		c.running.Go(func() { fail(c.mux.Serve(l, c.certs)) })
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	c.running.Go(func() { c.watchLeader(ctx) })
	c.running.Go(func() { c.publish(ctx) })
	c.running.Go(func() { c.awaitReady(ctx, ready) })
	if c.set.CorruptCheckTime > 0 {
		c.running.Go(func() { c.compareOften(ctx) })
	}
}

// newest is the log of the newest generation.
func (c *cluster) newest() *raftlog.Log { return c.backend.newest().raft }

// watchLeader keeps lost. Elections that nobody wins do not prolong the time
// without a leader.
func (c *cluster) watchLeader(ctx context.Context) {
	var end time.Time // of patience; zero while there is a leader
	for {
		status, changed := c.newest().Leadership()
		wait := c.set.ElectionTimeout // a generation may have taken another's place
		switch {
		case status.Leader != 0:
			end = time.Time{}
			c.setLeader(true)
		case end.IsZero():
			end = time.Now().Add(noLeaderElections * c.set.ElectionTimeout)
		case !time.Now().Before(end):
			c.setLeader(false)
		default:
			wait = min(wait, time.Until(end))
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-time.After(wait):
		}
	}
}

func (c *cluster) setLeader(there bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.lost:
		if there {
			c.lost = make(chan struct{})
		}
	default:
		if !there {
			close(c.lost)
		}
	}
}

// leader is server.Config.Leader.
func (c *cluster) leader() (<-chan struct{}, bool) {
	there := c.newest().Status().Leader != 0
	if there {
		c.setLeader(true) // watchLeader may not have heard of it yet
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost, there
}

// publish makes this node's name and URLs known, once it is a member.
func (c *cluster) publish(ctx context.Context) {
	said, begin := "", time.Now()
	for {
		m, member := c.newest().Members().Member(c.id.Node)
		self := c.self
		self.Learner = m.Learner
		self.PeerURLs = m.PeerURLs // member update changes these
		if member {
			if m.Name == self.Name && slices.Equal(m.ClientURLs, self.ClientURLs) {
				return
			}
			trying, cancel := context.WithTimeout(ctx, joinTimeout)
			err := c.peers.Publish(trying, self)
			cancel()
			if err != nil && ctx.Err() == nil && time.Since(begin) > c.set.ElectionTimeout && err.Error() != said { // the first come before an election
				said = err.Error()
				c.log.WithError(err).Info("this node's URLs are not known to the cluster yet; trying again")
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(publishPause):
		}
	}
}

// close ends everything but the data.
func (c *cluster) close() error {
	if c.cancel != nil {
		c.cancel()
	}
	errs := []error{c.closeListeners()}
	if c.grpc != nil {
		c.grpc.Stop()
		_ = c.http.Close()
		_ = c.mux.Close()
		c.api.Close()
	}
	c.running.Wait()
	return errors.Join(append(errs, c.peers.Close())...)
}

func (c *cluster) closeListeners() error {
	var errs []error
	for _, l := range c.listeners {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// nodes is the server's view of the cluster.
type nodes struct{ *cluster }

var _ server.Cluster = nodes{}

func (n nodes) Members() []*pb.Member {
	var all []*pb.Member
	for _, m := range n.newest().Members().Members {
		all = append(all, member(m))
	}
	return all
}

func member(m raftlog.Member) *pb.Member {
	return &pb.Member{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, IsLearner: m.Learner}
}

func (n nodes) AddMember(ctx context.Context, peerURLs []string, learner bool) (*pb.Member, error) {
	peerURLs, err := n.set.normalPeerURLs(peerURLs)
	if err != nil {
		return nil, err
	}
	m := raftlog.Member{ID: raftlog.NewMemberID(n.id.Cluster, peerURLs, time.Now().UnixNano()), PeerURLs: peerURLs, Learner: learner}
	return member(m), n.newest().AddMember(ctx, m)
}

func (n nodes) RemoveMember(ctx context.Context, id uint64) error {
	return n.newest().RemoveMember(ctx, id)
}

func (n nodes) UpdateMember(ctx context.Context, id uint64, peerURLs []string) error {
	peerURLs, err := n.set.normalPeerURLs(peerURLs)
	if err != nil {
		return err
	}
	return n.newest().UpdateMember(ctx, id, peerURLs)
}

func (n nodes) PromoteMember(ctx context.Context, id uint64) error {
	return n.newest().PromoteMember(ctx, id)
}

func (n nodes) MoveLeader(ctx context.Context, id uint64) error {
	return n.newest().MoveLeader(ctx, id)
}

func (n nodes) Leader() (server.Leader, <-chan struct{}) {
	if m := n.backend.now.Load(); m.phase != serving { // what the leader does would not be seen here
		return server.Leader{}, m.next
	}
	status, changed := n.newest().Leadership()
	return server.Leader{ID: status.Leader, Here: status.Leads, Conn: n.peers.Conn(status.Leader), Seen: status.Leaders}, changed
}

func (n nodes) Progress() (committed, applied uint64) {
	s := n.newest().Status()
	return s.Committed, s.Applied
}

func (n nodes) Learner() (learner, sure bool) {
	sure = *n.waitsFor.Load() == "" // asked first: it becomes so after the members
	m, member := n.newest().Members().Member(n.id.Node)
	return !member || m.Learner, sure
}

func (n nodes) Reach(ctx context.Context, revision int64) error {
	for {
		g, err := n.backend.generation(ctx)
		if err != nil {
			return err
		}
		if err = g.store.Reach(ctx, revision); !errors.Is(err, store.ErrStopped) || n.backend.now.Load().phase == ended {
			return err
		}
		if failed := g.raft.Err(); failed != nil && !g.reopens(failed) {
			return err
		}
		select { // another generation comes
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// term is server.Config.Term.
func (n nodes) term() uint64 { return n.newest().Status().Term }

// leadLeases runs the lessor of a generation while this node leads and has
// everything that leaders before it have done.
func (g *generation) leadLeases(ctx context.Context) error {
	for {
		status, changed := g.raft.Leadership()
		if status.Leads && g.store.Fence(ctx) == nil {
			leading, stop := context.WithCancel(ctx)
			go func() {
				defer stop()
				for {
					now, changed := g.raft.Leadership()
					if !now.Leads || now.Term != status.Term {
						return
					}
					select {
					case <-changed:
					case <-leading.Done():
						return
					}
				}
			}()
			err := g.lessor.Run(leading)
			stop()
			if err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-time.After(g.backend.set.cluster.HeartbeatInterval):
		}
	}
}
