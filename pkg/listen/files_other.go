//go:build !unix

package listen

// MaxFiles returns how many files the process may have open, or 0 if that is
// not known.
func MaxFiles() int { return 0 }
