package cmd

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/keelson-io/keelson/pkg/listen/certtest"
)

// Every form of URL at once; gRPC and HTTP on each client URL, and on the
// metrics URLs what they are for alone.
func TestListenURLs(t *testing.T) {
	dir, ca := shortDir(t), certtest.New(t)
	ca.Issue(t, dir, "server") // a client verifies a unix socket by its name
	p := startProcess(t, dir, nil, "--log-format=json", "--data-dir=data", "--cert-file=server.crt", "--key-file=server.key",
		"--listen-client-urls=http://127.0.0.1:0, http://[::1]:0,http://localhost:0,unix://rel.sock,unix://"+dir+"/abs.sock,https://127.0.0.1:0,unixs://"+dir+"/server",
		"--listen-metrics-urls=unix://metrics.sock,unix://"+dir+"/more.sock")
	var line struct{ Endpoints, Advertise string }
	if err := json.Unmarshal([]byte(p.says(ready)), &line); err != nil {
		t.Fatal(err)
	}
	endpoints := strings.Split(line.Endpoints, ",")
	var forms []string
	for _, e := range endpoints {
		scheme, address, _ := strings.Cut(e, "://")
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			host = strings.TrimPrefix(address, dir+"/")
		} else if port == "0" {
			t.Errorf("%s has no port", e)
		}
		forms = append(forms, scheme+" "+host)
	}
	want := []string{"http 127.0.0.1", "http ::1", "http localhost", "unix rel.sock", "unix abs.sock", "https 127.0.0.1", "unixs server"}
	if !slices.Equal(forms, want) || line.Advertise != line.Endpoints {
		t.Errorf("serves %q and advertises %q, want %q", line.Endpoints, line.Advertise, want)
	}
	trusted := &tls.Config{RootCAs: ca.Pool(), ServerName: "server", MinVersion: tls.VersionTLS12}
	for _, e := range endpoints {
		config := clientv3.Config{Endpoints: []string{e}, Logger: zap.NewNop()}
		if strings.HasPrefix(e, "https") || strings.HasPrefix(e, "unixs") {
			config.TLS = trusted.Clone()
		}
		c, err := clientv3.New(config)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if _, err := c.Put(ctx, "k", e); err != nil {
			t.Errorf("%s: %v", e, err)
		}
		cancel()
		_ = c.Close()
		for path, want := range map[string]int{"/health": 200, "/metrics": 200, "/v3/kv/range": 501} {
			if got := get(t, e, path, config.TLS); got != want {
				t.Errorf("%s%s: status %d, want %d", e, path, got, want)
			}
		}
	}
	for _, e := range []string{"unix://" + filepath.Join(dir, "metrics.sock"), "unix://" + dir + "/more.sock"} {
		for path, want := range map[string]int{"/health": 200, "/readyz": 200, "/metrics": 200, "/v3/kv/range": 404} {
			if got := get(t, e, path, nil); got != want {
				t.Errorf("%s%s: status %d, want %d", e, path, got, want)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		if _, err := connect(t, e).Get(ctx, "k"); err == nil {
			t.Errorf("%s serves gRPC", e)
		}
		cancel()
	}
	p.signal(syscall.SIGTERM)
	if code := p.ends(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// get returns the status of a GET, whatever kind of URL it is at.
func get(t *testing.T, endpoint, path string, config *tls.Config) int {
	t.Helper()
	scheme, address, _ := strings.Cut(endpoint, "://")
	network := map[bool]string{true: "unix", false: "tcp"}[strings.HasPrefix(scheme, "unix")]
	transport := &http.Transport{
		TLSClientConfig: config,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}
	defer transport.CloseIdleConnections()
	url := "http://server" + path
	if config != nil {
		url = "https://server" + path
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Errorf("%s%s: %v", endpoint, path, err)
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}
