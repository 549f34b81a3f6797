package cmd

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/keelson-io/keelson/pkg/config"
)

// newSnapshot is the command for files in etcd's format.
func newSnapshot(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "snapshot",
		Short:   "Save, look at and restore snapshots: files that etcd's tools read and write too",
		Long:    snapshotHelp,
		Example: snapshotExamples,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return config.Usagef("unknown command %q: keelson snapshot --help lists them", args[0])
			}
			return config.Usagef("say what to do: keelson snapshot save, status or restore; keelson snapshot --help explains")
		},
	}
	cmd.AddCommand(newSave(environ), newStatus(), newRestore(environ))
	return cmd
}

// oneFile is the Args of commands that take the name of a file.
func oneFile(cmd *cobra.Command, args []string) error {
	if len(args) != 1 || args[0] == "" {
		return config.Usagef("name one file: %s", cmd.UseLine())
	}
	return nil
}

// interruptible returns the context of a command that a signal ends; a second
// one ends the process at once. Its end waits for nothing: signal.Stop does, for
// the goroutine that takes signals in.
func interruptible(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(cmd.Context())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		defer signal.Stop(signals)
		defer cancel()
		select {
		case <-signals:
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// say prints a result on stdout.
func say(cmd *cobra.Command, format string, args ...any) {
	fmt.Fprintf(cmd.OutOrStdout(), format+"\n", args...)
}

// warningLine has a warning of a command.
const warningLine = "keelson: warning: %s\n"

// warn prints what somebody should know on stderr.
func warn(cmd *cobra.Command, format string, args ...any) {
	fmt.Fprintf(cmd.ErrOrStderr(), warningLine, fmt.Sprintf(format, args...))
}
