package embed

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
)

// newRegistry returns a registry with what is not the API's: the process, the
// Go runtime and the database.
func newRegistry(data datastore, commits *commitMetrics) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		commits.requests, commits.duration, commits.fsync, commits.backend,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	if db, ok := data.(*sqlite.Log); ok {
		registerSQLite(registry, db)
	}
	return registry
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
