package config

import (
	"encoding/csv"
	"errors"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/keelson-io/keelson/pkg/embed"
)

// defineFlags is the list of settings. Names, values and defaults are etcd's
// where etcd has the flag.
func (c *Config) defineFlags() {
	c.storageFlags(c.group("Storage"))
	c.clientFlags(c.group("Clients"))
	c.tlsFlags(c.group("TLS"))
	c.clusterFlags(c.group("Cluster"))
	c.limitFlags(c.group("Limits"))
	c.compactionFlags(c.group("Compaction"))
	c.backupFlags(c.group("Backups"))
	c.diagnosticFlags(c.group("Logging and diagnostics"))
}

func (c *Config) group(title string) *pflag.FlagSet {
	flags := pflag.NewFlagSet(title, pflag.ContinueOnError)
	flags.SortFlags = false
	c.groups = append(c.groups, Group{title, flags})
	return flags
}

func (c *Config) storageFlags(f *pflag.FlagSet) {
	s := &c.Server
	f.StringVar(&c.ConfigFile, "config-file", "", "YAML `file` with flag names (without dashes) as keys")
	f.StringVar(&s.Name, "name", s.Name, "`name` of this member")
	f.StringVar(&s.DataDir, "data-dir", "", "`directory` of the data; one keelson at a time (default ./<name>.keelson)")
	f.StringVar(&s.Datastore, "datastore", s.Datastore, "where the data is: sqlite (in the data directory), or a `URL`: sqlite:///directory, postgres://user@host/database")
}

func (c *Config) clientFlags(f *pflag.FlagSet) {
	s := &c.Server
	listVar(f, &s.ListenClientURLs, "listen-client-urls", "`URLs` to serve gRPC and HTTP on, with commas: http, https, unix, unixs (default unix://<data-dir>/"+embed.DefaultSocketName+","+embed.DefaultClientURL+")")
	listVar(f, &s.AdvertiseClientURLs, "advertise-client-urls", "`URLs` that clients are told in member lists (default: what is listened on)")
	listVar(f, &s.ListenMetricsURLs, "listen-metrics-urls", "further `URLs` for /metrics and the health checks only")
	f.Var((*modeValue)(&s.SocketMode), "unix-socket-mode", "permissions of unix sockets, octal `mode` (default 0600, with a group 0660)")
	f.StringVar(&s.SocketGroup, "unix-socket-group", "", "`group` of unix sockets, name or number")
	f.Var((*unsetValue)(&s.NoGRPCGateway), "enable-grpc-gateway", "serve JSON over HTTP too, at /v3/ of the client URLs")
	f.Lookup("enable-grpc-gateway").NoOptDefVal = "true"
	f.DurationVar(&s.WatchProgressNotifyInterval, "watch-progress-notify-interval", s.WatchProgressNotifyInterval, "`time` between the progress notifications of an idle watch")
	f.DurationVar(&s.GRPCKeepAliveMinTime, "grpc-keepalive-min-time", s.GRPCKeepAliveMinTime, "shortest `time` between pings; a client that pings more often is disconnected")
	f.DurationVar(&s.GRPCKeepAliveInterval, "grpc-keepalive-interval", s.GRPCKeepAliveInterval, "the server pings an idle client after this `time`; 0 is never")
	f.DurationVar(&s.GRPCKeepAliveTimeout, "grpc-keepalive-timeout", s.GRPCKeepAliveTimeout, "`time` a client has to answer that ping; 0 leaves it to gRPC")
	f.DurationVar(&s.DrainTimeout, "drain-timeout", s.DrainTimeout, "`time` that requests under way have to end once the server stops")
}

func (c *Config) tlsFlags(f *pflag.FlagSet) {
	t := &c.Server.TLS
	f.StringVar(&t.CertFile, "cert-file", "", "certificate `file` for https and unixs URLs; read again when it changes, as the others")
	f.StringVar(&t.KeyFile, "key-file", "", "`file` of the certificate's key")
	f.StringVar(&t.TrustedCAFile, "trusted-ca-file", "", "`file` of the CA that clients must have a certificate of")
	f.BoolVar(&t.ClientCertAuth, "client-cert-auth", false, "clients must show a certificate; needs --trusted-ca-file, which implies it")
	listVar(f, &t.AllowedHostnames, "client-cert-allowed-hostname", "`names` one of which a client's certificate must be for")
	f.StringVar(&t.MinVersion, "tls-min-version", t.MinVersion, "oldest TLS `version`: TLS1.2 or TLS1.3")
	f.StringVar(&t.MaxVersion, "tls-max-version", "", "newest TLS `version`: TLS1.2 or TLS1.3 (default the newest)")
	listVar(f, &t.CipherSuites, "cipher-suites", "TLS 1.2 cipher suites by their IANA `names` (default Go's)")
}

// clusterFlags are those of a node that replicates its data. Their defaults
// are etcd's, but that there is no cluster unless they ask for one.
func (c *Config) clusterFlags(f *pflag.FlagSet) {
	s := &c.Server.Cluster
	f.StringVar(&s.InitialCluster, "initial-cluster", "", "all `nodes` of the cluster when this one joins it, name=peer-URL with commas; makes this a node of a cluster")
	f.StringVar(&s.InitialClusterState, "initial-cluster-state", s.InitialClusterState, "`state` of the cluster when this node joins: new, or existing after etcdctl member add")
	f.StringVar(&s.InitialClusterToken, "initial-cluster-token", s.InitialClusterToken, "`name` that tells the cluster from others with the same peer URLs")
	listVar(f, &s.InitialAdvertisePeerURLs, "initial-advertise-peer-urls", "`URLs` at which the other nodes reach this one (default: its own in --initial-cluster)")
	listVar(f, &s.ListenPeerURLs, "listen-peer-urls", "`URLs` to listen on for the other nodes (default: the advertised ones)")
	f.Var((*millisecondsValue)(&s.HeartbeatInterval), "heartbeat-interval", "`milliseconds` between the leader's heartbeats")
	f.Var((*millisecondsValue)(&s.ElectionTimeout), "election-timeout", "`milliseconds` without a heartbeat after which a new leader is elected")
	f.Uint64Var(&s.SnapshotCount, "snapshot-count", s.SnapshotCount, "largest `number` of entries in the Raft log before what is in the database is taken out of it")
	f.DurationVar(&s.CorruptCheckTime, "corrupt-check-time", s.CorruptCheckTime, "the leader compares the data of all nodes after this `time`, again and again; 0 is never")
	f.BoolVar(&s.ForceNewCluster, "force-new-cluster", false, "go on as the only node of the cluster, when most of the others are lost for good and not started again; once")
	t := &s.PeerTLS
	f.StringVar(&t.CertFile, "peer-cert-file", "", "certificate `file` of this node, for https peer URLs; shown to other nodes both as server and as client")
	f.StringVar(&t.KeyFile, "peer-key-file", "", "`file` of that certificate's key")
	f.StringVar(&t.TrustedCAFile, "peer-trusted-ca-file", "", "`file` of the CA that the nodes' certificates are of")
	f.BoolVar(&t.ClientCertAuth, "peer-client-cert-auth", false, "nodes must show a certificate; needs --peer-trusted-ca-file, which implies it")
	listVar(f, &t.AllowedHostnames, "peer-cert-allowed-hostname", "`names` one of which a node's certificate must be for")
}

func (c *Config) limitFlags(f *pflag.FlagSet) {
	s := &c.Server
	f.Int64Var(&s.QuotaBackendBytes, "quota-backend-bytes", s.QuotaBackendBytes, "`bytes` of data beyond which writes are refused; 0 is 2 GiB, negative is no quota")
	f.UintVar(&s.MaxRequestBytes, "max-request-bytes", s.MaxRequestBytes, "largest request in `bytes`")
	f.UintVar(&s.MaxTxnOps, "max-txn-ops", s.MaxTxnOps, "largest `number` of operations in a transaction")
	f.Uint32Var(&s.MaxConcurrentStreams, "max-concurrent-streams", s.MaxConcurrentStreams, "largest `number` of streams on one connection")
	f.Int64Var(&s.CacheBytes, "cache-bytes", s.CacheBytes, "`bytes` of values kept in memory; the others are read from disk when asked for")
	f.Int64Var(&s.ResponseBytes, "response-bytes", s.ResponseBytes, "`bytes` of memory for large responses under way, which wait for each other; negative is no bound")
}

func (c *Config) compactionFlags(f *pflag.FlagSet) {
	s := &c.Server
	f.StringVar(&s.AutoCompactionMode, "auto-compaction-mode", s.AutoCompactionMode, "`mode`: periodic (by time) or revision (by number)")
	f.StringVar(&s.AutoCompactionRetention, "auto-compaction-retention", s.AutoCompactionRetention, "`length` of the history to keep: 5m or a number of hours for periodic, a number for revision; 0 is off, as for a kube-apiserver, which compacts by itself")
}

func (c *Config) backupFlags(f *pflag.FlagSet) {
	b := &c.Server.Backup
	f.StringVar(&b.Schedule, "snapshot-schedule", "", "`times` of backups: five fields as for cron, @hourly, @daily, @every 6h; local time, or after CRON_TZ=Europe/Berlin (default never)")
	f.StringVar(&b.Dir, "snapshot-dir", "", "`place` of backups: a directory or s3://bucket/prefix (default <data-dir>/snapshots)")
	f.StringVar(&b.Retention, "snapshot-retention", b.Retention, "how many backups are kept, or how long: a `number`, or 30d or 72h; 0 keeps all")
	f.StringVar(&b.S3Endpoint, "snapshot-s3-endpoint", "", "`URL` of the S3-compatible server (default AWS_ENDPOINT_URL_S3 or AWS); credentials are AWS_ACCESS_KEY_ID and so on, or AWS's files")
	f.StringVar(&b.S3Region, "snapshot-s3-region", "", "`name` of the bucket's region (default AWS_REGION or what the server says)")
	f.StringVar(&b.S3CAFile, "snapshot-s3-ca-file", "", "`file` of the CA that the S3 server's certificate is of (default the system's)")
	f.BoolVar(&b.S3PathStyle, "snapshot-s3-path-style", false, "name the bucket in the path of URLs and not in their host")
}

func (c *Config) diagnosticFlags(f *pflag.FlagSet) {
	l := &c.Log
	f.StringVar(&l.Level, "log-level", l.Level, "`level`: debug, info, warn, error, panic or fatal")
	f.StringVar(&l.Format, "log-format", l.Format, "`format`: json, console, or auto (console on a terminal)")
	listVar(f, &l.Outputs, "log-outputs", "stderr, stdout or `files`")
	f.DurationVar(&c.Server.WarningUnaryRequestDuration, "warning-unary-request-duration", c.Server.WarningUnaryRequestDuration, "log a request that takes longer than this `time`; 0 logs none")
	f.Var((*metricsValue)(&c.Server.ExtensiveMetrics), "metrics", "`detail` of the metrics: basic, or extensive with histograms of each method's time")
	f.BoolVar(&c.Server.EnablePprof, "enable-pprof", false, "serve /debug/pprof/ on the client and metrics URLs")
}

// listType is the pflag type of a list, which in a file may be a YAML list.
const listType = "list"

// listValue is a list written with commas. A later value replaces an earlier
// one, also on the command line, as in etcd.
type listValue []string

func listVar(f *pflag.FlagSet, p *[]string, name, usage string) {
	f.Var((*listValue)(p), name, usage)
}

func (l *listValue) Set(text string) error {
	items, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return errors.New("write a list with commas")
	}
	for i := range items {
		items[i] = strings.TrimSpace(items[i])
	}
	*l = items
	return nil
}

func (l *listValue) Type() string   { return listType }
func (l *listValue) String() string { return strings.Join(*l, ",") }

// millisecondsValue is a duration that is written as a number of milliseconds.
type millisecondsValue time.Duration

func (m *millisecondsValue) Set(text string) error {
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil || n == 0 {
		return errors.New("write a number of milliseconds, such as 100")
	}
	*m = millisecondsValue(time.Duration(n) * time.Millisecond)
	return nil
}

func (m *millisecondsValue) Type() string { return "ms" }

func (m *millisecondsValue) String() string {
	return strconv.FormatInt(time.Duration(*m).Milliseconds(), 10)
}

// modeValue is permissions in octal.
type modeValue fs.FileMode

func (m *modeValue) Set(text string) error {
	n, err := strconv.ParseUint(strings.TrimPrefix(text, "0o"), 8, 32)
	if err != nil || n == 0 || n > 0o777 {
		return errors.New("write permissions in octal, such as 0660")
	}
	*m = modeValue(n)
	return nil
}

func (m *modeValue) Type() string { return "mode" }

func (m *modeValue) String() string {
	if *m == 0 {
		return ""
	}
	return "0" + strconv.FormatUint(uint64(*m), 8)
}

// metricsValue is true for "extensive".
type metricsValue bool

func (m *metricsValue) Set(text string) error {
	if text != "basic" && text != "extensive" {
		return errors.New("use basic or extensive")
	}
	*m = text == "extensive"
	return nil
}

func (m *metricsValue) Type() string { return "metrics" }

func (m *metricsValue) String() string {
	if *m {
		return "extensive"
	}
	return "basic"
}

// unsetValue is a switch that sets what it points to when it is off.
type unsetValue bool

func (u *unsetValue) Set(text string) error {
	on, err := strconv.ParseBool(text)
	if err != nil {
		return errors.New("use true or false")
	}
	*u = unsetValue(!on)
	return nil
}

func (u *unsetValue) Type() string   { return "bool" }
func (u *unsetValue) String() string { return strconv.FormatBool(!bool(*u)) }
