package cmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keelson-io/keelson/pkg/config"
	"github.com/keelson-io/keelson/pkg/snapshot"
	"github.com/keelson-io/keelson/pkg/snapshot/etcdfile"
	"github.com/keelson-io/keelson/pkg/snapshot/remote"
)

const exportHelp = `Export writes the data of a place, each that import reads, where etcd takes it.

To a file: a snapshot with everything, revisions and history included, which
etcdutl snapshot restore makes an etcd of. This is the way back to etcd for a
kube-apiserver. Every etcd from 3.6 on takes it; for an older one use
--etcd-version.

To a server that runs: keys and leases only, with new revisions, since no server
lets a client choose them. Stop kube-apiserver and whoever else holds resource
versions before, and let them list anew. It is read back and compared at the end.`

const exportExamples = `  # A snapshot for etcdutl snapshot restore
  keelson export --from=http://127.0.0.1:2379 --to=snapshot.db

  # Into an etcd that runs and has no keys
  keelson export --from=unix:///run/keelson/keelson.sock --to=https://10.0.0.1:2379 \
    --to-cacert=ca.crt --to-cert=client.crt --to-key=client.key`

func newExport(environ []string) *cobra.Command {
	var existing bool
	var version string
	cmd := &cobra.Command{
		Use:     "export --from=PLACE --to=PLACE",
		Short:   "Write the data to a snapshot, or into an etcd that runs",
		Long:    exportHelp,
		Example: exportExamples,
		Args:    noArgs,
	}
	cmd.Flags().SortFlags = false
	between := addBetweenFlags(cmd, "replace a file that is there")
	cmd.Flags().BoolVar(&existing, "existing", false, "write into a server that has keys: equal ones are skipped, so that what was cut off goes on, and others are overwritten")
	cmd.Flags().StringVar(&version, "etcd-version", etcdfile.DefaultVersion, "the `version` of the oldest etcd that is to read a file: "+strings.Join(etcdfile.Versions, ", "))
	access := addAccessFlags(cmd, true)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		ctx, stop := interruptible(cmd)
		defer stop()
		if err := access.complete(cmd.Flags(), environ); err != nil {
			return err
		}
		from, to, err := between.places(cmd, environ)
		if err != nil {
			return err
		}
		access.both = from.kind == placeServer && to.kind == placeServer
		if to.at != "" && to.kind != placeFile && to.kind != placeServer {
			return config.Usagef("--to: %s is not for export: name a file or a server; keelson import makes keelson's data", to)
		}
		if !slices.Contains(etcdfile.Versions, version) {
			return config.Usagef("--etcd-version %s: use one of %s", version, strings.Join(etcdfile.Versions, ", "))
		}
		switch {
		case between.dryRun:
			return access.dryRun(ctx, cmd, from, to, between.force, existing)
		case to.kind == placeServer:
			return access.toServer(ctx, cmd, from, to, existing)
		}
		return access.toFile(ctx, cmd, from, to.at, version, between.force)
	}
	return cmd
}

// dryRun looks at the place to write to, if one is named, and reads the other.
func (a *accessFlags) dryRun(ctx context.Context, cmd *cobra.Command, from, to place, force, existing bool) (err error) {
	var refused error
	switch {
	case to.at == "":
	case to.kind == placeFile:
		refused = (&saving{force: force}).free(to.at)
	default:
		client, err := a.dial(ctx, to, true)
		if err != nil {
			return err
		}
		refused = errors.Join(remote.NewSink(client, remote.SinkOptions{Existing: existing}).Check(ctx), client.Close())
	}
	src, err := a.open(ctx, cmd, from, false)
	if err != nil {
		return err
	}
	return cmp.Or(errors.Join(dryRun(ctx, cmd, from, src, nil), src.Close()), wouldRefuse(refused))
}

// toFile writes a snapshot.
func (a *accessFlags) toFile(ctx context.Context, cmd *cobra.Command, from place, path, version string, force bool) error {
	file := saving{force: force}
	var count *tally
	_, err := file.write(path, func(part *os.File) error {
		src, err := a.open(ctx, cmd, from, false)
		if err != nil {
			return err
		}
		count, err = move(ctx, cmd, src, etcdfile.NewWriter(part, etcdfile.Options{Version: version}), "exporting")
		return errors.Join(err, src.Close())
	})
	if err != nil {
		return interrupted(ctx, err, path)
	}
	sayMoved(cmd, from, count)
	return nil
}

// toServer writes into a server that runs.
func (a *accessFlags) toServer(ctx context.Context, cmd *cobra.Command, from, to place, existing bool) (err error) {
	client, err := a.dial(ctx, to, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	var bar *progress // when the reading has ended
	sink := remote.NewSink(client, remote.SinkOptions{
		Existing: existing,
		Report: func(done, total snapshot.Progress) {
			if bar == nil {
				bar = startProgress(cmd.ErrOrStderr(), "writing", total.Records)
			}
			bar.report(done)
		},
	})
	defer func() {
		if bar != nil {
			bar.end()
		}
	}()
	refused := sink.Check(ctx) // before what may take long
	switch {
	case errors.Is(refused, remote.ErrNotEmpty):
		return fmt.Errorf("%s: %w: nothing was written; --existing goes on with what was cut off, or overwrites", to, refused)
	case refused != nil:
		return fmt.Errorf("%s: %w", to, refused)
	}
	src, err := a.open(ctx, cmd, from, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	count, err := move(ctx, cmd, src, sink, "reading")
	switch {
	case errors.Is(err, remote.ErrDifferent):
		return err
	case err != nil:
		return fmt.Errorf("%s: %w; --existing goes on from there", to, err)
	}
	say(cmd, "%s has what lives in %s, with revisions of its own: %d keys, %d leases; %s",
		to, from, count.keys, len(count.state.Leases), time.Since(count.began).Round(10*time.Millisecond))
	return nil
}
