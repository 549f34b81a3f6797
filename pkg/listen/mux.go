package listen

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
)

// preface is the start of the HTTP/2 connection preface (RFC 9113, 3.4). No
// HTTP/1 method begins like it.
const preface = "PRI * HTTP/2.0"

// tlsHandshake is the first byte of TLS (RFC 8446, 5.1), and of no HTTP.
const tlsHandshake = 0x16

// errTLS: somebody speaks TLS where there is none.
var errTLS = fmt.Errorf("%w: it speaks TLS, which this URL does not: it must begin with https:// on both sides, or with http:// on both", ErrHandshake)

// DefaultSniffTimeout bounds the time from accept to the first bytes of the
// protocol, TLS handshake included.
const DefaultSniffTimeout = 10 * time.Second

// Mux hands each accepted connection to the server that understands it:
//
//	plain text   HTTP/2 preface                        gRPC
//	             anything else                         HTTP
//	TLS          client offers h2 but not http/1.1     gRPC: what gRPC clients offer
//	             client offers both                    HTTP: browsers, curl, net/http
//	             client offers neither                 as in plain text
//
// gRPC connections then run on grpc-go's own transport, at a third of the cost
// of serving gRPC through net/http (BenchmarkGRPC). The few gRPC clients that
// do offer http/1.1 reach the HTTP side over HTTP/2, whose handler passes
// their requests on. What does not work is plain HTTP over HTTP/2 without
// ALPN, such as curl --http2-prior-knowledge: telling it from gRPC would mean
// to speak HTTP/2 first. It is answered 415 by gRPC.
//
// Each connection is looked at in its own goroutine under a deadline: one that
// sends nothing keeps nobody waiting. Afterwards the only cost is a nil check
// for each read, or none with TLS.
//
// There are at most as many connections as the Mux has places. When all are
// taken, a new connection gets the place of the one that has said nothing for
// longest, or waits until another one ends, as with etcd.
type Mux struct {
	log     *logrus.Entry
	timeout time.Duration
	places  int
	grpc    *handOver
	http    *handOver
	conns   sync.WaitGroup // the goroutines that look at a connection
	freed   chan struct{}  // has room for one: there may be a place
	done    chan struct{}  // closed by Close

	mu      sync.Mutex // guards what follows
	closed  bool
	open    int        // connections that have a place
	pending *list.List // of *placed: being looked at, the oldest first
	warned  time.Time  // when it was last said that all places are taken
	told    map[rejection]time.Time
}

// rejection is why connections from a host are rejected.
type rejection struct{ host, reason string }

// NewMux returns a Mux; Serve feeds it. timeout 0 is DefaultSniffTimeout,
// places 0 is no limit.
func NewMux(log *logrus.Entry, timeout time.Duration, places int) *Mux {
	if timeout <= 0 {
		timeout = DefaultSniffTimeout
	}
	if places <= 0 {
		places = math.MaxInt
	}
	return &Mux{
		log:     log,
		timeout: timeout,
		places:  places,
		grpc:    newHandOver(),
		http:    newHandOver(),
		freed:   make(chan struct{}, 1),
		done:    make(chan struct{}),
		pending: list.New(),
		told:    make(map[rejection]time.Time),
	}
}

// GRPC is the listener for a grpc.Server without credentials.
func (m *Mux) GRPC() net.Listener { return m.grpc }

// HTTP is the listener for an http.Server with HTTP/1 and HTTP/2.
func (m *Mux) HTTP() net.Listener { return m.http }

// Serve accepts from l until l is closed, which gives nil. With certs it
// speaks TLS. It may be called for several listeners at once.
func (m *Mux) Serve(l net.Listener, certs *Certs) error {
	var pause time.Duration
	for {
		conn, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case transient(err):
			// Out of file descriptors, or a client that left the queue:
			// others must not suffer for long.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			m.log.WithError(err).WithField("listener", l.Addr().String()).Warn("cannot accept a connection; trying again")
			time.Sleep(pause)
			continue
		case err != nil:
			return err
		}
		pause = 0
		p := m.place(conn)
		if p == nil {
			_ = conn.Close()
			continue
		}
		go m.sort(p, certs)
	}
}

func transient(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOBUFS) ||
		errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.ECONNABORTED) || errors.Is(err, syscall.EINTR)
}

// Close ends both listeners and the connections that no server has taken yet,
// and waits for the goroutines. Close the listeners given to Serve first.
func (m *Mux) Close() error {
	m.mu.Lock()
	if !m.closed {
		m.closed = true
		close(m.done)
	}
	for e := m.pending.Front(); e != nil; e = e.Next() {
		_ = e.Value.(*placed).Conn.Close()
	}
	m.mu.Unlock()
	_ = m.grpc.Close()
	_ = m.http.Close()
	m.conns.Wait()
	return nil
}

// warnInterval is the time between two warnings that all places are taken.
const warnInterval = time.Minute

// place gives conn a place, and waits for one if need be. It returns nil if the
// Mux is closed.
func (m *Mux) place(conn net.Conn) *placed {
	for {
		m.mu.Lock()
		if m.closed {
			m.mu.Unlock()
			return nil
		}
		if m.open < m.places {
			m.open++
			m.conns.Add(1)
			p := &placed{peeked: peeked{Conn: conn}, mux: m}
			p.pending = m.pending.PushBack(p)
			if m.open < m.places {
				m.signalFree() // for another listener's connection
			}
			m.mu.Unlock()
			return p
		}
		if time.Since(m.warned) > warnInterval {
			m.warned = time.Now()
			m.log.WithField("connections", m.places).Warn("as many connections are open as there may be: new ones wait for others to end; raise the limit of open files (LimitNOFILE, ulimit -n)")
		}
		if oldest := m.pending.Front(); oldest != nil {
			_ = oldest.Value.(*placed).Conn.Close() // its goroutine gives the place back
		}
		m.mu.Unlock()
		select {
		case <-m.freed:
		case <-m.done:
		}
	}
}

// leave takes back the place of a connection that has ended.
func (m *Mux) leave() {
	m.mu.Lock()
	m.open--
	m.mu.Unlock()
	m.signalFree()
}

func (m *Mux) signalFree() {
	select {
	case m.freed <- struct{}{}:
	default:
	}
}

// sort takes one connection from accept to the server that gets it.
func (m *Mux) sort(raw *placed, certs *Certs) {
	defer m.conns.Done()
	var (
		conn net.Conn
		to   *handOver
		err  = raw.SetDeadline(time.Now().Add(m.timeout))
	)
	switch {
	case err != nil:
	case certs != nil:
		conn, to, err = m.sortTLS(raw, certs)
	default:
		conn, to, err = m.sortPlain(raw)
	}
	if err == nil {
		err = raw.SetDeadline(time.Time{})
	}
	m.mu.Lock()
	m.pending.Remove(raw.pending)
	m.mu.Unlock()
	if err != nil {
		m.reject(raw, err)
		return
	}
	if !to.offer(conn) {
		_ = raw.Close()
	}
}

func (m *Mux) reject(conn net.Conn, err error) {
	log := m.log.WithError(err).WithField("remote-addr", conn.RemoteAddr().String())
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, os.ErrDeadlineExceeded) {
		log.Debug("connection ended before it said anything") // a TCP health check, or a flood of idle ones
	} else if m.tell(conn, err) {
		log.Warn("rejected connection")
	}
	_ = conn.Close()
}

const (
	// tellInterval is the time between two warnings of the same rejection: who
	// is rejected may try again every second.
	tellInterval = time.Hour

	// maxTold is how many rejections are remembered.
	maxTold = 1000
)

// tell reports whether to warn that conn is rejected with err.
func (m *Mux) tell(conn net.Conn, err error) bool {
	remote := conn.RemoteAddr().String()
	host, _, splitErr := net.SplitHostPort(remote)
	if splitErr != nil {
		host = remote
	}
	r := rejection{host, err.Error()}
	m.mu.Lock()
	defer m.mu.Unlock()
	if last, told := m.told[r]; told && time.Since(last) < tellInterval {
		return false
	}
	if len(m.told) >= maxTold {
		clear(m.told)
	}
	m.told[r] = time.Now()
	return true
}

func (m *Mux) sortPlain(conn net.Conn) (net.Conn, *handOver, error) {
	buf := make([]byte, len(preface))
	n := 0
	for n < len(buf) {
		k, err := conn.Read(buf[n:])
		n += k
		if n > 0 && buf[0] == tlsHandshake && m.tell(conn, errTLS) {
			m.log.WithError(errTLS).WithField("remote-addr", conn.RemoteAddr().String()).Warn("rejected connection")
		}
		if string(buf[:n]) != preface[:n] { // HTTP answers TLS with an error that TLS understands
			return withPeeked(conn, buf[:n]), m.http, nil
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return withPeeked(conn, buf), m.grpc, nil
}

func (m *Mux) sortTLS(raw net.Conn, certs *Certs) (net.Conn, *handOver, error) {
	var offered []string
	config := certs.config(func(hello *tls.ClientHelloInfo) { offered = hello.SupportedProtos })
	conn := tls.Server(raw, config)
	ctx, cancel := context.WithTimeout(context.Background(), m.timeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, nil, certs.explain(err, false)
	}
	switch conn.ConnectionState().NegotiatedProtocol {
	case "h2":
		if !slices.Contains(offered, "http/1.1") {
			return conn, m.grpc, nil
		}
		return conn, m.http, nil
	case "http/1.1":
		return conn, m.http, nil
	}
	return m.sortPlain(conn)
}

// peeked is a connection whose first bytes were read already.
type peeked struct {
	net.Conn
	buf []byte // owned by the reader; nil once it is drained
}

func (c *peeked) Read(p []byte) (int, error) {
	if c.buf == nil {
		return c.Conn.Read(p)
	}
	n := copy(p, c.buf)
	if c.buf = c.buf[n:]; len(c.buf) == 0 {
		c.buf = nil
	}
	return n, nil
}

// placed is an accepted connection, which has a place until it is closed.
type placed struct {
	peeked
	mux     *Mux
	pending *list.Element
	closed  atomic.Bool
}

// gRPC writes what there is to send at once, unless that is less than fewBytes:
// then it lets other goroutines run first, which may have more for the same
// connection. Up to manyBytes that is worth it, too: an event for ten watchers
// on one connection takes about two writes instead of ten.
const (
	fewBytes  = 1000
	manyBytes = 8 << 10
)

// Write implements net.Conn.
func (c *placed) Write(p []byte) (int, error) {
	if len(p) >= fewBytes && len(p) <= manyBytes {
		runtime.Gosched()
	}
	return c.Conn.Write(p)
}

// Close implements net.Conn.
func (c *placed) Close() error {
	err := c.Conn.Close()
	if !c.closed.Swap(true) {
		c.mux.leave()
	}
	return err
}

// withPeeked returns conn with buf put back in front.
func withPeeked(conn net.Conn, buf []byte) net.Conn {
	if p, ok := conn.(*placed); ok {
		p.buf = buf
		return p
	}
	return &peeked{Conn: conn, buf: buf}
}

// handOver is a net.Listener whose connections come from a channel.
type handOver struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newHandOver() *handOver {
	return &handOver{conns: make(chan net.Conn), done: make(chan struct{})}
}

// offer reports whether a server took conn.
func (h *handOver) offer(conn net.Conn) bool {
	select {
	case h.conns <- conn:
		return true
	case <-h.done:
		return false
	}
}

func (h *handOver) Accept() (net.Conn, error) {
	select {
	case conn := <-h.conns:
		return conn, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handOver) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

func (h *handOver) Addr() net.Addr { return muxAddr{} }

type muxAddr struct{}

func (muxAddr) Network() string { return "mux" }
func (muxAddr) String() string  { return "mux" }
