package cmd

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/pkg/snapshot"
	"github.com/keelson-io/keelson/pkg/snapshot/datalog"
)

const importHelp = `Import makes keelson's data of what there is elsewhere, with its revisions, so
that clients go on with the resource versions they know. It either brings all or
changes nothing.

From:
  /var/lib/rancher/k3s         a directory of k3s, or an SQLite file of kine; the
                               server must be stopped. Nothing in it is changed
  kine:postgres://…            kine's table in PostgreSQL, the endpoint as kine and
  kine:mysql://…               k3s have it (--datastore-endpoint); or in MySQL
  snapshot.db                  a snapshot of etcd or keelson
  /var/lib/etcd                the data directory of an etcd that is stopped
  https://10.0.0.1:2379        a server that runs: etcd, keelson or kine; several
                               endpoints of it with commas
  /var/lib/keelson             keelson's data directory, while no server uses it
  keelson.db                   its database, or a copy by VACUUM INTO, which is
                               copied to TMPDIR and not changed
  postgres://…                 keelson's data in PostgreSQL
To: a data directory of keelson, or postgres://…`

const importExamples = `  # What would come from a k3s that is stopped, and then bring it
  keelson import --from=/var/lib/rancher/k3s --dry-run
  keelson import --from=/var/lib/rancher/k3s --to=/var/lib/keelson

  # From the etcd of a kubeadm cluster, whose kube-apiserver is stopped
  keelson import --from=https://127.0.0.1:2379 --to=/var/lib/keelson \
    --cacert=/etc/kubernetes/pki/etcd/ca.crt \
    --cert=/etc/kubernetes/pki/etcd/peer.crt --key=/etc/kubernetes/pki/etcd/peer.key

  # With a password that no list of processes shows
  KEELSON_FROM='kine:postgres://kine:secret@db/kine' keelson import --to=/var/lib/keelson`

func newImport(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "import --from=PLACE --to=PLACE",
		Short:   "Bring the data of kine, etcd or another keelson",
		Long:    importHelp,
		Example: importExamples,
		Args:    noArgs,
	}
	cmd.Flags().SortFlags = false
	between := addBetweenFlags(cmd, "replace the data that there is; on PostgreSQL, also under keelsons that run")
	access := addAccessFlags(cmd, false)
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
		sink, err := to.forImport().logSink(datalog.Options{Replace: between.force, Logger: quietLogger(cmd)})
		if err != nil {
			return err
		}
		var refused error
		if to.at != "" { // before what may take long
			if refused = to.explain(sink.Check(ctx)); refused != nil && !between.dryRun {
				return refused
			}
		}
		src, err := access.open(ctx, cmd, from, false)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, src.Close()) }()
		if between.dryRun {
			return cmp.Or(dryRun(ctx, cmd, from, src, sink.DryRun()), wouldRefuse(refused))
		}
		count, err := move(ctx, cmd, src, sink, "importing")
		if err != nil {
			return to.explain(err)
		}
		sayMoved(cmd, from, count)
		for _, a := range sink.Dropped() {
			warn(cmd, "the alarm %s of member %x was left out: a server raises it when it must", pb.AlarmType(a.Alarm), a.Member)
		}
		return nil
	}
	return cmd
}

// forImport is a place that import writes to: a directory that is to be made
// looks like a file.
func (p place) forImport() place {
	if _, err := os.Stat(p.at); p.kind == placeFile && errors.Is(err, fs.ErrNotExist) {
		p.kind = placeSQLite
	}
	return p
}

// move copies everything from src to sink, or only counts it if that is nil.
func move(ctx context.Context, cmd *cobra.Command, src snapshot.Source, sink snapshot.Sink, verb string) (*tally, error) {
	count := newTally(sink)
	bar := startProgress(cmd.ErrOrStderr(), verb, src.State().Records)
	_, err := snapshot.Copy(ctx, count, src, bar.report)
	bar.end()
	return count, err
}

// dryRun is move to a sink that makes nothing, or nil, and says how much there
// is.
func dryRun(ctx context.Context, cmd *cobra.Command, from place, src snapshot.Source, sink snapshot.Sink) error {
	count, err := move(ctx, cmd, src, sink, "reading")
	if err == nil {
		say(cmd, "nothing was written; there is in %s: revision %d, compacted %d, %s", from, count.state.Revision, count.state.Compacted, count)
	}
	return err
}

func sayMoved(cmd *cobra.Command, from place, count *tally) {
	say(cmd, "moved everything of %s: revision %d, compacted %d, %s", from, count.state.Revision, count.state.Compacted, count)
}
