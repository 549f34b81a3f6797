package config

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/spf13/pflag"
)

// checkRefused checks an error of any configuration: an ErrUsage with one line
// for each thing that is wrong, and nothing in them that a terminal obeys.
func checkRefused(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrUsage) {
		t.Fatalf("%v is no ErrUsage", err)
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if strings.TrimSpace(line) == "" || strings.ContainsFunc(line, unicode.IsControl) {
			t.Fatalf("a line of %q is empty or has control characters", err)
		}
	}
}

// checkSame checks that two ways to say the same give the same.
func checkSame(t *testing.T, c *Config, args, environ []string) {
	t.Helper()
	if err := c.Server.Validate(); err != nil {
		t.Errorf("accepted, but %v", err)
	}
	other, err := parse(args, environ)
	if err != nil {
		t.Fatalf("%q %q: %v, which was accepted in another form", args, environ, err)
	}
	if !reflect.DeepEqual(other.Server, c.Server) || !reflect.DeepEqual(other.Log, c.Log) {
		t.Errorf("%q %q:\n%+v %+v, in another form\n%+v %+v", args, environ, other.Server, other.Log, c.Server, c.Log)
	}
}

// FuzzConfigFile: a file is refused as it should be, or means the same as
// flags with its values.
func FuzzConfigFile(f *testing.F) {
	for _, seed := range []string{
		"", "# nothing\n", "null", "[]", "name: a\nname: b\n", "name: {a: b}", "{", "a: b\n---\nc: d\n",
		"name: x\ndata-dir: /d\nmax-txn-ops: 0x10\nlisten-client-urls:\n  - http://127.0.0.1:1\n  - unix:///s\n",
		"a: &a x\nname: *a\n", "name: &x [*x]\n", `{"quota-backend-bytes": 1, "log-level": "debug", "enable-pprof": true}`,
		"peer-x: 1\nexperimental-y: 2\nnames: 3\n", "log-outputs: [stderr, /l]\nunix-socket-mode: 0o660\nmetrics: extensive\n",
		"grpc-keepalive-interval: 0s\ndrain-timeout: 1h\n", "? [a]\n: b\n", "\xff\xfe",
	} {
		f.Add([]byte(seed))
	}
	path := filepath.Join(f.TempDir(), "keelson.yaml")
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := parse([]string{"--config-file=" + path}, nil)
		if err != nil {
			checkRefused(t, err)
			return
		}
		all := pflag.NewFlagSet("", pflag.ContinueOnError)
		New().AddFlags(all)
		settings, err := readFile(path, all)
		if err != nil {
			t.Fatal(err)
		}
		var args []string
		for name, value := range settings {
			args = append(args, "--"+name+"="+value.text)
		}
		checkSame(t, c, args, nil)
	})
}

// FuzzFlags: a command line, one argument in each line, is refused as it
// should be, or means the same as the environment with its values.
func FuzzFlags(f *testing.F) {
	for _, seed := range []string{
		"", "--", "-", "--name", "--name=x\n--data-dir=/d", "--name\nx\ny", "-name=x", "--names=x", "--peer-x", "--experimental-y=1",
		"--listen-client-urls=http://127.0.0.1:1,unix:///s\n--listen-metrics-urls=http://[::1]:2", "--max-txn-ops=-1", "--max-txn-ops=1e3",
		"--unix-socket-mode=0777\n--unix-socket-group=0", "--enable-grpc-gateway=false\n--enable-pprof", "--datastore=postgres://a:b@c/d",
		"--log-level=x", "--log-format=json\n--log-outputs=stderr,\"a,b\"", "--quota-backend-bytes=9223372036854775808", "--drain-timeout=1",
		"--grpc-keepalive-interval=0\n--grpc-keepalive-timeout=0", "--metrics=basic", "--cert-file=/c", "--name=\x1b[2J", "--a\x00b",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Split(line, "\n")
		c := New()
		fs := pflag.NewFlagSet("keelson", pflag.ContinueOnError)
		c.AddFlags(fs)
		err := fs.Parse(args)
		if err != nil {
			checkRefused(t, FlagError(err, args, fs))
			return
		}
		if c.ConfigFile != "" {
			return // any file of this machine; FuzzConfigFile has the rest
		}
		if err := c.Load(fs, nil); err != nil {
			checkRefused(t, err)
			return
		}
		settings := make(map[string]string)
		for _, arg := range args {
			name, value, found := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
			if !found || value == "" || !strings.HasPrefix(arg, "--") {
				return // has no form as a variable
			}
			settings[name] = value
		}
		var environ []string
		for name, value := range settings {
			environ = append(environ, envName(name)+"="+value)
		}
		checkSame(t, c, nil, environ)
		for i, name := range slices.Sorted(maps.Keys(settings)) {
			if !slices.Contains(ownFlags, name) {
				environ[i] = EtcdEnvPrefix + envSuffix(name) + "=" + settings[name]
			} else {
				environ[i] = envName(name) + "=" + settings[name]
			}
		}
		checkSame(t, c, nil, environ)
	})
}
