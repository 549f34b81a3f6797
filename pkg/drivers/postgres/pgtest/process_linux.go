package pgtest

import "syscall"

// dieWithParent lets the kernel end a server whose test process was killed.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
}
