package contract

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelson-io/keelson/test/harness"
)

// listenForms are URLs for --listen-client-urls, and whether a server starts
// with them and answers on them. DIR is a directory, PORT a free port.
var listenForms = []struct {
	urls          string
	etcd, keelson bool
}{
	{"http://127.0.0.1:PORT", true, true},
	{"http://localhost:PORT", true, true},
	{"http://[::1]:PORT", true, true},
	{"http://0.0.0.0:PORT", true, true},
	{"http://:PORT", false, true},
	{"http://127.0.0.1:PORT/", false, true},
	{"http://127.0.0.1:0", true, true},
	{"unix://DIR/a.sock", true, true},
	{"unix://relative.sock", true, true},
	{"http://127.0.0.1:PORT,unix://DIR/a.sock,unix://DIR/b.sock", true, true},
	{" http://127.0.0.1:PORT , unix://DIR/a.sock", true, true},
	{"http://127.0.0.1:PORT,http://127.0.0.1:PORT", true, false},
	{"http://127.0.0.1:PORT/path", false, false},
	{"http://example.com:PORT", false, false},
	{"http://127.0.0.1", false, false},
	{"http://127.0.0.1:99999", false, false},
	{"http://127.0.0.1:port", false, false},
	{"127.0.0.1:PORT", false, false},
	{"tcp://127.0.0.1:PORT", false, false},
	{"https://127.0.0.1:PORT", false, false},
	{"unixs://DIR/a.sock", false, false},
	{"http://127.0.0.1:PORT,,", false, false},
	{"http://", false, false},
}

func TestListenForms(t *testing.T) {
	for _, backend := range harness.Backends(t) {
		for _, form := range listenForms {
			t.Run(fmt.Sprint(backend, " ", form.urls), func(t *testing.T) {
				t.Parallel()
				want := form.etcd
				if backend == harness.Keelson {
					want = form.keelson
				}
				err := tryListen(t, backend, form.urls)
				if (err == nil) != want {
					t.Errorf("it starts: %v (%v), want %v", err == nil, err, want)
				}
			})
		}
	}
}

// tryListen starts a server with urls and asks for /health on each of them.
func tryListen(t *testing.T, backend harness.Backend, urls string) error {
	t.Helper()
	dir := harness.TempDir(t)
	for strings.Contains(urls, "PORT") {
		_, port, _ := net.SplitHostPort(harness.FreeAddress(t))
		urls = strings.ReplaceAll(urls, "PORT", port)
	}
	urls = strings.ReplaceAll(urls, "DIR", dir)
	args := []string{"--data-dir", filepath.Join(dir, "data"), "--listen-client-urls", urls, "--advertise-client-urls", "http://127.0.0.1:1"}
	var path string
	if backend == harness.Etcd {
		path = harness.Tool(t, "etcd")
		peer := "unix://" + filepath.Join(dir, "peer.sock")
		args = append(args, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	} else {
		path = harness.KeelsonBinary(t)
		args = append(args, harness.DatastoreArgs(t)...)
	}
	p := harness.StartProcess(t, dir, string(backend), path, args...)
	return p.WaitReady(2*time.Minute, func(ctx context.Context) error {
		var errs []error
		for url := range strings.SplitSeq(urls, ",") {
			url = strings.TrimSpace(url)
			if strings.HasSuffix(url, ":0") { // nobody knows where it is but the log
				if !strings.Contains(string(p.Log()), "ready to serve client requests") {
					errs = append(errs, errors.New("not ready"))
				}
				continue
			}
			errs = append(errs, health(ctx, dir, url))
		}
		return errors.Join(errs...)
	})
}

func health(ctx context.Context, dir, url string) error {
	scheme, address, _ := strings.Cut(url, "://")
	network := "tcp"
	if scheme == "unix" {
		if network = "unix"; !filepath.IsAbs(address) {
			address = filepath.Join(dir, address)
		}
	}
	address = strings.TrimSuffix(address, "/")
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/health", http.NoBody)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}
