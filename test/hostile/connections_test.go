package hostile

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/test/harness"
)

func (s *server) dial(t testing.TB) net.Conn {
	t.Helper()
	conn, err := harness.DialUnix(patient(t), s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ended waits until the server has closed conn.
func ended(t testing.TB, conn net.Conn) error {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("the server keeps the connection")
	}
	return nil // reset or closed
}

const clientHello = "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" // of 512 bytes

// TestHalfOpen has connections that begin something and do not go on, a
// thousand of each kind. The server closes by itself what no client would do
// for long.
func TestHalfOpen(t *testing.T) {
	t.Parallel() // it waits
	s := start(t)
	var headers bytes.Buffer
	headers.WriteString(http2.ClientPreface)
	framer := http2.NewFramer(&headers, nil)
	must(t, framer.WriteSettings())
	settings := headers.Len()
	must(t, framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}}))

	n := scaled(t, 1000)
	s.under(t, 450, func(t *testing.T) {
		var waiting []net.Conn
		for what, begin := range map[string]string{
			"nothing":                               "",
			"half a preface":                        http2.ClientPreface[:10],
			"a preface and no settings":             http2.ClientPreface,
			"half an HTTP request":                  "GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
			"half a method":                         "GE",
			"a TLS handshake where there is no TLS": clientHello,
			"settings and nothing more":             headers.String()[:settings], // as a client with nothing to say
			"headers that do not end":               headers.String(),
		} {
			for range n {
				conn := s.dial(t)
				if _, err := io.WriteString(conn, begin); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if len(begin) < settings {
					waiting = append(waiting, conn)
				}
			}
		}
		if status, body, err := s.Get(patient(t), "/health"); err != nil || status != http.StatusOK {
			t.Errorf("/health: %d %s %v", status, body, err)
		}
		if err := parallel(len(waiting), func(i int) error { return ended(t, waiting[i]) }); err != nil {
			t.Error(err)
		}
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// rawHTTP2 is a connection whose frames are the test's own.
type rawHTTP2 struct {
	net.Conn
	out     bytes.Buffer
	framer  *http2.Framer
	headers bytes.Buffer
	encoder *hpack.Encoder
}

func (s *server) http2(t testing.TB) *rawHTTP2 {
	t.Helper()
	c := &rawHTTP2{Conn: s.dial(t)}
	c.framer = http2.NewFramer(&c.out, nil)
	c.encoder = hpack.NewEncoder(&c.headers)
	c.out.WriteString(http2.ClientPreface)
	must(t, c.framer.WriteSettings())
	return c
}

// flush sends what was written.
func (c *rawHTTP2) flush() error {
	_, err := c.Write(c.out.Bytes())
	c.out.Reset()
	return err
}

// discard reads what the server says, as a client that answers nothing.
func (c *rawHTTP2) discard() { go func() { _, _ = io.Copy(io.Discard, c.Conn) }() }

// open writes the headers of a request, in as many frames as they need.
func (c *rawHTTP2) open(stream uint32, method string, more ...hpack.HeaderField) error {
	c.headers.Reset()
	for _, f := range append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: method},
		{Name: ":authority", Value: "localhost"}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
	}, more...) {
		if err := c.encoder.WriteField(f); err != nil {
			return err
		}
	}
	block := c.headers.Next(frameSize)
	err := c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block, EndHeaders: c.headers.Len() == 0})
	for err == nil && c.headers.Len() > 0 {
		block = c.headers.Next(frameSize)
		err = c.framer.WriteContinuation(stream, c.headers.Len() == 0, block)
	}
	return err
}

// frameSize is the largest frame that a server takes unless it says otherwise.
const frameSize = 16 << 10

// message is m as gRPC frames it.
func message(m proto.Message) []byte {
	body, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...)
}

const (
	rangeMethod = "/etcdserverpb.KV/Range"
	putMethod   = "/etcdserverpb.KV/Put"
	watchMethod = "/etcdserverpb.Watch/Watch"
)

// TestFloods sends frames of one kind as fast as it goes, on a connection
// whose answers are read or not. The server may end that connection.
func TestFloods(t *testing.T) {
	s := start(t)
	get := message(&pb.RangeRequest{Key: []byte("a")})
	list := message(everything())
	for _, flood := range []struct {
		name   string
		unread bool
		frame  func(c *rawHTTP2, i int) error
	}{
		{"resets of opened streams", false, func(c *rawHTTP2, i int) error {
			id := uint32(2*i + 1)
			return errors.Join(c.open(id, rangeMethod), c.framer.WriteRSTStream(id, http2.ErrCodeCancel))
		}},
		{"resets of requests", false, func(c *rawHTTP2, i int) error {
			id := uint32(2*i + 1)
			return errors.Join(c.open(id, rangeMethod), c.framer.WriteData(id, true, get), c.framer.WriteRSTStream(id, http2.ErrCodeCancel))
		}},
		{"requests, unread", true, func(c *rawHTTP2, i int) error {
			id := uint32(2*i + 1)
			return errors.Join(c.open(id, rangeMethod), c.framer.WriteData(id, true, list))
		}},
		{"pings, unread", true, func(c *rawHTTP2, i int) error { return c.framer.WritePing(false, [8]byte{}) }},
		{"settings, unread", true, func(c *rawHTTP2, i int) error {
			return c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i % 65536)})
		}},
		{"window updates", false, func(c *rawHTTP2, i int) error { return c.framer.WriteWindowUpdate(0, 1) }},
		{"empty data", false, func(c *rawHTTP2, i int) error {
			if i == 0 {
				return c.open(1, watchMethod)
			}
			return c.framer.WriteData(1, false, nil)
		}},
		{"endless headers", false, func(c *rawHTTP2, i int) error {
			if i == 0 {
				return c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}})
			}
			return c.framer.WriteContinuation(1, false, bytes.Repeat([]byte("\x00\x01a\x01b"), 1000))
		}},
		{"unknown methods", false, func(c *rawHTTP2, i int) error {
			id := uint32(2*i + 1)
			return errors.Join(c.open(id, "/x/"+fmt.Sprint(i)), c.framer.WriteData(id, true, nil))
		}},
	} {
		t.Run(flood.name, func(t *testing.T) {
			n := scaled(t, 30_000)
			s.under(t, 350, func(t *testing.T) {
				c := s.http2(t)
				if !flood.unread {
					c.discard()
				}
				// A write that goes no further is a server that does not
				// take more: that is one way to be safe.
				must(t, c.SetWriteDeadline(time.Now().Add(3*time.Second)))
				sent := 0
				for sent < n {
					must(t, flood.frame(c, sent))
					sent++
					if c.out.Len() > 32<<10 || sent == n {
						if err := c.flush(); err != nil {
							break
						}
					}
				}
				t.Logf("%d of %d frames sent", sent, n)
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestManyStreams opens streams by the ten thousand on one connection, and
// those of them that send headers as large as the server takes.
func TestManyStreams(t *testing.T) {
	s := start(t)
	t.Run("watch", func(t *testing.T) {
		n := scaled(t, 10_000)
		s.under(t, 350, func(t *testing.T) {
			c := s.http2(t)
			c.discard()
			for i := range n {
				must(t, c.open(uint32(2*i+1), watchMethod))
				if c.out.Len() > 32<<10 {
					must(t, c.flush())
				}
			}
			must(t, c.flush())
			s.streams(t, n)
			t.Logf("%d MiB with %d streams", s.memory(t, "VmRSS"), n)
		})
	})
	t.Run("large headers", func(t *testing.T) {
		s.under(t, 350, func(t *testing.T) {
			many := make([]hpack.HeaderField, 200_000) // 6.5 MiB by HTTP/2's count, 200 KB on the wire
			for i := range many {
				many[i] = hpack.HeaderField{Name: "a", Value: "b"}
			}
			for range 10 {
				c := s.http2(t)
				c.discard()
				must(t, c.SetWriteDeadline(time.Now().Add(patience)))
				for i := range 20 {
					must(t, c.open(uint32(2*i+1), watchMethod, many...))
					if c.flush() != nil {
						break // the server has closed the connection
					}
				}
			}
		})
	})
}

// streams waits until the server has seen n watch streams.
func (s *server) streams(t testing.TB, n int) {
	t.Helper()
	ctx := patient(t)
	want := fmt.Sprintf("etcd_debugging_mvcc_watch_stream_total %d", n+1) // and the healthy client's
	for {
		_, body, err := s.Get(ctx, "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(body, want) {
			return
		}
		if s.Backend == harness.Etcd && strings.Contains(body, "etcd_debugging_mvcc_watch_stream_total") {
			return
		}
	}
}

// TestHalfMessages has requests of which all but the end has come. That much of
// each is in memory: what a client sends is not more than what it costs.
func TestHalfMessages(t *testing.T) {
	s := start(t)
	n := scaled(t, 200)
	s.under(t, 700, func(t *testing.T) {
		body := message(&pb.PutRequest{Key: []byte("half"), Value: make([]byte, fitting)})
		conns := make([]*rawHTTP2, n)
		for i := range conns {
			conns[i] = s.http2(t)
		}
		if err := parallel(n, func(i int) error { return conns[i].send(putMethod, body[:len(body)-1]) }); err != nil {
			t.Error(err)
		}
	})
}

// send sends the begin of a request's body as the server's windows allow.
func (c *rawHTTP2) send(method string, body []byte) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if err := errors.Join(c.open(1, method), c.flush()); err != nil {
		return err
	}
	in := http2.NewFramer(io.Discard, c.Conn)
	windows := [2]int{65535, 65535} // of the connection and of the stream
	for len(body) > 0 {
		if n := min(windows[0], windows[1], len(body), frameSize); n > 0 {
			if err := errors.Join(c.framer.WriteData(1, false, body[:n]), c.flush()); err != nil {
				return err
			}
			body = body[n:]
			windows[0] -= n
			windows[1] -= n
			continue
		}
		frame, err := in.ReadFrame()
		if err != nil {
			return err
		}
		switch f := frame.(type) {
		case *http2.WindowUpdateFrame:
			windows[f.StreamID] += int(f.Increment)
		case *http2.PingFrame:
			if !f.IsAck() {
				err = errors.Join(c.framer.WritePing(true, f.Data), c.flush())
			}
		case *http2.GoAwayFrame, *http2.RSTStreamFrame:
			err = fmt.Errorf("the server ends it: %v", f)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// startShell starts keelson by a line of shell, "$0" and "$@" being the command.
func startShell(t *testing.T, line string, listen func(dir string) []string) *server {
	t.Helper()
	dir := harness.TempDir(t)
	s := &server{&harness.Server{Backend: harness.Keelson, Dir: dir, Socket: filepath.Join(dir, "client.sock")}}
	s.Endpoint = "unix://" + s.Socket
	args := append([]string{"-c", line, harness.KeelsonBinary(t), "--data-dir", filepath.Join(dir, "data")}, listen(dir)...)
	s.Process = harness.StartProcess(t, dir, "keelson", "/bin/sh", args...)
	must(t, s.WaitReady(patience, func(ctx context.Context) error {
		_, _, err := s.Get(ctx, "/health")
		return err
	}))
	return s
}

// TestTLSHandshakes begins TLS handshakes and does not go on, or not after
// them.
func TestTLSHandshakes(t *testing.T) {
	t.Parallel() // it waits
	s := startShell(t, `exec "$0" "$@"`, func(dir string) []string {
		cert, key := certificate(t, dir)
		return []string{
			"--listen-client-urls", "unix://" + filepath.Join(dir, "client.sock") + ",unixs://" + filepath.Join(dir, "tls.sock"),
			"--cert-file", cert, "--key-file", key,
		}
	})
	n := scaled(t, 1000)
	s.under(t, 200, func(t *testing.T) {
		err := parallel(n, func(i int) error {
			conn, err := harness.DialUnix(patient(t), filepath.Join(s.Dir, "tls.sock"))
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			switch i % 3 {
			case 1:
				_, err = io.WriteString(conn, clientHello)
			case 2:
				err = tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(patient(t))
			}
			if err != nil {
				return err
			}
			return ended(t, conn)
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// certificate makes one that signs itself, and returns its files.
func certificate(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	must(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	must(t, err)
	cert, key = filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")
	must(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
	return cert, key
}

// TestOutOfFiles opens more connections than the server may have files. It
// goes on serving those that it has, reads its data from disk, and takes new
// connections once others have gone.
func TestOutOfFiles(t *testing.T) {
	s := startShell(t, `ulimit -n 400 && exec "$0" "$@"`, func(dir string) []string {
		return []string{"--listen-client-urls", "unix://" + filepath.Join(dir, "client.sock"), "--cache-bytes", "1"}
	})
	s.fill(t, "disk/", 100, []byte("not in memory"), 100)
	s.under(t, 150, func(t *testing.T) {
		kv := pb.NewKVClient(s.conn(t))
		read := func() error {
			resp, err := kv.Range(patient(t), &pb.RangeRequest{Key: []byte("disk/"), RangeEnd: []byte("disk0")})
			if err == nil && (len(resp.Kvs) != 100 || string(resp.Kvs[99].Value) != "not in memory") {
				err = fmt.Errorf("%d keys, the last one %v", len(resp.Kvs), resp.Kvs[len(resp.Kvs)-1])
			}
			return err
		}
		must(t, read())
		var conns []*rawHTTP2
		for range 600 {
			c := s.http2(t)
			_ = c.flush() // the server may have closed it
			conns = append(conns, c)
		}
		if err := parallel(50, func(int) error { return read() }); err != nil {
			t.Errorf("reading with all connections taken: %v", err)
		}
		for _, c := range conns {
			_ = c.Close()
		}
		_, err := pb.NewKVClient(s.conn(t)).Range(patient(t), &pb.RangeRequest{Key: []byte("a")}, grpc.WaitForReady(true))
		if err != nil {
			t.Errorf("a new connection after the others have gone: %v", err)
		}
	})
}
