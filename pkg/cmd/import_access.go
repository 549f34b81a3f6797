package cmd

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/pkg/config"
	"github.com/keelson-io/keelson/pkg/snapshot"
	"github.com/keelson-io/keelson/pkg/snapshot/etcdfile"
	"github.com/keelson-io/keelson/pkg/snapshot/kine"
	"github.com/keelson-io/keelson/pkg/snapshot/remote"
)

// accessFlags say how places are read, and servers reached.
type accessFlags struct {
	serverFlags
	to            secondFlags
	both          bool // are servers
	noSnapshot    bool
	whileRunning  bool
	withoutAuth   bool
	skipHashCheck bool
}

// secondFlags are those of the second place, where it has others.
type secondFlags struct{ cacert, cert, key, user, password string }

// etcdctlPrefix is that of etcdctl's variables; those are read too.
const etcdctlPrefix = "ETCDCTL_"

// complete reads the variables for what was not typed.
func (a *accessFlags) complete(f *pflag.FlagSet, environ []string) error {
	a.to.password = lookupEnviron(environ, config.EnvPrefix+"TO_PASSWORD")
	if name, password, ok := strings.Cut(a.to.user, ":"); ok {
		a.to.user, a.to.password = name, password
	}
	return a.serverFlags.complete(f, environ)
}

// addAccessFlags adds them to cmd; second are those of a second server.
func addAccessFlags(cmd *cobra.Command, second bool) *accessFlags {
	a := &accessFlags{}
	f := cmd.Flags()
	a.add(f)
	f.BoolVar(&a.noSnapshot, "no-snapshot", false, "read a server's keys page by page, as of one revision and without history: for kine, proxies and users that may not ask for a snapshot")
	f.BoolVar(&a.whileRunning, "while-running", false, "read kine's PostgreSQL or MySQL even if others seem to use it: what they write from now on is missing")
	f.BoolVar(&a.withoutAuth, "without-auth", false, "take the data of an etcd with users and roles, and leave these out")
	f.BoolVar(&a.skipHashCheck, "skip-hash-check", false, "take a file without a checksum at its end, as a copy of etcd's db is; its structure is checked instead. One that is there must be right")
	if second {
		f.StringVar(&a.to.cacert, "to-cacert", "", "as --cacert, for the second place")
		f.StringVar(&a.to.cert, "to-cert", "", "as --cert, for the second place")
		f.StringVar(&a.to.key, "to-key", "", "as --key, for the second place")
		f.StringVar(&a.to.user, "to-user", "", "as --user, for the second of two servers, which is not told that one; its password is in KEELSON_TO_PASSWORD")
	}
	return a
}

// dial returns a client of the server at p, which has answered.
func (a *accessFlags) dial(ctx context.Context, p place, second bool) (*clientv3.Client, error) {
	c := a.reach(second)
	c.Endpoints = strings.Split(p.at, ",")
	return remote.Dial(ctx, c)
}

// reach returns how a server is reached.
func (a *accessFlags) reach(second bool) remote.Config {
	c := a.Config
	if to := a.to; second && (to.cacert != "" || to.cert != "" || to.key != "") {
		c.CACert, c.Cert, c.Key, c.FlagPrefix = to.cacert, to.cert, to.key, "to-"
	}
	if second && (a.both || a.to.user != "") {
		c.User, c.Password = a.to.user, a.to.password
	}
	return c
}

// open opens the place that data comes from.
func (a *accessFlags) open(ctx context.Context, cmd *cobra.Command, p place, second bool) (snapshot.Source, error) {
	src, err := a.openPlace(ctx, cmd, p, second)
	if err != nil && ctx.Err() != nil {
		err = errors.New("interrupted: nothing was changed")
	}
	return src, err
}

func (a *accessFlags) openPlace(ctx context.Context, cmd *cobra.Command, p place, second bool) (snapshot.Source, error) {
	switch p.kind {
	case placeKine:
		return a.openKine(ctx, p)
	case placeServer:
		return a.openServer(ctx, cmd, p, second)
	case placeFile:
		src, err := openFile(ctx, cmd, p.at, a.withoutAuth, a.skipHashCheck || strings.HasSuffix(p.at, etcdFile))
		if err != nil { // src is a nil of its type
			return nil, err
		}
		return src, nil
	}
	return p.logSource(ctx, quietLogger(cmd))
}

func (a *accessFlags) openKine(ctx context.Context, p place) (snapshot.Source, error) {
	var (
		src *kine.Source
		err error
	)
	if strings.Contains(p.at, "://") {
		opt := kine.Options{WhileRunning: a.whileRunning}
		if opt.TLS, err = a.TLS(); err != nil {
			return nil, err
		}
		src, err = kine.OpenURL(ctx, p.at, opt)
	} else {
		var path string
		if path, err = kine.FindFile(p.at); err == nil {
			src, err = kine.OpenFile(ctx, path)
		}
	}
	switch {
	case errors.Is(err, kine.ErrURL):
		return nil, config.Usagef("%s", err)
	case err != nil: // src is a nil of its type
		return nil, err
	}
	return src, nil
}

// openServer reads a server by a snapshot, which has everything, or by pages.
func (a *accessFlags) openServer(ctx context.Context, cmd *cobra.Command, p place, second bool) (src snapshot.Source, err error) {
	client, err := a.dial(ctx, p, second)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	protected := fmt.Errorf("%s: %w, which keelson does not have: --without-auth leaves them out", p, etcdfile.ErrAuth)
	if !a.withoutAuth {
		switch is, err := remote.Protected(ctx, client); {
		case err != nil:
			return nil, fmt.Errorf("%s: %w", p, err)
		case is:
			return nil, protected
		}
	}
	bar := startBytes(cmd.ErrOrStderr(), "reading "+p.String())
	defer bar.end()
	if a.noSnapshot {
		return remote.Open(ctx, client, bar.report)
	}
	src, err = remote.OpenSnapshot(ctx, client, func(file *os.File) (*etcdfile.Reader, error) {
		bar.end()
		r, err := verifyFile(ctx, cmd, p.String(), file, a.withoutAuth)
		if err == nil {
			warnOfAccounts(cmd, p.String(), r, a.withoutAuth)
		}
		return r, err
	}, bar.of)
	switch {
	case errors.Is(err, etcdfile.ErrAuth): // an etcd before 3.5 tells it by its data only
		return nil, protected
	case err != nil:
		return nil, fmt.Errorf("%s: %w (a server without snapshots, such as kine or a proxy, is read with --no-snapshot)", p, err)
	}
	return src, nil
}

// read reads all of a place.
func (a *accessFlags) read(ctx context.Context, cmd *cobra.Command, p place, second bool) (c *contents, err error) {
	src, err := a.open(ctx, cmd, p, second)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	bar := startProgress(cmd.ErrOrStderr(), "reading "+p.String(), src.State().Records)
	defer bar.end()
	return readContents(ctx, src, bar.report)
}

// betweenFlags say where data goes from and to, and how.
type betweenFlags struct {
	from, to      string
	dryRun, force bool
}

func addBetweenFlags(cmd *cobra.Command, force string) *betweenFlags {
	b := &betweenFlags{}
	cmd.Flags().StringVar(&b.from, "from", "", "the `place` that the data comes from, or KEELSON_FROM")
	cmd.Flags().StringVar(&b.to, "to", "", "the `place` that it goes to, or KEELSON_TO")
	cmd.Flags().BoolVar(&b.dryRun, "dry-run", false, "read and check everything and say how much it is, and write nothing; --to is looked at if it is given, and the exit code is 1 if it would be refused")
	cmd.Flags().BoolVar(&b.force, "force", false, force)
	return b
}

// places returns both; with a dry run, the second may be none.
func (b *betweenFlags) places(cmd *cobra.Command, environ []string) (from, to place, err error) {
	from, err = readPlace(cmd, "from", b.from, environ)
	if named := b.to != "" || lookupEnviron(environ, config.EnvPrefix+"TO") != ""; err == nil && (named || !b.dryRun) {
		to, err = readPlace(cmd, "to", b.to, environ)
	}
	return from, to, err
}

// readPlace reads the place that a flag names, or its variable.
func readPlace(cmd *cobra.Command, flag, text string, environ []string) (place, error) {
	variable := config.EnvPrefix + strings.ToUpper(flag)
	switch {
	case text != "":
		warnOfPassword(cmd, text, variable)
	case lookupEnviron(environ, variable) != "":
		text = lookupEnviron(environ, variable)
	default:
		return place{}, config.Usagef("--%s is missing: name a place; %s --help lists what it can be", flag, cmd.CommandPath())
	}
	return parsePlace(text)
}

// warnOfPassword says that a password on the command line is no secret.
func warnOfPassword(cmd *cobra.Command, text, instead string) {
	_, rest, _ := strings.Cut(strings.TrimPrefix(text, kinePrefix), "://")
	userinfo, _, ok := strings.Cut(rest, "@")
	u, err := url.Parse(text)
	if ok && strings.Contains(userinfo, ":") || err == nil && (u.Query().Has("password") || u.Query().Has("sslpassword")) {
		warn(cmd, "every user of this machine can see the password among the processes (ps): leave it out, and use %s, PGPASSFILE or MYSQL_PWD", instead)
	}
}

func lookupEnviron(environ []string, name string) string {
	for _, pair := range environ {
		if value, ok := strings.CutPrefix(pair, name+"="); ok {
			return value
		}
	}
	return ""
}
