package raftlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"syscall"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/keelson-io/keelson/pkg/listen"
)

// errSilent is what becomes of a plain connection to a node that takes only TLS,
// or to one that ends just then.
var errSilent = errors.New("it ends connections before it says anything: if it takes only TLS, its URL must begin with https:// on both sides")

// handshakes are credentials that remember why a connection to the node could
// not be used: gRPC makes one text of it all, and goes on.
type handshakes struct {
	credentials.TransportCredentials
	plain   bool
	problem *atomic.Pointer[error] // an ErrHandshake or errSilent; nil unless that was it
}

// remembering returns creds, or plain ones if they are nil, that remember.
func remembering(creds credentials.TransportCredentials) *handshakes {
	h := &handshakes{TransportCredentials: creds, plain: creds == nil, problem: new(atomic.Pointer[error])}
	if h.plain {
		h.TransportCredentials = insecure.NewCredentials()
	}
	return h
}

// failed returns why the handshake with the node fails, nil if that is not what
// is wrong.
func (h *handshakes) failed() error {
	if err := h.problem.Load(); err != nil {
		return *err
	}
	return nil
}

// note notes how a handshake at address has ended.
func (h *handshakes) note(address net.Addr, err error) {
	if !errors.Is(err, listen.ErrHandshake) && !errors.Is(err, errSilent) {
		h.problem.Store(nil)
		return
	}
	err = fmt.Errorf("%s: %w", address, err)
	h.problem.Store(&err)
}

// ClientHandshake implements credentials.TransportCredentials.
func (h *handshakes) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := h.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err == nil && h.plain {
		return &plainConn{Conn: conn, note: h.note}, info, nil
	}
	h.note(raw.RemoteAddr(), err)
	return conn, info, err
}

// Clone implements credentials.TransportCredentials.
func (h *handshakes) Clone() credentials.TransportCredentials {
	return &handshakes{TransportCredentials: h.TransportCredentials.Clone(), plain: h.plain, problem: h.problem}
}

// plainConn notes whether the other side says anything.
type plainConn struct {
	net.Conn
	note func(net.Addr, error)
	said atomic.Bool
}

// Read implements net.Conn.
func (c *plainConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && !c.said.Swap(true) {
		c.note(c.RemoteAddr(), nil)
	}
	c.look(err)
	return n, err
}

// Write implements net.Conn.
func (c *plainConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.look(err)
	return n, err
}

func (c *plainConn) look(err error) {
	if !c.said.Load() && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)) {
		c.note(c.RemoteAddr(), errSilent)
	}
}
