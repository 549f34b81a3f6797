package embed

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	"google.golang.org/grpc"

	"github.com/keelson-io/keelson/pkg/raftlog"
	"github.com/keelson-io/keelson/pkg/store"
)

// TestPatience: how long a node is waited for follows how long the hash takes.
func TestPatience(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		0:                hashPatience,
		2 * time.Second:  50 * time.Second,
		time.Minute:      hashTimeout,
		10 * time.Minute: hashTimeout,
	} {
		if got := patience(took); got != want {
			t.Errorf("%v if this node took %v, want %v", got, took, want)
		}
	}
}

// TestHashHangs: a node that takes the question for its hash and does not answer
// is given up, and the error says so.
func TestHashHangs(t *testing.T) {
	address := filepath.Join(shortDir(t), "hangs")
	listener, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		<-s.Context().Done()
		return context.Cause(s.Context())
	}))
	go func() { _ = server.Serve(listener) }() // ends with the server
	defer server.Stop()
	logger, _ := test.NewNullLogger()
	c := &cluster{peers: raftlog.NewPeers(raftlog.PeersOptions{Cluster: 7, ID: 1, Logger: logrus.NewEntry(logger)})}
	defer c.peers.Close()
	if err := c.peers.Set(2, "unix:"+address); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if _, err := c.hashOf(ctx, 2, store.HashKV{}, 100*time.Millisecond); err == nil || !strings.Contains(err.Error(), "not answered within 100ms") {
		t.Errorf("hashOf: %v", err)
	}
}
