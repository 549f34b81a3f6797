package backup

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are what is known of the backups that this process makes.
type Metrics struct {
	last atomic.Int64 // Unix seconds; 0 is none

	lastSuccess, size, duration, next, active, ahead, future prometheus.Gauge
	successes, failures, removalFailures                     prometheus.Counter
}

// NewMetrics returns metrics and registers them.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "keelson", Subsystem: "backup", Name: name, Help: help})
		registry.MustRegister(g)
		return g
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "keelson", Subsystem: "backup", Name: name, Help: help})
		registry.MustRegister(c)
		return c
	}
	m := &Metrics{
		lastSuccess:     gauge("last_success_timestamp_seconds", "When the newest backup was made, as far as this server knows; 0 is never."),
		size:            gauge("last_size_bytes", "Size of the newest backup that this server has made."),
		duration:        gauge("last_duration_seconds", "Time that the newest backup of this server took."),
		next:            gauge("next_timestamp_seconds", "When the next backup is due."),
		active:          gauge("active", "Whether this server was the one to make the backup when one was due last."),
		ahead:           gauge("ahead", "Backups of later revisions than the newest one has: of other or lost data. They are not removed."),
		future:          gauge("future", "Backups whose names are of a time that has not come."),
		successes:       counter("successes_total", "Backups made."),
		failures:        counter("failures_total", "Tries to make a backup that failed."),
		removalFailures: counter("removal_failures_total", "How often old backups, or what failed ones have left, could not be removed."),
	}
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "keelson", Subsystem: "backup", Name: "age_seconds",
		Help: "Time since the newest backup, as far as this server knows; infinite if there is none.",
	}, m.age))
	return m
}

func (m *Metrics) age() float64 {
	last := m.last.Load()
	age := time.Since(time.Unix(last, 0))
	if last == 0 || age < -skew { // by a clock that was wrong
		return math.Inf(1)
	}
	return max(age, 0).Seconds()
}

func (m *Metrics) setLast(at time.Time) {
	m.last.Store(at.Unix())
	m.lastSuccess.Set(seconds(at))
}

func (m *Metrics) succeeded(at time.Time, size int64, took time.Duration) {
	m.setLast(at)
	m.size.Set(float64(size))
	m.duration.Set(took.Seconds())
	m.successes.Inc()
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func truth(v bool) float64 {
	if v {
		return 1
	}
	return 0
}
