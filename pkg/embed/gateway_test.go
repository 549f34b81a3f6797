package embed

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/pkg/listen"
	"github.com/keelson-io/keelson/pkg/listen/certtest"
)

// postJSON sends a request to endpoint, for as long as the test runs, and
// returns the status, the HTTP version and the body as a stream.
func postJSON(t *testing.T, endpoint string, config *tls.Config, path, body string) (status, proto int, stream io.Reader) {
	t.Helper()
	u, err := listen.ParseURL(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, u.Network(), u.Address)
		},
		TLSClientConfig: config, ForceAttemptHTTP2: true,
	}
	scheme := "http"
	if u.Secure() {
		scheme = "https"
	}
	resp, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Post(scheme+"://keelson"+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatalf("%s%s: %v", endpoint, path, err)
	}
	t.Cleanup(func() {
		_ = resp.Body.Close()
		transport.CloseIdleConnections()
	})
	return resp.StatusCode, resp.ProtoMajor, resp.Body
}

const putJSON = `{"key":"YQ==","value":"Yg=="}`

// JSON is served on every client URL, with its TLS, and not on metrics URLs.
func TestGatewayURLs(t *testing.T) {
	t.Parallel()
	dir, ca := shortDir(t), certtest.New(t)
	ca.Write(t, filepath.Join(dir, "ca.crt"))
	ca.Issue(t, dir, "server")
	s, _ := start(t, Config{
		DataDir:           filepath.Join(dir, "data"),
		ListenClientURLs:  []string{"http://127.0.0.1:0", "unix://" + dir + "/k.sock", "https://127.0.0.1:0", "unixs://" + dir + "/server"},
		ListenMetricsURLs: []string{"http://127.0.0.1:0"},
		TLS: TLS{
			CertFile: filepath.Join(dir, "server.crt"), KeyFile: filepath.Join(dir, "server.key"),
			TrustedCAFile: filepath.Join(dir, "ca.crt"), ClientCertAuth: true,
		},
	})
	client := &tls.Config{
		RootCAs: ca.Pool(), Certificates: []tls.Certificate{ca.Issue(t, dir, "client")},
		ServerName: "server", MinVersion: tls.VersionTLS12,
	}
	for i, endpoint := range s.Endpoints() {
		status, proto, body := postJSON(t, endpoint, client.Clone(), "/v3/kv/put", putJSON)
		if wantProto := 1 + i/2; status != http.StatusOK || proto != wantProto {
			got, _ := io.ReadAll(body)
			t.Errorf("%s: %d over HTTP/%d: %s", endpoint, status, proto, got)
		}
	}
	if resp, err := connect(t, clientv3.Config{Endpoints: s.Endpoints()[:1]}).Get(timeout(t), "a"); err != nil || resp.Kvs[0].Version != 4 {
		t.Errorf("after four puts: %v, %v", resp, err)
	}
	if status, _, _ := postJSON(t, s.listeners[4].url.String(), nil, "/v3/kv/put", putJSON); status != http.StatusNotFound {
		t.Errorf("on the metrics URL: %d", status)
	}
}

func TestNoGateway(t *testing.T) {
	t.Parallel()
	s, _ := start(t, Config{NoGRPCGateway: true})
	if status, _, _ := postJSON(t, s.Endpoint(), nil, "/v3/kv/put", putJSON); status != http.StatusNotFound {
		t.Errorf("without a gateway: %d", status)
	}
}

// A stream ends, with the reason, when the server does.
func TestGatewayStreamEndsWithServer(t *testing.T) {
	t.Parallel()
	s, _ := start(t, Config{DrainTimeout: time.Minute})
	status, _, body := postJSON(t, s.Endpoint(), nil, "/v3/watch", `{"create_request":{"key":"YQ=="}}`)
	lines := bufio.NewScanner(body)
	if !lines.Scan() || status != http.StatusOK || !strings.Contains(lines.Text(), `"created"`) {
		t.Fatalf("%d %s %v", status, lines.Text(), lines.Err())
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if !lines.Scan() || !strings.Contains(lines.Text(), "etcdserver: server stopped") {
		t.Errorf("at the end: %s %v", lines.Text(), lines.Err())
	}
}
