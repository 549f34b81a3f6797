package listen

import "errors"

var (
	// ErrInUse: another process listens there.
	ErrInUse = errors.New("the address is in use")

	// ErrNoTLS: an https or unixs URL without a certificate.
	ErrNoTLS = errors.New("this URL needs a certificate: set --cert-file and --key-file")
)
