package embed

import (
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/keelson-io/keelson/pkg/listen"
	"github.com/keelson-io/keelson/pkg/raftlog"
)

// clusterSettings is a ClusterConfig that was understood.
type clusterSettings struct {
	ClusterConfig
	identity raftlog.Identity // of the node that the data is of, if known
	known    bool
	members  []raftlog.Member // of InitialCluster, by name and peer URLs
	self     raftlog.Member   // this node's URLs; ID and Learner are not set
	listen   []listen.URL
	tls      listen.TLSFiles
	secure   bool
}

// resolveCluster sets s.cluster if this is a node of one.
func (s *settings) resolveCluster() error {
	c := &clusterSettings{ClusterConfig: s.Cluster}
	var err error
	if s.sqliteDir != "" {
		if c.identity, c.known, err = raftlog.Identify(s.sqliteDir); err != nil {
			return err
		}
	}
	if c.ForceNewCluster && !c.known {
		return errors.New("--force-new-cluster is for a node that is left of a cluster, and this data directory is none's: remove the flag")
	}
	if !c.known && c.InitialCluster == "" {
		if flag := c.flagForNodes(); flag != "" { // a flag was forgotten, and clients would find a server that is empty
			if s.sqliteDir == "" {
				return fmt.Errorf("%s is for a node of a cluster: several keelsons on one PostgreSQL need none of their own: remove the flag", flag)
			}
			return fmt.Errorf("%s is for a node of a cluster, and neither is this data directory one's nor is there --initial-cluster: add --initial-cluster name=peer-URL,…, or remove the flag", flag)
		}
		return nil
	}
	if s.sqliteDir == "" {
		return errors.New("--initial-cluster is for SQLite: several keelsons on one PostgreSQL need no cluster of their own")
	}
	switch {
	case c.InitialClusterState != ClusterStateNew && c.InitialClusterState != ClusterStateExisting:
		return fmt.Errorf("--initial-cluster-state %s: use new or existing", c.InitialClusterState)
	case c.HeartbeatInterval <= 0 || c.ElectionTimeout < 5*c.HeartbeatInterval:
		return fmt.Errorf("--election-timeout %d must be at least five times --heartbeat-interval %d (milliseconds)", c.ElectionTimeout.Milliseconds(), c.HeartbeatInterval.Milliseconds())
	case c.CorruptCheckTime < 0:
		return fmt.Errorf("--corrupt-check-time %s is negative", c.CorruptCheckTime)
	case c.SnapshotCount == 0:
		return errors.New("--snapshot-count must be at least 1")
	}
	for _, step := range []func(string) error{c.resolveMembers, c.resolvePeerURLs} {
		if err := step(s.Name); err != nil {
			return err
		}
	}
	s.cluster = c
	return c.resolveTLS()
}

// flagForNodes is a flag that was set and counts only in a cluster, if there is one.
func (c *ClusterConfig) flagForNodes() string {
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"--listen-peer-urls", len(c.ListenPeerURLs) > 0},
		{"--initial-advertise-peer-urls", len(c.InitialAdvertisePeerURLs) > 0},
		{"--initial-cluster-state", c.InitialClusterState != ClusterStateNew},
		{"--initial-cluster-token", c.InitialClusterToken != DefaultClusterToken},
		{"--heartbeat-interval", c.HeartbeatInterval != raftlog.DefaultHeartbeatInterval},
		{"--election-timeout", c.ElectionTimeout != raftlog.DefaultElectionTimeout},
		{"--snapshot-count", c.SnapshotCount != raftlog.DefaultSnapshotCount},
		{"--corrupt-check-time", c.CorruptCheckTime != 0},
		{"--peer-cert-file", c.PeerTLS.CertFile != ""},
		{"--peer-key-file", c.PeerTLS.KeyFile != ""},
		{"--peer-trusted-ca-file", c.PeerTLS.TrustedCAFile != ""},
		{"--peer-client-cert-auth", c.PeerTLS.ClientCertAuth},
		{"--peer-cert-allowed-hostname", len(c.PeerTLS.AllowedHostnames) > 0},
	} {
		if f.set {
			return f.name
		}
	}
	return ""
}

// minLeaseTTL is the shortest TTL of a lease in seconds, as etcd's: one and a half
// election timeouts, so that nobody loses a lease while there is no leader to
// keep it alive.
func (c *clusterSettings) minLeaseTTL() int64 {
	ticks := int64(c.ElectionTimeout / c.HeartbeatInterval)
	shortest := time.Duration(3*ticks/2) * c.HeartbeatInterval
	return int64(math.Ceil(shortest.Seconds()))
}

func (c *clusterSettings) resolveMembers(string) (err error) {
	c.members, err = c.Members()
	return err
}

// Members parses InitialCluster: name=URL,name=URL,…, a name for each of its
// URLs. The members have no ids yet.
func (c *ClusterConfig) Members() (members []raftlog.Member, err error) {
	for _, part := range strings.Split(c.InitialCluster, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, text, ok := strings.Cut(part, "=")
		name = strings.TrimSpace(name)
		u, err := listen.ParseURL(strings.TrimSpace(text))
		if !ok || name == "" || err != nil {
			return nil, fmt.Errorf("--initial-cluster: %q is not name=URL, as in node1=https://10.0.0.1:2380", part)
		}
		at := slices.IndexFunc(members, func(m raftlog.Member) bool { return m.Name == name })
		if at < 0 {
			at = len(members)
			members = append(members, raftlog.Member{Name: name})
		}
		for _, m := range members {
			if slices.Contains(m.PeerURLs, u.String()) {
				return nil, fmt.Errorf("--initial-cluster: %s is there twice: every node needs a URL of its own", u)
			}
		}
		members[at].PeerURLs = append(members[at].PeerURLs, u.String())
	}
	return members, nil
}

// resolvePeerURLs finds out where this node listens for others, and where they
// reach it.
func (c *clusterSettings) resolvePeerURLs(name string) error {
	c.self.Name = name
	for _, m := range c.members {
		if m.Name == name {
			c.self.PeerURLs = m.PeerURLs
		}
	}
	if len(c.InitialAdvertisePeerURLs) > 0 {
		parsed, err := listen.ParseURLs(c.InitialAdvertisePeerURLs)
		if err != nil {
			return fmt.Errorf("--initial-advertise-peer-urls: %w", err)
		}
		advertised := urlStrings(parsed)
		if !c.known && !slices.Equal(slices.Sorted(slices.Values(advertised)), slices.Sorted(slices.Values(c.self.PeerURLs))) {
			return fmt.Errorf("--initial-cluster has %s=%s and --initial-advertise-peer-urls %s: they must be the same",
				name, strings.Join(c.self.PeerURLs, ","), strings.Join(advertised, ","))
		}
		c.self.PeerURLs = advertised
	}
	if !c.known && len(c.self.PeerURLs) == 0 {
		return fmt.Errorf("--initial-cluster does not have this node, %q: add %s=peer-URL, or set --name", name, name)
	}
	listened := c.ListenPeerURLs
	if len(listened) == 0 {
		listened = c.self.PeerURLs
	}
	var err error
	if c.listen, err = listen.ParseURLs(listened); err != nil {
		return fmt.Errorf("--listen-peer-urls: %w", err)
	}
	if len(c.listen) == 0 {
		return errors.New("the data directory is that of a node of a cluster: say with --listen-peer-urls where the others reach it")
	}
	if len(c.self.PeerURLs) == 0 { // it was up before: the cluster knows better
		c.self.PeerURLs = urlStrings(c.listen)
	}
	for _, u := range c.listen {
		if host := u.Host(); u.Network() == "tcp" && host != "" && host != "localhost" && net.ParseIP(host) == nil {
			return fmt.Errorf("%s: listen on an IP address or localhost, not on a name: set --listen-peer-urls", u)
		}
		c.secure = c.secure || u.Secure()
	}
	return c.checkSecure()
}

// checkSecure makes sure that all nodes are reached with TLS, or none: a node
// takes connections, and makes them, in one way.
func (c *clusterSettings) checkSecure() error {
	all := urlStrings(c.listen)
	for _, m := range append([]raftlog.Member{c.self}, c.members...) {
		all = append(all, m.PeerURLs...)
	}
	for _, text := range all {
		if u, err := listen.ParseURL(text); err != nil || u.Secure() != c.secure {
			return fmt.Errorf("the peer URLs %s and %s: use https:// for all peer URLs, or for none", all[0], text)
		}
	}
	return nil
}

func urlStrings(urls []listen.URL) (all []string) {
	for _, u := range urls {
		all = append(all, u.String())
	}
	return all
}

// normalPeerURLs returns URLs of a member as they are stored: in order, each
// written in one way, and such as the other nodes have.
func (c *clusterSettings) normalPeerURLs(urls []string) ([]string, error) {
	parsed, err := listen.ParseURLs(urls)
	if err == nil && len(parsed) == 0 {
		err = errors.New("there are none")
	}
	for _, u := range parsed {
		if u.Secure() != c.secure {
			err = fmt.Errorf("%s: use https:// for all peer URLs, or for none", u)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", raftlog.ErrBadURLs, err)
	}
	all := urlStrings(parsed)
	slices.Sort(all)
	return all, nil
}

func (c *clusterSettings) resolveTLS() error {
	t := c.PeerTLS
	c.tls = listen.TLSFiles{CertFile: t.CertFile, KeyFile: t.KeyFile, TrustedCAFile: t.TrustedCAFile, AllowedHostnames: t.AllowedHostnames}
	switch {
	case (t.CertFile == "") != (t.KeyFile == ""):
		return errors.New("--peer-cert-file and --peer-key-file belong together: set both or neither")
	case t.ClientCertAuth && t.TrustedCAFile == "":
		return errors.New("--peer-client-cert-auth needs --peer-trusted-ca-file: name the CA that signs the nodes' certificates")
	case t.CertFile == "" && t.TrustedCAFile != "":
		return errors.New("--peer-trusted-ca-file needs --peer-cert-file and --peer-key-file")
	case c.secure && t.CertFile == "":
		return errors.New("an https peer URL needs --peer-cert-file and --peer-key-file")
	case c.secure && t.TrustedCAFile == "":
		return errors.New("an https peer URL needs --peer-trusted-ca-file: a node is recognized by its certificate, and without that everybody could write")
	}
	if t.CertFile != "" && !c.secure {
		return fmt.Errorf("--peer-cert-file is set, and %s is without TLS: use https:// for all peer URLs", c.listen[0])
	}
	return nil
}
