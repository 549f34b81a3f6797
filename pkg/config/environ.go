package config

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// What the variables' names begin with. etcd's are read for the flags that
// keelson has of etcd.
const (
	EnvPrefix     = "KEELSON_"
	EtcdEnvPrefix = "ETCD_"
)

// ownFlags are the flags that etcd does not have, or not as a variable.
var ownFlags = []string{"datastore", "unix-socket-mode", "unix-socket-group", "cache-bytes", "response-bytes", "drain-timeout",
	"snapshot-schedule", "snapshot-dir", "snapshot-retention", "snapshot-s3-endpoint", "snapshot-s3-region", "snapshot-s3-ca-file", "snapshot-s3-path-style",
	"help", "version"}

// notSettings are variables of etcd's that no flag stands for.
var notSettings = []string{"ETCD_VERSION", "ETCD_UNSUPPORTED_ARCH", "ETCD_VERIFY", "ETCD_CLIENT_DEBUG"}

// kubeVariable matches what Kubernetes tells a pod about a service that is
// called keelson, etcd or, say, etcd-proxy, behind the prefix.
var kubeVariable = regexp.MustCompile(`^([A-Z0-9_]+_)?(SERVICE_HOST=|SERVICE_PORT(_[A-Z0-9_]+)?=|PORT=[a-z]+://|PORT_[0-9]+_(TCP|UDP|SCTP)(_[A-Z]+)?=)`)

func envName(flag string) string { return EnvPrefix + envSuffix(flag) }

func envSuffix(flag string) string {
	return strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func flagName(suffix string) string {
	return strings.ToLower(strings.ReplaceAll(suffix, "_", "-"))
}

// variable is a setting of the environment.
type variable struct{ name, value string }

// environment is the settings among a process's variables, by flag name.
type environment struct {
	own, etcd map[string]variable
}

// lookup returns the variable that counts for a flag.
func (e *environment) lookup(flag string) (variable, bool) {
	if v, ok := e.own[flag]; ok {
		return v, true
	}
	v, ok := e.etcd[flag]
	return v, ok
}

// readEnviron sorts environ. An empty variable counts as absent, as in etcd.
func readEnviron(environ []string) *environment {
	env := &environment{own: map[string]variable{}, etcd: map[string]variable{}}
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		own, ownFound := strings.CutPrefix(pair, EnvPrefix)
		etcd, etcdFound := strings.CutPrefix(pair, EtcdEnvPrefix)
		switch {
		case value == "" || kubeVariable.MatchString(own) && ownFound || kubeVariable.MatchString(etcd) && etcdFound:
		case ownFound:
			env.own[flagName(strings.TrimPrefix(name, EnvPrefix))] = variable{name, value}
		case etcdFound && !slices.Contains(notSettings, name):
			env.etcd[flagName(strings.TrimPrefix(name, EtcdEnvPrefix))] = variable{name, value}
		}
	}
	return env
}

// configFile is where the file is, which the environment can say and the file
// cannot.
func (e *environment) configFile() string {
	v, _ := e.lookup("config-file")
	return v.value
}

// checkEnviron keeps of env what are settings of keelson, and returns what is
// wrong with the others.
func (c *Config) checkEnviron(fs *pflag.FlagSet, env *environment) (wrong []string) {
	for flag, v := range env.own {
		if fs.Lookup(flag) != nil {
			continue
		}
		delete(env.own, flag)
		if advice, ok := Advice(flag); ok {
			wrong = append(wrong, fmt.Sprintf("%s: keelson has no --%s: %s", v.name, flag, advice))
		} else if near := Nearest(flag, fs); near != "" {
			c.warnf("%s is not known; did you mean %s?", v.name, envName(near))
		}
	}
	for flag, v := range env.etcd {
		given := fs.Lookup(flag)
		if c.ConfigFile != "" && flag != "config-file" {
			delete(env.etcd, flag)
			c.warnf("%s is not read, since there is a --config-file: put %s there, or use %s", v.name, flag, envName(flag))
			continue
		}
		if given == nil || slices.Contains(ownFlags, flag) {
			delete(env.etcd, flag)
			wrong = append(wrong, c.notOfEtcd(fs, flag, v)...)
			continue
		}
		if own, ok := env.own[flag]; ok && own.value != v.value {
			c.warnf("%s is not used, since there is %s: remove one of them", v.name, own.name)
		} else if given.Changed && given.Value.String() != v.value {
			c.warnf("%s is not used, since there is --%s: remove one of them", v.name, flag)
		} else if !ok && !given.Changed {
			c.FromEtcd = append(c.FromEtcd, v.name)
		}
	}
	slices.Sort(c.FromEtcd)
	slices.Sort(c.Warnings)
	slices.Sort(wrong)
	return wrong
}

// notOfEtcd is what is wrong with a variable of etcd's for which keelson has
// no flag of etcd's: what the flag would be told, or a warning as etcd's.
func (c *Config) notOfEtcd(fs *pflag.FlagSet, flag string, v variable) (wrong []string) {
	if _, ok := Advice(flag); ok || strings.HasPrefix(flag, "experimental-") {
		return []string{v.name + ": " + unknownFlag(flag, fs)}
	}
	switch near := Nearest(flag, fs); {
	case near == "":
		c.warnf("%s is not known", v.name)
	case slices.Contains(ownFlags, near):
		c.warnf("%s is not known; did you mean %s?", v.name, envName(near))
	default:
		c.warnf("%s is not known; did you mean %s?", v.name, EtcdEnvPrefix+envSuffix(near))
	}
	return nil
}

func (c *Config) warnf(format string, args ...any) {
	c.Warnings = append(c.Warnings, fmt.Sprintf(format, args...))
}
