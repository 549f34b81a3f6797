package listen

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/keelson-io/keelson/pkg/listen/certtest"
)

func loadCerts(t *testing.T, files TLSFiles) *Certs {
	t.Helper()
	certs, err := LoadCerts(files, logrus.NewEntry(logrus.New()))
	if err != nil {
		t.Fatal(err)
	}
	return certs
}

// shake makes a handshake with the server's configuration and returns what
// the server showed and how each side ended.
func shake(t *testing.T, certs *Certs, client *tls.Config) (state tls.ConnectionState, clientErr, serverErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer func() { _ = conn.Close() }()
		s := tls.Server(conn, certs.config(func(*tls.ClientHelloInfo) {}))
		done <- s.Handshake()
	}()
	conn, clientErr := tls.Dial("tcp", l.Addr().String(), client)
	serverErr = <-done
	if clientErr == nil {
		state = conn.ConnectionState()
		_ = conn.Close()
	}
	return state, clientErr, serverErr
}

func TestCertificatesFollowTheirFiles(t *testing.T) {
	ca, dir := certtest.New(t), t.TempDir()
	ca.Issue(t, dir, "server")
	logger, hook := test.NewNullLogger()
	certs, err := LoadCerts(TLSFiles{CertFile: filepath.Join(dir, "server.crt"), KeyFile: filepath.Join(dir, "server.key")}, logrus.NewEntry(logger))
	if err != nil {
		t.Fatal(err)
	}
	client := &tls.Config{RootCAs: ca.Pool(), MinVersion: tls.VersionTLS12}
	serial := func() int64 {
		t.Helper()
		state, clientErr, serverErr := shake(t, certs, client)
		if err := errors.Join(clientErr, serverErr); err != nil {
			t.Fatal(err)
		}
		return state.PeerCertificates[0].SerialNumber.Int64()
	}
	first := serial()

	ca.Issue(t, dir, "server")
	if got := serial(); got != first+1 {
		t.Errorf("after the change: serial %d, want %d", got, first+1)
	}

	certtest.WritePEM(t, filepath.Join(dir, "server.key"), "PRIVATE KEY", []byte("broken"))
	hook.Reset()
	for range 2 {
		if got := serial(); got != first+1 {
			t.Errorf("with a broken key: serial %d, want %d as before", got, first+1)
		}
	}
	if n := len(hook.AllEntries()); n != 1 || hook.LastEntry().Level != logrus.WarnLevel {
		t.Errorf("one bad change is worth one warning; got %d lines, last %v", n, hook.LastEntry())
	}

	if err := os.Remove(filepath.Join(dir, "server.key")); err != nil {
		t.Fatal(err)
	}
	if got := serial(); got != first+1 {
		t.Errorf("with no key: serial %d, want %d as before", got, first+1)
	}
	ca.Issue(t, dir, "server")
	if got := serial(); got != first+2 {
		t.Errorf("after the repair: serial %d, want %d", got, first+2)
	}
}

func TestClientCertificates(t *testing.T) {
	ca, other, dir := certtest.New(t), certtest.New(t), t.TempDir()
	ca.Issue(t, dir, "server")
	good := ca.Issue(t, dir, "apiserver")
	stranger := other.Issue(t, dir, "apiserver2")
	bundle := filepath.Join(dir, "ca.crt")
	ca.Write(t, bundle)
	files := TLSFiles{CertFile: filepath.Join(dir, "server.crt"), KeyFile: filepath.Join(dir, "server.key"), TrustedCAFile: bundle}
	certs := loadCerts(t, files)
	config := func(certificates ...tls.Certificate) *tls.Config {
		return &tls.Config{RootCAs: ca.Pool(), Certificates: certificates, MinVersion: tls.VersionTLS12}
	}

	if _, _, err := shake(t, certs, config(good)); err != nil {
		t.Errorf("a good certificate: %v", err)
	}
	if _, _, err := shake(t, certs, config()); err == nil {
		t.Error("no certificate was let in")
	}
	if _, _, err := shake(t, certs, config(stranger)); err == nil {
		t.Error("another authority's certificate was let in")
	}

	other.Write(t, bundle)
	if _, _, err := shake(t, certs, config(stranger)); err != nil {
		t.Errorf("after the CA file changed: %v", err)
	}
	if _, _, err := shake(t, certs, config(good)); err == nil {
		t.Error("the old authority's certificate was let in after the CA file changed")
	}

	ca.Write(t, bundle)
	files.AllowedHostnames = []string{"apiserver"}
	if _, _, err := shake(t, loadCerts(t, files), config(good)); err != nil {
		t.Errorf("an allowed host name: %v", err)
	}
	files.AllowedHostnames = []string{"scheduler"}
	if _, _, err := shake(t, loadCerts(t, files), config(good)); err == nil || !strings.Contains(err.Error(), "scheduler") {
		t.Errorf("a host name that is not allowed: %v", err)
	}
}

func TestLoadCertsErrors(t *testing.T) {
	ca, dir := certtest.New(t), t.TempDir()
	ca.Issue(t, dir, "a")
	ca.Issue(t, dir, "b")
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, tt := range []struct {
		name  string
		files TLSFiles
		want  string
	}{
		{"none", TLSFiles{}, "set --cert-file and --key-file"},
		{"no key", TLSFiles{CertFile: path("a.crt")}, "set --cert-file and --key-file"},
		{"missing", TLSFiles{CertFile: path("c.crt"), KeyFile: path("a.key")}, "c.crt: no such file"},
		{"mismatch", TLSFiles{CertFile: path("a.crt"), KeyFile: path("b.key")}, "b.key"},
		{"no CA", TLSFiles{CertFile: path("a.crt"), KeyFile: path("a.key"), TrustedCAFile: path("a.key")}, "no CA certificate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := LoadCerts(tt.files, logrus.NewEntry(logrus.New())); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want it to say %q", err, tt.want)
			}
		})
	}
}
