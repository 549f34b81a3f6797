package cmd

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startSystemd listens where systemd would, and returns what it is told next.
func startSystemd(t *testing.T, path string) (told func() string) {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return func() string {
		t.Helper()
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
		buf := make([]byte, 4096)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
}

// healthOf is the status of /health on a unix socket.
func healthOf(t *testing.T, socket string) int {
	t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	resp, err := client.Get("http://localhost/health")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// TestReadyInCluster: a node is ready once it has a leader, and says what it
// waits for until then: the first time, and when all nodes were stopped.
func TestReadyInCluster(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	const nodes = 2
	var told [nodes]func() string
	for i := range nodes {
		told[i] = startSystemd(t, filepath.Join(dir, fmt.Sprint("notify", i)))
	}
	socket := func(i int) string { return filepath.Join(dir, fmt.Sprint("c", i)) }
	run := func(i int) *process {
		return startProcess(t, dir, []string{"NOTIFY_SOCKET=" + filepath.Join(dir, fmt.Sprint("notify", i))},
			"--name="+fmt.Sprint("n", i), "--data-dir="+fmt.Sprint("d", i), "--listen-client-urls=unix://"+socket(i),
			fmt.Sprintf("--initial-cluster=n0=unix://%[1]s/p0,n1=unix://%[1]s/p1", dir), "--heartbeat-interval=20", "--election-timeout=300")
	}
	awaitReady := func(i int) {
		for text := told[i](); !strings.HasPrefix(text, "READY=1\nSTATUS=serving unix://"); text = told[i]() {
			if !strings.HasPrefix(text, "STATUS=waiting for ") || !strings.Contains(text, "EXTEND_TIMEOUT_USEC=") {
				t.Errorf("node %d: %q", i, text)
			}
		}
		// It may lose its leader again on a busy machine.
		for deadline := time.Now().Add(time.Minute); healthOf(t, socket(i)) != http.StatusOK; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("node %d is ready, and /health says something else for a minute", i)
			}
		}
	}
	for range 2 {
		first := run(0)
		if got := told[0](); !strings.HasPrefix(got, "STATUS=waiting for a leader, ") {
			t.Errorf("without the other: %q", got)
		}
		if got := healthOf(t, socket(0)); got != http.StatusServiceUnavailable {
			t.Errorf("without the other /health says %d", got)
		}
		first.says("not ready yet: waiting for a leader, ")
		second := run(1)
		first.says(ready)
		second.says(ready)
		awaitReady(0)
		awaitReady(1)
		for i, p := range []*process{second, first} {
			p.signal(syscall.SIGTERM)
			if got := told[nodes-1-i](); got != "STOPPING=1" {
				t.Errorf("got %q", got)
			}
			p.ends()
		}
	}
}
