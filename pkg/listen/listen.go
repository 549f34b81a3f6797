// Package listen is keelson's front door: it opens the sockets clients
// connect to, finds out what each connection speaks, and keeps certificates
// current.
//
//	tcp, unix ─ accept ─┬─ (TLS handshake) ─ first bytes ─┬─ GRPC() ─ grpc-go's own transport
//	tcp, unix ─ accept ─┘   each in its own goroutine     └─ HTTP() ─ net/http
//
// gRPC and HTTP share every port, as they do on etcd's client port. See [Mux]
// for how they are told apart.
package listen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// DefaultSocketMode is the mode of unix sockets when none is given: their
// owner alone may connect. With a group it is DefaultGroupSocketMode.
const (
	DefaultSocketMode      fs.FileMode = 0o600
	DefaultGroupSocketMode fs.FileMode = 0o660
)

// maxSocketPath is what the kernel takes in sockaddr_un, less the final NUL.
const maxSocketPath = 107

// SocketOptions say who may connect to a unix socket.
type SocketOptions struct {
	Mode  fs.FileMode // 0 is the default
	Group string      // name or number; empty leaves the process's group
}

// Listen opens the socket of u, without TLS. A unix socket that nobody serves
// any more is replaced; one that is served is ErrInUse.
func Listen(ctx context.Context, u URL, opt SocketOptions) (net.Listener, error) {
	if u.Network() == "unix" {
		return listenUnix(ctx, u.Address, opt)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", u.Address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen on %s: %w: stop the other process or choose another address", u, ErrInUse)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("listen on %s: this machine does not have that address: use one it has, or 0.0.0.0 for all", u)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("listen on %s: permission denied: ports below 1024 need CAP_NET_BIND_SERVICE", u)
	case err != nil:
		return nil, fmt.Errorf("listen on %s: %w", u, err)
	}
	return l, nil
}

func listenUnix(ctx context.Context, path string, opt SocketOptions) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("listen on unix://%s: the path has %d bytes and a unix socket's may have %d: choose a shorter one with --listen-client-urls", path, len(path), maxSocketPath)
	}
	mode := opt.Mode.Perm()
	gid := -1
	if opt.Group != "" {
		var err error
		if gid, err = lookupGroup(opt.Group); err != nil {
			return nil, err
		}
		if mode == 0 {
			mode = DefaultGroupSocketMode
		}
	}
	if mode == 0 {
		mode = DefaultSocketMode
	}
	if err := makeDir(filepath.Dir(path), gid); err != nil {
		return nil, fmt.Errorf("create the directory of unix socket %s: %w", path, err)
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: narrowBeforeBind}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on unix://%s: %w", path, err)
	}
	if gid >= 0 {
		if err := os.Lchown(path, -1, gid); err != nil {
			return nil, errors.Join(fmt.Errorf("give unix socket %s to group %s: %w: the process must be a member of the group", path, opt.Group, err), l.Close())
		}
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(fmt.Errorf("set the mode of unix socket %s: %w", path, err), l.Close())
	}
	return l, nil
}

// makeDir makes the directory of a socket if there is none, so that the group
// gid, if it is not negative, can enter.
func makeDir(dir string, gid int) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil || gid < 0 {
		return err
	}
	return errors.Join(os.Lchown(dir, -1, gid), os.Chmod(dir, 0o750))
}

// narrowBeforeBind makes Linux create the socket's file with mode 0600, so
// that nobody connects between bind and chmod whatever the umask is.
func narrowBeforeBind(_, _ string, raw syscall.RawConn) error {
	if runtime.GOOS != "linux" {
		return nil
	}
	var err error
	if cerr := raw.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }); cerr != nil {
		return cerr
	}
	return err
}

// removeStale clears the way for a socket at path: what an ended process
// left there goes, everything else stays and is an error.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at unix socket %s: %w", path, err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("listen on unix://%s: a file that is not a socket is in the way: remove it or choose another path", path)
	}
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		_ = conn.Close()
		return fmt.Errorf("listen on unix://%s: %w: stop the other process or choose another path", path, ErrInUse)
	case !errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("find out whether unix socket %s is served: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the stale unix socket %s: %w", path, err)
	}
	return nil
}

func lookupGroup(name string) (int, error) {
	if gid, err := strconv.Atoi(name); err == nil && gid >= 0 {
		return gid, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("group %q of the unix sockets: %w: use a group this machine knows, or its number", name, err)
	}
	return strconv.Atoi(g.Gid)
}
