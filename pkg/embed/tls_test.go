package embed

import (
	"crypto/tls"
	"io"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/pkg/listen/certtest"
)

// As a kube-apiserver and an operator with curl use it: mutual TLS for gRPC
// and HTTP on one port, over TCP and a unix socket; and certificates that are
// replaced while the server runs. A unix socket is called like the
// certificate: clients verify it against the file name.
func TestMutualTLS(t *testing.T) {
	t.Parallel()
	dir, ca := shortDir(t), certtest.New(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	ca.Write(t, path("ca.crt"))
	ca.Issue(t, dir, "server")
	s, _ := start(t, Config{
		DataDir:           filepath.Join(dir, "data"),
		ListenClientURLs:  []string{"https://127.0.0.1:0", "unixs://" + path("server")},
		ListenMetricsURLs: []string{"https://127.0.0.1:0"},
		TLS: TLS{
			CertFile: path("server.crt"), KeyFile: path("server.key"),
			TrustedCAFile: path("ca.crt"), ClientCertAuth: true,
		},
	})
	trusted := &tls.Config{
		RootCAs: ca.Pool(), Certificates: []tls.Certificate{ca.Issue(t, dir, "apiserver")},
		ServerName: "server", MinVersion: tls.VersionTLS12,
	}
	for _, endpoint := range s.Endpoints() {
		c := connect(t, clientv3.Config{Endpoints: []string{endpoint}, TLS: trusted.Clone()})
		if _, err := c.Put(timeout(t), "k", endpoint); err != nil {
			t.Fatalf("%s: %v", endpoint, err)
		}
	}
	metrics := s.listeners[2].url.String()
	for _, url := range []string{s.Endpoint() + "/health", metrics + "/metrics"} {
		for _, http2 := range []bool{false, true} {
			transport := &http.Transport{TLSClientConfig: trusted.Clone(), ForceAttemptHTTP2: http2}
			status, proto, err := getTLS(transport, url)
			if err != nil || status != http.StatusOK || (proto == 2) != http2 {
				t.Errorf("%s: status %d over HTTP/%d, %v", url, status, proto, err)
			}
		}
	}

	stranger := trusted.Clone()
	stranger.Certificates = nil
	if _, _, err := getTLS(&http.Transport{TLSClientConfig: stranger}, s.Endpoint()+"/health"); err == nil {
		t.Error("a client without a certificate was let in")
	}
	if _, _, err := getTLS(&http.Transport{}, "http"+s.Endpoint()[len("https"):]+"/health"); err == nil {
		t.Error("a client without TLS was let in")
	}

	other := certtest.New(t)
	other.Write(t, path("ca.crt"))
	other.Issue(t, dir, "server")
	fresh := &tls.Config{
		RootCAs: other.Pool(), Certificates: []tls.Certificate{other.Issue(t, dir, "apiserver")},
		ServerName: "server", MinVersion: tls.VersionTLS12,
	}
	c := connect(t, clientv3.Config{Endpoints: s.Endpoints(), TLS: fresh})
	if resp, err := c.Get(timeout(t), "k"); err != nil || resp.Count != 1 {
		t.Errorf("after the certificates were replaced: %v, %v", resp, err)
	}
	if _, _, err := getTLS(&http.Transport{TLSClientConfig: trusted.Clone()}, s.Endpoint()+"/health"); err == nil {
		t.Error("the old authority's certificates still work")
	}
}

func getTLS(transport *http.Transport, url string) (status, proto int, err error) {
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Get(url)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.ProtoMajor, err
}
