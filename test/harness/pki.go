package harness

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// PKI names the files of a certificate authority, a server on 127.0.0.1 and an
// administrator of Kubernetes.
type PKI struct{ CA, ServerCert, ServerKey, ClientCert, ClientKey string }

// NewPKI makes them in dir.
func NewPKI(t testing.TB, dir string) PKI {
	t.Helper()
	p := PKI{}
	for name, path := range map[string]*string{
		"ca.crt": &p.CA, "server.crt": &p.ServerCert, "server.key": &p.ServerKey,
		"client.crt": &p.ClientCert, "client.key": &p.ClientKey,
	} {
		*path = filepath.Join(dir, name)
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := func(serial int64, subject pkix.Name) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: subject,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
			KeyUsage:    x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
	}
	ca := template(1, pkix.Name{CommonName: "test authority"})
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	must(t, err)
	writePEM(t, p.CA, "CERTIFICATE", der)
	issue := func(leaf *x509.Certificate, certFile, keyFile string) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
		must(t, err)
		writePEM(t, certFile, "CERTIFICATE", der)
		der, err = x509.MarshalECPrivateKey(key)
		must(t, err)
		writePEM(t, keyFile, "EC PRIVATE KEY", der)
	}
	server := template(2, pkix.Name{CommonName: "kube-apiserver"})
	server.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	issue(server, p.ServerCert, p.ServerKey)
	issue(template(3, pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}), p.ClientCert, p.ClientKey)
	return p
}

func writePEM(t testing.TB, file, kind string, der []byte) {
	t.Helper()
	must(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
