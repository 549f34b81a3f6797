package embed

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// TestForgottenInitialCluster: flags that count only in a cluster start no lone
// server, unless they say what is so anyway.
func TestForgottenInitialCluster(t *testing.T) {
	t.Parallel()
	for flag, c := range map[string]ClusterConfig{
		"--initial-cluster-state":       {InitialClusterState: ClusterStateExisting},
		"--initial-cluster-token":       {InitialClusterToken: "mine"},
		"--initial-advertise-peer-urls": {InitialAdvertisePeerURLs: []string{"http://127.0.0.1:1"}},
		"--listen-peer-urls":            {ListenPeerURLs: []string{"http://127.0.0.1:1"}},
		"--heartbeat-interval":          {HeartbeatInterval: 50 * time.Millisecond},
		"--election-timeout":            {ElectionTimeout: 3 * time.Second},
		"--snapshot-count":              {SnapshotCount: 7},
		"--corrupt-check-time":          {CorruptCheckTime: time.Hour},
		"--peer-cert-file":              {PeerTLS: TLS{CertFile: "x"}},
		"--peer-key-file":               {PeerTLS: TLS{KeyFile: "x"}},
		"--peer-trusted-ca-file":        {PeerTLS: TLS{TrustedCAFile: "x"}},
		"--peer-client-cert-auth":       {PeerTLS: TLS{ClientCertAuth: true}},
		"--peer-cert-allowed-hostname":  {PeerTLS: TLS{AllowedHostnames: []string{"x"}}},
		"":                              {InitialClusterState: ClusterStateNew, InitialClusterToken: DefaultClusterToken},
	} {
		dir := shortDir(t)
		s, err := Start(context.Background(), Config{DataDir: dir, ListenClientURLs: []string{"unix://" + dir + "/k.sock"}, Cluster: c})
		if err == nil {
			err = s.Close()
		}
		if flag == "" && err != nil || flag != "" && (!errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), flag+" is for a node of a cluster")) {
			t.Errorf("%s alone: %v", flag, err)
		}
	}
}
