package embed

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// dashboardMetrics are the series that etcd's own alerts and dashboards ask
// for, but for those about snapshots.
const dashboardMetrics = `
etcd_server_has_leader etcd_server_is_leader etcd_server_leader_changes_seen_total etcd_server_proposals_committed_total
etcd_server_proposals_applied_total etcd_server_proposals_pending etcd_server_proposals_failed_total etcd_disk_wal_fsync_duration_seconds_bucket etcd_disk_wal_fsync_duration_seconds_count
etcd_disk_backend_commit_duration_seconds_bucket etcd_disk_backend_commit_duration_seconds_sum
etcd_mvcc_db_total_size_in_bytes etcd_mvcc_db_total_size_in_use_in_bytes etcd_server_quota_backend_bytes
etcd_debugging_mvcc_keys_total etcd_debugging_mvcc_watcher_total etcd_debugging_mvcc_watch_stream_total
etcd_network_client_grpc_received_bytes_total etcd_network_client_grpc_sent_bytes_total
etcd_server_version etcd_cluster_version etcd_server_id etcd_server_health_success
grpc_server_started_total grpc_server_handled_total grpc_server_handling_seconds_bucket
process_resident_memory_bytes process_open_fds process_max_fds process_start_time_seconds`

// metricsOf returns what /metrics of s shows.
func metricsOf(t *testing.T, s *Server) string {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(s.Endpoint(), "unix://"))
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://keelson/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestDashboardMetrics(t *testing.T) {
	t.Parallel()
	s, _ := start(t, Config{ExtensiveMetrics: true})
	c := connect(t, clientv3.Config{Endpoints: s.Endpoints()})
	for _, key := range []string{"a", "b", "a"} {
		if _, err := c.Put(t.Context(), key, ""); err != nil {
			t.Fatal(err)
		}
	}
	body := metricsOf(t, s)
	for _, name := range strings.Fields(dashboardMetrics) {
		if !regexp.MustCompile(`(?m)^` + name + `(\{.*\})? [0-9]`).MatchString(body) {
			t.Errorf("there is no %s", name)
		}
	}
	for _, line := range []string{
		"etcd_debugging_mvcc_keys_total 2", "etcd_disk_wal_fsync_duration_seconds_count 3", "etcd_disk_backend_commit_duration_seconds_count 3",
		`etcd_disk_wal_fsync_duration_seconds_bucket{le="8.192"} 3`,
	} {
		if !strings.Contains(body, "\n"+line+"\n") {
			t.Errorf("not in the metrics: %s", line)
		}
	}
}

// A server that is stopped before its goroutines get to serve has not failed.
func TestStoppedBeforeServing(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	logger, _ := test.NewNullLogger()
	set, err := Config{
		DataDir: dir, ListenClientURLs: []string{"unix://" + filepath.Join(dir, "k.sock")}, Logger: logrus.NewEntry(logger),
	}.resolve()
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{set: set, log: set.Logger, failed: make(chan error, 1), stop: make(chan struct{}), done: make(chan struct{})}
	if err := s.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.grpc.Stop()
	_ = s.http.Close()
	_ = s.metrics.Close()
	s.serve()
	if err := s.shutdown(); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	select {
	case err := <-s.failed:
		t.Errorf("failed with: %v", err)
	default:
	}
}
