package lease

import "errors"

// The sentinels of the package; test with errors.Is.
var (
	// ErrNotFound: there is no lease with this id, or there is none any more.
	ErrNotFound = errors.New("lease: not found")

	// ErrNotPrimary: this lessor does not keep the deadlines now (Run is not
	// running). Nothing was renewed.
	ErrNotPrimary = errors.New("lease: not the primary lessor")
)
