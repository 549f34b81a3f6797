package config

import "strings"

// Why an etcd flag is not there, in groups that share their advice.
const (
	raftInside  = "it chooses this by itself: remove it"
	oneKind     = "nodes are recognized by one certificate each and its CA: use --peer-cert-file, --peer-key-file and --peer-trusted-ca-file"
	noAuth      = "it has no users and roles: protect it with --client-cert-auth and --trusted-ca-file, or serve only a unix socket"
	noDiscovery = "it discovers no clusters: name the nodes with --initial-cluster"
	noTracing   = "it does not export traces: remove it and use /metrics"
	ownDisk     = "SQLite lays its file out by itself: remove it"
	ownChecks   = "every record has a checksum that is verified when it is read: remove it"

	noRotation = "it does not rotate logs: write to stderr and let journald, the container runtime or logrotate do it"
	certByHand = "it makes no certificates: give it some with --cert-file and --key-file"
)

// advice says for each flag of etcd 3.7 that keelson does not have what to do
// instead; some of older etcds too.
var advice = map[string]string{
	"wal-dir":                       "the write-ahead log is beside the database: put --data-dir on the fast disk",
	"snapshot-catchup-entries":      raftInside,
	"initial-election-tick-advance": raftInside,
	"pre-vote":                      "it always asks before it calls an election: remove it",
	"strict-reconfig-check":         "it always refuses changes that would cost the majority: remove it",
	"max-learners":                  "there may be one learner at a time, as in etcd by default: remove it",
	"raft-read-timeout":             raftInside,
	"raft-write-timeout":            raftInside,

	"listen-client-http-urls": "every client URL serves HTTP as well at no cost for gRPC: remove it, or use --listen-metrics-urls for /metrics and health only",
	"max-snapshots":           "it keeps no snapshot files: remove it",
	"max-wals":                "its write-ahead log is bounded by itself: remove it",
	"memory-mlock":            "it does not lock memory: remove it, and switch swap off if that is what it was for",
	"socket-reuse-port":       "one process serves the data, so that a port is not shared: remove it",
	"socket-reuse-address":    "Go sets SO_REUSEADDR on listeners already: remove it",
	"feature-gates":           "it has none of etcd's feature gates: remove it",
	"v2-deprecation":          "it never had the v2 API: remove it",
	"enable-v2":               "it never had the v2 API: remove it",

	"backend-bbolt-freelist-type":          ownDisk,
	"backend-batch-interval":               "it commits all waiting requests together, at once: remove it",
	"backend-batch-limit":                  "it commits all waiting requests together, at once: remove it",
	"bootstrap-defrag-threshold-megabytes": "compaction gives space back while it serves: remove it, or run etcdctl defrag",
	"compaction-batch-limit":               "compaction works in small steps by a time budget: remove it",
	"compaction-sleep-interval":            "compaction works in small steps by a time budget: remove it",
	"compact-hash-check-time":              ownChecks,
	"downgrade-check-time":                 raftInside,
	"unsafe-no-fsync":                      "every acknowledged write is on disk: remove it; writes that wait together share one fsync",

	"client-cert-file":          "it opens no connections as a client: remove it",
	"client-key-file":           "it opens no connections as a client: remove it",
	"client-crl-file":           "it reads no revocation lists: issue short-lived certificates, or replace --trusted-ca-file, which is read again when it changes",
	"auto-tls":                  certByHand,
	"self-signed-cert-validity": certByHand,
	"cors":                      "it sends no CORS headers: put a reverse proxy before it if a browser must reach it",
	"host-whitelist":            "it does not check Host headers: listen on 127.0.0.1 or a unix socket, or use TLS",

	"auth-token":     noAuth,
	"auth-token-ttl": noAuth,
	"bcrypt-cost":    noAuth,

	"logger":                            "there is one logger: remove it, and use --log-level and --log-format",
	"enable-log-rotation":               noRotation,
	"log-rotation-config-json":          noRotation,
	"log-package-levels":                "use --log-level",
	"debug":                             "use --log-level=debug",
	"warning-apply-duration":            "use --warning-unary-request-duration, which is about the whole request",
	"enable-distributed-tracing":        noTracing,
	"proxy":                             "it is no proxy: point clients at it directly",
	"peer-skip-client-san-verification": "a node's certificate must be of --peer-trusted-ca-file, whatever address it comes from: remove it",
	"peer-client-cert-file":             oneKind,
	"peer-client-key-file":              oneKind,
	"peer-cert-allowed-cn":              "use --peer-cert-allowed-hostname",
	"peer-auto-tls":                     "it makes no certificates: give it some with --peer-cert-file, --peer-key-file and --peer-trusted-ca-file",
	"peer-crl-file":                     "it reads no revocation lists: issue short-lived certificates, or replace --peer-trusted-ca-file, which is read again when it changes",
}

// prefixes are the families of flags that share their advice.
var prefixes = []struct{ prefix, advice string }{
	{"discovery", noDiscovery},
	{"distributed-tracing-", noTracing},
	{"proxy-", "it is no proxy: point clients at it directly"},
}

// Advice says what to do instead of a flag that etcd has and keelson has not.
func Advice(flag string) (string, bool) {
	if text, ok := advice[flag]; ok {
		return text, true
	}
	for _, p := range prefixes {
		if strings.HasPrefix(flag, p.prefix) {
			return p.advice, true
		}
	}
	return "", false
}
