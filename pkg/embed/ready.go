package embed

import (
	"context"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
)

// What a node of a cluster waits for before it is ready.
const (
	waitsForLeader = "a leader, which takes a majority of the cluster's nodes"
	waitsForData   = "the cluster's data, from its leader"
	waitsForRest   = "what the cluster has committed and this node does not have yet"
)

// maxPatience is how long awaitReady waits for an answer before it asks again.
const maxPatience = 10 * time.Second

// Ready is closed once the server answers all requests: when Start returns, or, on
// a node of a cluster, when it has a leader and everything that is committed.
// Until then /health and /readyz fail. It stays open if the server ends before.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// WaitsFor is what the server waits for before it is ready, for people to read;
// empty if it waits for nothing.
func (s *Server) WaitsFor() string {
	if c := s.backend.cluster; c != nil {
		return *c.waitsFor.Load()
	}
	return ""
}

// becomeReady is called once.
func (s *Server) becomeReady() {
	s.log.WithFields(logrus.Fields{
		"endpoints": strings.Join(s.endpoints, ","),
		"advertise": strings.Join(s.advertise, ","),
		"data-dir":  s.set.DataDir,
	}).Info("ready to serve client requests")
	close(s.ready)
}

// awaitReady calls ready when this node answers linearizable reads for the first
// time, and logs what it waits for until then.
func (c *cluster) awaitReady(ctx context.Context, ready func()) {
	said := ""
	for patience := c.set.ElectionTimeout; ; patience = min(2*patience, maxPatience) {
		trying, cancel := context.WithTimeout(ctx, patience)
		g, err := c.backend.generation(trying)
		if err == nil {
			err = g.store.Fence(trying)
		}
		cancel()
		if err == nil {
			c.waitsFor.Store(new(string))
			ready()
			return
		}
		if missing := c.missing(); missing != said && ctx.Err() == nil {
			c.waitsFor.Store(&missing)
			c.log.Info("not ready yet: waiting for " + missing)
			said = missing
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(c.set.HeartbeatInterval):
		}
	}
}

// missing is what this node, which is not ready, waits for.
func (c *cluster) missing() string {
	switch log := c.newest(); {
	case log.Status().Leader == 0:
		return waitsForLeader
	case len(log.Members().Members) == 0:
		return waitsForData
	default:
		return waitsForRest
	}
}
