package harness

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Proxy passes connections on to a server's socket, and harms them when it is
// told to. One is for one client of the server.
type Proxy struct {
	Dir string // of its socket, which has the name of the server's

	target   string
	listener net.Listener
	running  sync.WaitGroup

	mu sync.Mutex
	// Guarded by mu.
	refuse  bool // new connections are closed at once
	conns   map[net.Conn]bool
	delay   time.Duration                    // of each piece, each way
	held    func(pid int, answers bool) bool // whose pieces wait, which way; nil if none
	changed chan struct{}                    // closed when held changes
}

// StartProxy starts a proxy before the PostgreSQL or PgBouncer whose socket is
// in dir. It ends with the test.
func StartProxy(t testing.TB, dir string) *Proxy {
	t.Helper()
	return StartProxyTo(t, filepath.Join(dir, postgresSocket))
}

// StartProxyTo starts a proxy before the server whose socket is target. It ends
// with the test.
func StartProxyTo(t testing.TB, target string) *Proxy {
	t.Helper()
	x := &Proxy{Dir: TempDir(t), target: target, conns: map[net.Conn]bool{}, changed: make(chan struct{})}
	var err error
	if x.listener, err = net.Listen("unix", x.Socket()); err != nil {
		t.Fatal(err)
	}
	x.running.Go(x.serve)
	t.Cleanup(func() {
		_ = x.listener.Close() // it has nothing to lose
		x.Resume()
		x.Cut()
		x.running.Wait()
	})
	return x
}

// Socket is where it listens.
func (x *Proxy) Socket() string { return filepath.Join(x.Dir, filepath.Base(x.target)) }

func (x *Proxy) serve() {
	for {
		c, err := x.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // that client was faster
		}
		x.running.Go(func() { x.pass(c) })
	}
}

// pass carries one connection until either side ends it.
func (x *Proxy) pass(c net.Conn) {
	defer func() { _ = c.Close() }()
	s, err := net.Dial("unix", x.target)
	if err != nil {
		return
	}
	defer func() { _ = s.Close() }()
	if !x.add(c) {
		return
	}
	defer x.remove(c)
	pid, err := peerPID(c.(*net.UnixConn))
	if err != nil {
		return
	}
	var answers sync.WaitGroup
	answers.Go(func() {
		x.copy(c, s, pid, true)
		_ = c.Close()
	})
	x.copy(s, c, pid, false)
	_ = s.Close()
	answers.Wait()
}

// copy carries what the process pid sends, or what it is answered.
func (x *Proxy) copy(to io.Writer, from io.Reader, pid int, answers bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		x.mu.Lock()
		delay := x.delay
		x.mu.Unlock()
		time.Sleep(delay)
		x.passes(pid, answers)
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// passes waits while pieces of the process pid are held.
func (x *Proxy) passes(pid int, answers bool) {
	for {
		x.mu.Lock()
		held, changed := x.held, x.changed
		x.mu.Unlock()
		if held == nil || !held(pid, answers) {
			return
		}
		<-changed
	}
}

func (x *Proxy) add(c net.Conn) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.refuse {
		return false
	}
	x.conns[c] = true
	return true
}

func (x *Proxy) remove(c net.Conn) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.conns, c)
}

// Cut closes all connections and refuses new ones until Resume.
func (x *Proxy) Cut() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.refuse = true
	for c := range x.conns {
		_ = c.Close()
	}
}

// Stall holds back what the server answers until Resume; requests go through.
func (x *Proxy) Stall() { x.hold(func(_ int, answers bool) bool { return answers }) }

// Block holds back, until Resume or another Block, what the processes for which
// blocked is true send and are answered: a network that loses all packets of
// some pairs of hosts, whose connections hear nothing of it.
func (x *Proxy) Block(blocked func(pid int) bool) {
	x.hold(func(pid int, _ bool) bool { return blocked(pid) })
}

func (x *Proxy) hold(held func(pid int, answers bool) bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.held = held
	close(x.changed)
	x.changed = make(chan struct{})
}

// Delay adds d to the way of each message in either direction.
func (x *Proxy) Delay(d time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.delay = d
}

// Resume ends all harm.
func (x *Proxy) Resume() {
	x.hold(nil)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.refuse, x.delay = false, 0
}
