package listen

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/keelson-io/keelson/pkg/listen/certtest"
)

// forever is longer than anything may take on a machine that is merely slow.
const forever = 2 * time.Minute

// front is a gRPC and an HTTP server behind one Mux.
type front struct {
	mux  *Mux
	logs *test.Hook
}

func startFront(t *testing.T, timeout time.Duration, certs *Certs, listeners ...net.Listener) *front {
	t.Helper()
	logger, hook := test.NewNullLogger()
	logger.SetLevel(logrus.DebugLevel)
	f := &front{mux: NewMux(logrus.NewEntry(logger), timeout, 0), logs: hook}
	gs := grpc.NewServer()
	healthpb.RegisterHealthServer(gs, health.NewServer())
	hs := &http.Server{ReadHeaderTimeout: forever, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			gs.ServeHTTP(w, r)
			return
		}
		_, _ = io.WriteString(w, r.Proto+" "+r.URL.Path)
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = gs.Serve(f.mux.GRPC()) })
	wg.Go(func() { _ = hs.Serve(f.mux.HTTP()) })
	for _, l := range listeners {
		wg.Go(func() {
			if err := f.mux.Serve(l, certs); err != nil {
				t.Errorf("serve %s: %v", l.Addr(), err)
			}
		})
	}
	t.Cleanup(func() {
		for _, l := range listeners {
			_ = l.Close()
		}
		_ = f.mux.Close()
		gs.Stop()
		_ = hs.Close()
		wg.Wait()
	})
	return f
}

func listenOn(t *testing.T, url string) net.Listener {
	t.Helper()
	u, err := ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen(t.Context(), u, SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func checkGRPC(t *testing.T, target string, creds credentials.TransportCredentials) {
	t.Helper()
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), forever)
	defer cancel()
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
	if err != nil || resp.Status != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("gRPC on %s: %v, %v", target, resp, err)
	}
}

func get(t *testing.T, client *http.Client, url string) string {
	t.Helper()
	resp, err := client.Get(url)
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

func clientOf(transport *http.Transport) *http.Client {
	transport.DisableKeepAlives = true
	return &http.Client{Transport: transport, Timeout: forever}
}

func TestOnePortSpeaksAll(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "k.sock")
	tcp, unix := listenOn(t, "http://127.0.0.1:0"), listenOn(t, "unix://"+sock)
	startFront(t, 0, nil, tcp, unix)

	checkGRPC(t, tcp.Addr().String(), insecure.NewCredentials())
	checkGRPC(t, "unix://"+sock, insecure.NewCredentials())
	if got := get(t, clientOf(&http.Transport{}), "http://"+tcp.Addr().String()+"/health"); got != "HTTP/1.1 /health" {
		t.Errorf("over TCP: %q", got)
	}
	overUnix := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", sock)
	}}
	if got := get(t, clientOf(overUnix), "http://keelson/metrics"); got != "HTTP/1.1 /metrics" {
		t.Errorf("over a unix socket: %q", got)
	}
}

func TestTLSPortSpeaksAll(t *testing.T) {
	ca := certtest.New(t)
	dir := t.TempDir()
	ca.Issue(t, dir, "server")
	certs := loadCerts(t, TLSFiles{CertFile: filepath.Join(dir, "server.crt"), KeyFile: filepath.Join(dir, "server.key")})
	l := listenOn(t, "https://127.0.0.1:0")
	startFront(t, 0, certs, l)
	addr := l.Addr().String()

	trust := &tls.Config{RootCAs: ca.Pool(), MinVersion: tls.VersionTLS12}
	checkGRPC(t, addr, credentials.NewTLS(trust))

	t.Run("grpc that also offers http/1.1", func(t *testing.T) {
		both := trust.Clone()
		both.NextProtos = []string{"h2", "http/1.1"}
		checkGRPC(t, addr, credentials.NewTLS(both))
	})
	t.Run("http/2", func(t *testing.T) {
		if got := get(t, clientOf(&http.Transport{TLSClientConfig: trust.Clone(), ForceAttemptHTTP2: true}), "https://"+addr+"/health"); got != "HTTP/2.0 /health" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("h2 alone is gRPC", func(t *testing.T) {
		transport := &http.Transport{TLSClientConfig: trust.Clone(), Protocols: new(http.Protocols)}
		transport.Protocols.SetHTTP2(true)
		resp, err := clientOf(transport).Get("https://" + addr + "/health")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusUnsupportedMediaType {
			t.Errorf("status %s", resp.Status)
		}
	})
	t.Run("http/1.1", func(t *testing.T) {
		only := trust.Clone()
		only.NextProtos = []string{"http/1.1"}
		if got := get(t, clientOf(&http.Transport{TLSClientConfig: only}), "https://"+addr+"/version"); got != "HTTP/1.1 /version" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("no ALPN", func(t *testing.T) {
		conn, err := tls.Dial("tcp", addr, trust.Clone())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if err := httptest.NewRequest(http.MethodGet, "https://"+addr+"/x", nil).Write(conn); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%v, %v", resp, err)
		}
		_ = resp.Body.Close()
	})
}

// A connection that says nothing must neither keep others waiting nor stay.
func TestSilentConnection(t *testing.T) {
	ca := certtest.New(t)
	dir := t.TempDir()
	ca.Issue(t, dir, "server")
	certs := loadCerts(t, TLSFiles{CertFile: filepath.Join(dir, "server.crt"), KeyFile: filepath.Join(dir, "server.key")})
	plain, secure := listenOn(t, "http://127.0.0.1:0"), listenOn(t, "https://127.0.0.1:0")
	startFront(t, 300*time.Millisecond, nil, plain)
	startFront(t, 300*time.Millisecond, certs, secure)

	for _, tt := range []struct {
		name, addr, says string
	}{
		{"nothing", plain.Addr().String(), ""},
		{"half a preface", plain.Addr().String(), "PRI * HT"},
		{"no handshake", secure.Addr().String(), ""},
		{"half a handshake", secure.Addr().String(), "\x16\x03\x01"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", tt.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if _, err := io.WriteString(conn, tt.says); err != nil {
				t.Fatal(err)
			}
			checkGRPC(t, plain.Addr().String(), insecure.NewCredentials())
			_ = conn.SetReadDeadline(time.Now().Add(forever))
			if _, err := io.ReadAll(conn); err != nil && !strings.Contains(err.Error(), "reset") {
				t.Fatalf("the server kept the connection: %v", err)
			}
		})
	}
}

func TestCloseEndsWhatNobodyTook(t *testing.T) {
	l := listenOn(t, "http://127.0.0.1:0")
	mux := NewMux(logrus.NewEntry(logrus.New()), time.Hour, 0)
	served := make(chan error, 1)
	go func() { served <- mux.Serve(l, nil) }()
	silent, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	spoken, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = spoken.Close() }()
	if _, err := io.WriteString(spoken, preface); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	_ = mux.Close()
	for _, conn := range []net.Conn{silent, spoken} {
		_ = conn.SetReadDeadline(time.Now().Add(forever))
		if _, err := io.ReadAll(conn); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Fatalf("connection still open: %v", err)
		}
	}
}

// BenchmarkPeeked is what the mux adds to each read after the first.
func BenchmarkPeeked(b *testing.B) {
	c := &peeked{Conn: nullConn{}}
	p := make([]byte, 32<<10)
	for b.Loop() {
		_, _ = c.Read(p)
	}
}

// TestWriteYields: goroutines that are ready to run go before a write of some
// size, which they may add to, but not before a small or a large one.
func TestWriteYields(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for _, tt := range []struct {
		bytes int
		want  bool
	}{{fewBytes - 1, false}, {fewBytes, true}, {manyBytes, true}, {manyBytes + 1, false}} {
		const tries = 100
		yields := 0
		for range tries { // the scheduler is not bound to an order
			var ran atomic.Bool
			conn := &lookingConn{look: func() {
				if ran.Load() {
					yields++
				}
			}}
			done := make(chan struct{})
			go func() { ran.Store(true); close(done) }()
			_, _ = (&placed{peeked: peeked{Conn: conn}}).Write(make([]byte, tt.bytes))
			<-done
		}
		if got := yields > tries/2; got != tt.want {
			t.Errorf("%d bytes: others went first %d times of %d", tt.bytes, yields, tries)
		}
	}
}

// lookingConn calls look when it is written to.
type lookingConn struct {
	net.Conn
	look func()
}

func (c *lookingConn) Write(p []byte) (int, error) { c.look(); return len(p), nil }

type nullConn struct{ net.Conn }

func (nullConn) Read(p []byte) (int, error) { return len(p), nil }

// When all places are taken, what has said nothing yet makes way for what
// comes; what is being served stays, and a newcomer waits for its end.
func TestMuxPlaces(t *testing.T) {
	const places = 3
	l := listenOn(t, "http://127.0.0.1:0")
	logger, hook := test.NewNullLogger()
	mux := NewMux(logrus.NewEntry(logger), time.Hour, places)
	var wg sync.WaitGroup
	wg.Go(func() { _ = mux.Serve(l, nil) })
	t.Cleanup(func() {
		_ = l.Close()
		_ = mux.Close()
		wg.Wait()
		if mux.open != 0 {
			t.Errorf("%d places are still taken", mux.open)
		}
	})
	dial := func(say string) net.Conn {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if _, err := io.WriteString(conn, say); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	accept := func() net.Conn {
		conn, err := mux.HTTP().Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	ended := func(conn net.Conn) {
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("it still has its place")
		}
	}

	dial("GET ")
	first := accept()
	silent := []net.Conn{dial(""), dial("P"), dial("PR")} // one more than there is room for
	ended(silent[0])
	dial("GET ")
	accept()
	ended(silent[1])
	dial("GET ")
	accept()
	ended(silent[2])
	if hook.LastEntry() == nil || hook.LastEntry().Level != logrus.WarnLevel {
		t.Error("nobody was told")
	}

	dial("GET ")
	waiting := make(chan net.Conn)
	go func() { waiting <- accept() }()
	select {
	case <-waiting:
		t.Error("there are more connections than places")
	case <-time.After(20 * time.Millisecond):
	}
	for range 2 { // a place is given back once
		_ = first.Close()
	}
	(<-waiting).Close()
}
