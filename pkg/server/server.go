// Package server is the face of keelson: etcd's v3 gRPC services and HTTP
// endpoints over a store, a watch hub and a lessor.
//
//	gRPC ─ metrics ─ validation ─┬─ KV, Maintenance ──▶ Store
//	                             ├─ Lease ───────────▶ Store, Lessor
//	                             ├─ Watch ───────────▶ Hub
//	                             └─ Lock, Election ──▶ KV, Lease, Hub
//	HTTP ─┬─ /health /livez /readyz /version /metrics
//	      └─ /v3/ ─ Gateway ─▶ gRPC
//
// Requests are checked here as etcd checks them, in its order; what reaches
// the store is valid. Errors become gRPC statuses here and only here
// (errors.go), with etcd's exact texts, from which clients rebuild theirs.
// What etcd has and keelson has not is answered Unimplemented, never ignored.
//
// A panic in a handler ends the process, as in etcd: the store's state could
// not be trusted afterwards, and its log makes a restart safe.
package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/lease"
	"github.com/keelson-io/keelson/pkg/store"
	"github.com/keelson-io/keelson/pkg/version"
	"github.com/keelson-io/keelson/pkg/watch"
)

// The defaults of Config, etcd's.
const (
	DefaultMaxRequestBytes   = 3 << 19 // 1.5 MiB
	DefaultMaxTxnOps         = 128
	DefaultQuotaBytes        = 2 << 30
	DefaultKeepAliveMinTime  = 5 * time.Second
	DefaultKeepAliveInterval = 2 * time.Hour
	DefaultKeepAliveTimeout  = 20 * time.Second
	DefaultRequestTimeout    = 7 * time.Second
	DefaultSlowRequest       = 300 * time.Millisecond
)

// storageVersion is the version of etcd's storage whose features are served.
const storageVersion = "3.7.0"

// Store is what the services need of *store.Store, whose methods say more.
type Store interface {
	Range(context.Context, *pb.RangeRequest) (*pb.RangeResponse, error)
	RangePairs(context.Context, *pb.RangeRequest) (*pb.RangeResponse, store.Pairs, error)
	RangeStream(context.Context, *pb.RangeRequest, func(*pb.RangeResponse) error) error
	Put(context.Context, *pb.PutRequest) (*pb.PutResponse, error)
	DeleteRange(context.Context, *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error)
	Txn(context.Context, *pb.TxnRequest) (*pb.TxnResponse, error)
	Compact(context.Context, *pb.CompactionRequest) (*pb.CompactionResponse, error)
	LeaseGrant(ctx context.Context, id, ttl int64) (store.Lease, error)
	LeaseRevoke(ctx context.Context, id int64) error
	LeaseKeys(id int64) [][]byte
	Alarm(context.Context, *pb.AlarmRequest) (*pb.AlarmResponse, error)
	Alarms() []*pb.AlarmMember
	HashKV(ctx context.Context, revision int64) (store.HashKV, error)
	Hash(context.Context) (uint32, error)
	Fence(context.Context) error
	Revision() (current, compacted int64)
	Position() eventlog.Position
	Size() eventlog.Size
	OverQuota() bool
	Defragment(context.Context) error
	Export(context.Context) (*store.Export, error)
}

// Hub is what the services need of *watch.Hub.
type Hub interface {
	NewStream() *watch.Stream
	Stats() watch.Stats
}

// Lessor is what the services need of *lease.Lessor.
type Lessor interface {
	Renew(ctx context.Context, id int64) (int64, error)
	TimeToLive(ctx context.Context, id int64) (lease.Lease, bool, error)
	List() []lease.Lease
	Stats() lease.Stats
}

var (
	_ Store  = (*store.Store)(nil)
	_ Hub    = (*watch.Hub)(nil)
	_ Lessor = (*lease.Lessor)(nil)
)

// Config says what to serve. Store, Hub, Lessor and MemberID must be set; the
// zero value of everything else means its default.
type Config struct {
	Store  Store
	Hub    Hub
	Lessor Lessor

	ClusterID  uint64
	MemberID   uint64
	Name       string   // of the member
	PeerURLs   []string // shown by MemberList
	ClientURLs []string // shown by MemberList

	// Version is the etcd version that clients are told: version.Etcd. They
	// choose features by it.
	Version string

	// MinLeaseTTL is what a shorter TTL of a lease is raised to, in seconds:
	// lease.MinTTL.
	MinLeaseTTL int64

	MaxRequestBytes      int   // of a write, 1.5 MiB
	MaxTxnOps            int   // per level, 128
	QuotaBytes           int64 // only shown here: 0 is 2 GiB, negative none
	MaxConcurrentStreams uint32

	KeepAliveMinTime  time.Duration // a client may not ping more often
	KeepAliveInterval time.Duration // the server pings idle clients; negative: never
	KeepAliveTimeout  time.Duration // and gives up on them

	// Responses is the memory of large responses, whose Admit the store must
	// have been opened with; nil counts none.
	Responses *ResponseBudget

	// ProgressInterval is the time between a watch's progress notifications.
	ProgressInterval time.Duration

	// RequestTimeout bounds what a request without an earlier deadline waits
	// for the log.
	RequestTimeout time.Duration

	// SlowRequest is how long a unary request may take before it is logged;
	// negative logs none.
	SlowRequest time.Duration

	// Leader says whether there is a leader, or what stands for one, and returns
	// a channel that is closed when it is lost. Clients that require a leader
	// are turned away, and their streams cut off by it. Nil: there always is one.
	Leader func() (lost <-chan struct{}, ok bool)

	// Cluster is where this is a node of one; nil is a single member.
	Cluster Cluster

	// Term is the consensus term in headers; nil where there are no peers.
	Term func() uint64

	// Registry takes the server's metrics and is what /metrics shows; nil
	// makes one. Handling-time histograms, which cost a little CPU for every
	// request, are kept if ExtensiveMetrics is set.
	Registry         *prometheus.Registry
	ExtensiveMetrics bool

	Logger *logrus.Entry
}

func orDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func (c *Config) setDefaults() error {
	if c.Store == nil || c.Hub == nil || c.Lessor == nil || c.MemberID == 0 {
		return errors.New("server: Config needs a Store, a Hub, a Lessor and a MemberID")
	}
	orDefault(&c.Version, version.Etcd)
	orDefault(&c.MinLeaseTTL, lease.MinTTL)
	orDefault(&c.MaxRequestBytes, DefaultMaxRequestBytes)
	orDefault(&c.MaxTxnOps, DefaultMaxTxnOps)
	orDefault(&c.QuotaBytes, DefaultQuotaBytes)
	orDefault(&c.MaxConcurrentStreams, math.MaxUint32)
	orDefault(&c.KeepAliveMinTime, DefaultKeepAliveMinTime)
	orDefault(&c.KeepAliveInterval, DefaultKeepAliveInterval)
	orDefault(&c.KeepAliveTimeout, DefaultKeepAliveTimeout)
	orDefault(&c.RequestTimeout, DefaultRequestTimeout)
	orDefault(&c.SlowRequest, DefaultSlowRequest)
	if c.Responses == nil {
		c.Responses = NewResponseBudget(0)
	}
	if c.Leader == nil {
		c.Leader = func() (<-chan struct{}, bool) { return nil, true }
	}
	if c.Term == nil {
		c.Term = func() uint64 { return 1 }
	}
	if c.Registry == nil {
		c.Registry = prometheus.NewRegistry()
	}
	if c.Logger == nil {
		c.Logger = logrus.NewEntry(logrus.StandardLogger())
	}
	return nil
}

// Server serves the API of one member.
type Server struct {
	cfg       Config
	store     Store
	log       *logrus.Entry
	health    *health.Server
	rpcs      *rpcMetrics
	checks    *checkMetrics
	snapshots *snapshots
	traffic   traffic
	large     *semaphore.Weighted // see maxLargeBytes
	links     *links

	ready    atomic.Bool
	stopOnce sync.Once
	stopping chan struct{} // closed by Stop
}

// New returns a server, whose metrics are in cfg.Registry from then on. It is
// not ready yet: see SetReady.
func New(cfg Config) (*Server, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg:       cfg,
		store:     cfg.Store,
		log:       cfg.Logger,
		health:    health.NewServer(),
		rpcs:      newRPCMetrics(cfg.ExtensiveMetrics),
		checks:    newCheckMetrics(),
		snapshots: newSnapshots(),
		large:     semaphore.NewWeighted(maxLargeBytes),
		links:     newLinks(),
		stopping:  make(chan struct{}),
	}
	s.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	for _, c := range []prometheus.Collector{s.rpcs, s.checks, s.snapshots.seconds, &stateMetrics{server: s}} {
		if err := cfg.Registry.Register(c); err != nil {
			return nil, fmt.Errorf("server: register metrics: %w", err)
		}
	}
	return s, nil
}

// Register registers the services on g, which must have been made with
// GRPCOptions and must not serve yet.
func (s *Server) Register(g *grpc.Server) {
	pb.RegisterKVServer(g, &kvServer{Server: s})
	pb.RegisterWatchServer(g, newWatchServer(s.cfg.Hub, s.header, watchOptions{
		ProgressInterval: s.cfg.ProgressInterval,
		FragmentBytes:    s.cfg.MaxRequestBytes + requestOverheadBytes,
	}))
	pb.RegisterLeaseServer(g, &leaseServer{Server: s})
	pb.RegisterMaintenanceServer(g, &maintenanceServer{Server: s})
	pb.RegisterClusterServer(g, &clusterServer{Server: s})
	pb.RegisterAuthServer(g, &authServer{Server: s})
	v3lockpb.RegisterLockServer(g, &lockServer{claims: newClaims(s)})
	v3electionpb.RegisterElectionServer(g, &electionServer{claims: newClaims(s)})
	healthpb.RegisterHealthServer(g, healthServer{s.health, s.stopping})
	s.rpcs.addMethods(g.GetServiceInfo())
}

// SetReady says whether clients should use this server: in grpc.health.v1 and
// in /readyz. Requests are served either way.
func (s *Server) SetReady(ready bool) {
	s.ready.Store(ready)
	status := healthpb.HealthCheckResponse_NOT_SERVING
	if ready {
		status = healthpb.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus("", status)
}

// Stop tells clients to go: it makes the server not ready, for good, and ends
// the keepalive and health streams and those who wait for a lock, so that a graceful stop of the gRPC
// server need not wait for them. (Watch streams end with their hub.)
func (s *Server) Stop() {
	s.stopOnce.Do(func() {
		s.SetReady(false)
		s.health.Shutdown()
		close(s.stopping)
	})
}

// Close ends what is left when no request is under way any more, and none will
// come: the ways to the nodes that have led.
func (s *Server) Close() { s.links.close() }

// healthServer is gRPC's own, whose streams end when stopping is closed.
type healthServer struct {
	*health.Server
	stopping <-chan struct{}
}

// Watch implements healthpb.HealthServer.
func (h healthServer) Watch(r *healthpb.HealthCheckRequest, stream healthpb.Health_WatchServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-h.stopping:
			cancel()
		case <-ctx.Done():
		}
	})
	defer wg.Wait()
	defer cancel()
	return h.Server.Watch(r, healthStream{stream, ctx})
}

type healthStream struct {
	healthpb.Health_WatchServer
	ctx context.Context
}

func (s healthStream) Context() context.Context { return s.ctx }

// header returns a response header with the given revision, which may be 0.
func (s *Server) header(revision int64) *pb.ResponseHeader {
	return &pb.ResponseHeader{
		ClusterId: s.cfg.ClusterID,
		MemberId:  s.cfg.MemberID,
		RaftTerm:  s.cfg.Term(),
		Revision:  revision,
	}
}

// currentHeader returns a response header with the current revision.
func (s *Server) currentHeader() *pb.ResponseHeader {
	current, _ := s.store.Revision()
	return s.header(current)
}

// fill completes the header of a response of the store.
func (s *Server) fill(h *pb.ResponseHeader) {
	h.ClusterId = s.cfg.ClusterID
	h.MemberId = s.cfg.MemberID
	h.RaftTerm = s.cfg.Term()
}

// fence waits until local reads show every write that was acknowledged before.
func (s *Server) fence(ctx context.Context) error {
	if s.cfg.Cluster != nil { // its log has a limit of its own, and one timer for all who wait
		return toStatus(ctx, s.store.Fence(ctx))
	}
	bounded, cancel := s.bound(ctx)
	defer cancel()
	return toStatus(ctx, s.store.Fence(bounded))
}
