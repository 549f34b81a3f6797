package server

import (
	"context"
	"fmt"
	"iter"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"

	"github.com/keelson-io/keelson/pkg/version"
)

// The metrics have the names that etcd's dashboards and alerts use. They are
// atomic counters that are turned into samples only when somebody looks: a
// request costs a few additions and no allocation.

// codeCount is one more than the highest gRPC code.
const codeCount = int(codes.Unauthenticated) + 1

// traffic counts the bytes of messages before compression and framing.
type traffic struct{ received, sent atomic.Int64 }

// rpcMetrics counts by method. methods is written before the server serves
// and only read from then on.
type rpcMetrics struct {
	methods map[string]*rpcMethod // by full name
	other   *rpcMethod            // services that were registered by others, later
	seconds *prometheus.HistogramVec
}

type rpcMethod struct {
	service, method, kind string
	waits                 bool // for other clients: slow by design

	started, received, sent atomic.Int64
	handled                 [codeCount]atomic.Int64
	seconds                 prometheus.Observer // nil: not kept
}

var (
	rpcLabels   = []string{"grpc_service", "grpc_method", "grpc_type"}
	rpcStarted  = prometheus.NewDesc("grpc_server_started_total", "Total number of RPCs started on the server.", rpcLabels, nil)
	rpcReceived = prometheus.NewDesc("grpc_server_msg_received_total", "Total number of RPC messages received on the server.", rpcLabels, nil)
	rpcSent     = prometheus.NewDesc("grpc_server_msg_sent_total", "Total number of RPC messages sent by the server.", rpcLabels, nil)
	rpcHandled  = prometheus.NewDesc("grpc_server_handled_total", "Total number of RPCs completed on the server, by status code.",
		append([]string{"grpc_code"}, rpcLabels...), nil)
)

func newRPCMetrics(extensive bool) *rpcMetrics {
	m := &rpcMetrics{
		methods: make(map[string]*rpcMethod),
		other:   &rpcMethod{service: "other", method: "other", kind: "other"},
	}
	if extensive {
		m.seconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "grpc_server_handling_seconds",
			Help:    "Time the server took to handle RPCs.",
			Buckets: prometheus.DefBuckets,
		}, rpcLabels)
	}
	return m
}

func (m *rpcMetrics) addMethods(services map[string]grpc.ServiceInfo) {
	for service, info := range services {
		for _, method := range info.Methods {
			r := &rpcMethod{service: service, method: method.Name, kind: kindOf(method)}
			if m.seconds != nil {
				r.seconds = m.seconds.WithLabelValues(r.service, r.method, r.kind)
			}
			r.waits = service == v3lockpb.Lock_ServiceDesc.ServiceName && method.Name == "Lock" ||
				service == v3electionpb.Election_ServiceDesc.ServiceName && method.Name == "Campaign"
			m.methods["/"+service+"/"+method.Name] = r
		}
	}
}

func (m *rpcMetrics) method(fullName string) *rpcMethod {
	if r, ok := m.methods[fullName]; ok {
		return r
	}
	return m.other
}

func kindOf(m grpc.MethodInfo) string {
	switch {
	case m.IsClientStream && m.IsServerStream:
		return "bidi_stream"
	case m.IsClientStream:
		return "client_stream"
	case m.IsServerStream:
		return "server_stream"
	}
	return "unary"
}

// Describe implements prometheus.Collector.
func (m *rpcMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{rpcStarted, rpcReceived, rpcSent, rpcHandled} {
		ch <- d
	}
	if m.seconds != nil {
		m.seconds.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *rpcMetrics) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v *atomic.Int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v.Load()), labels...)
	}
	for r := range m.used() {
		counter(rpcStarted, &r.started, r.service, r.method, r.kind)
		counter(rpcReceived, &r.received, r.service, r.method, r.kind)
		counter(rpcSent, &r.sent, r.service, r.method, r.kind)
		for code := range r.handled {
			if code == int(codes.OK) || r.handled[code].Load() > 0 {
				counter(rpcHandled, &r.handled[code], codes.Code(code).String(), r.service, r.method, r.kind)
			}
		}
	}
	if m.seconds != nil {
		m.seconds.Collect(ch)
	}
}

// used yields the known methods, and other only if it was called.
func (m *rpcMetrics) used() iter.Seq[*rpcMethod] {
	return func(yield func(*rpcMethod) bool) {
		for _, r := range m.methods {
			if !yield(r) {
				return
			}
		}
		if m.other.started.Load() > 0 {
			yield(m.other)
		}
	}
}

// proposed are the methods whose requests etcd makes proposals of.
var proposed = []string{
	pb.KV_Put_FullMethodName, pb.KV_DeleteRange_FullMethodName, pb.KV_Txn_FullMethodName, pb.KV_Compact_FullMethodName,
	pb.Lease_LeaseGrant_FullMethodName, pb.Lease_LeaseRevoke_FullMethodName, pb.Maintenance_Alarm_FullMethodName,
}

// writes counts the requests for a change that are under way, and those that
// have failed for another reason than what they asked for.
func (m *rpcMetrics) writes() (pending, failed int64) {
	for _, name := range proposed {
		r, ok := m.methods[name]
		if !ok { // nothing is served yet
			continue
		}
		for code := range r.handled { // before started: what ends meanwhile has begun
			n := r.handled[code].Load()
			pending -= n
			switch codes.Code(code) {
			case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
				failed += n
			}
		}
		pending += r.started.Load()
	}
	return pending, failed
}

func (r *rpcMethod) done(err error, took time.Duration) {
	if code := codeOf(err); int(code) < codeCount {
		r.handled[code].Add(1)
	}
	if r.seconds != nil {
		r.seconds.Observe(took.Seconds())
	}
}

func (s *Server) interceptUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	start := time.Now()
	r := s.rpcs.method(info.FullMethod)
	r.started.Add(1)
	r.received.Add(1)
	resp, err := any(nil), s.turnAway(ctx, info.FullMethod, req)
	if err == nil {
		resp, err = s.admit(ctx, req, s.throughLeader(info.FullMethod, handler))
	}
	if err == nil {
		r.sent.Add(1)
	}
	took := time.Since(start)
	r.done(err, took)
	if s.cfg.SlowRequest > 0 && took > s.cfg.SlowRequest && !r.waits {
		s.logSlow(ctx, r, took, err)
	}
	return resp, err
}

// logSlow says nothing of keys and values: they may be secrets.
func (s *Server) logSlow(ctx context.Context, r *rpcMethod, took time.Duration, err error) {
	entry := s.log.WithField("method", r.method).WithField("took", took.Round(time.Millisecond).String()).WithField("code", codeOf(err).String())
	if p, ok := peer.FromContext(ctx); ok && p.Addr.Network() != "unix" { // such a client has no name
		entry = entry.WithField("client", p.Addr.String())
	}
	entry.Warn("slow request")
}

func (s *Server) interceptStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	start := time.Now()
	r := s.rpcs.method(info.FullMethod)
	r.started.Add(1)
	err := s.turnAway(stream.Context(), info.FullMethod, nil)
	if err == nil {
		err = s.whileLed(stream, func(led grpc.ServerStream) error { return handler(srv, countingStream{led, r}) })
	}
	r.done(err, time.Since(start))
	return err
}

// countingStream counts the messages of a stream.
type countingStream struct {
	grpc.ServerStream
	rpc *rpcMethod
}

func (c countingStream) RecvMsg(m any) error {
	err := c.ServerStream.RecvMsg(m)
	if err == nil {
		c.rpc.received.Add(1)
	}
	return err
}

func (c countingStream) SendMsg(m any) error {
	err := c.ServerStream.SendMsg(m)
	if err == nil {
		c.rpc.sent.Add(1)
	}
	return err
}

// stateMetrics shows what the store, the hub and the lessor are at.
type stateMetrics struct{ server *Server }

// role is what the member is among others, and how far; a single one always
// leads, and positions of its log stand for raft's indices.
type role struct{ leader, learner, changes, committed, applied float64 }

func (s *Server) role() role {
	c := s.cfg.Cluster
	if c == nil {
		position := float64(s.store.Position())
		return role{leader: 1, changes: 1, committed: position, applied: position}
	}
	leader, _ := c.Leader()
	committed, applied := c.Progress()
	r := role{changes: float64(leader.Seen), committed: float64(committed), applied: float64(applied)}
	if leader.Here {
		r.leader = 1
	}
	if learner, _ := c.Learner(); learner {
		r.learner = 1
	}
	return r
}

// sample is a metric without labels, or with constant ones.
type sample struct {
	name, help string
	counter    bool
	labels     prometheus.Labels
	value      float64
}

func (m *stateMetrics) samples() []sample {
	s := m.server
	size := s.store.Size()
	current, compacted := s.store.Revision()
	hasLeader := 0.0
	if _, ok := s.cfg.Leader(); ok {
		hasLeader = 1
	}
	role := s.role()
	pending, failed := s.rpcs.writes()
	watches := s.cfg.Hub.Stats()
	leases := s.cfg.Lessor.Stats()
	responses := s.cfg.Responses
	return []sample{
		{name: "etcd_server_has_leader", help: "Whether or not a leader exists.", value: hasLeader},
		{name: "etcd_server_is_leader", help: "Whether or not this member is a leader.", value: role.leader},
		{name: "etcd_server_is_learner", help: "Whether or not this member is a learner.", value: role.learner},
		{name: "etcd_server_leader_changes_seen_total", help: "The number of leader changes seen.", counter: true, value: role.changes},
		{name: "etcd_server_proposals_committed_total", help: "The index of the newest entry of the Raft log that is committed; without a cluster, of the newest batch in the log.", value: role.committed},
		{name: "etcd_server_proposals_applied_total", help: "The index of the newest entry that readers see.", value: role.applied},
		{name: "etcd_server_proposals_pending", help: "The number of requests for a change that wait for their answer.", value: float64(pending)},
		{name: "etcd_server_proposals_failed_total", help: "The number of requests for a change that were not answered in time, or whose outcome is not known.", counter: true, value: float64(failed)},
		{name: "etcd_server_id", help: "The member's ID, in hexadecimal.", value: 1,
			labels: prometheus.Labels{"server_id": fmt.Sprintf("%x", s.cfg.MemberID)}},
		{name: "etcd_server_version", help: "The version of etcd that is served.", value: 1,
			labels: prometheus.Labels{"server_version": s.cfg.Version}},
		{name: "etcd_server_go_version", help: "The version of Go that the server was built with.", value: 1,
			labels: prometheus.Labels{"server_go_version": runtime.Version()}},
		{name: "etcd_cluster_version", help: "The version of the cluster.", value: 1,
			labels: prometheus.Labels{"cluster_version": minorVersion(s.cfg.Version)}},
		{name: "keelson_build_info", help: "What this keelson was built from.", value: 1,
			labels: prometheus.Labels{"version": version.Version(), "commit": version.Commit()}},
		{name: "etcd_server_quota_backend_bytes", help: "The quota on the size of the database, in bytes.", value: float64(s.cfg.QuotaBytes)},
		{name: "etcd_network_client_grpc_received_bytes_total", help: "The total number of bytes received from gRPC clients.", counter: true, value: float64(s.traffic.received.Load())},
		{name: "etcd_network_client_grpc_sent_bytes_total", help: "The total number of bytes sent to gRPC clients.", counter: true, value: float64(s.traffic.sent.Load())},
		{name: "etcd_mvcc_db_total_size_in_bytes", help: "Size of the database as allocated, in bytes.", value: float64(size.Total)},
		{name: "etcd_mvcc_db_total_size_in_use_in_bytes", help: "Size of the database in use, in bytes.", value: float64(size.InUse)},
		{name: "etcd_debugging_mvcc_keys_total", help: "The number of keys.", value: m.keys()},
		{name: "etcd_debugging_mvcc_current_revision", help: "The current revision of the store.", value: float64(current)},
		{name: "etcd_debugging_mvcc_compact_revision", help: "The revision of the last compaction of the store.", value: float64(compacted)},
		{name: "etcd_debugging_mvcc_watch_stream_total", help: "The number of watch streams.", value: float64(watches.Streams)},
		{name: "etcd_debugging_mvcc_watcher_total", help: "The number of watchers.", value: float64(watches.Watchers)},
		{name: "etcd_debugging_mvcc_slow_watcher_total", help: "The number of watchers that are behind.", value: float64(watches.Slow)},
		{name: "etcd_debugging_mvcc_events_total", help: "The number of events handed to watch streams.", counter: true, value: float64(watches.EventsPushed)},
		{name: "etcd_debugging_lease_granted_total", help: "The number of granted leases.", counter: true, value: float64(leases.Granted)},
		{name: "etcd_debugging_lease_revoked_total", help: "The number of revoked leases.", counter: true, value: float64(leases.Revoked)},
		{name: "etcd_debugging_lease_renewed_total", help: "The number of renewed leases.", counter: true, value: float64(leases.Renewed)},
		{name: "etcd_debugging_server_lease_expired_total", help: "The number of expired leases.", counter: true, value: float64(leases.Expired)},
		{name: "keelson_leases", help: "The number of leases held.", value: float64(leases.Leases)},
		{name: "keelson_response_bytes", help: "The memory that large responses under way hold, in bytes.", value: float64(responses.held.Load())},
		{name: "keelson_responses_waiting", help: "The number of large responses that wait for others' memory.", value: float64(responses.waiting.Load())},
		{name: "keelson_watch_ring_events", help: "The number of recent events kept for watchers.", value: float64(watches.RingEvents)},
		{name: "keelson_watch_ring_bytes", help: "The size of the recent events kept for watchers, in bytes.", value: float64(watches.RingBytes)},
	}
}

// keys counts what is there now, which the index knows by itself.
func (m *stateMetrics) keys() float64 {
	resp, err := m.server.store.Range(context.Background(), &pb.RangeRequest{
		Key: []byte{0}, RangeEnd: []byte{0}, CountOnly: true, Serializable: true,
	})
	if err != nil {
		return 0
	}
	return float64(resp.Count)
}

func (x sample) desc() *prometheus.Desc {
	return prometheus.NewDesc(x.name, x.help, nil, x.labels)
}

// Describe implements prometheus.Collector.
func (m *stateMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, x := range m.samples() {
		ch <- x.desc()
	}
}

// Collect implements prometheus.Collector.
func (m *stateMetrics) Collect(ch chan<- prometheus.Metric) {
	for _, x := range m.samples() {
		kind := prometheus.GaugeValue
		if x.counter {
			kind = prometheus.CounterValue
		}
		ch <- prometheus.MustNewConstMetric(x.desc(), kind, x.value)
	}
}

// minorVersion returns "3.7" of "3.7.3".
func minorVersion(v string) string {
	parts := strings.SplitN(v, ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}
