package embed

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/keelson-io/keelson/pkg/drivers/postgres"
	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/raftlog"
)

// newRegistry returns a registry with what is not the API's: the process, the
// Go runtime and the database.
func newRegistry(b *backend) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		b.commits.requests, b.commits.duration, b.commits.fsync, b.commits.backend,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	if b.cluster != nil {
		registry.MustRegister(b.cluster.trips.seconds, peerTraffic{b.cluster.peers}, prometheus.NewCounterFunc(prometheus.CounterOpts{
			Namespace: "keelson", Name: "uncompared_nodes_total",
			Help: "How often --corrupt-check-time could not compare a node's data with the leader's.",
		}, func() float64 { return float64(b.cluster.uncompared.Load()) }), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "keelson", Name: "raft_log_bytes",
			Help: "Size of the Raft log's files. It falls when the database is durable up to a later place, every few files.",
		}, func() float64 { return float64(b.newest().raft.DiskBytes()) }))
	}
	switch data := b.newest().data.(type) {
	case *sqlite.Log:
		registerSQLite(registry, data)
	case *postgres.Log:
		registerPostgres(registry, b)
	}
	return registry
}

// registerPostgres registers the connections of the present generation, whose
// counters begin anew with each.
func registerPostgres(registry *prometheus.Registry, b *backend) {
	stats := func() postgres.Stats { return b.newest().shared.Stats() }
	gauge := func(name, help string, value func(postgres.Stats) float64) {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "keelson", Subsystem: "postgres", Name: name, Help: help,
		}, func() float64 { return value(stats()) }))
	}
	counter := func(name, help string, value func(postgres.Stats) float64) {
		registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Namespace: "keelson", Subsystem: "postgres", Name: name, Help: help,
		}, func() float64 { return value(stats()) }))
	}
	gauge("pool_max_connections", "The most connections that the pool may have.", func(s postgres.Stats) float64 { return float64(s.MaxConns) })
	gauge("pool_connections", "Connections of the pool, those being made included.", func(s postgres.Stats) float64 { return float64(s.Conns) })
	gauge("pool_used_connections", "Connections of the pool that are in use.", func(s postgres.Stats) float64 { return float64(s.Used) })
	counter("pool_opened_total", "Connections that the pool has made.", func(s postgres.Stats) float64 { return float64(s.Opened) })
	counter("pool_acquires_total", "How often a connection was taken from the pool.", func(s postgres.Stats) float64 { return float64(s.Acquires) })
	counter("pool_waits_total", "How often none was free, so that one had to be waited for or made.", func(s postgres.Stats) float64 { return float64(s.Waits) })
	counter("pool_wait_seconds_total", "Time spent on waiting for a connection.", func(s postgres.Stats) float64 { return s.WaitTime.Seconds() })
	counter("unnotified_appends_total", "Batches that others were not notified of, since the database's queue was full.", func(s postgres.Stats) float64 { return float64(s.Unnotified) })
	gauge("listening", "Whether notifications of other instances' writes arrive; else they are looked for more often.", func(s postgres.Stats) float64 { return truth(s.Listening) })
	gauge("lessor", "Whether this instance is the one that expires leases.", func(s postgres.Stats) float64 { return truth(s.Lessor) })
	registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Namespace: "keelson", Name: "reopens_total",
		Help: "How often the data was opened again after it could not go on: acknowledged writes were lost, or compaction had overtaken this instance.",
	}, func() float64 { return float64(b.reopened.Load()) }))
}

func truth(v bool) float64 {
	if v {
		return 1
	}
	return 0
}

func registerSQLite(registry *prometheus.Registry, db *sqlite.Log) {
	gauge := func(name, help string, value func(sqlite.Stats) float64) {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "keelson", Subsystem: "sqlite", Name: name, Help: help,
		}, func() float64 { return value(db.Stats()) }))
	}
	counter := func(name, help string, value func(sqlite.Stats) float64) {
		registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Namespace: "keelson", Subsystem: "sqlite", Name: name, Help: help,
		}, func() float64 { return value(db.Stats()) }))
	}
	gauge("wal_bytes", "Size of the write-ahead log file.", func(s sqlite.Stats) float64 { return float64(s.WALBytes) })
	gauge("pages", "Pages of the database file.", func(s sqlite.Stats) float64 { return float64(s.Pages) })
	gauge("free_pages", "Pages of the database file that are free.", func(s sqlite.Stats) float64 { return float64(s.FreePages) })
	counter("checkpoints_total", "Completed checkpoints.", func(s sqlite.Stats) float64 { return float64(s.Checkpoints) })
	counter("checkpoint_seconds_total", "Time spent in checkpoints.", func(s sqlite.Stats) float64 { return s.CheckpointTime.Seconds() })
}

// commitMetrics are about the batches of writes. What etcd does in two steps,
// fsync its log and later commit to its database, is one here: its dashboards
// and alerts find the same time under both names.
type commitMetrics struct {
	requests, duration prometheus.Histogram
	fsync, backend     prometheus.Histogram // duration by etcd's names, in its buckets
}

func newCommitMetrics() *commitMetrics {
	return &commitMetrics{
		requests: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "keelson", Subsystem: "commit", Name: "requests",
			Help: "Requests committed together.", Buckets: prometheus.ExponentialBuckets(1, 4, 8),
		}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "keelson", Subsystem: "commit", Name: "duration_seconds",
			Help: "Time to make a batch of requests durable.", Buckets: prometheus.ExponentialBuckets(0.0001, 2, 18),
		}),
		fsync: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "etcd_disk_wal_fsync_duration_seconds",
			Help: "Time to make a batch of requests durable, the fsync included.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
		backend: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "etcd_disk_backend_commit_duration_seconds",
			Help: "Time to commit a batch of requests to the database: the same as etcd_disk_wal_fsync_duration_seconds.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
	}
}

func (m *commitMetrics) observe(requests, _ int, took time.Duration) {
	m.requests.Observe(float64(requests))
	for _, h := range []prometheus.Histogram{m.duration, m.fsync, m.backend} {
		h.Observe(took.Seconds())
	}
}

// roundTrips are how long the ways to other nodes and back take, by etcd's name
// and in its buckets.
type roundTrips struct{ seconds *prometheus.HistogramVec }

func newRoundTrips() roundTrips {
	return roundTrips{prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "etcd_network_peer_round_trip_time_seconds",
		Help: "Time that the way to another node and back takes.", Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16),
	}, []string{"To"})}
}

// observe is raftlog.PeersOptions.OnRoundTrip.
func (r roundTrips) observe(id uint64, took time.Duration) {
	r.seconds.WithLabelValues(strconv.FormatUint(id, 16)).Observe(took.Seconds())
}

// peerTraffic shows what goes between this node and the others, by etcd's names.
type peerTraffic struct{ peers *raftlog.Peers }

var (
	peerSent     = prometheus.NewDesc("etcd_network_peer_sent_bytes_total", "The total number of bytes sent to other nodes: messages and snapshots.", []string{"To"}, nil)
	peerReceived = prometheus.NewDesc("etcd_network_peer_received_bytes_total", "The total number of bytes received from other nodes.", []string{"From"}, nil)
	peerFailures = prometheus.NewDesc("etcd_network_peer_sent_failures_total", "How often something could not be sent to another node.", []string{"To"}, nil)
)

// Describe implements prometheus.Collector.
func (p peerTraffic) Describe(ch chan<- *prometheus.Desc) {
	ch <- peerSent
	ch <- peerReceived
	ch <- peerFailures
}

// Collect implements prometheus.Collector.
func (p peerTraffic) Collect(ch chan<- prometheus.Metric) {
	for id, t := range p.peers.Traffic() {
		node := strconv.FormatUint(id, 16)
		for desc, value := range map[*prometheus.Desc]int64{peerSent: t.Sent, peerReceived: t.Received, peerFailures: t.Failures} {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), node)
		}
	}
}
