// Package embed runs keelson inside another Go program, as the command
// itself does:
//
//	server, err := embed.Start(ctx, embed.Config{DataDir: dir})
//	…
//	client, err := clientv3.New(clientv3.Config{Endpoints: server.Endpoints()})
//	…
//	err = server.Close()
//
// It puts the parts together and owns their order of start and stop:
//
//	listeners ─ mux ─┬─ gRPC ─┐                       ┌─ watch hub
//	                 └─ HTTP ─┴─ server ─ store ─ log ┤
//	                                        └─ apply ─┴─ lessor
//
// Stopping goes from the left to the right: first no new connections, then
// watches end, requests under way are answered, and only then the store
// commits what is queued and the log closes. What was acknowledged is on disk
// already; what was taken in is answered.
package embed

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"

	"github.com/keelson-io/keelson/pkg/listen"
	"github.com/keelson-io/keelson/pkg/server"
)

// Server is a running keelson.
type Server struct {
	set *settings
	log *logrus.Entry

	endpoints []string
	advertise []string

	listeners []bound
	backend   *backend
	api       *server.Server
	grpc      *grpc.Server
	gateway   *server.Gateway // nil: no JSON
	backups   *backups        // nil: none are made

	mux, metricsMux *listen.Mux  // of the client and of the metrics URLs
	http, metrics   *http.Server // what they take for HTTP

	serving sync.WaitGroup // accept loops and servers
	failed  chan error     // the first failure; has room for one
	ready   chan struct{}  // closed by becomeReady
	stop    chan struct{}  // closed by Close
	once    sync.Once
	done    chan struct{} // closed when everything has ended; then err is set
	err     error
}

// bound is an open listener.
type bound struct {
	net.Listener
	url     listen.URL // with the port it got
	metrics bool
	certs   *listen.Certs // nil without TLS
}

// Start starts a server that runs until ctx ends, Close is called or its
// storage fails. When it returns, the server answers; on a node of a cluster,
// what needs a leader waits for one (see Ready). The error is ErrConfig,
// listen.ErrInUse, sqlite.ErrLocked if another keelson has the data, or
// another that says why the data cannot be served.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	set, err := cfg.resolve()
	if err != nil {
		return nil, err
	}
	s := &Server{
		set:    set,
		log:    set.Logger,
		failed: make(chan error, 1),
		stop:   make(chan struct{}),
		done:   make(chan struct{}),
		ready:  make(chan struct{}),
	}
	if err := s.open(ctx); err != nil {
		s.closeListeners()
		if s.backend != nil {
			err = errors.Join(err, s.backend.stop())
		}
		return nil, err
	}
	s.serve()
	s.warn()
	if s.backend.cluster == nil {
		s.becomeReady()
	}
	go s.supervise(ctx)
	return s, nil
}

// Endpoint is the first URL that clients can use, in clientv3's notation.
func (s *Server) Endpoint() string { return s.endpoints[0] }

// Endpoints are all of them, in the order of ListenClientURLs, with the ports
// that were picked for port 0.
func (s *Server) Endpoints() []string { return slices.Clone(s.endpoints) }

// Done is closed when the server has ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err is why the server ended: nil if it was asked to, or has not yet.
func (s *Server) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// Wait waits for the end and returns Err.
func (s *Server) Wait() error {
	<-s.done
	return s.err
}

// Close stops the server and waits for its end: requests under way are
// answered, as long as that takes no longer than DrainTimeout. It returns
// Err, and may be called more than once.
func (s *Server) Close() error {
	s.once.Do(func() { close(s.stop) })
	return s.Wait()
}

// open gets hold of everything that can be missing or taken: certificates,
// the data, the addresses.
func (s *Server) open(ctx context.Context) (err error) {
	var certs *listen.Certs
	if s.set.secure() {
		if certs, err = listen.LoadCerts(s.set.tls, s.log); err != nil {
			return fmt.Errorf("%w: %w", ErrConfig, err)
		}
	}
	// The data first: its lock says whether a socket in the data directory
	// may be replaced.
	if s.backend, err = openBackend(ctx, s.set); err != nil {
		return err
	}
	if err := s.listen(ctx, s.set.client, false, certs); err != nil {
		return err
	}
	if err := s.listen(ctx, s.set.metrics, true, certs); err != nil {
		return err
	}
	if s.advertise = s.set.advertise; len(s.advertise) == 0 {
		s.advertise = s.defaultAdvertise()
	}
	if err := s.backend.load(ctx); err != nil {
		return err
	}
	return s.build()
}

func (s *Server) listen(ctx context.Context, urls []listen.URL, metrics bool, certs *listen.Certs) error {
	for _, u := range urls {
		l, err := listen.Listen(ctx, u, listen.SocketOptions{Mode: s.set.SocketMode, Group: s.set.SocketGroup})
		if err != nil {
			return err
		}
		b := bound{Listener: l, url: u, metrics: metrics}
		if u.Network() == "tcp" {
			_, port, err := net.SplitHostPort(l.Addr().String())
			if err != nil {
				return err
			}
			b.url.Address = net.JoinHostPort(u.Host(), port)
		}
		if u.Secure() {
			b.certs = certs
		}
		s.listeners = append(s.listeners, b)
		if !metrics {
			s.endpoints = append(s.endpoints, reachable(b.url).String())
		}
	}
	return nil
}

// reachable is u as a client on this machine writes it.
func reachable(u listen.URL) listen.URL {
	if !u.Wildcard() {
		return u
	}
	_, port, _ := net.SplitHostPort(u.Address)
	host := "127.0.0.1"
	if ip := net.ParseIP(u.Host()); ip != nil && ip.To4() == nil {
		host = "::1"
	}
	u.Address = net.JoinHostPort(host, port)
	return u
}

// defaultAdvertise is what is listened on; all addresses of the machine are
// represented by one that others can reach.
func (s *Server) defaultAdvertise() []string {
	var urls []string
	for _, b := range s.listeners {
		if b.metrics {
			continue
		}
		u := b.url
		if u.Wildcard() {
			_, port, _ := net.SplitHostPort(u.Address)
			u.Address = net.JoinHostPort(outsideAddress(), port)
			s.log.WithField("advertise", u.String()).Warn("listening on all addresses; clients are told this one: set --advertise-client-urls to choose")
		}
		urls = append(urls, u.String())
	}
	return urls
}

// outsideAddress is an address of this machine that is not its loopback.
func outsideAddress() string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "127.0.0.1"
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	return "127.0.0.1"
}

func (s *Server) closeListeners() {
	for _, l := range s.listeners {
		_ = l.Close() // and removes unix sockets
	}
}

// warn tells the operator what is allowed and yet unwise.
func (s *Server) warn() {
	for _, b := range s.listeners {
		s.warnOfDirectory(b.url)
		if b.url.Secure() || b.url.Loopback() {
			if b.url.Secure() && s.set.TLS.TrustedCAFile == "" && !b.url.Loopback() && !b.metrics {
				s.log.WithField("url", b.url.String()).Warn("every machine that reaches this address can read and write everything: ask for client certificates with --client-cert-auth and --trusted-ca-file")
			}
			continue
		}
		if !b.metrics {
			s.log.WithField("url", b.url.String()).Warn("every machine that reaches this address can read and write everything, unencrypted: use https:// with --cert-file, --key-file and --client-cert-auth, or listen on 127.0.0.1 or a unix socket")
		}
	}
	if c := s.backend.cluster; c != nil {
		for _, u := range c.set.listen {
			if !u.Secure() && !u.Loopback() {
				s.log.WithField("url", u.String()).Warn("every machine that reaches this address can write everything as a node of the cluster would: use https:// with --peer-cert-file, --peer-key-file and --peer-trusted-ca-file")
			}
		}
	}
	if info, err := os.Stat(s.set.DataDir); err == nil && info.Mode().Perm()&0o077 != 0 {
		s.log.WithFields(logrus.Fields{"data-dir": s.set.DataDir, "mode": fmt.Sprintf("%04o", info.Mode().Perm())}).Warn("other users can look into the data directory: chmod 700 it")
	}
}

// warnOfDirectory warns if a socket is open to others and its directory is
// not.
func (s *Server) warnOfDirectory(u listen.URL) {
	if u.Network() != "unix" || s.set.SocketGroup == "" && s.set.SocketMode&0o066 == 0 {
		return
	}
	dir := filepath.Dir(u.Address)
	if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o011 == 0 {
		s.log.WithField("url", u.String()).Warnf("others may open this socket, but not enter %s: put it into another directory with --listen-client-urls", dir)
	}
}

// identity derives a member or cluster id from a name. Invariant: never 0,
// which means "none" on the wire.
func identity(parts ...string) uint64 {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return max(1, binary.BigEndian.Uint64(sum[:8]))
}

// supervise ends the server when it must end.
func (s *Server) supervise(ctx context.Context) {
	defer close(s.done)
	var err error
	select {
	case <-ctx.Done():
	case <-s.stop:
	case err = <-s.failed:
		s.log.WithError(err).Error("stopping after a failure")
	}
	stopErr := s.shutdown()
	if err != nil && !errors.Is(stopErr, err) {
		stopErr = errors.Join(err, stopErr)
	}
	s.err = stopErr
}

// fail makes the server stop for err, if it is the first one.
func (s *Server) fail(err error) {
	if err == nil {
		return
	}
	select {
	case s.failed <- err:
	default:
	}
}
