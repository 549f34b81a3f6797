package harness

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// dieWithParent lets the kernel end a server whose test process was killed.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// childrenOf returns the processes that a process has started.
func childrenOf(pid int) ([]int, error) {
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil, err
	}
	var children []int
	for field := range strings.FieldsSeq(string(list)) {
		child, err := strconv.Atoi(field)
		if err != nil {
			return nil, err
		}
		children = append(children, child)
	}
	return children, nil
}

// peerPID returns the process that has made a connection to a unix socket of
// this one.
func peerPID(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *syscall.Ucred
	var found error
	if err := raw.Control(func(fd uintptr) {
		peer, found = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if found != nil {
		return 0, found
	}
	return int(peer.Pid), nil
}
