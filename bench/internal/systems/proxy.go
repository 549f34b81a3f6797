package systems

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// proxy stands between a server and its PostgreSQL and makes each round trip
// longer: answers arrive later by the delay, however many are on their way. All
// of it is added to answers since a timer shorter than a millisecond may well
// take a millisecond.
type proxy struct {
	listener net.Listener
	target   string
	delay    time.Duration

	mu     sync.Mutex
	conns  map[net.Conn]bool // open ones; nil when closed
	copies sync.WaitGroup
}

// startProxy listens on the socket in dir and passes connections on to the one
// in target.
func startProxy(dir, target string, delay time.Duration) (*proxy, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, postgresSocket)
	_ = os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	p := &proxy{listener: l, target: filepath.Join(target, postgresSocket), delay: delay, conns: map[net.Conn]bool{}}
	p.copies.Go(p.accept)
	return p, nil
}

// close ends all connections.
func (p *proxy) close() {
	_ = p.listener.Close()
	p.mu.Lock()
	for conn := range p.conns {
		_ = conn.Close()
	}
	p.conns = nil
	p.mu.Unlock()
	p.copies.Wait()
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		server, err := net.Dial("unix", p.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		if !p.add(client, server) {
			return
		}
		var both sync.WaitGroup
		both.Go(func() { _, _ = io.Copy(server, client); closeWrite(server) })
		both.Go(func() { copyLater(client, server, p.delay); closeWrite(client) })
		p.copies.Go(func() {
			both.Wait()
			p.remove(client, server)
		})
	}
}

// add takes connections in, or closes them if the proxy is closed.
func (p *proxy) add(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range conns {
		if p.conns == nil {
			_ = conn.Close()
			continue
		}
		p.conns[conn] = true
	}
	return p.conns != nil
}

func (p *proxy) remove(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range conns {
		_ = conn.Close()
		delete(p.conns, conn)
	}
}

// closeWrite tells the other side that nothing follows.
func closeWrite(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // an error means that it is closed
	}
}

// chunk is what was read at once, and when it is due.
type chunk struct {
	data []byte
	due  time.Time
}

// copyLater copies until either side ends, each byte with the delay.
func copyLater(to io.Writer, from io.Reader, delay time.Duration) {
	// As much as there is on a long line: at 5 ms some hundred MB/s.
	line := make(chan chunk, 64)
	var reading sync.WaitGroup
	defer reading.Wait()
	reading.Go(func() {
		defer close(line)
		for {
			data := make([]byte, 64<<10)
			n, err := from.Read(data)
			if n > 0 {
				line <- chunk{data[:n], time.Now().Add(delay)}
			}
			if err != nil {
				return
			}
		}
	})
	broken := false
	for c := range line {
		if broken {
			continue // until the reader notices that its side was closed
		}
		time.Sleep(time.Until(c.due))
		_, err := to.Write(c.data)
		broken = err != nil
	}
}
