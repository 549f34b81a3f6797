package config

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestEtcdVariables(t *testing.T) {
	file := "--config-file=" + writeFile(t, "name: filed\n")
	for _, tt := range []struct {
		what          string
		args, environ []string
		name          string // of the member: whose value won
		warnings      []string
		from          []string
	}{
		{"alone", nil, []string{"ETCD_NAME=etcd"}, "etcd", nil, []string{"ETCD_NAME"}},
		{"empty", nil, []string{"ETCD_NAME="}, "default", nil, nil},
		{"beside its own", nil, []string{"ETCD_NAME=etcd", "KEELSON_NAME=own"}, "own",
			[]string{"ETCD_NAME is not used, since there is KEELSON_NAME: remove one of them"}, nil},
		{"beside the same", nil, []string{"ETCD_NAME=x", "KEELSON_NAME=x"}, "x", nil, nil},
		{"beside a flag", []string{"--name=flag"}, []string{"ETCD_NAME=etcd"}, "flag",
			[]string{"ETCD_NAME is not used, since there is --name: remove one of them"}, nil},
		{"beside the same flag", []string{"--name=x"}, []string{"ETCD_NAME=x"}, "x", nil, nil},
		{"beside a file", []string{file}, []string{"ETCD_NAME=etcd"}, "filed",
			[]string{"ETCD_NAME is not read, since there is a --config-file: put name there, or use KEELSON_NAME"}, nil},
		{"own, beside a file", []string{file}, []string{"KEELSON_NAME=own"}, "own", nil, nil},
		{"the file", nil, []string{"ETCD_" + strings.Replace(file[2:], "config-file", "CONFIG_FILE", 1)}, "filed", nil, []string{"ETCD_CONFIG_FILE"}},
		{"what etcd has no flag for", nil, []string{"ETCD_UNSUPPORTED_ARCH=arm", "ETCD_VERIFY=all", "ETCD_VERSION=3", "ETCDCTL_API=3", "ETCDUTL_X=1", "ETCD=1"}, "default", nil, nil},
		{"what Kubernetes sets", nil, []string{
			"ETCD_SERVICE_HOST=10.0.0.1", "ETCD_SERVICE_PORT=2379", "ETCD_SERVICE_PORT_PEER=2380", "ETCD_PORT=tcp://10.0.0.1:2379",
			"ETCD_PORT_2379_TCP=tcp://10.0.0.1:2379", "ETCD_PORT_2379_TCP_ADDR=10.0.0.1", "ETCD_PEER_SERVICE_HOST=10.0.0.1",
			"ETCD_PROXY_PORT_2379_TCP_PROTO=tcp", "KEELSON_SERVICE_HOST=10.0.0.1", "KEELSON_PORT_2379_TCP=tcp://10.0.0.1:2379",
			"KEELSON_PEER_SERVICE_PORT=1",
		}, "default", nil, nil},
		{"typing errors", nil, []string{"ETCD_DATADIR=/x", "KEELSON_DATADIR=/x", "ETCD_CACHE_BYTES=1", "ETCD_ZZZZZZZZZZZZ=1", "KEELSON_ZZZZZZZZZZZZ=1"}, "default", []string{
			"ETCD_CACHE_BYTES is not known; did you mean KEELSON_CACHE_BYTES?",
			"ETCD_DATADIR is not known; did you mean ETCD_DATA_DIR?",
			"ETCD_ZZZZZZZZZZZZ is not known",
			"KEELSON_DATADIR is not known; did you mean KEELSON_DATA_DIR?",
		}, nil},
	} {
		t.Run(tt.what, func(t *testing.T) {
			c, err := parse(tt.args, tt.environ)
			if err != nil {
				t.Fatal(err)
			}
			if c.Server.Name != tt.name || !slices.Equal(c.Warnings, tt.warnings) || !slices.Equal(c.FromEtcd, tt.from) {
				t.Errorf("name %q, warnings %q, from etcd %q;\nwant %q, %q, %q", c.Server.Name, c.Warnings, c.FromEtcd, tt.name, tt.warnings, tt.from)
			}
		})
	}
}

// What a flag of etcd's would be told, its variable is told, too: all at once.
func TestEtcdVariablesOfWhatIsNotThere(t *testing.T) {
	_, err := parse(nil, []string{
		"ETCD_WAL_DIR=/wal", "ETCD_MAX_LEARNERS=2", "KEELSON_LOGGER=zap", "ETCD_EXPERIMENTAL_WATCH_PROGRESS_NOTIFY_INTERVAL=1s",
		"ETCD_LISTEN_CLIENT_HTTP_URLS=http://127.0.0.1:1", "ETCD_SOCKET_REUSE_PORT=true",
	})
	if !errors.Is(err, ErrUsage) {
		t.Fatal(err)
	}
	want := []string{
		"ETCD_EXPERIMENTAL_WATCH_PROGRESS_NOTIFY_INTERVAL: keelson has no --experimental-watch-progress-notify-interval: it is not experimental any more: use --watch-progress-notify-interval",
		"ETCD_LISTEN_CLIENT_HTTP_URLS: keelson has no --listen-client-http-urls: ",
		"ETCD_MAX_LEARNERS: keelson has no --max-learners: ",
		"ETCD_SOCKET_REUSE_PORT: keelson has no --socket-reuse-port: ",
		"ETCD_WAL_DIR: keelson has no --wal-dir: ",
		"KEELSON_LOGGER: keelson has no --logger: ",
	}
	got := strings.Split(err.Error(), "\n")
	if !slices.EqualFunc(got, want, strings.HasPrefix) {
		t.Errorf("%s", err)
	}
	if _, err := parse(nil, []string{"ETCD_MAX_TXN_OPS=many"}); err == nil || !strings.HasPrefix(err.Error(), `ETCD_MAX_TXN_OPS="many": not a whole number`) {
		t.Errorf("a bad value: %v", err)
	}
}

// Every flag is etcd's, and then read from its variable, or keelson's own.
func TestEveryFlagIsEtcdsOrOwn(t *testing.T) {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	New().AddFlags(fs)
	fs.VisitAll(func(f *pflag.Flag) {
		if etcds := slices.Contains(strings.Fields(etcdFlags), f.Name); etcds == slices.Contains(ownFlags, f.Name) {
			t.Errorf("--%s: of etcd: %v, listed as own: %v", f.Name, etcds, !etcds)
		}
	})
	for _, name := range strings.Fields(etcdFlags) {
		if fs.Lookup(name) == nil || name == "config-file" {
			continue
		}
		value := map[string]string{"string": "x", "list": "x,y", "int64": "7", "uint": "7", "uint32": "7", "uint64": "7", "ms": "7", "duration": "7s", "bool": "true", "metrics": "extensive"}[fs.Lookup(name).Value.Type()]
		c := New()
		own := pflag.NewFlagSet("", pflag.ContinueOnError)
		c.AddFlags(own)
		_ = c.Load(own, []string{EtcdEnvPrefix + envSuffix(name) + "=" + value}) // "x" is no good for most, but it must arrive
		if got := own.Lookup(name).Value.String(); got != value {
			t.Errorf("--%s from etcd's variable: %q, want %q", name, got, value)
		}
	}
}
