package embed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/listen"
	"github.com/keelson-io/keelson/pkg/raftlog"
)

// shortDir is t.TempDir with a path short enough for a unix socket in it.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ke")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// start starts a server on cfg, in a directory of its own unless cfg has one,
// and on a unix socket there unless cfg says where.
func start(t *testing.T, cfg Config) (*Server, *test.Hook) {
	t.Helper()
	if cfg.DataDir == "" {
		cfg.DataDir = shortDir(t)
	}
	if cfg.ListenClientURLs == nil {
		cfg.ListenClientURLs = []string{"unix://" + filepath.Join(cfg.DataDir, "k.sock")}
	}
	logger, hook := test.NewNullLogger()
	cfg.Logger = logrus.NewEntry(logger)
	s, err := Start(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, raftlog.ErrRemoved) && !errors.Is(err, raftlog.ErrInterrupted) {
			t.Errorf("close: %v", err)
		}
	})
	return s, hook
}

func connect(t *testing.T, cfg clientv3.Config) *clientv3.Client {
	t.Helper()
	cfg.Logger = zap.NewNop()
	c, err := clientv3.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func clientOf(t *testing.T, s *Server) *clientv3.Client {
	t.Helper()
	return connect(t, clientv3.Config{Endpoints: s.Endpoints()})
}

func timeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// fetch gets a path over the network or the unix socket of endpoint.
func fetch(t *testing.T, endpoint, path string) (int, string) {
	t.Helper()
	u, err := listen.ParseURL(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, u.Network(), u.Address)
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Get("http://keelson" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestServesOnEveryURL(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	s, hook := start(t, Config{
		DataDir:           dir,
		ListenClientURLs:  []string{"unix://" + dir + "/k.sock", "http://127.0.0.1:0", "http://0.0.0.0:0"},
		ListenMetricsURLs: []string{"unix://" + dir + "/m.sock"},
		SocketMode:        0o640,
		EnablePprof:       true,
	})
	if len(s.Endpoints()) != 3 || s.Endpoint() != "unix://"+dir+"/k.sock" {
		t.Fatalf("endpoints %v", s.Endpoints())
	}
	for i, endpoint := range s.Endpoints() {
		c := connect(t, clientv3.Config{Endpoints: []string{endpoint}})
		key := fmt.Sprintf("key%d", i)
		if _, err := c.Put(timeout(t), key, "v"); err != nil {
			t.Fatalf("%s: %v", endpoint, err)
		}
		for _, path := range []string{"/health", "/version", "/metrics", "/debug/pprof/cmdline"} {
			if status, body := fetch(t, endpoint, path); status != http.StatusOK || body == "" {
				t.Errorf("%s%s: %d %q", endpoint, path, status, body)
			}
		}
	}
	if resp, err := clientOf(t, s).Get(timeout(t), "key", clientv3.WithPrefix()); err != nil || resp.Count != 3 {
		t.Errorf("%v, %v", resp, err)
	}
	members, err := clientOf(t, s).MemberList(timeout(t))
	if err != nil || len(members.Members) != 1 || members.Members[0].Name != "default" || len(members.Members[0].ClientURLs) != 3 {
		t.Errorf("%v, %v", members, err)
	}

	if status, body := fetch(t, "unix://"+dir+"/m.sock", "/metrics"); status != http.StatusOK || body == "" {
		t.Errorf("metrics: %d", status)
	}
	turnedAway := connect(t, clientv3.Config{Endpoints: []string{"unix://" + dir + "/m.sock"}})
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	if _, err := turnedAway.Get(ctx, "key"); err == nil {
		t.Error("the metrics URL serves keys")
	}
	if info, err := os.Stat(dir + "/k.sock"); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}

	var ready, exposed, shut int
	for _, e := range hook.AllEntries() {
		if e.Message == "ready to serve client requests" {
			ready++
		}
		if e.Level == logrus.WarnLevel && strings.Contains(e.Message, "unencrypted") {
			exposed++
		}
		if e.Level == logrus.WarnLevel && strings.Contains(e.Message, "not enter "+dir) {
			shut++
		}
	}
	if ready != 1 || exposed != 1 || shut != 2 {
		t.Errorf("%d lines say ready, %d warn of a port without TLS, %d of a socket that cannot be reached; want 1, 1 and 2", ready, exposed, shut)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(dir + "/*.sock"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestDataOutlivesTheServer(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	s, _ := start(t, Config{DataDir: dir})
	put, err := clientOf(t, s).Put(timeout(t), "k", "v")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, _ = start(t, Config{DataDir: dir})
	get, err := clientOf(t, s).Get(timeout(t), "k")
	if err != nil || get.Count != 1 || string(get.Kvs[0].Value) != "v" {
		t.Fatalf("%v, %v", get, err)
	}
	if put.Header.ClusterId != get.Header.ClusterId || put.Header.MemberId != get.Header.MemberId || put.Header.MemberId == 0 {
		t.Errorf("headers %v and %v", put.Header, get.Header)
	}
}

func TestSecondStart(t *testing.T) {
	t.Parallel()
	s, _ := start(t, Config{})
	_, err := Start(context.Background(), Config{
		DataDir: s.set.DataDir, ListenClientURLs: s.set.ListenClientURLs, Logger: s.log,
	})
	if !errors.Is(err, sqlite.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) {
		t.Errorf("got %v, want it to name the process that has the data", err)
	}
	if _, err := clientOf(t, s).Put(timeout(t), "k", "v"); err != nil {
		t.Errorf("the first server after the second start: %v", err)
	}

	_, err = Start(context.Background(), Config{DataDir: shortDir(t), ListenClientURLs: s.set.ListenClientURLs, Logger: s.log})
	if !errors.Is(err, listen.ErrInUse) {
		t.Errorf("a used socket: %v", err)
	}
	if _, err := clientOf(t, s).Put(timeout(t), "k", "v"); err != nil {
		t.Errorf("the first server after the third start: %v", err)
	}
}

// Watches and keepalives never end by themselves and must not hold a stop up.
func TestCloseDoesNotWaitForStreams(t *testing.T) {
	t.Parallel()
	s, _ := start(t, Config{DrainTimeout: time.Hour})
	c := clientOf(t, s)
	ctx := timeout(t)
	watch := c.Watch(clientv3.WithRequireLeader(ctx), "k", clientv3.WithCreatedNotify())
	<-watch
	grant, err := c.Grant(ctx, 60)
	if err != nil {
		t.Fatal(err)
	}
	alive, err := c.KeepAlive(ctx, grant.ID)
	if err != nil {
		t.Fatal(err)
	}
	<-alive
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Fatal(err)
		}
	case <-ctx.Done():
		t.Fatal("streams hold the stop up")
	}
}

func TestEndOfContextStops(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	ctx, cancel := context.WithCancel(context.Background())
	logger, _ := test.NewNullLogger()
	s, err := Start(ctx, Config{DataDir: dir, ListenClientURLs: []string{"unix://" + dir + "/k.sock"}, Logger: logrus.NewEntry(logger)})
	if err != nil {
		t.Fatal(err)
	}
	if s.Err() != nil {
		t.Fatal(s.Err())
	}
	cancel()
	if err := s.Wait(); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
}

func TestFailureStops(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	logger, _ := test.NewNullLogger()
	s, err := Start(context.Background(), Config{DataDir: dir, ListenClientURLs: []string{"unix://" + dir + "/k.sock"}, Logger: logrus.NewEntry(logger)})
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("the disk is gone")
	s.fail(broken)
	if err := s.Wait(); !errors.Is(err, broken) || !errors.Is(s.Err(), broken) || !errors.Is(s.Close(), broken) {
		t.Errorf("got %v", err)
	}
}

// The lessor, the compactor and the watch hub are connected.
func TestTheWorkersWork(t *testing.T) {
	t.Parallel()
	s, _ := start(t, Config{AutoCompactionRetention: "1s"})
	c := clientOf(t, s)
	ctx := timeout(t)
	grant, err := c.Grant(ctx, 4) // outlives the put on a busy machine
	if err != nil {
		t.Fatal(err)
	}
	watch := c.Watch(ctx, "leased", clientv3.WithPrevKV())
	put, err := c.Put(ctx, "leased", "v", clientv3.WithLease(grant.ID))
	if err != nil {
		t.Fatal(err)
	}
	var events []*clientv3.Event
	for len(events) < 2 {
		resp, ok := <-watch
		if !ok || resp.Err() != nil {
			t.Fatal(resp.Err())
		}
		events = append(events, resp.Events...)
	}
	if !events[0].IsCreate() || events[1].Type != clientv3.EventTypeDelete || events[1].Kv.ModRevision != put.Header.Revision+1 {
		t.Errorf("events %v", events)
	}
	for {
		_, err := c.Get(ctx, "leased", clientv3.WithRev(1))
		if errors.Is(err, rpctypes.ErrCompacted) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Put(ctx, "other", "v"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestConfigErrorStartsNothing(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	_, err := Start(context.Background(), Config{DataDir: dir, ListenClientURLs: []string{"https://127.0.0.1:0"}, TLS: TLS{CertFile: dir + "/none", KeyFile: dir + "/none"}})
	if !errors.Is(err, ErrConfig) {
		t.Errorf("got %v", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("made %v", entries)
	}
}

// A request that does not end is cut off, and the stop goes on.
func TestDrainTimeout(t *testing.T) {
	t.Parallel()
	s, hook := start(t, Config{DrainTimeout: 200 * time.Millisecond, EnablePprof: true})
	conn, err := net.Dial("unix", s.listeners[0].url.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	// The body does not come; the answer to Expect says that it is awaited.
	if _, err := io.WriteString(conn, "POST /debug/pprof/symbol HTTP/1.1\r\nHost: k\r\nContent-Length: 8\r\nExpect: 100-continue\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, e := range hook.AllEntries() {
		if e.Message == "requests still under way were cut off" {
			return
		}
	}
	t.Error("nothing says that a request was cut off")
}

// An operator reads in the log that the quota is used up, also after a
// restart, and what has been done about it.
func TestLogOfAlarmsAndCompaction(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	s, hook := start(t, Config{DataDir: dir, QuotaBackendBytes: 64 << 10})
	c := clientOf(t, s)
	ctx := timeout(t)
	var err error
	for err == nil {
		_, err = c.Put(ctx, "k", strings.Repeat("v", 4<<10))
	}
	if !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Fatal(err)
	}
	logged(t, hook, "the quota is used up and writes are refused")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s, hook = start(t, Config{DataDir: dir, QuotaBackendBytes: 64 << 10})
	logged(t, hook, "the quota is used up and writes are refused")
	c = clientOf(t, s)
	got, err := c.Get(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Compact(ctx, got.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
		t.Fatal(err)
	}
	logged(t, hook, "an alarm was disarmed")
	if _, err := c.Put(ctx, "k", "v"); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	logged(t, hook, "compaction finished")
}

func logged(t *testing.T, hook *test.Hook, message string) {
	t.Helper()
	for _, e := range hook.AllEntries() {
		if strings.Contains(e.Message, message) {
			return
		}
	}
	t.Errorf("nothing says %q", message)
}
