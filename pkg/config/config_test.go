package config

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/keelson-io/keelson/pkg/embed"
)

// parse is what the command does with its arguments.
func parse(args, environ []string) (*Config, error) {
	c := New()
	fs := pflag.NewFlagSet("keelson", pflag.ContinueOnError)
	c.AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		return nil, FlagError(err, args, fs)
	}
	return c, c.Load(fs, environ)
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keelson.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaults(t *testing.T) {
	c, err := parse(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := c.Server
	if s.Name != "default" || s.QuotaBackendBytes != 2<<30 || s.MaxRequestBytes != 1572864 || s.MaxTxnOps != 128 ||
		s.WatchProgressNotifyInterval != 10*time.Minute || s.GRPCKeepAliveMinTime != 5*time.Second {
		t.Errorf("not etcd's defaults: %+v", s)
	}
}

func TestPrecedence(t *testing.T) {
	file := writeFile(t, `
# a comment
name: from-file
data-dir: /from/file
max-txn-ops: 1000
watch-progress-notify-interval: 1m
listen-client-urls:
  - unix:///run/keelson.sock
  - http://127.0.0.1:1
`)
	c, err := parse(
		[]string{"--name=from-flag", "--config-file", file},
		[]string{"KEELSON_NAME=from-env", "KEELSON_DATA_DIR=/from/env", "KEELSON_MAX_REQUEST_BYTES=", "PATH=/bin"},
	)
	if err != nil {
		t.Fatal(err)
	}
	s := c.Server
	if s.Name != "from-flag" || s.DataDir != "/from/env" || s.MaxTxnOps != 1000 || s.MaxRequestBytes != embed.DefaultMaxRequestBytes {
		t.Errorf("flag, environment, file, default: %q %q %d %d", s.Name, s.DataDir, s.MaxTxnOps, s.MaxRequestBytes)
	}
	if s.WatchProgressNotifyInterval != time.Minute || !slices.Equal(s.ListenClientURLs, []string{"unix:///run/keelson.sock", "http://127.0.0.1:1"}) {
		t.Errorf("from the file: %v %v", s.WatchProgressNotifyInterval, s.ListenClientURLs)
	}

	c, err = parse([]string{"--max-txn-ops=7"}, []string{"KEELSON_CONFIG_FILE=" + file})
	if err != nil || c.Server.Name != "from-file" || c.Server.MaxTxnOps != 7 {
		t.Errorf("a file named by the environment: %+v, %v", c, err)
	}
}

// Every flag can be set by its variable and by the file.
func TestEverySettingHasAllThreeForms(t *testing.T) {
	values := map[string]string{"string": "x", "list": "x,y", "int64": "7", "uint": "7", "uint32": "7", "uint64": "7", "ms": "7", "duration": "7s", "bool": "true", "mode": "0640", "metrics": "extensive"}
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	New().AddFlags(all)
	all.VisitAll(func(f *pflag.Flag) {
		if f.Name == "config-file" {
			return
		}
		value := values[f.Value.Type()]
		for form, source := range map[string][2][]string{
			"environment":  {nil, {envName(f.Name) + "=" + value}},
			"own variable": {nil, {envName(f.Name) + "=" + value, "ETCD_" + envSuffix(f.Name) + "=9"}},
			"file":         {{"--config-file=" + writeFile(t, f.Name+": "+value)}, nil},
		} {
			c := New()
			fs := pflag.NewFlagSet("", pflag.ContinueOnError)
			c.AddFlags(fs)
			if err := fs.Parse(source[0]); err != nil {
				t.Fatal(err)
			}
			_ = c.Load(fs, source[1]) // "x" is no good for most, but it must arrive
			if got := fs.Lookup(f.Name).Value.String(); got != value {
				t.Errorf("--%s from the %s: %q, want %q", f.Name, form, got, value)
			}
		}
	})
}

func TestErrorsSayWhatToDo(t *testing.T) {
	file := func(content string) []string { return []string{"--config-file=" + writeFile(t, content)} }
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "member", "wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		args    []string
		environ []string
		want    []string
	}{
		{"typing error", []string{"--listen-client-url=http://127.0.0.1:1"}, nil, []string{"did you mean --listen-client-urls?"}},
		{"nonsense", []string{"--zzzzzzzzzzz"}, nil, []string{"unknown flag --zzzzzzzzzzz: keelson --help"}},
		{"one dash", []string{"-name=x"}, nil, []string{"write --name"}},
		{"no value", []string{"--name"}, nil, []string{"--name needs a value"}},
		{"bad number", []string{"--max-txn-ops=many"}, nil, []string{`--max-txn-ops="many": not a whole number`}},
		{"bad duration", nil, []string{"KEELSON_WATCH_PROGRESS_NOTIFY_INTERVAL=600"}, []string{`KEELSON_WATCH_PROGRESS_NOTIFY_INTERVAL="600": not a duration: write it with a unit`}},
		{"bad mode", []string{"--unix-socket-mode=999"}, nil, []string{"octal, such as 0660"}},
		{"etcd flag", []string{"--pre-vote=true"}, nil, []string{"keelson has no --pre-vote: it always asks before"}},
		{"all at once", []string{"--name=x", "--max-wals=1", "--peer-crl-file", "k", "--experimental-max-learners=2"}, nil, []string{"--max-wals", "--peer-crl-file", "--experimental-max-learners"}},
		{"grown up", []string{"--experimental-watch-progress-notify-interval=5s"}, nil, []string{"use --watch-progress-notify-interval"}},
		{"etcd variable", nil, []string{"KEELSON_WAL_DIR=/wal"}, []string{"KEELSON_WAL_DIR: keelson has no --wal-dir", "--data-dir"}},
		{"HTTP alone", []string{"--listen-client-http-urls=http://127.0.0.1:1"}, nil, []string{"--listen-client-http-urls: every client URL serves HTTP as well", "use --listen-metrics-urls"}},
		{"file: typing error", file("name: x\nlisten-client-url: http://127.0.0.1:1\n"), nil, []string{`line 2: unknown key "listen-client-url"; did you mean "listen-client-urls"?`}},
		{"file: section", file("client-transport-security:\n  cert-file: x\n"), nil, []string{"top level"}},
		{"file: etcd", file("max-wals: 1\n"), nil, []string{"line 1: keelson has no max-wals"}},
		{"file: twice", file("name: x\nname: y\n"), nil, []string{"line 2: name is there twice, first in line 1"}},
		{"file: no value", file("name:\n"), nil, []string{"name has no value"}},
		{"file: list", file("name: [a, b]\n"), nil, []string{"one value, not a list"}},
		{"file: bad value", file("\nmax-txn-ops: many\n"), nil, []string{`line 2: max-txn-ops: "many": not a whole number`}},
		{"file: no mapping", file("- a\n"), nil, []string{"write a mapping"}},
		{"file: no YAML", file("a: [\n"), nil, []string{"keelson.yaml: yaml:"}},
		{"file: absent", []string{"--config-file=/nowhere/k.yaml"}, nil, []string{"/nowhere/k.yaml: no such file"}},
		{"postgres", []string{"--datastore=postgres://u:secret@h/db?schema=a.b"}, nil, []string{"--datastore: postgres: URL: schema: use 1 to 48 letters"}},
		{"postgres parameter", []string{"--datastore=postgres://u:secret@h/db?sslmode=secret"}, nil, []string{"--datastore: postgres: URL"}},
		{"other datastore", []string{"--datastore=mysql://u@h/db"}, nil, []string{`no driver "mysql`}},
		{"etcd data", []string{"--data-dir=" + dir}, nil, []string{"belongs to etcd"}},
		{"no certificate", []string{"--listen-client-urls=https://127.0.0.1:2379"}, nil, []string{"set --cert-file and --key-file"}},
		{"half a certificate", []string{"--cert-file=x"}, nil, []string{"set both"}},
		{"certificate for nothing", []string{"--cert-file=x", "--key-file=y"}, nil, []string{"use https://"}},
		{"no CA", []string{"--client-cert-auth"}, nil, []string{"needs --trusted-ca-file"}},
		{"a name", []string{"--listen-client-urls=http://example.com:1"}, nil, []string{"on an IP address"}},
		{"wildcard", []string{"--advertise-client-urls=http://0.0.0.0:2379"}, nil, []string{"clients cannot connect to http://0.0.0.0:2379"}},
		{"same port", []string{"--listen-client-urls=http://127.0.0.1:1", "--listen-metrics-urls=http://127.0.0.1:1"}, nil, []string{"twice"}},
		{"compaction mode", []string{"--auto-compaction-mode=x"}, nil, []string{`"periodic" or "revision"`}},
		{"compaction retention", []string{"--auto-compaction-mode=revision", "--auto-compaction-retention=5m"}, nil, []string{"a number of revisions"}},
		{"tls version", []string{"--tls-min-version=SSL3"}, nil, []string{"use TLS1.2 or TLS1.3"}},
		{"log level", []string{"--log-level=loud"}, nil, []string{"use debug, info"}},
		{"log format", []string{"--log-format=xml"}, nil, []string{"use json, console or auto"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parse(tt.args, tt.environ)
			if !errors.Is(err, ErrUsage) {
				t.Fatalf("got %v, want an ErrUsage", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want it to say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("%q shows a password", err)
			}
		})
	}
}

// Zero switches pings off, as in etcd.
func TestKeepAliveOff(t *testing.T) {
	c, err := parse([]string{"--grpc-keepalive-interval=0"}, nil)
	if err != nil || c.Server.GRPCKeepAliveInterval >= 0 || c.Server.GRPCKeepAliveTimeout != 20*time.Second {
		t.Errorf("%+v, %v", c.Server, err)
	}
}

// The gateway is on unless it is switched off.
func TestGatewaySwitch(t *testing.T) {
	for args, off := range map[string]bool{"": false, "--enable-grpc-gateway": false, "--enable-grpc-gateway=true": false, "--enable-grpc-gateway=false": true} {
		c, err := parse(strings.Fields(args), nil)
		if err != nil || c.Server.NoGRPCGateway != off {
			t.Errorf("%q: %+v, %v", args, c, err)
		}
	}
	if _, err := parse([]string{"--enable-grpc-gateway=maybe"}, nil); err == nil || !strings.Contains(err.Error(), "not true or false") {
		t.Errorf("neither: %v", err)
	}
}

// etcdFlags are all flags of etcd 3.7.3.
const etcdFlags = `
advertise-client-urls auth-token auth-token-ttl auto-compaction-mode auto-compaction-retention auto-tls
backend-batch-interval backend-batch-limit backend-bbolt-freelist-type bcrypt-cost bootstrap-defrag-threshold-megabytes
cert-file cipher-suites client-cert-allowed-hostname client-cert-auth client-cert-file client-crl-file client-key-file
compact-hash-check-time compaction-batch-limit compaction-sleep-interval config-file corrupt-check-time cors data-dir
discovery-cacert discovery-cert discovery-dial-timeout discovery-endpoints discovery-fallback
discovery-insecure-skip-tls-verify discovery-insecure-transport discovery-keepalive-time discovery-keepalive-timeout
discovery-key discovery-password discovery-request-timeout discovery-srv discovery-srv-name discovery-token discovery-user
distributed-tracing-address distributed-tracing-instance-id distributed-tracing-sampling-rate
distributed-tracing-service-name downgrade-check-time election-timeout enable-distributed-tracing enable-grpc-gateway
enable-log-rotation enable-pprof feature-gates force-new-cluster grpc-keepalive-interval grpc-keepalive-min-time
grpc-keepalive-timeout heartbeat-interval host-whitelist initial-advertise-peer-urls initial-cluster
initial-cluster-state initial-cluster-token initial-election-tick-advance key-file listen-client-http-urls
listen-client-urls listen-metrics-urls listen-peer-urls log-format log-level log-outputs log-rotation-config-json logger
max-concurrent-streams max-learners max-request-bytes max-snapshots max-txn-ops max-wals memory-mlock metrics name
peer-auto-tls peer-cert-allowed-cn peer-cert-allowed-hostname peer-cert-file peer-client-cert-auth peer-client-cert-file
peer-client-key-file peer-crl-file peer-key-file peer-skip-client-san-verification peer-trusted-ca-file pre-vote
quota-backend-bytes raft-read-timeout raft-write-timeout self-signed-cert-validity snapshot-catchup-entries
snapshot-count socket-reuse-address socket-reuse-port strict-reconfig-check tls-max-version tls-min-version
trusted-ca-file unsafe-no-fsync v2-deprecation wal-dir warning-apply-duration warning-unary-request-duration
watch-progress-notify-interval`

func TestEveryEtcdFlagIsThereOrExplained(t *testing.T) {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	New().AddFlags(fs)
	for _, name := range strings.Fields(etcdFlags) {
		text, explained := Advice(name)
		if have := fs.Lookup(name) != nil; have == explained {
			t.Errorf("--%s: keelson has it: %v, advice %q; want one of the two", name, have, text)
		}
	}
}
