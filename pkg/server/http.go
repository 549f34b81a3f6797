package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	etcdversion "go.etcd.io/etcd/api/v3/version"
)

// Handler returns the HTTP endpoints of etcd's client port, for requests that
// are not gRPC: /health, /livez and /readyz with their sub-checks, /version
// and /metrics.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/health", s.serveHealth)
	s.install(mux, "livez", []check{
		{"serializable_read", s.checkSerializable},
	})
	s.install(mux, "readyz", []check{
		{"data_corruption", s.checkCorruption},
		{"linearizable_read", s.checkLinearizable},
		{"non_learner", s.checkLearner},
		{"serializable_read", s.checkSerializable},
	})
	mux.HandleFunc("/version", s.serveVersion)
	mux.Handle("/metrics", promhttp.HandlerFor(s.cfg.Registry, promhttp.HandlerOpts{Registry: s.cfg.Registry}))
	return mux
}

// checkLearner fails on a learner, which may be far behind.
func (s *Server) checkLearner(context.Context) error {
	if c := s.cfg.Cluster; c != nil {
		if learner, _ := c.Learner(); learner {
			return rpctypes.ErrGRPCNotSupportedForLearner
		}
	}
	return nil
}

// allowGet answers a request that is not a GET and returns false.
func allowGet(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodGet {
		return true
	}
	w.Header().Set("Allow", http.MethodGet)
	http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
	return false
}

// healthBody is the answer of /health.
type healthBody struct {
	Health string `json:"health"`
	Reason string `json:"reason"`
}

// serveHealth is the older check: any alarm that is not excluded, no leader, or a
// failed read, is ill health.
func (s *Server) serveHealth(w http.ResponseWriter, r *http.Request) {
	if !allowGet(w, r) {
		return
	}
	reason := s.illness(r)
	if reason == "" {
		s.checks.healthOK.Inc()
		body, _ := json.Marshal(healthBody{Health: "true"})
		_, _ = w.Write(body)
		return
	}
	s.checks.healthFailed.Inc()
	s.log.WithField("reason", reason).Warn("/health answers false")
	body, _ := json.Marshal(healthBody{Health: "false", Reason: reason})
	http.Error(w, string(body), http.StatusServiceUnavailable)
}

// illness returns why the server is not healthy, or nothing.
func (s *Server) illness(r *http.Request) string {
	excluded := r.URL.Query()["exclude"]
	for _, alarm := range s.store.Alarms() {
		if slices.Contains(excluded, alarm.Alarm.String()) {
			continue
		}
		switch alarm.Alarm {
		case pb.AlarmType_NOSPACE:
			return "ALARM NOSPACE"
		case pb.AlarmType_CORRUPT:
			return "ALARM CORRUPT"
		}
		return "ALARM UNKNOWN"
	}
	read := s.checkLinearizable
	if r.URL.Query().Get("serializable") == "true" {
		read = s.checkSerializable
	} else if _, ok := s.cfg.Leader(); !ok {
		return "RAFT NO LEADER"
	}
	if err := read(r.Context()); err != nil {
		return fmt.Sprintf("RANGE ERROR:%s", err)
	}
	return ""
}

// check is one check of /livez or /readyz.
type check struct {
	name string
	run  func(context.Context) error
}

// errNotReady is why a server that starts or stops is not ready.
var errNotReady = errors.New("the server is starting or stopping")

func (s *Server) checkSerializable(ctx context.Context) error {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	_, err := s.store.Range(ctx, &pb.RangeRequest{Key: []byte{0}, KeysOnly: true, Limit: 1, Serializable: true})
	return err
}

func (s *Server) checkLinearizable(ctx context.Context) error {
	if !s.ready.Load() {
		return errNotReady
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	return s.store.Fence(ctx)
}

func (s *Server) checkCorruption(context.Context) error {
	for _, alarm := range s.store.Alarms() {
		if alarm.Alarm == pb.AlarmType_CORRUPT {
			return fmt.Errorf("alarm activated: %s", alarm.Alarm)
		}
	}
	return nil
}

// install serves /kind, which runs all checks, and /kind/name for each.
func (s *Server) install(mux *http.ServeMux, kind string, checks []check) {
	mux.HandleFunc("/"+kind, func(w http.ResponseWriter, r *http.Request) {
		excluded := r.URL.Query()["exclude"]
		wanted := slices.DeleteFunc(slices.Clone(checks), func(c check) bool {
			return slices.Contains(excluded, c.name)
		})
		s.serveChecks(w, r, kind, wanted)
	})
	for _, c := range checks {
		mux.HandleFunc("/"+kind+"/"+c.name, func(w http.ResponseWriter, r *http.Request) {
			s.serveChecks(w, r, kind, []check{c})
		})
	}
}

func (s *Server) serveChecks(w http.ResponseWriter, r *http.Request, kind string, checks []check) {
	if !allowGet(w, r) {
		return
	}
	var report strings.Builder
	failed := false
	for _, c := range checks {
		err := c.run(r.Context())
		s.checks.record(kind, c.name, err)
		if err != nil {
			failed = true
			fmt.Fprintf(&report, "[-]%s failed: %v\n", c.name, err)
		} else {
			fmt.Fprintf(&report, "[+]%s ok\n", c.name)
		}
	}
	if failed {
		s.log.WithField("report", report.String()).Warnf("/%s fails", kind)
		http.Error(w, report.String(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.URL.Query().Has("verbose") {
		_, _ = fmt.Fprint(w, report.String())
	}
	_, _ = fmt.Fprint(w, "ok\n")
}

func (s *Server) serveVersion(w http.ResponseWriter, r *http.Request) {
	if !allowGet(w, r) {
		return
	}
	body, _ := json.Marshal(etcdversion.Versions{
		Server:  s.cfg.Version,
		Cluster: minorVersion(s.cfg.Version) + ".0",
		Storage: storageVersion,
	})
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body)
}

// checkMetrics counts the outcomes of the checks.
type checkMetrics struct {
	healthOK, healthFailed prometheus.Counter
	last                   *prometheus.GaugeVec
	total                  *prometheus.CounterVec
}

func newCheckMetrics() *checkMetrics {
	return &checkMetrics{
		healthOK: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "etcd_server_health_success", Help: "The total number of successful health checks.",
		}),
		healthFailed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "etcd_server_health_failures", Help: "The total number of failed health checks.",
		}),
		last: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "etcd_server_healthcheck", Help: "The last result of each health check: 1 is success.",
		}, []string{"type", "name"}),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "etcd_server_healthchecks_total", Help: "The total number of each health check, by result.",
		}, []string{"type", "name", "status"}),
	}
}

func (m *checkMetrics) record(kind, name string, err error) {
	value, status := 1.0, "success"
	if err != nil {
		value, status = 0, "error"
	}
	m.last.WithLabelValues(kind, name).Set(value)
	m.total.WithLabelValues(kind, name, status).Inc()
}

func (m *checkMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.healthOK, m.healthFailed, m.last, m.total}
}

// Describe implements prometheus.Collector.
func (m *checkMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.collectors() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *checkMetrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.collectors() {
		c.Collect(ch)
	}
}
