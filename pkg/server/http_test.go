package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// get asks the member's HTTP endpoints.
func (m *member) get(t *testing.T, method, target string) *httptest.ResponseRecorder {
	t.Helper()
	rec := httptest.NewRecorder()
	m.server.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), method, target, nil))
	return rec
}

func (m *member) wantHTTP(t *testing.T, target string, code int, body string) {
	t.Helper()
	resp := m.get(t, http.MethodGet, target)
	got := resp.Body.String()
	if resp.Code != code || got != body {
		t.Errorf("GET %s: %d %q, want %d %q", target, resp.Code, got, code, body)
	}
}

const allReady = "[+]data_corruption ok\n[+]linearizable_read ok\n[+]non_learner ok\n[+]serializable_read ok\n"

func TestHTTPHealthy(t *testing.T) {
	m := startMember(t, memberOptions{})
	m.wantHTTP(t, "/health", 200, `{"health":"true","reason":""}`)
	m.wantHTTP(t, "/health?serializable=true", 200, `{"health":"true","reason":""}`)
	m.wantHTTP(t, "/livez", 200, "ok\n")
	m.wantHTTP(t, "/livez?verbose", 200, "[+]serializable_read ok\nok\n")
	m.wantHTTP(t, "/livez/serializable_read", 200, "ok\n")
	m.wantHTTP(t, "/readyz", 200, "ok\n")
	m.wantHTTP(t, "/readyz?verbose", 200, allReady+"ok\n")
	m.wantHTTP(t, "/readyz?verbose&exclude=data_corruption&exclude=non_learner&exclude=unheard_of", 200,
		"[+]linearizable_read ok\n[+]serializable_read ok\nok\n")
	for _, name := range []string{"data_corruption", "linearizable_read", "non_learner", "serializable_read"} {
		m.wantHTTP(t, "/readyz/"+name+"?verbose", 200, "[+]"+name+" ok\nok\n")
	}
	m.wantHTTP(t, "/version", 200, `{"etcdserver":"3.7.3","etcdcluster":"3.7.0","storage":"3.7.0"}`)
	m.wantHTTP(t, "/livez/unheard_of", 404, "404 page not found\n")
	m.wantHTTP(t, "/", 404, "404 page not found\n")

	if got := m.get(t, http.MethodGet, "/version").Header().Get("Content-Type"); got != "application/json" {
		t.Errorf("/version is %q", got)
	}
	if got := m.get(t, http.MethodGet, "/livez").Header(); got.Get("Content-Type") != "text/plain; charset=utf-8" || got.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("/livez has the headers %v", got)
	}
}

func TestHTTPMethods(t *testing.T) {
	m := startMember(t, memberOptions{})
	for _, target := range []string{"/health", "/livez", "/livez/serializable_read", "/readyz", "/readyz/non_learner", "/version"} {
		for _, method := range []string{http.MethodPost, http.MethodHead, http.MethodPut, http.MethodDelete} {
			resp := m.get(t, method, target)
			if resp.Code != http.StatusMethodNotAllowed || resp.Header().Get("Allow") != "GET" {
				t.Errorf("%s %s: %d, Allow %q", method, target, resp.Code, resp.Header().Get("Allow"))
			}
		}
	}
}

func TestHTTPAlarms(t *testing.T) {
	m := startMember(t, memberOptions{})
	raise := func(action pb.AlarmRequest_AlarmAction, kind pb.AlarmType) {
		t.Helper()
		if _, err := m.maintenance.Alarm(short(t), &pb.AlarmRequest{Action: action, MemberID: testMemberID, Alarm: kind}); err != nil {
			t.Fatal(err)
		}
	}
	raise(pb.AlarmRequest_ACTIVATE, pb.AlarmType_NOSPACE)
	m.wantHTTP(t, "/health", 503, `{"health":"false","reason":"ALARM NOSPACE"}`+"\n")
	m.wantHTTP(t, "/health?exclude=NOSPACE", 200, `{"health":"true","reason":""}`)
	m.wantHTTP(t, "/health?exclude=CORRUPT", 503, `{"health":"false","reason":"ALARM NOSPACE"}`+"\n")
	m.wantHTTP(t, "/readyz", 200, "ok\n")
	raise(pb.AlarmRequest_DEACTIVATE, pb.AlarmType_NOSPACE)

	raise(pb.AlarmRequest_ACTIVATE, pb.AlarmType_CORRUPT)
	m.wantHTTP(t, "/health", 503, `{"health":"false","reason":"ALARM CORRUPT"}`+"\n")
	m.wantHTTP(t, "/readyz/data_corruption", 503, "[-]data_corruption failed: alarm activated: CORRUPT\n\n")
	m.wantHTTP(t, "/readyz?exclude=data_corruption&exclude=serializable_read&exclude=linearizable_read", 200, "ok\n")
}

// A log that does not answer: alive, but not ready.
func TestHTTPLogDown(t *testing.T) {
	m := startMember(t, memberOptions{wrap: func(s Store) Store { return fenceless{s} }})
	m.wantHTTP(t, "/health", 503, `{"health":"false","reason":"RANGE ERROR:the log is away"}`+"\n")
	m.wantHTTP(t, "/health?serializable=true", 200, `{"health":"true","reason":""}`)
	m.wantHTTP(t, "/livez", 200, "ok\n")
	failed := strings.Replace(allReady, "[+]linearizable_read ok", "[-]linearizable_read failed: the log is away", 1) + "\n"
	m.wantHTTP(t, "/readyz", 503, failed)
	m.wantHTTP(t, "/readyz?exclude=linearizable_read", 200, "ok\n")
}

// fenceless is a store whose log does not answer fences.
type fenceless struct{ Store }

func (fenceless) Fence(context.Context) error { return errors.New("the log is away") }

func TestHTTPNotReady(t *testing.T) {
	m := startMember(t, memberOptions{})
	m.server.Stop()
	m.wantHTTP(t, "/livez", 200, "ok\n")
	m.wantHTTP(t, "/readyz/linearizable_read", 503, "[-]linearizable_read failed: the server is starting or stopping\n\n")
}

// A fence that hangs is given up after the request timeout.
func TestHTTPFenceTimeout(t *testing.T) {
	m := startMember(t, memberOptions{
		config: func(c *Config) { c.RequestTimeout = time.Millisecond },
		wrap:   func(s Store) Store { return failingStore{s, func() error { return nil }} },
	})
	m.wantHTTP(t, "/readyz/linearizable_read", 503, "[-]linearizable_read failed: waiting for the log: context deadline exceeded\n\n")
}

func TestMetrics(t *testing.T) {
	m := startMember(t, memberOptions{config: func(c *Config) { c.ExtensiveMetrics = true }})
	ctx := short(t)
	if _, err := m.kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: make([]byte, 500)}); err != nil {
		t.Fatal(err)
	}
	_, err := m.kv.Put(ctx, &pb.PutRequest{})
	if codeOf(err) != codes.InvalidArgument {
		t.Fatal(err)
	}
	stream, err := m.lease.LeaseKeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: 5}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	m.get(t, http.MethodGet, "/readyz")
	m.get(t, http.MethodGet, "/health")

	body, err := io.ReadAll(m.get(t, http.MethodGet, "/metrics").Body)
	if err != nil {
		t.Fatal(err)
	}
	put := `grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"`
	keepAlive := `grpc_method="LeaseKeepAlive",grpc_service="etcdserverpb.Lease",grpc_type="bidi_stream"`
	for _, line := range []string{
		`grpc_server_started_total{` + put + `} 2`,
		`grpc_server_msg_received_total{` + put + `} 2`,
		`grpc_server_msg_sent_total{` + put + `} 1`,
		`grpc_server_handled_total{grpc_code="OK",` + put + `} 1`,
		`grpc_server_handled_total{grpc_code="InvalidArgument",` + put + `} 1`,
		`grpc_server_handling_seconds_count{` + put + `} 2`,
		`grpc_server_started_total{` + keepAlive + `} 1`,
		`grpc_server_msg_received_total{` + keepAlive + `} 2`,
		`grpc_server_msg_sent_total{` + keepAlive + `} 2`,
		`grpc_server_handled_total{grpc_code="OK",` + keepAlive + `} 1`,
		`etcd_server_has_leader 1`,
		`etcd_server_version{server_version="3.7.3"} 1`,
		`etcd_cluster_version{cluster_version="3.7"} 1`,
		`etcd_server_id{server_id="8e9e05c52164694d"} 1`,
		`etcd_server_quota_backend_bytes 2.147483648e+09`,
		`etcd_debugging_mvcc_current_revision 2`,
		`etcd_debugging_mvcc_compact_revision -1`,
		`etcd_debugging_mvcc_watcher_total 0`,
		`etcd_debugging_lease_granted_total 0`,
		`etcd_server_healthcheck{name="linearizable_read",type="readyz"} 1`,
		`etcd_server_healthchecks_total{name="linearizable_read",status="success",type="readyz"} 1`,
		`etcd_server_health_success 1`,
		`etcd_server_health_failures 0`,
	} {
		if !strings.Contains(string(body), "\n"+line+"\n") {
			t.Errorf("missing: %s", line)
		}
	}
	for _, name := range []string{"etcd_mvcc_db_total_size_in_bytes", "etcd_mvcc_db_total_size_in_use_in_bytes",
		"etcd_network_client_grpc_received_bytes_total", "etcd_network_client_grpc_sent_bytes_total", "keelson_build_info"} {
		if !strings.Contains(string(body), "\n"+name) {
			t.Errorf("missing: %s", name)
		}
	}
	if got := m.server.traffic.received.Load(); got < 500 {
		t.Errorf("%d bytes received, want the value's 500 at least", got)
	}
}

// The collectors are consistent: what is described is what is collected.
func TestMetricsLint(t *testing.T) {
	m := startMember(t, memberOptions{})
	pedantic := prometheus.NewPedanticRegistry()
	for _, c := range []prometheus.Collector{m.server.rpcs, m.server.checks, &stateMetrics{m.server}} {
		if err := pedantic.Register(c); err != nil {
			t.Fatal(err)
		}
	}
	families, err := pedantic.Gather()
	if err != nil || len(families) < 20 {
		t.Errorf("%d metrics, %v", len(families), err)
	}
}

// Slow requests are logged without what they carry.
func TestSlowRequestIsLogged(t *testing.T) {
	var out bytes.Buffer
	logger := logrus.New()
	logger.SetOutput(&out)
	m := startMember(t, memberOptions{config: func(c *Config) {
		c.SlowRequest = time.Nanosecond
		c.Logger = logrus.NewEntry(logger)
	}})
	if _, err := m.kv.Put(short(t), &pb.PutRequest{Key: []byte("secretkey"), Value: []byte("secretvalue")}); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.Contains(got, "slow request") || !strings.Contains(got, "method=Put") || !strings.Contains(got, "code=OK") || strings.Contains(got, "secret") {
		t.Errorf("logged: %s", got)
	}
}

// Services that others register on the same gRPC server are counted together.
func TestOtherServices(t *testing.T) {
	m := startMember(t, memberOptions{})
	info := &grpc.UnaryServerInfo{FullMethod: "/example.Other/Call"}
	resp, err := m.server.interceptUnary(t.Context(), nil, info, func(context.Context, any) (any, error) { return 5, nil })
	if resp != 5 || err != nil {
		t.Fatalf("got %v, %v", resp, err)
	}
	body, err := io.ReadAll(m.get(t, http.MethodGet, "/metrics").Body)
	if err != nil || !strings.Contains(string(body), `grpc_server_started_total{grpc_method="other",grpc_service="other",grpc_type="other"} 1`) {
		t.Errorf("not counted: %v", err)
	}
}
