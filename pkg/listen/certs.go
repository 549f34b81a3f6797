package listen

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// TLSFiles say which certificates a server shows and which it asks for.
type TLSFiles struct {
	CertFile      string // chain, PEM
	KeyFile       string // PEM
	TrustedCAFile string // bundle that client certificates must chain to, PEM
	// AllowedHostnames: a client certificate must be valid for one of them.
	// Empty allows all.
	AllowedHostnames []string
	MinVersion       uint16 // 0 is TLS 1.2
	MaxVersion       uint16 // 0 is the newest
	CipherSuites     []uint16
}

// Certs is the TLS configuration of files that change while they are used:
// every handshake looks whether they did. Files that do not fit together,
// as in the middle of a rotation, leave what was loaded before in use.
//
// As in etcd, a trusted CA file means that every client must show a
// certificate.
type Certs struct {
	files TLSFiles
	log   *logrus.Entry

	mu      sync.Mutex // guards what follows
	current *tls.Config
	stamp   stamp // of the files as they were looked at last, good or bad
}

// stamp tells one state of the files from the next.
type stamp [3]struct {
	modified time.Time
	size     int64
}

// LoadCerts reads the files. What they say must hold together now; later
// changes are followed.
func LoadCerts(files TLSFiles, log *logrus.Entry) (*Certs, error) {
	if files.CertFile == "" || files.KeyFile == "" {
		return nil, ErrNoTLS
	}
	c := &Certs{files: files, log: log}
	var err error
	if c.stamp, err = c.look(); err != nil {
		return nil, err
	}
	if c.current, err = c.load(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Certs) look() (stamp, error) {
	var s stamp
	for i, name := range []string{c.files.CertFile, c.files.KeyFile, c.files.TrustedCAFile} {
		if name == "" {
			continue
		}
		info, err := os.Stat(name)
		if err != nil {
			return stamp{}, fmt.Errorf("certificates: %w", err)
		}
		s[i].modified, s[i].size = info.ModTime(), info.Size()
	}
	return s, nil
}

func (c *Certs) load() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(c.files.CertFile, c.files.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", c.files.CertFile, c.files.KeyFile, err)
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{cert},
		NextProtos:   []string{"h2", "http/1.1"},
		MinVersion:   c.files.MinVersion,
		MaxVersion:   c.files.MaxVersion,
		CipherSuites: c.files.CipherSuites,
	}
	if config.MinVersion == 0 {
		config.MinVersion = tls.VersionTLS12
	}
	if c.files.TrustedCAFile == "" {
		return config, nil
	}
	pem, err := os.ReadFile(c.files.TrustedCAFile)
	if err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	config.ClientCAs = x509.NewCertPool()
	if !config.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("certificates: %s holds no CA certificate in PEM", c.files.TrustedCAFile)
	}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	if len(c.files.AllowedHostnames) > 0 {
		config.VerifyConnection = c.verifyHostname
	}
	return config, nil
}

func (c *Certs) verifyHostname(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the client showed no certificate")
	}
	for _, name := range c.files.AllowedHostnames {
		if state.PeerCertificates[0].VerifyHostname(name) == nil {
			return nil
		}
	}
	return fmt.Errorf("the client's certificate is for none of %s", strings.Join(c.files.AllowedHostnames, ", "))
}

// newest returns the configuration of the files as they are now, or the last
// good one.
func (c *Certs) newest() *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, err := c.look()
	if now == c.stamp {
		return c.current
	}
	c.stamp = now // warn once for each change, not for each handshake
	var fresh *tls.Config
	if err == nil {
		fresh, err = c.load()
	}
	if err != nil {
		c.log.WithError(err).Warn("certificate files changed but cannot be used; the previous ones stay in use")
		return c.current
	}
	c.current = fresh
	c.log.WithField("cert-file", c.files.CertFile).Info("certificate files changed; new ones are in use")
	return c.current
}

// Client is the configuration for a connection to others that have
// certificates of the same kind: it shows this one's, and asks for one of the
// trusted CA, or of the system's if there is none.
func (c *Certs) Client() *tls.Config {
	newest := c.newest()
	return &tls.Config{
		Certificates: newest.Certificates,
		RootCAs:      newest.ClientCAs,
		MinVersion:   newest.MinVersion,
		MaxVersion:   newest.MaxVersion,
		CipherSuites: newest.CipherSuites,
	}
}

// config is for one handshake; hello sees what the client offers.
func (c *Certs) config(hello func(*tls.ClientHelloInfo)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			hello(info)
			return c.newest(), nil
		},
	}
}
