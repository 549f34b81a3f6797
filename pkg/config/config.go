// Package config reads what the operator asks for: flags, KEELSON_*
// environment variables, etcd's ETCD_* variables and a YAML file, in this
// order of precedence, above the defaults. With a file, etcd's variables are
// not read: etcd does not do so either.
//
// The flags are the only list of settings. A variable is the flag's name in
// capitals with underscores and a prefix; a key of the file is the flag's
// name.
package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/pflag"

	"github.com/keelson-io/keelson/pkg/embed"
)

// ErrUsage: the configuration cannot be used; the message says why and what
// to do. Every error of this package is one.
var ErrUsage = errors.New("usage")

// usageError is an ErrUsage whose text is the message alone.
type usageError struct{ msg string }

func (e *usageError) Error() string        { return e.msg }
func (e *usageError) Is(target error) bool { return target == ErrUsage }

// Usagef makes an ErrUsage of one line.
func Usagef(format string, args ...any) error {
	return usageLines([]string{fmt.Sprintf(format, args...)})
}

// usageLines makes an ErrUsage with a line for each message. The names and
// values in them are anybody's: control characters are escaped.
func usageLines(messages []string) error {
	lines := make([]string, len(messages))
	for i, message := range messages {
		var line strings.Builder
		for _, r := range message {
			if unicode.IsControl(r) {
				line.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
			} else {
				line.WriteRune(r)
			}
		}
		lines[i] = line.String()
	}
	return &usageError{strings.Join(lines, "\n")}
}

// Config is everything the command can be told.
type Config struct {
	Server     embed.Config
	Log        Log
	ConfigFile string

	groups []Group
	// Warnings are what Load found that is not wrong enough for an error.
	Warnings []string
	// FromEtcd are the variables of etcd's that were read.
	FromEtcd []string
}

// Group is a heading of the help text and its flags.
type Group struct {
	Title string
	Flags *pflag.FlagSet
}

// New returns the defaults.
func New() *Config {
	c := &Config{Server: embed.DefaultConfig(), Log: defaultLog()}
	c.defineFlags()
	return c
}

// Groups are the flags in the order of the help text.
func (c *Config) Groups() []Group { return c.groups }

// AddFlags adds every flag to fs.
func (c *Config) AddFlags(fs *pflag.FlagSet) {
	for _, g := range c.groups {
		fs.AddFlagSet(g.Flags)
	}
}

// Load completes what the command line said, which fs has parsed, with the
// environment and the file, and checks that a server can run so.
func (c *Config) Load(fs *pflag.FlagSet, environ []string) error {
	if err := c.Read(fs, environ); err != nil {
		return err
	}
	c.zeroIsOff()
	if err := c.Log.validate(); err != nil {
		return err
	}
	if err := c.Server.Validate(); err != nil {
		return Usagef("%s", strings.TrimPrefix(err.Error(), embed.ErrConfig.Error()+": "))
	}
	return nil
}

// Read is Load without the check.
func (c *Config) Read(fs *pflag.FlagSet, environ []string) error {
	env := readEnviron(environ)
	if !fs.Changed("config-file") {
		c.ConfigFile = env.configFile()
	}
	if wrong := c.checkEnviron(fs, env); len(wrong) > 0 {
		return usageLines(wrong)
	}
	var file map[string]fileValue
	if c.ConfigFile != "" {
		var err error
		if file, err = readFile(c.ConfigFile, fs); err != nil {
			return err
		}
	}
	var errs []string
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Changed || f.Name == "config-file" || f.Name == "help" || f.Name == "version" {
			return
		}
		if v, ok := env.lookup(f.Name); ok {
			if err := fs.Set(f.Name, v.value); err != nil {
				errs = append(errs, fmt.Sprintf("%s=%q: %s", v.name, v.value, reason(err)))
			}
		} else if v, ok := file[f.Name]; ok {
			if err := fs.Set(f.Name, v.text); err != nil {
				errs = append(errs, fmt.Sprintf("%s, line %d: %s: %q: %s", c.ConfigFile, v.line, f.Name, v.text, reason(err)))
			}
		}
	})
	if len(errs) > 0 {
		return usageLines(errs)
	}
	return nil
}

// zeroIsOff translates etcd's 0 for "off" to embed's notation, where 0 is the
// default.
func (c *Config) zeroIsOff() {
	if c.Server.GRPCKeepAliveInterval == 0 {
		c.Server.GRPCKeepAliveInterval = -1
	}
	if c.Server.WarningUnaryRequestDuration == 0 {
		c.Server.WarningUnaryRequestDuration = -1
	}
	if c.Server.GRPCKeepAliveTimeout == 0 {
		c.Server.GRPCKeepAliveTimeout = -1
	}
}

// reason is what is wrong with a value, without the flag's name that pflag
// puts before it.
func reason(err error) string {
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) && invalid.Unwrap() != nil {
		return explain(invalid.GetFlag(), invalid.Unwrap())
	}
	return err.Error()
}

// explain puts the errors of package strconv and time into words.
func explain(f *pflag.Flag, err error) string {
	switch f.Value.Type() {
	case "duration":
		return "not a duration: write it with a unit, such as 10m or 1h30m"
	case "int64", "uint", "uint32", "int":
		if strings.HasSuffix(f.Name, "-bytes") {
			return "not a whole number of bytes in range: write it without a unit"
		}
		return "not a whole number in range"
	case "bool":
		return "not true or false"
	}
	return err.Error()
}

// FlagError turns an error of the flag parser into one that helps; args are
// the command line's.
func FlagError(err error, args []string, fs *pflag.FlagSet) error {
	var unknown *pflag.NotExistError
	var invalid *pflag.InvalidValueError
	var missing *pflag.ValueRequiredError
	switch {
	case errors.As(err, &unknown):
		return unknownFlags(args, fs, unknown)
	case errors.As(err, &invalid):
		return Usagef("--%s=%q: %s", invalid.GetFlag().Name, invalid.GetValue(), reason(err))
	case errors.As(err, &missing):
		return Usagef("--%s needs a value: write --%s=…", missing.GetFlag().Name, missing.GetFlag().Name)
	}
	return Usagef("%s", err)
}

// unknownFlags names every flag of args that keelson does not have, so that a
// command line made for etcd is mended in one go.
func unknownFlags(args []string, fs *pflag.FlagSet, first *pflag.NotExistError) error {
	var lines []string
	for _, arg := range args {
		if arg == "--" {
			break
		}
		if !strings.HasPrefix(arg, "-") || arg == "-" {
			continue
		}
		name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		switch {
		case fs.Lookup(name) != nil && !strings.HasPrefix(arg, "--") && len(name) > 1:
			lines = append(lines, fmt.Sprintf("-%s: flags have two dashes: write --%s", name, name))
		case fs.Lookup(name) == nil && (strings.HasPrefix(arg, "--") || len(name) > 1):
			lines = append(lines, unknownFlag(name, fs))
		}
	}
	if len(lines) == 0 {
		return Usagef("%s: keelson --help lists the flags", first)
	}
	return usageLines(lines)
}

func unknownFlag(name string, fs *pflag.FlagSet) string {
	if advice, ok := Advice(name); ok {
		return fmt.Sprintf("keelson has no --%s: %s", name, advice)
	}
	if plain := strings.TrimPrefix(name, "experimental-"); plain != name {
		if fs.Lookup(plain) != nil {
			return fmt.Sprintf("keelson has no --%s: it is not experimental any more: use --%s", name, plain)
		}
		if advice, ok := Advice(plain); ok {
			return fmt.Sprintf("keelson has no --%s: %s", name, advice)
		}
		return fmt.Sprintf("keelson has no --%s: it has none of etcd's experimental features: remove it", name)
	}
	if near := Nearest(name, fs); near != "" {
		return fmt.Sprintf("unknown flag --%s; did you mean --%s?", name, near)
	}
	return fmt.Sprintf("unknown flag --%s: keelson --help lists the flags", name)
}
