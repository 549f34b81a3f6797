package remote

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/keelson-io/keelson/pkg/embed"
	"github.com/keelson-io/keelson/pkg/listen/certtest"
)

// files are what a client shows and trusts.
type files struct{ ca, cert, key string }

// issue makes a certificate of an authority and writes both to a directory.
func issue(t *testing.T, a *certtest.Authority) files {
	t.Helper()
	dir := t.TempDir()
	a.Issue(t, dir, "name")
	a.Write(t, filepath.Join(dir, "ca.crt"))
	return files{filepath.Join(dir, "ca.crt"), filepath.Join(dir, "name.crt"), filepath.Join(dir, "name.key")}
}

// startTLS starts a keelson that wants a client's certificate, and returns its
// addresses with and without TLS, and what a client needs.
func startTLS(t *testing.T) (secure, plain string, f files) {
	t.Helper()
	f = issue(t, certtest.New(t))
	config := embed.DefaultConfig()
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	config.DataDir, config.Logger = t.TempDir(), logrus.NewEntry(logger)
	config.ListenClientURLs = []string{"https://127.0.0.1:0", "http://127.0.0.1:0"}
	config.TLS.CertFile, config.TLS.KeyFile = f.cert, f.key
	config.TLS.TrustedCAFile, config.TLS.ClientCertAuth = f.ca, true
	server, err := embed.Start(t.Context(), config)
	check(t, err)
	t.Cleanup(func() { check(t, server.Close()) })
	for _, endpoint := range server.Endpoints() {
		if address, ok := strings.CutPrefix(endpoint, "https://"); ok {
			secure = address
		} else if address, ok := strings.CutPrefix(endpoint, "http://"); ok {
			plain = address
		}
	}
	return secure, plain, f
}

// TestUnreachable: one error says what keeps a client from the server, and what
// to do; at once where waiting would not help.
func TestUnreachable(t *testing.T) {
	secure, plain, right := startTLS(t)
	_, port, err := net.SplitHostPort(secure)
	check(t, err)
	other := issue(t, certtest.New(t))
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer func() { check(t, silent.Close()) }()
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	for name, c := range map[string]struct {
		endpoint    string
		files       files
		cause, todo string
		waits       bool
	}{
		"refused":                {"http://127.0.0.1:1", files{}, "connection refused", "does a server run there", true},
		"no socket":              {"unix://" + t.TempDir() + "/s", files{}, "no such file or directory", "is this its socket?", true},
		"silent":                 {"http://" + silent.Addr().String(), files{}, "no answer within 1s", "", true},
		"no port":                {"http://127.0.0.1", files{}, "missing port", ":2379", false},
		"http to https":          {"http://" + secure, files{}, "server preface", "https://", false},
		"a web server":           {web.URL, files{}, "HTTP/1.1", "there is no gRPC at this address", false},
		"https to http":          {"https://" + plain, files{}, "not look like a TLS handshake", "use http://", false},
		"no CA":                  {"https://" + secure, files{}, "unknown authority", "--to-cacert", false},
		"the wrong CA":           {"https://" + secure, other, "unknown authority", "--to-cacert", false},
		"another name":           {"https://localhost:" + port, right, "not localhost", "an address that the server's certificate is for", false},
		"no certificate":         {"https://" + secure, files{ca: right.ca}, "certificate required", "--to-cert and --to-key", false},
		"certificate of another": {"https://" + secure, files{right.ca, other.cert, other.key}, "unknown certificate authority", "--to-key must be of a CA", false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, user := range []string{"", "root"} {
				limit := time.Second
				if !c.waits {
					limit = time.Minute
				}
				began := time.Now()
				_, err := Dial(t.Context(), Config{
					Endpoints: []string{c.endpoint}, CACert: c.files.ca, Cert: c.files.cert, Key: c.files.key, FlagPrefix: "to-",
					User: user, Password: user, DialTimeout: limit,
				})
				if err == nil {
					t.Fatal("it is reached")
				}
				text := err.Error()
				if !strings.HasPrefix(text, c.endpoint+": cannot be reached: ") || !strings.Contains(text, c.cause) || !strings.Contains(text, c.todo) || strings.Contains(text, "\n") {
					t.Errorf("it says %s", text)
				}
				if waited := time.Since(began) >= limit; waited != c.waits {
					t.Errorf("it takes %v", time.Since(began))
				}
			}
		})
	}
	client, err := Dial(t.Context(), Config{Endpoints: []string{"https://" + secure}, CACert: right.ca, Cert: right.cert, Key: right.key})
	check(t, err)
	check(t, client.Close())
}

// TestDialWaits: a server that is starting is waited for.
func TestDialWaits(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dialed := make(chan error, 1)
	go func() {
		client, err := Dial(ctx, Config{Endpoints: []string{"unix://" + socket}, DialTimeout: time.Minute})
		if err == nil {
			err = client.Close()
		}
		dialed <- err
	}()
	select {
	case err := <-dialed:
		t.Fatalf("it does not wait: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	serveAt(t, alone{}, socket)
	check(t, <-dialed)
}

func TestDialEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Dial(ctx, Config{Endpoints: []string{"http://127.0.0.1:1"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("a command that is interrupted: %v", err)
	}
	if _, err := Dial(t.Context(), Config{Endpoints: []string{"https://127.0.0.1:1"}, CACert: "/nowhere"}); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("a certificate that is not there: %v", err)
	}
}
