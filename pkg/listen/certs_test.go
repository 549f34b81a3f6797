package listen

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
)

// authority is a certificate authority for tests.
type authority struct {
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test ca"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert: cert, key: key, serial: 1}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func (a *authority) write(t *testing.T, path string) {
	t.Helper()
	writePEM(t, path, "CERTIFICATE", a.cert.Raw)
}

// issue writes name.crt and name.key into dir, for 127.0.0.1 and the host
// name.
func (a *authority) issue(t *testing.T, dir, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, name+".crt"), "CERTIFICATE", der)
	writePEM(t, filepath.Join(dir, name+".key"), "PRIVATE KEY", keyDER)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	// Two writes within the clock's tick must not look like one.
	stamps++
	at := time.Now().Add(time.Duration(stamps) * time.Second)
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

var stamps int

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
	ca, dir := newAuthority(t), t.TempDir()
	ca.issue(t, dir, "server")
	logger, hook := test.NewNullLogger()
	certs, err := LoadCerts(TLSFiles{CertFile: filepath.Join(dir, "server.crt"), KeyFile: filepath.Join(dir, "server.key")}, logrus.NewEntry(logger))
	if err != nil {
		t.Fatal(err)
	}
	client := &tls.Config{RootCAs: ca.pool(), MinVersion: tls.VersionTLS12}
	serial := func() int64 {
		t.Helper()
		state, clientErr, serverErr := shake(t, certs, client)
		if err := errors.Join(clientErr, serverErr); err != nil {
			t.Fatal(err)
		}
		return state.PeerCertificates[0].SerialNumber.Int64()
	}
	first := serial()

	ca.issue(t, dir, "server")
	if got := serial(); got != first+1 {
		t.Errorf("after the change: serial %d, want %d", got, first+1)
	}

	writePEM(t, filepath.Join(dir, "server.key"), "PRIVATE KEY", []byte("broken"))
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
	ca.issue(t, dir, "server")
	if got := serial(); got != first+2 {
		t.Errorf("after the repair: serial %d, want %d", got, first+2)
	}
}

func TestClientCertificates(t *testing.T) {
	ca, other, dir := newAuthority(t), newAuthority(t), t.TempDir()
	ca.issue(t, dir, "server")
	good := ca.issue(t, dir, "apiserver")
	stranger := other.issue(t, dir, "apiserver2")
	bundle := filepath.Join(dir, "ca.crt")
	ca.write(t, bundle)
	files := TLSFiles{CertFile: filepath.Join(dir, "server.crt"), KeyFile: filepath.Join(dir, "server.key"), TrustedCAFile: bundle}
	certs := loadCerts(t, files)
	config := func(certificates ...tls.Certificate) *tls.Config {
		return &tls.Config{RootCAs: ca.pool(), Certificates: certificates, MinVersion: tls.VersionTLS12}
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

	other.write(t, bundle)
	if _, _, err := shake(t, certs, config(stranger)); err != nil {
		t.Errorf("after the CA file changed: %v", err)
	}
	if _, _, err := shake(t, certs, config(good)); err == nil {
		t.Error("the old authority's certificate was let in after the CA file changed")
	}

	ca.write(t, bundle)
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
	ca, dir := newAuthority(t), t.TempDir()
	ca.issue(t, dir, "a")
	ca.issue(t, dir, "b")
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
