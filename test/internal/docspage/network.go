package docspage

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Addresses returns n addresses of this machine that nobody listens at, so that
// each machine of a page has one with all its ports.
func Addresses(t testing.TB, n int) (addresses []string) {
	t.Helper()
	network := fmt.Sprintf("127.%d.%d.", 1+mathrand.IntN(254), mathrand.IntN(256))
	for host := range n {
		address := fmt.Sprint(network, host+1)
		for _, port := range []string{"2379", "2380", "5432"} {
			l, err := net.Listen("tcp", net.JoinHostPort(address, port))
			check(t, err)
			check(t, l.Close())
		}
		addresses = append(addresses, address)
	}
	return addresses
}

// Authority signs certificates.
type Authority struct {
	t       testing.TB
	CA      string // the file of its own
	key     *ecdsa.PrivateKey
	ca      *x509.Certificate
	serials int64
}

// NewAuthority makes one, in a directory of its own.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{t: t, CA: filepath.Join(t.TempDir(), "ca.crt")}
	var err error
	a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	a.ca = a.template("authority")
	a.ca.IsCA, a.ca.BasicConstraintsValid, a.ca.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, a.ca, a.ca, a.key.Public(), a.key)
	check(t, err)
	a.write(a.CA, "CERTIFICATE", der)
	return a
}

func (a *Authority) template(name string) *x509.Certificate {
	a.serials++
	return &x509.Certificate{
		SerialNumber: big.NewInt(a.serials), Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
}

// Issue writes a certificate and its key: of a client or, with addresses, of a
// server that may call others as well if it is a peer.
func (a *Authority) Issue(certFile, keyFile string, peer bool, addresses ...string) {
	a.t.Helper()
	leaf := a.template(filepath.Base(certFile))
	if len(addresses) > 0 {
		leaf.ExtKeyUsage = append(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if peer || len(addresses) == 0 {
		leaf.ExtKeyUsage = append(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	for _, address := range addresses {
		leaf.IPAddresses = append(leaf.IPAddresses, net.ParseIP(address))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(a.t, err)
	der, err := x509.CreateCertificate(rand.Reader, leaf, a.ca, key.Public(), a.key)
	check(a.t, err)
	a.write(certFile, "CERTIFICATE", der)
	der, err = x509.MarshalECPrivateKey(key)
	check(a.t, err)
	a.write(keyFile, "EC PRIVATE KEY", der)
}

func (a *Authority) write(file, kind string, der []byte) {
	a.t.Helper()
	check(a.t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}
