package harness

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// DialUnix connects to a unix socket. Where a busy server has not accepted those
// before, a connect fails at once, unlike one by TCP: it is tried again until ctx
// ends.
func DialUnix(ctx context.Context, socket string) (net.Conn, error) {
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if !errors.Is(err, syscall.EAGAIN) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Ports that the kernel gives to nobody who asks for any.
const firstPort, ports = 10_000, 20_000

var port = struct {
	mu   sync.Mutex
	next int // guarded by mu
}{next: rand.IntN(ports)}

// FreeAddress returns an address of 127.0.0.1 that nobody listens on. No other
// call of this process returns it, and no connection out takes it meanwhile.
func FreeAddress(t testing.TB) string {
	t.Helper()
	port.mu.Lock()
	defer port.mu.Unlock()
	for range ports {
		address := fmt.Sprintf("127.0.0.1:%d", firstPort+port.next)
		port.next = (port.next + 1) % ports
		if l, err := net.Listen("tcp", address); err == nil {
			_ = l.Close() // it has nothing to lose
			return address
		}
	}
	t.Fatal("no port is free")
	return ""
}
