//go:build unix

package listen

import "syscall"

// MaxFiles returns how many files the process may have open, or 0 if that is
// not known.
func MaxFiles() int {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return 0
	}
	return int(min(uint64(limit.Cur), 1<<30)) //nolint:unconvert // int64 on FreeBSD
}
