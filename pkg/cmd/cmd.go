// Package cmd is the command line: it reads the configuration, runs the
// server that package embed provides, and turns signals into its end.
package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keelson-io/keelson/pkg/config"
	"github.com/keelson-io/keelson/pkg/embed"
	"github.com/keelson-io/keelson/pkg/raftlog"
	"github.com/keelson-io/keelson/pkg/version"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // the server could not start or had to stop
	exitUsage  = 2 // the configuration is wrong; nothing was started; or see troubleError

	exitRemoved = 3 // the cluster has removed this node: to start it again is of no use
)

// Execute runs the command and returns its exit code.
func Execute(args []string) int {
	root := newRoot(args, os.Environ())
	root.SetArgs(args)
	return report(root.Execute(), root.ErrOrStderr())
}

// report prints what went wrong, once.
func report(err error, stderr io.Writer) int {
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, config.ErrUsage):
		for line := range strings.Lines(err.Error()) {
			fmt.Fprintln(stderr, "keelson:", strings.TrimRight(line, "\n"))
		}
		return exitUsage
	}
	var logged *loggedError
	if !errors.As(err, &logged) {
		fmt.Fprintln(stderr, "keelson:", err)
	}
	if errors.Is(err, raftlog.ErrRemoved) {
		return exitRemoved
	}
	var trouble *troubleError
	if errors.Is(err, embed.ErrConfig) || errors.As(err, &trouble) {
		return exitUsage // found only when it was used, such as a missing certificate
	}
	return exitFailed
}

// loggedError is one that the log has already, where operators look for it.
type loggedError struct{ error }

func (e *loggedError) Unwrap() error { return e.error }

func newRoot(args, environ []string) *cobra.Command {
	var (
		c           = config.New()
		showVersion bool
	)
	root := &cobra.Command{
		Use:               "keelson",
		Short:             "An etcd v3 server for kube-apiserver on top of SQL",
		Long:              longHelp,
		Example:           examples,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		Args:              noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if showVersion {
				return printVersion(cmd)
			}
			typed := cmd.Flags().Changed("datastore")
			if err := c.Load(cmd.Flags(), environ); err != nil {
				return err
			}
			if u, err := url.Parse(c.Server.Datastore); typed && err == nil && hasPassword(u) {
				c.Warnings = append(c.Warnings, "every user of this machine can see the database's password among the processes (ps): leave it out of --datastore, and use KEELSON_DATASTORE, PGPASSFILE or the configuration file")
			}
			return run(cmd.Context(), c)
		},
	}
	c.AddFlags(root.Flags())
	root.Flags().BoolVar(&showVersion, "version", false, "print the version")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return config.FlagError(err, args, cmd.Flags())
	})
	usage := root.UsageFunc()
	root.SetUsageFunc(func(cmd *cobra.Command) error {
		if cmd != root {
			return usage(cmd)
		}
		return printUsage(cmd.OutOrStderr(), c.Groups())
	})
	root.AddCommand(newSnapshot(environ))
	root.AddCommand(newImport(environ), newExport(environ), newVerify(environ), newCheck(environ))
	root.AddCommand(&cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return printVersion(cmd) },
	})
	return root
}

func hasPassword(u *url.URL) bool {
	_, password := u.User.Password()
	return password || u.Query().Has("password")
}

func printVersion(cmd *cobra.Command) error {
	_, err := io.WriteString(cmd.OutOrStdout(), version.Text())
	return err
}

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := "keelson --help lists flags and commands"
	if args[0] == "true" || args[0] == "false" {
		hint = "switches are written with an equals sign, as in --client-cert-auth=" + args[0]
	}
	return config.Usagef("unexpected argument %q: %s", args[0], hint)
}

func printUsage(w io.Writer, groups []config.Group) error {
	var b strings.Builder
	b.WriteString("Usage:\n  keelson [flags]\n  keelson COMMAND\n" + commands + "\nExamples:\n" + examples + "\n")
	for _, g := range groups {
		fmt.Fprintf(&b, "\n%s:\n%s", g.Title, usages(g.Flags))
	}
	b.WriteString(footer)
	_, err := io.WriteString(w, b.String())
	return err
}

// usages is pflag's list with the width of a terminal that people use.
func usages(fs *pflag.FlagSet) string { return fs.FlagUsagesWrapped(110) }

// run serves until a signal or a failure ends it.
func run(ctx context.Context, c *config.Config) error {
	logger, err := c.Log.Open()
	if err != nil {
		return err
	}
	if ctx == nil {
		ctx = context.Background()
	}
	log := logrus.NewEntry(logger)
	catchGRPCLog(log)
	log.WithFields(logrus.Fields{"version": version.Version(), "commit": version.Commit(), "pid": os.Getpid()}).Info("starting keelson")
	if len(c.FromEtcd) > 0 {
		log.WithField("variables", strings.Join(c.FromEtcd, ",")).Info("settings of etcd are used")
	}
	for _, warning := range c.Warnings {
		log.Warn(warning)
	}

	ctx, restore := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer restore()
	c.Server.Logger = log
	// A signal may end the start; afterwards it is Close that stops.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	starting := context.AfterFunc(ctx, end)
	server, err := embed.Start(life, c.Server)
	starting()
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		log.Info("stopped by a signal before it was ready")
		return nil
	}
	if err != nil {
		return fail(log, err, "keelson could not start")
	}
	notifyReady(ctx, log, server)
	select {
	case <-ctx.Done():
		// From here on a second signal ends the process at once.
		restore()
		log.Info("stopping: requests under way are finished first; a second signal stops at once")
	case <-server.Done():
	}
	notify(log, daemon.SdNotifyStopping)
	switch err := server.Close(); {
	case errors.Is(err, raftlog.ErrRemoved):
		return fail(log, err, "keelson has ended: the data directory is of no use to the cluster any more; to be a member again this node is added anew, with an empty one")
	case err != nil:
		return fail(log, err, "keelson had to stop")
	}
	log.Info("stopped")
	return nil
}

func fail(log *logrus.Entry, err error, what string) error {
	log.WithError(err).Error(what)
	return &loggedError{err}
}

// stillWaiting is how often systemd hears that a node waits for its cluster, and
// half of how long it is asked to wait for more.
const stillWaiting = 10 * time.Second

// notifyReady tells systemd when server is ready, unless it or ctx ends before.
// Without a majority of its nodes a cluster waits for people, and to be started
// again would not help: systemd is asked for patience.
func notifyReady(ctx context.Context, log *logrus.Entry, server *embed.Server) {
	again := time.NewTicker(stillWaiting)
	defer again.Stop()
	for {
		select {
		case <-server.Ready():
			notify(log, daemon.SdNotifyReady+"\nSTATUS=serving "+strings.Join(server.Endpoints(), " "))
			return
		default:
		}
		notify(log, fmt.Sprintf("STATUS=waiting for %s\nEXTEND_TIMEOUT_USEC=%d", server.WaitsFor(), 2*stillWaiting.Microseconds()))
		select {
		case <-server.Ready():
		case <-again.C:
		case <-ctx.Done():
			return
		case <-server.Done():
			return
		}
	}
}

// notify tells systemd, if it listens.
func notify(log *logrus.Entry, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.WithError(err).Warn("cannot notify systemd")
	}
}
