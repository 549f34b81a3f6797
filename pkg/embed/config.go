package embed

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/keelson-io/keelson/pkg/compactor"
	"github.com/keelson-io/keelson/pkg/drivers/postgres"
	"github.com/keelson-io/keelson/pkg/listen"
	"github.com/keelson-io/keelson/pkg/raftlog"
	"github.com/keelson-io/keelson/pkg/server"
	"github.com/keelson-io/keelson/pkg/store"
)

// The defaults, etcd's where etcd has the setting.
const (
	DefaultName                 = "default"
	DefaultDatastore            = "sqlite"
	DefaultClientURL            = "http://127.0.0.1:2379"
	DefaultSocketName           = "keelson.sock"
	DefaultQuotaBytes           = 2 << 30
	DefaultMaxRequestBytes      = 3 << 19 // 1.5 MiB
	DefaultMaxTxnOps            = 128
	DefaultMaxConcurrentStreams = 1<<32 - 1
	DefaultProgressInterval     = 10 * time.Minute
	DefaultKeepAliveMinTime     = 5 * time.Second
	DefaultKeepAliveInterval    = 2 * time.Hour
	DefaultKeepAliveTimeout     = 20 * time.Second
	DefaultCacheBytes           = store.DefaultCacheBytes
	DefaultResponseBytes        = server.DefaultResponseBytes
	DefaultSlowRequest          = 300 * time.Millisecond
	DefaultDrainTimeout         = 10 * time.Second
	DefaultClusterToken         = "etcd-cluster"
)

// The values of ClusterConfig.InitialClusterState.
const (
	ClusterStateNew      = "new"
	ClusterStateExisting = "existing"
)

// ErrConfig: the configuration cannot work; the message says what to change.
// Nothing was started.
var ErrConfig = errors.New("configuration")

// Config says what to serve and where. The zero value serves SQLite in
// ./default.keelson on a unix socket there and on http://127.0.0.1:2379;
// every field's zero value means its default. Field comments name the
// command's flag.
type Config struct {
	Name      string // --name: the member's name
	DataDir   string // --data-dir: <name>.keelson if empty
	Datastore string // --datastore: "sqlite", "sqlite:///directory" or "postgres://…"

	ListenClientURLs    []string // --listen-client-urls; port 0 picks a free one
	AdvertiseClientURLs []string // --advertise-client-urls: what clients are told
	ListenMetricsURLs   []string // --listen-metrics-urls: /metrics and health only

	SocketMode  fs.FileMode // --unix-socket-mode: 0600, with a group 0660
	SocketGroup string      // --unix-socket-group: name or number

	TLS TLS

	// Cluster makes the server a node of a cluster; see there.
	Cluster ClusterConfig

	Backup BackupConfig // snapshots by the clock

	AutoCompactionMode      string // --auto-compaction-mode: periodic or revision
	AutoCompactionRetention string // --auto-compaction-retention: "0" is off

	WatchProgressNotifyInterval time.Duration // --watch-progress-notify-interval

	QuotaBackendBytes    int64  // --quota-backend-bytes: 0 is 2 GiB, negative is no quota
	MaxRequestBytes      uint   // --max-request-bytes
	MaxTxnOps            uint   // --max-txn-ops
	MaxConcurrentStreams uint32 // --max-concurrent-streams
	CacheBytes           int64  // --cache-bytes: values kept in memory
	ResponseBytes        int64  // --response-bytes: of large responses under way; negative is no bound

	GRPCKeepAliveMinTime  time.Duration // --grpc-keepalive-min-time
	GRPCKeepAliveInterval time.Duration // --grpc-keepalive-interval; negative is off
	GRPCKeepAliveTimeout  time.Duration // --grpc-keepalive-timeout; negative is off

	// WarningUnaryRequestDuration is how long a request may take before it is
	// logged (--warning-unary-request-duration); negative logs none.
	WarningUnaryRequestDuration time.Duration
	// ExtensiveMetrics adds histograms of the handling time
	// (--metrics=extensive).
	ExtensiveMetrics bool
	EnablePprof      bool // --enable-pprof: /debug/pprof/ on the client and metrics URLs
	NoGRPCGateway    bool // --enable-grpc-gateway=false: no JSON API on the client URLs

	// DrainTimeout is how long requests under way may take once the server
	// stops (--drain-timeout).
	DrainTimeout time.Duration

	// Logger is where the server logs; nil is logrus's standard logger.
	Logger *logrus.Entry
}

// TLS is how https and unixs URLs are secured. The files are read again when
// they change.
type TLS struct {
	CertFile         string   // --cert-file
	KeyFile          string   // --key-file
	TrustedCAFile    string   // --trusted-ca-file: clients must show a certificate of it
	ClientCertAuth   bool     // --client-cert-auth
	AllowedHostnames []string // --client-cert-allowed-hostname
	MinVersion       string   // --tls-min-version: TLS1.2 or TLS1.3
	MaxVersion       string   // --tls-max-version
	CipherSuites     []string // --cipher-suites: names as in crypto/tls
}

// ClusterConfig says how a node takes part in a cluster: if InitialCluster is
// set, or the data directory is a node's of one already. What begins with
// Initial counts only the first time.
type ClusterConfig struct {
	InitialCluster           string   // --initial-cluster: name=peer-URL,…
	InitialClusterState      string   // --initial-cluster-state: new or existing
	InitialClusterToken      string   // --initial-cluster-token
	InitialAdvertisePeerURLs []string // --initial-advertise-peer-urls: this node's in InitialCluster if empty
	ListenPeerURLs           []string // --listen-peer-urls: as advertised if empty

	HeartbeatInterval time.Duration // --heartbeat-interval
	ElectionTimeout   time.Duration // --election-timeout
	SnapshotCount     uint64        // --snapshot-count

	// CorruptCheckTime is how often the leader compares the data of all nodes
	// with its own (--corrupt-check-time); 0 is never.
	CorruptCheckTime time.Duration

	// ForceNewCluster makes this node the only one of its cluster
	// (--force-new-cluster); raftlog.ForceNewCluster says what that costs.
	ForceNewCluster bool

	// PeerTLS secures https peer URLs (--peer-cert-file and so on); its
	// AllowedHostnames are --peer-cert-allowed-hostname.
	PeerTLS TLS
}

// settings is a Config that was understood.
type settings struct {
	Config
	sqliteDir string // the directory of the SQLite database; empty: postgres
	postgres  string // the URL of the Postgres database; empty: sqlite
	client    []listen.URL
	metrics   []listen.URL
	advertise []string // empty: what the client listeners turn out to be
	tls       listen.TLSFiles
	policy    compactor.Policy
	cluster   *clusterSettings // nil: a single node
	backup    *backupSettings  // nil: none are made
}

func orDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// DefaultConfig returns the defaults that do not depend on other fields.
func DefaultConfig() Config {
	var c Config
	c.setDefaults()
	return c
}

func (c *Config) setDefaults() {
	orDefault(&c.Name, DefaultName)
	orDefault(&c.Datastore, DefaultDatastore)
	orDefault(&c.AutoCompactionMode, compactor.ModePeriodic)
	orDefault(&c.AutoCompactionRetention, "0")
	orDefault(&c.Backup.Retention, DefaultSnapshotRetention)
	orDefault(&c.WatchProgressNotifyInterval, DefaultProgressInterval)
	orDefault(&c.QuotaBackendBytes, DefaultQuotaBytes)
	orDefault(&c.MaxRequestBytes, DefaultMaxRequestBytes)
	orDefault(&c.MaxTxnOps, DefaultMaxTxnOps)
	orDefault(&c.MaxConcurrentStreams, DefaultMaxConcurrentStreams)
	orDefault(&c.CacheBytes, DefaultCacheBytes)
	orDefault(&c.ResponseBytes, DefaultResponseBytes)
	orDefault(&c.GRPCKeepAliveMinTime, DefaultKeepAliveMinTime)
	orDefault(&c.GRPCKeepAliveInterval, DefaultKeepAliveInterval)
	orDefault(&c.GRPCKeepAliveTimeout, DefaultKeepAliveTimeout)
	orDefault(&c.WarningUnaryRequestDuration, DefaultSlowRequest)
	orDefault(&c.DrainTimeout, DefaultDrainTimeout)
	orDefault(&c.TLS.MinVersion, "TLS1.2")
	orDefault(&c.Cluster.InitialClusterState, ClusterStateNew)
	orDefault(&c.Cluster.InitialClusterToken, DefaultClusterToken)
	orDefault(&c.Cluster.HeartbeatInterval, raftlog.DefaultHeartbeatInterval)
	orDefault(&c.Cluster.ElectionTimeout, raftlog.DefaultElectionTimeout)
	orDefault(&c.Cluster.SnapshotCount, raftlog.DefaultSnapshotCount)
}

// Validate reports what cannot work, as ErrConfig. Start does it too.
func (c Config) Validate() error {
	_, err := c.resolve()
	return err
}

// resolve fills the defaults in and parses what is text.
func (c Config) resolve() (*settings, error) {
	s := &settings{Config: c}
	s.setDefaults()
	orDefault(&s.DataDir, s.Name+".keelson")
	if s.Logger == nil {
		s.Logger = logrus.NewEntry(logrus.StandardLogger())
	}
	for _, step := range []func() error{s.resolveData, s.resolveURLs, s.resolveTLS, s.resolveLimits, s.resolveCluster, s.resolveBackup} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrConfig, err)
		}
	}
	return s, nil
}

// Data returns where the data is: the directory of an SQLite database, or the
// URL of a PostgreSQL one.
func (c Config) Data() (sqliteDir, postgresURL string, err error) {
	s := &settings{Config: c}
	s.setDefaults()
	orDefault(&s.DataDir, s.Name+".keelson")
	if err := s.resolveData(); err != nil {
		return "", "", fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return s.sqliteDir, s.postgres, nil
}

func (s *settings) resolveData() error {
	dir, err := filepath.Abs(s.DataDir)
	if err != nil {
		return fmt.Errorf("--data-dir %s: %w", s.DataDir, err)
	}
	s.DataDir = dir
	if _, err := os.Stat(filepath.Join(dir, "member", "wal")); err == nil {
		return fmt.Errorf("--data-dir %s belongs to etcd: choose another directory, and bring its data there with keelson snapshot restore or keelson import", dir)
	}
	if s.Datastore == "sqlite" || s.Datastore == "sqlite://" {
		s.sqliteDir = dir
		return nil
	}
	u, err := url.Parse(s.Datastore)
	if err != nil {
		// The parser's error would repeat the URL, which may hold a password.
		return errors.New("--datastore is not a URL: write sqlite, sqlite:///directory or postgres://user@host/database")
	}
	switch u.Scheme {
	case "sqlite":
		if u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			return errors.New("--datastore: write sqlite:///directory and nothing more")
		}
		if s.sqliteDir, err = filepath.Abs(u.Host + u.Path); err != nil {
			return fmt.Errorf("--datastore: %w", err)
		}
		if info, err := os.Stat(s.sqliteDir); err == nil && !info.IsDir() {
			return fmt.Errorf("--datastore: %s is a file: name the directory that the database is in", s.sqliteDir)
		}
		return nil
	case "postgres", "postgresql":
		if err := postgres.CheckURL(s.Datastore); err != nil {
			return fmt.Errorf("--datastore: %w", err)
		}
		s.postgres = s.Datastore
		return nil
	}
	return fmt.Errorf("--datastore: there is no driver %q: use sqlite, sqlite:///directory or postgres://user@host/database", u.Scheme+strings.TrimSuffix(u.Path, "/"))
}

func (s *settings) resolveURLs() (err error) {
	if len(s.ListenClientURLs) == 0 {
		s.ListenClientURLs = []string{"unix://" + filepath.Join(s.DataDir, DefaultSocketName), DefaultClientURL}
	}
	if s.client, err = listen.ParseURLs(s.ListenClientURLs); err != nil {
		return fmt.Errorf("--listen-client-urls: %w", err)
	}
	if s.metrics, err = listen.ParseURLs(s.ListenMetricsURLs); err != nil {
		return fmt.Errorf("--listen-metrics-urls: %w", err)
	}
	if _, err = listen.ParseURLs(append(append([]string{}, s.ListenClientURLs...), s.ListenMetricsURLs...)); err != nil {
		return fmt.Errorf("--listen-client-urls and --listen-metrics-urls: %w", err)
	}
	for _, list := range [][]listen.URL{s.client, s.metrics} {
		for i := range list {
			if list[i].Network() == "unix" {
				if list[i].Address, err = filepath.Abs(list[i].Address); err != nil {
					return err
				}
			} else if host := list[i].Host(); host != "" && host != "localhost" && net.ParseIP(host) == nil {
				return fmt.Errorf("%s: listen on an IP address or localhost, not on a name; names go into --advertise-client-urls", list[i])
			}
		}
	}
	advertise, err := listen.ParseURLs(s.AdvertiseClientURLs)
	if err != nil {
		return fmt.Errorf("--advertise-client-urls: %w", err)
	}
	for _, u := range advertise {
		if u.Wildcard() {
			return fmt.Errorf("--advertise-client-urls: clients cannot connect to %s: name an address they can reach", u)
		}
		s.advertise = append(s.advertise, u.String())
	}
	return nil
}

func (s *settings) secure() bool { return s.firstSecure() != nil }

// firstSecure is the first URL with TLS, or nil.
func (s *settings) firstSecure() *listen.URL {
	for _, list := range [][]listen.URL{s.client, s.metrics} {
		for i := range list {
			if list[i].Secure() {
				return &list[i]
			}
		}
	}
	return nil
}

func (s *settings) resolveTLS() error {
	t := s.TLS
	s.tls = listen.TLSFiles{
		CertFile: t.CertFile, KeyFile: t.KeyFile, TrustedCAFile: t.TrustedCAFile, AllowedHostnames: t.AllowedHostnames,
	}
	switch {
	case (t.CertFile == "") != (t.KeyFile == ""):
		return errors.New("--cert-file and --key-file belong together: set both or neither")
	case t.ClientCertAuth && t.TrustedCAFile == "":
		return errors.New("--client-cert-auth needs --trusted-ca-file: name the CA that signs your clients' certificates")
	case t.CertFile == "" && t.TrustedCAFile != "":
		return errors.New("--trusted-ca-file needs TLS: set --cert-file and --key-file and listen on https:// or unixs://")
	case len(t.AllowedHostnames) > 0 && t.TrustedCAFile == "":
		return errors.New("--client-cert-allowed-hostname needs --client-cert-auth and --trusted-ca-file")
	case s.secure() && t.CertFile == "":
		return fmt.Errorf("%s: %w", s.firstSecure(), listen.ErrNoTLS)
	case t.CertFile != "" && !s.secure():
		return errors.New("--cert-file is set but nothing listens with TLS: use https:// or unixs:// in --listen-client-urls")
	}
	versions := map[string]uint16{"": 0, "TLS1.2": tls.VersionTLS12, "TLS1.3": tls.VersionTLS13}
	var known bool
	if s.tls.MinVersion, known = versions[t.MinVersion]; !known {
		return fmt.Errorf("--tls-min-version %s: use TLS1.2 or TLS1.3", t.MinVersion)
	}
	if s.tls.MaxVersion, known = versions[t.MaxVersion]; !known {
		return fmt.Errorf("--tls-max-version %s: use TLS1.2 or TLS1.3", t.MaxVersion)
	}
	if s.tls.MaxVersion != 0 && s.tls.MaxVersion < s.tls.MinVersion {
		return fmt.Errorf("--tls-max-version %s is below --tls-min-version %s", t.MaxVersion, t.MinVersion)
	}
	return s.resolveCiphers()
}

func (s *settings) resolveCiphers() error {
	if len(s.TLS.CipherSuites) > 0 && s.tls.MinVersion == tls.VersionTLS13 {
		return errors.New("--cipher-suites has no effect with TLS1.3, which chooses its own: remove it")
	}
	suites := make(map[string]uint16)
	for _, suite := range tls.CipherSuites() {
		suites[suite.Name] = suite.ID
	}
	for _, name := range s.TLS.CipherSuites {
		id, known := suites[name]
		if !known {
			return fmt.Errorf("--cipher-suites: %q is not a suite keelson offers: use names such as TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", name)
		}
		s.tls.CipherSuites = append(s.tls.CipherSuites, id)
	}
	return nil
}

func (s *settings) resolveLimits() (err error) {
	if s.policy, err = compactor.Parse(s.AutoCompactionMode, s.AutoCompactionRetention); err != nil {
		return fmt.Errorf("--auto-compaction-mode and --auto-compaction-retention: %w", err)
	}
	switch {
	case s.WatchProgressNotifyInterval < 100*time.Millisecond:
		return fmt.Errorf("--watch-progress-notify-interval %s is too short: use at least 100ms", s.WatchProgressNotifyInterval)
	case s.MaxRequestBytes > 512<<20: // SQLite takes rows of 1,000,000,000 bytes
		return fmt.Errorf("--max-request-bytes %d is too much: use at most 536870912 (512 MiB)", s.MaxRequestBytes)
	case s.MaxTxnOps > 1<<20:
		return fmt.Errorf("--max-txn-ops %d is too much: use at most 1048576", s.MaxTxnOps)
	case s.CacheBytes < 0:
		return fmt.Errorf("--cache-bytes %d is negative", s.CacheBytes)
	case s.GRPCKeepAliveMinTime < 0:
		return fmt.Errorf("--grpc-keepalive-min-time %s is negative", s.GRPCKeepAliveMinTime)
	case s.DrainTimeout < 0:
		return fmt.Errorf("--drain-timeout %s is negative", s.DrainTimeout)
	case s.SocketMode&^fs.ModePerm != 0:
		return fmt.Errorf("--unix-socket-mode %o: use permission bits such as 0660", s.SocketMode)
	}
	return nil
}
