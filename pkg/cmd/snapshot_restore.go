package cmd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/pkg/config"
	"github.com/keelson-io/keelson/pkg/snapshot"
	"github.com/keelson-io/keelson/pkg/snapshot/datalog"
	"github.com/keelson-io/keelson/pkg/snapshot/etcdfile"
)

// restoring is what keelson snapshot restore was told.
type restoring struct {
	data          *dataFlags
	force, dryRun bool
	skipHashCheck bool
	withoutAuth   bool
	bumpRevision  uint64
	markCompacted bool
}

func newRestore(environ []string) *cobra.Command {
	var r restoring
	cmd := &cobra.Command{
		Use:     "restore FILE",
		Short:   "Make keelson's data of a snapshot, or of etcd's db file",
		Long:    restoreHelp,
		Example: restoreExamples,
		Args:    oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := r.data.place(cmd, environ)
			if err != nil {
				return err
			}
			if err := r.check(); err != nil {
				return err
			}
			cluster, err := r.cluster(to)
			if err != nil {
				return err
			}
			from, err := parsePlace(args[0]) // etcd's data directory stands for the file in it
			if err != nil {
				return err
			}
			if from.kind != placeFile {
				return config.Usagef("%s is not a file of etcd's: name a snapshot, or the data directory of an etcd that does not run; keelson import takes other places", from)
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			return r.run(ctx, cmd, from.at, to, cluster)
		},
	}
	cmd.Flags().SortFlags = false
	r.data = addDataFlags(cmd)
	f := cmd.Flags()
	f.BoolVar(&r.force, "force", false, "replace the data that there is; on PostgreSQL, also under keelsons that run")
	f.BoolVar(&r.dryRun, "dry-run", false, "read and check everything and say how much it is, and write nothing; the exit code is 1 if it would be refused as things are")
	f.BoolVar(&r.skipHashCheck, "skip-hash-check", false, "take a file without a checksum at its end, as etcd's db in its data directory is; its structure is checked instead. One that is there must be right")
	f.BoolVar(&r.withoutAuth, "without-auth", false, "take the data of an etcd with users and roles, and leave these out")
	f.Uint64Var(&r.bumpRevision, "bump-revision", 0, "raise the revision by this `number`, so that clients which have seen later ones list anew; needs --mark-compacted")
	f.BoolVar(&r.markCompacted, "mark-compacted", false, "compact everything before the raised revision; needs --bump-revision")
	for _, name := range clusterFlagNames {
		f.AddFlag(r.data.all.Lookup(name))
	}
	return cmd
}

// clusterFlagNames are the server's flags that make the data that of a node of
// a new cluster.
var clusterFlagNames = []string{"initial-cluster", "initial-cluster-token", "initial-advertise-peer-urls"}

// cluster returns the new cluster that the flags name, or nil.
func (r *restoring) cluster(to place) (*datalog.Cluster, error) {
	server := &r.data.config.Server
	if !r.data.all.Changed("initial-cluster") {
		if r.data.all.Changed("initial-advertise-peer-urls") || r.data.all.Changed("initial-cluster-token") {
			return nil, config.Usagef("--initial-advertise-peer-urls and --initial-cluster-token are for a node of a cluster: add --initial-cluster name=peer-URL,…")
		}
		return nil, nil
	}
	if to.kind != placeSQLite {
		return nil, config.Usagef("--initial-cluster is for SQLite: several keelsons on one PostgreSQL need no cluster of their own")
	}
	members, err := server.Cluster.Members()
	if err != nil {
		return nil, config.Usagef("%s", err)
	}
	for _, m := range members {
		if m.Name != server.Name {
			continue
		}
		advertised := server.Cluster.InitialAdvertisePeerURLs
		if len(advertised) > 0 && !slices.Equal(slices.Sorted(slices.Values(advertised)), slices.Sorted(slices.Values(m.PeerURLs))) {
			return nil, config.Usagef("--initial-cluster has %s=%s and --initial-advertise-peer-urls %s: they must be the same",
				m.Name, strings.Join(m.PeerURLs, ","), strings.Join(advertised, ","))
		}
		return &datalog.Cluster{Name: m.Name, Members: members, Token: server.Cluster.InitialClusterToken}, nil
	}
	return nil, config.Usagef("--initial-cluster does not have this node, %q: set --name", server.Name)
}

func (r *restoring) check() error {
	switch {
	case r.markCompacted != (r.bumpRevision > 0):
		return config.Usagef("--bump-revision and --mark-compacted belong together: use both or neither")
	case r.bumpRevision > math.MaxInt64:
		return config.Usagef("--bump-revision %d is too large", r.bumpRevision)
	}
	return nil
}

func (r *restoring) run(ctx context.Context, cmd *cobra.Command, file string, to place, cluster *datalog.Cluster) (err error) {
	opt := datalog.Options{Replace: r.force, BumpRevision: int64(r.bumpRevision), Cluster: cluster, Logger: quietLogger(cmd)}
	sink, err := to.logSink(opt)
	if err != nil {
		return err
	}
	refused := to.explain(sink.Check(ctx)) // before the file, which may be large
	if refused != nil && !r.dryRun {
		return refused
	}
	count, verb := newTally(sink), "restoring"
	if r.dryRun {
		count.to, verb = sink.DryRun(), "checking"
	}
	src, err := openFile(ctx, cmd, file, r.withoutAuth, r.skipHashCheck)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	p := startProgress(cmd.ErrOrStderr(), verb, src.State().Records)
	_, err = snapshot.Copy(ctx, count, src, p.report)
	p.end()
	if err != nil {
		if errors.Is(err, snapshot.ErrInvalid) {
			return fmt.Errorf("%s: nothing was changed: %w", file, err)
		}
		return to.explain(err)
	}
	current, compacted := sink.Revision()
	if r.dryRun {
		say(cmd, "%s is whole: revision %d, compacted %d, %s", file, current, compacted, count)
		return wouldRefuse(refused)
	}
	for _, a := range sink.Dropped() {
		warn(cmd, "the snapshot has the alarm %s of member %x, which was left out: a server raises it when it must", pb.AlarmType(a.Alarm), a.Member)
	}
	say(cmd, "restored %s into %s: revision %d, compacted %d, %s", file, to, current, compacted, count)
	return nil
}

// openFile opens a file in etcd's format and verifies it.
func openFile(ctx context.Context, cmd *cobra.Command, file string, withoutAuth, skipHashCheck bool) (*etcdfile.Reader, error) {
	src, err := verifyPath(ctx, cmd, file, withoutAuth)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, errors.New("interrupted: nothing was changed")
	case errors.Is(err, etcdfile.ErrAuth):
		return nil, fmt.Errorf("%s: nothing was changed: it is of an etcd with users and roles, which keelson does not have; everybody who reaches the server would see all of it: --without-auth says that this is meant", file)
	case err != nil:
		return nil, fmt.Errorf("nothing was changed: %w", err)
	case !src.HasChecksum() && !skipHashCheck:
		err := fmt.Errorf("%s: nothing was changed: it has no checksum, as a snapshot has: if it is the db file of an etcd that was stopped, say so with --skip-hash-check", file)
		return nil, errors.Join(err, src.Close())
	}
	warnOfAccounts(cmd, file, src, withoutAuth)
	if err := checkWAL(cmd, file, src); err != nil {
		return nil, errors.Join(err, src.Close())
	}
	return src, nil
}

// checkWAL refuses the db file in a data directory of etcd's that lacks what etcd
// has acknowledged.
func checkWAL(cmd *cobra.Command, file string, src *etcdfile.Reader) error {
	whole, err := filepath.EvalSymlinks(file)
	if err == nil {
		whole, err = filepath.Abs(whole)
	}
	if err != nil {
		return err
	}
	dir, ok := strings.CutSuffix(whole, etcdFile)
	if !ok {
		return nil
	}
	err = src.CheckWAL(filepath.Join(dir, walDirectory))
	switch {
	case errors.Is(err, etcdfile.ErrNoWAL):
		warn(cmd, "%s: etcd's write-ahead log is not in its data directory: if etcd was killed, its last writes are missing", file)
		return nil
	case err != nil:
		return fmt.Errorf("%s: nothing was changed: %w: was etcd killed? start it once more and stop it, or save a snapshot; a copy of the file is taken as it is", file, err)
	}
	return nil
}

// warnOfAccounts says what is left out of src, unless that is what was said.
func warnOfAccounts(cmd *cobra.Command, name string, src *etcdfile.Reader, withoutAuth bool) {
	if n := src.Accounts(); n > 0 && !withoutAuth {
		warn(cmd, "%s: the users and roles, %d, are left out: keelson has none; in this etcd they protect nothing, since authentication is off", name, n)
	}
}

// verifyPath opens a file in etcd's format, and tells how far its verification
// is.
func verifyPath(ctx context.Context, cmd *cobra.Command, path string, withoutAuth bool) (*etcdfile.Reader, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() { // opening it could wait for ever
		return nil, fmt.Errorf("%s: %w: it is not a file", path, snapshot.ErrInvalid)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	src, err := verifyFile(ctx, cmd, path, file, withoutAuth)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return src, nil
}

// verifyFile is verifyPath of an open file, which has a name for people.
func verifyFile(ctx context.Context, cmd *cobra.Command, name string, file *os.File, withoutAuth bool) (*etcdfile.Reader, error) {
	p := startBytes(cmd.ErrOrStderr(), "verifying "+name)
	defer p.end()
	return etcdfile.OpenFile(ctx, file, etcdfile.OpenOptions{WithoutAuth: withoutAuth, Report: p.of})
}
