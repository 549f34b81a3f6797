package cmd

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/keelson-io/keelson/pkg/config"
	"github.com/keelson-io/keelson/pkg/snapshot"
	"github.com/keelson-io/keelson/pkg/snapshot/etcdfile"
	"github.com/keelson-io/keelson/pkg/snapshot/remote"
)

const exportHelp = `Export writes the data of a place, each that import reads, where etcd takes it.

To a file: a snapshot with everything, revisions and history included, which
etcdutl snapshot restore makes an etcd of. This is the way back to etcd for a
kube-apiserver.

To a server that runs: keys and leases only, with new revisions, since no server
lets a client choose them. Stop kube-apiserver and whoever else holds resource
versions before, and let them list anew. It is read back and compared at the end.`

const exportExamples = `  # A snapshot for etcdutl snapshot restore
  keelson export --from=http://127.0.0.1:2379 --to=snapshot.db

  # Into an etcd that runs and has no keys
  keelson export --from=unix:///run/keelson/keelson.sock --to=https://10.0.0.1:2379 \
    --to-cacert=ca.crt --to-cert=client.crt --to-key=client.key`

func newExport(environ []string) *cobra.Command {
	var dryRun, force, existing bool
	cmd := &cobra.Command{
		Use:     "export --from=PLACE --to=PLACE",
		Short:   "Write the data to a snapshot, or into an etcd that runs",
		Long:    exportHelp,
		Example: exportExamples,
		Args:    noArgs,
	}
	cmd.Flags().SortFlags = false
	between := addBetweenFlags(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "read and check everything and say how much it is, and write nothing")
	cmd.Flags().BoolVar(&force, "force", false, "replace a file that is there")
	cmd.Flags().BoolVar(&existing, "existing", false, "write into a server that has keys: equal ones are skipped, so that what was cut off goes on, and others are overwritten")
	access := addAccessFlags(cmd, true)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		ctx, stop := interruptible(cmd)
		defer stop()
		access.complete(cmd.Flags(), environ)
		from, to, err := between.places(cmd, environ, dryRun)
		if err != nil {
			return err
		}
		if !dryRun && to.kind != placeFile && to.kind != placeServer {
			return config.Usagef("--to: %s is not for export: name a file or a server; keelson import makes keelson's data", to)
		}
		src, err := access.open(ctx, cmd, from, false)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, src.Close()) }()
		switch {
		case dryRun:
			return move(ctx, cmd, from, src, nil, "reading")
		case to.kind == placeServer:
			return access.toServer(ctx, cmd, from, to, src, existing)
		}
		return exportFile(ctx, cmd, from, to.at, src, force)
	}
	return cmd
}

// exportFile writes a snapshot.
func exportFile(ctx context.Context, cmd *cobra.Command, from place, path string, src snapshot.Source, force bool) error {
	file := saving{force: force}
	_, err := file.write(path, func(part string) error {
		sink, err := etcdfile.Create(part, etcdfile.Options{})
		if err != nil {
			return err
		}
		return move(ctx, cmd, from, src, sink, "exporting")
	})
	return interrupted(ctx, err, path)
}

// toServer writes into a server that runs.
func (a *accessFlags) toServer(ctx context.Context, cmd *cobra.Command, from, to place, src snapshot.Source, existing bool) (err error) {
	client, err := a.dial(ctx, to, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	bar := startProgress(cmd.ErrOrStderr(), "writing", 0)
	defer bar.end()
	err = move(ctx, cmd, from, src, remote.NewSink(client, remote.SinkOptions{
		Existing: existing,
		Report: func(done, total snapshot.Progress) {
			bar.total = total.Records
			bar.report(done)
		},
	}), "reading")
	switch {
	case err == nil, errors.Is(err, remote.ErrDifferent):
		return err
	case errors.Is(err, remote.ErrNotEmpty):
		return fmt.Errorf("%s: %w: nothing was written; --existing goes on with what was cut off, or overwrites", to, err)
	}
	return fmt.Errorf("%s: %w; --existing goes on from there", to, err)
}
