package listen

import (
	"errors"
	"net"
	"testing"

	"github.com/sirupsen/logrus"
)

// fromAddr is a connection from an address.
type fromAddr struct {
	net.Conn
	addr net.TCPAddr
}

func (c *fromAddr) RemoteAddr() net.Addr { return &c.addr }

// TestTell: a host is warned of once for each reason, whatever ports it comes
// from, and floods take no memory.
func TestTell(t *testing.T) {
	m := NewMux(logrus.NewEntry(logrus.New()), 0, 0)
	conn := func(host, port int) net.Conn {
		return &fromAddr{addr: net.TCPAddr{IP: net.IPv4(10, 0, byte(host>>8), byte(host)), Port: port}}
	}
	first, second := errors.New("first"), errors.New("second")
	for i, tt := range []struct {
		host, port int
		err        error
		want       bool
	}{{1, 1, first, true}, {1, 2, first, false}, {1, 3, second, true}, {2, 1, first, true}, {1, 4, first, false}} {
		if got := m.tell(conn(tt.host, tt.port), tt.err); got != tt.want {
			t.Errorf("%d: warns: %v, want %v", i, got, tt.want)
		}
	}
	for host := range 3 * maxTold {
		m.tell(conn(host, 1), first)
	}
	if len(m.told) > maxTold {
		t.Errorf("%d rejections are remembered", len(m.told))
	}
}
