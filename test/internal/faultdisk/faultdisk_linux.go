// Package faultdisk lets a process's writes and syncs fail as if its disk did:
// a seccomp filter hands these system calls to the test, which lets each go on
// or gives it an error instead. The process is any program, as it is, and
// nobody needs to be root. A call that fails has done nothing; that pages which
// could not be written are gone it cannot show.
package faultdisk

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/keelson-io/keelson/test/harness"
)

// The calls that may be let fail.
var (
	Sync  = []uintptr{unix.SYS_FSYNC, unix.SYS_FDATASYNC}
	Write = []uintptr{unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_FALLOCATE}
)

// environment names what a launcher gets: the socket on which the filter's
// descriptor is sent, and the program that it becomes.
const environment = "KEELSON_FAULTDISK"

// Disk is that of one process after the other.
type Disk struct {
	Program string // to start instead of the one that it is for

	listener *net.UnixListener
	serving  sync.WaitGroup

	mu sync.Mutex
	// Guarded by mu.
	rule   func(call uintptr, path string) syscall.Errno
	failed int
	stop   bool
}

// New returns the disk of processes of program. A package that uses it calls
// Main in its TestMain.
func New(t testing.TB, program string) *Disk {
	t.Helper()
	dir := harness.TempDir(t)
	d := &Disk{Program: filepath.Join(dir, "launch")}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "socket")
	script := fmt.Sprintf("#!/bin/sh\n%s='%s:%s' exec '%s' \"$@\"\n", environment, socket, program, self)
	if err := os.WriteFile(d.Program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if d.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"}); err != nil {
		t.Fatal(err)
	}
	d.serving.Go(d.accept)
	t.Cleanup(func() {
		_ = d.listener.Close() // it has nothing to lose
		d.mu.Lock()
		d.stop = true
		d.mu.Unlock()
		d.serving.Wait()
	})
	return d
}

// Fail gives those calls an error from now on whose file's path match accepts.
func (d *Disk) Fail(err syscall.Errno, calls []uintptr, match func(path string) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed = 0
	d.rule = func(call uintptr, path string) syscall.Errno {
		if slices.Contains(calls, call) && match(path) {
			return err
		}
		return 0
	}
}

// Heal lets no call fail any more.
func (d *Disk) Heal() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rule = nil
}

// Failed is how many calls have failed since Fail.
func (d *Disk) Failed() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failed
}

// accept takes the descriptors of processes that start.
func (d *Disk) accept() {
	for {
		c, err := d.listener.AcceptUnix()
		if err != nil {
			return // closed
		}
		rights := make([]byte, unix.CmsgSpace(4))
		_, n, _, _, err := c.ReadMsgUnix(make([]byte, 1), rights)
		_ = c.Close()
		if err != nil {
			continue // its process has ended
		}
		messages, err := unix.ParseSocketControlMessage(rights[:n])
		if err != nil || len(messages) == 0 {
			continue
		}
		if fds, err := unix.ParseUnixRights(&messages[0]); err == nil {
			d.serving.Go(func() { d.serve(fds[0]) })
		}
	}
}

// notification is struct seccomp_notif, and response struct seccomp_notif_resp.
type notification struct {
	id         uint64
	pid, flags uint32
	nr, arch   uint32
	pointer    uint64
	args       [6]uint64
}

type response struct {
	id           uint64
	value        int64
	errno, flags int32
}

const (
	receive = 0xc0502100 // SECCOMP_IOCTL_NOTIF_RECV
	send    = 0xc0182101 // SECCOMP_IOCTL_NOTIF_SEND
)

// serve answers the calls of one process until it ends, or the test does.
func (d *Disk) serve(fd int) {
	defer func() { _ = unix.Close(fd) }()
	for {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(ready, 200)
		d.mu.Lock()
		stop := d.stop
		d.mu.Unlock()
		switch {
		case stop || err != nil && !errors.Is(err, unix.EINTR):
			return
		case n <= 0:
			continue
		case ready[0].Revents&unix.POLLIN == 0:
			return // nobody is left
		}
		var call notification
		if _, _, err := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), receive, uintptr(unsafe.Pointer(&call))); err != 0 {
			continue // the caller has died, or was interrupted
		}
		answer := response{id: call.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if failure := d.decide(&call); failure != 0 {
			answer.errno, answer.flags = -int32(failure), 0
		}
		// An error means that nobody waits for it.
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), send, uintptr(unsafe.Pointer(&answer)))
	}
}

func (d *Disk) decide(call *notification) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.rule == nil {
		return 0
	}
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", call.pid, call.args[0]))
	if err != nil {
		return 0
	}
	failure := d.rule(uintptr(call.nr), path)
	if failure != 0 {
		d.failed++
	}
	return failure
}

// Main becomes the program whose calls may fail, if this process was started by
// a Disk's.
func Main() {
	socket, program, found := cut(os.Getenv(environment))
	if !found {
		return
	}
	runtime.LockOSThread() // the filter is the thread's, which becomes the program
	if err := launch(socket, program); err != nil {
		fmt.Fprintf(os.Stderr, "starting %s on a disk that may fail: %v\n", program, err)
		os.Exit(1)
	}
}

func cut(s string) (socket, program string, found bool) {
	for i := range s {
		if s[i] == ':' {
			return s[:i], s[i+1:], true
		}
	}
	return "", "", false
}

func launch(socket, program string) error {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	if err := os.Unsetenv(environment); err != nil {
		return err
	}
	fd, err := install(slices.Concat(Sync, Write))
	if err != nil {
		return err
	}
	// sendmsg: what the filter hands to the test, nobody answers yet.
	if _, _, err := c.WriteMsgUnix([]byte{0}, unix.UnixRights(fd), nil); err != nil {
		return err
	}
	return unix.Exec(program, append([]string{program}, os.Args[1:]...), os.Environ())
}

// install lets these calls of this thread, and of what it becomes, wait for an
// answer on the descriptor that it returns.
func install(calls []uintptr) (int, error) {
	const number = 0 // offset in struct seccomp_data
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number}}
	for i, call := range calls {
		filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: uint8(len(calls) - i), K: uint32(call)})
	}
	filter = append(filter,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, err
	}
	fd, _, err := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&program)))
	if err != 0 {
		return 0, err
	}
	return int(fd), nil
}
