package listen

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

// The alerts of RFC 8446, 6, by which one side lets the other know why it
// refuses a certificate. What crypto/tls has no alert for is a bad certificate.
const (
	alertBadCertificate     tls.AlertError = 42
	alertCertificateExpired tls.AlertError = 45
	alertUnknownAuthority   tls.AlertError = 48
	alertNoCertificate      tls.AlertError = 116
)

// handshakeError is an ErrHandshake. It says the same each time, whatever the
// clock says: who logs it once compares.
type handshakeError struct {
	problem string // with what to do
	cause   error
}

func (e *handshakeError) Error() string   { return ErrHandshake.Error() + ": " + e.problem }
func (e *handshakeError) Unwrap() []error { return []error{ErrHandshake, e.cause} }

// explain makes an ErrHandshake that says what to do of err, with which a
// handshake has failed, or returns err if that says nothing of certificates or
// TLS. The other side was dialled, or has connected.
func (c *Certs) explain(err error, dialled bool) error {
	problem := c.refused(err, dialled)
	if problem == "" {
		problem = c.refusedBy(err, dialled)
	}
	if problem == "" {
		return err
	}
	return &handshakeError{problem, err}
}

// refused says why this side has refused the other one.
func (c *Certs) refused(err error, dialled bool) string {
	var (
		noTLS     tls.RecordHeaderError
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		trusted   = c.files.TrustedCAFile
		usage     = "clientAuth"
	)
	if dialled {
		usage = "serverAuth"
	}
	if trusted == "" {
		trusted = "the system's trusted CAs"
	}
	switch {
	case errors.As(err, &noTLS):
		return "it does not speak TLS: its URL must begin with https:// on both sides, or with http:// on both"
	case strings.HasSuffix(err.Error(), "client didn't provide a certificate"):
		return fmt.Sprintf("it shows no certificate: give it one that an authority in %s has signed", trusted)
	case errors.As(err, &authority):
		return fmt.Sprintf("its certificate is not signed by an authority in %s: give it one that is, or add its CA to the file", trusted)
	case errors.As(err, &name):
		return fmt.Sprintf("its certificate is not for %s: give it one whose subjectAltName has that, or reach it by a name that the certificate has", name.Host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Sprintf("its certificate is valid from %s to %s only: renew it, or set the clock", invalid.Cert.NotBefore.Format(time.RFC3339), invalid.Cert.NotAfter.Format(time.RFC3339))
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return fmt.Sprintf("its certificate is not made for this: give it one with the extended key usage %s; nodes of a cluster need serverAuth and clientAuth", usage)
	}
	return ""
}

// refusedBy says why the other side has refused this one, as far as it has told.
func (c *Certs) refusedBy(err error, dialled bool) string {
	var remote *net.OpError
	if !errors.As(err, &remote) || remote.Op != "remote error" {
		return ""
	}
	usage, name := x509.ExtKeyUsageServerAuth, "serverAuth"
	if dialled {
		usage, name = x509.ExtKeyUsageClientAuth, "clientAuth"
	}
	alert, own := remote.Err.Error(), c.files.CertFile // the type is crypto/tls's own
	switch {
	case alert == alertNoCertificate.Error():
		return "it wants a certificate, and was shown none"
	case alert == alertUnknownAuthority.Error():
		return fmt.Sprintf("it refuses the certificate of this side, %s, whose authority it does not trust: use one of its CA, or add the CA of this one to its trusted ones", own)
	case alert == alertCertificateExpired.Error():
		return fmt.Sprintf("it refuses the certificate of this side, %s, as not valid now: renew it, or set the clock there", own)
	case alert == alertBadCertificate.Error() && !c.fit(usage):
		return fmt.Sprintf("it refuses the certificate of this side, %s, which has not the extended key usage %s: nodes of a cluster need serverAuth and clientAuth", own, name)
	case alert == alertBadCertificate.Error():
		return fmt.Sprintf("it refuses the certificate of this side, %s: its log says why", own)
	}
	return ""
}

// fit reports whether the certificate that this side shows has a usage.
func (c *Certs) fit(usage x509.ExtKeyUsage) bool {
	leaf := c.newest().Certificates[0].Leaf
	return leaf == nil || len(leaf.ExtKeyUsage) == 0 ||
		slices.Contains(leaf.ExtKeyUsage, usage) || slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny)
}
