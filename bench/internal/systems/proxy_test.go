package systems

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// An answer is late by the delay, and so are ten that are on their way
// together, not by ten times as much.
func TestProxyDelaysAnswers(t *testing.T) {
	const delay = 50 * time.Millisecond
	target := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(target, postgresSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
	p, err := startProxy(filepath.Join(t.TempDir(), "p"), target, delay)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	conn, err := net.Dial("unix", p.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for range 10 {
		if _, err := conn.Write([]byte("request ")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond) // so that they are read one by one
	}
	answers := make([]byte, 80)
	if _, err := io.ReadFull(conn, answers[:8]); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < delay {
		t.Errorf("the first answer took %s", took)
	}
	if _, err := io.ReadFull(conn, answers[8:]); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 5*delay {
		t.Errorf("ten answers took %s", took)
	}
	if string(answers[72:]) != "request " {
		t.Errorf("the last answer is %q", answers[72:])
	}
	// The end goes through in both directions.
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(answers); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %d bytes, %v", n, err)
	}
}
