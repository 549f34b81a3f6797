package listen

import "errors"

var (
	// ErrInUse: another process listens there.
	ErrInUse = errors.New("the address is in use")

	// ErrHandshake: one side refuses the other's certificate, or does not speak
	// TLS.
	ErrHandshake = errors.New("the TLS handshake has failed")

	// ErrNoTLS: an https or unixs URL without a certificate.
	ErrNoTLS = errors.New("this URL needs a certificate: set --cert-file and --key-file")
)
