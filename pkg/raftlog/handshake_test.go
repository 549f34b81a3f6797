package raftlog_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/keelson-io/keelson/pkg/listen"
	"github.com/keelson-io/keelson/pkg/listen/certtest"
	"github.com/keelson-io/keelson/pkg/raftlog"
)

// nodeFiles issues a certificate with its key and says which authority, of the
// same name, the node trusts.
func nodeFiles(t *testing.T, issuer, trusted *certtest.Authority, change func(*x509.Certificate)) listen.TLSFiles {
	t.Helper()
	dir := t.TempDir()
	issuer.IssueAs(t, dir, "node", change)
	trusted.Write(t, filepath.Join(dir, "ca.crt"))
	return listen.TLSFiles{CertFile: filepath.Join(dir, "node.crt"), KeyFile: filepath.Join(dir, "node.key"), TrustedCAFile: filepath.Join(dir, "ca.crt")}
}

// TestHandshakes: a node whose certificate is not what it must be is not let in,
// nor is one reached, and the logs of both sides say once why.
func TestHandshakes(t *testing.T) {
	t.Parallel()
	ca, other := certtest.New(t), certtest.New(t)
	good := func(*x509.Certificate) {}
	elsewhere := func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = []string{"elsewhere"}, nil }
	usage := func(u x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{u} }
	}
	expired := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	node := nodeFiles(t, ca, ca, good)
	for _, c := range []struct {
		name           string
		server, client listen.TLSFiles // none: without TLS
		serverSays     string
		clientSays     string // both empty: it is let in
	}{
		{"as it must be", node, node, "", ""},
		{"without TLS", listen.TLSFiles{}, listen.TLSFiles{}, "", ""},
		{"certificate of another CA", node, nodeFiles(t, other, ca, good),
			"is not signed by an authority in", "whose authority it does not trust"},
		{"expired certificate", node, nodeFiles(t, ca, ca, expired), "its certificate is valid from", "as not valid now"},
		{"no client usage", node, nodeFiles(t, ca, ca, usage(x509.ExtKeyUsageServerAuth)),
			"the extended key usage clientAuth", "has not the extended key usage clientAuth"},
		{"server of another CA", nodeFiles(t, other, ca, good), node, "it refuses the certificate of this side", "is not signed by an authority in"},
		{"server with another name", nodeFiles(t, ca, ca, elsewhere), node, "it refuses the certificate of this side", "its certificate is not for 127.0.0.1"},
		{"expired server", nodeFiles(t, ca, ca, expired), node, "it refuses the certificate of this side", "its certificate is valid from"},
		{"no server usage", nodeFiles(t, ca, ca, usage(x509.ExtKeyUsageClientAuth)), node,
			"has not the extended key usage serverAuth", "the extended key usage serverAuth"},
		{"http to https", node, listen.TLSFiles{}, "it does not speak TLS", "if it takes only TLS"},
		{"https to http", listen.TLSFiles{}, node, "it speaks TLS, which this URL does not", "it does not speak TLS"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			server := serveTLS(t, c.server)
			logger, hook := test.NewNullLogger()
			var creds credentials.TransportCredentials
			if c.client.CertFile != "" {
				certs, err := listen.LoadCerts(c.client, logrus.NewEntry(logger))
				if err != nil {
					t.Fatal(err)
				}
				creds = certs.Credentials()
			}
			server.reach(t, creds, logger)
			if c.serverSays == "" {
				await(t, "the node is let in", server.letIn.Load)
				return
			}
			await(t, "both sides say why, and the node tries again", func() bool {
				return len(warnings(server.hook)) > 0 && len(warnings(hook)) > 0 && server.accepted.Load() > 5
			})
			for _, said := range []struct {
				side string
				all  []string
				want string
			}{{"server", warnings(server.hook), c.serverSays}, {"client", warnings(hook), c.clientSays}} {
				if len(said.all) != 1 || !strings.Contains(said.all[0], said.want) || !strings.Contains(said.all[0], "127.0.0.1") {
					t.Errorf("the %s says %q, want %q", said.side, said.all, said.want)
				}
			}
			if server.letIn.Load() {
				t.Error("it is let in")
			}
		})
	}
}

// TestNoCertificate: who shows no certificate is not let in, whatever else it
// does.
func TestNoCertificate(t *testing.T) {
	t.Parallel()
	ca := certtest.New(t)
	files := nodeFiles(t, ca, ca, func(*x509.Certificate) {})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		server := serveTLS(t, files)
		logger, _ := test.NewNullLogger()
		server.reach(t, credentials.NewTLS(&tls.Config{RootCAs: ca.Pool(), MinVersion: tls.VersionTLS12, MaxVersion: version}), logger)
		await(t, "the node tries again", func() bool { return server.accepted.Load() > 5 })
		if all := warnings(server.hook); len(all) != 1 || !strings.Contains(all[0], "it shows no certificate") || server.letIn.Load() {
			t.Errorf("with %s: the server says %q; let in: %v", tls.VersionName(version), all, server.letIn.Load())
		}
	}
}

// tlsServer is the front of a node.
type tlsServer struct {
	net.Listener
	hook     *test.Hook
	accepted atomic.Int64
	letIn    atomic.Bool
}

// Accept implements net.Listener.
func (s *tlsServer) Accept() (net.Conn, error) {
	conn, err := s.Listener.Accept()
	s.accepted.Add(1)
	return conn, err
}

// serveTLS starts one with files, or without TLS if there are none.
func serveTLS(t *testing.T, files listen.TLSFiles) *tlsServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	logger, hook := test.NewNullLogger()
	s := &tlsServer{Listener: l, hook: hook}
	var certs *listen.Certs
	if files.CertFile != "" {
		if certs, err = listen.LoadCerts(files, logrus.NewEntry(logger)); err != nil {
			t.Fatal(err)
		}
	}
	mux := listen.NewMux(logrus.NewEntry(logger), 0, 0)
	gs := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		s.letIn.Store(true)
		<-stream.Context().Done()
		return nil
	}))
	hs := &http.Server{ReadHeaderTimeout: time.Minute}
	go func() { _ = mux.Serve(s, certs) }() // these end with the listener and the servers
	go func() { _ = gs.Serve(mux.GRPC()) }()
	go func() { _ = hs.Serve(mux.HTTP()) }()
	t.Cleanup(func() {
		_ = l.Close()
		_ = mux.Close()
		gs.Stop()
		_ = hs.Close()
	})
	return s
}

// reach lets a node try to reach s until the test ends.
func (s *tlsServer) reach(t *testing.T, creds credentials.TransportCredentials, logger *logrus.Logger) {
	t.Helper()
	peers := raftlog.NewPeers(raftlog.PeersOptions{Cluster: 7, ID: 1, Credentials: creds, Logger: logrus.NewEntry(logger)})
	t.Cleanup(func() { _ = peers.Close() })
	if err := peers.Set(2, s.Addr().String()); err != nil {
		t.Fatal(err)
	}
}

// warnings returns what was warned of, with the reasons and addresses.
func warnings(hook *test.Hook) (all []string) {
	for _, e := range hook.AllEntries() {
		if e.Level <= logrus.WarnLevel {
			line, _ := e.String() // it has a formatter
			all = append(all, line)
		}
	}
	return all
}
