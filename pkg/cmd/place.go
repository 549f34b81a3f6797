package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keelson-io/keelson/pkg/config"
	"github.com/keelson-io/keelson/pkg/drivers/postgres"
	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/embed"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/raftlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
	"github.com/keelson-io/keelson/pkg/snapshot/datalog"
	"github.com/keelson-io/keelson/pkg/snapshot/kine"
	"github.com/keelson-io/keelson/pkg/store"
)

// placeKind says what there is at a place.
type placeKind int

const (
	placeSQLite   placeKind = iota // keelson's data directory
	placePostgres                  // keelson's schema in PostgreSQL
	placeServer                    // a server: keelson or etcd
	placeFile                      // a file: a snapshot, or etcd's db
	placeKine                      // kine's table: a file, a directory or a URL
	placeCopy                      // a copy of the database of a data directory: a file
)

// place is where data is, or is to go.
type place struct {
	kind placeKind
	at   string // directory, URL or path
}

// parsePlace reads a place as people type it:
//
//	postgres://user@host/database         keelson's data in PostgreSQL
//	sqlite:///directory                   keelson's data directory
//	http://host:port, https://, unix://   a server
//	kine:…, mysql://…                     kine's: its endpoint, or a path
//	a directory                           keelson's data, etcd's, or that of k3s
//	anything else                         a file: a snapshot, etcd's db, or SQLite's
func parsePlace(text string) (place, error) {
	if endpoint, ok := strings.CutPrefix(text, kinePrefix); ok {
		return place{placeKine, endpoint}, nil
	}
	scheme, rest, isURL := strings.Cut(text, "://")
	if !isURL {
		return placeOnDisk(text)
	}
	switch scheme {
	case "postgres", "postgresql":
		if err := postgres.CheckURL(text); err != nil {
			return place{}, config.Usagef("%s", err)
		}
		return place{placePostgres, text}, nil
	case "sqlite":
		return place{placeSQLite, rest}, nil
	case "mysql":
		return place{placeKine, text}, nil
	case "http", "https", "unix", "unixs":
		return place{placeServer, text}, nil
	case "file":
		return placeOnDisk(rest)
	}
	return place{}, config.Usagef("%s://… is not a place that keelson knows: name a file or a directory, or use sqlite, postgres, kine:postgres, kine:mysql, http, https, unix or unixs", scheme)
}

// kinePrefix is before what would be understood as keelson's otherwise.
const kinePrefix = "kine:"

// Where etcd has its data in its data directory, and the log of what is to come
// there.
var (
	etcdFile     = filepath.Join("member", "snap", "db")
	walDirectory = filepath.Join("member", "wal")
)

func placeOnDisk(path string) (place, error) {
	if path == "" {
		return place{}, config.Usagef("the name of a place is empty")
	}
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() {
		if errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(path, string(filepath.Separator)) {
			return place{placeSQLite, path}, nil
		}
		if err == nil && !info.Mode().IsRegular() { // opening it could wait for ever
			return place{}, config.Usagef("%s is neither a file nor a directory", path)
		}
		if kine.IsFile(path) { // of SQLite
			return placeOfDatabase(path), nil
		}
		return place{placeFile, path}, nil
	}
	if _, err := os.Stat(filepath.Join(path, etcdFile)); err == nil {
		return place{placeFile, filepath.Join(path, etcdFile)}, nil
	}
	if file, err := kine.FindFile(path); err == nil {
		return place{placeKine, file}, nil
	}
	return place{placeSQLite, path}, nil
}

// placeOfDatabase is the place of a database of SQLite: kine's, or keelson's in
// its data directory, where a server locks it, or a copy of that.
func placeOfDatabase(path string) place {
	if !sqlite.IsDatabase(path) {
		return place{placeKine, path}
	}
	if at, err := filepath.EvalSymlinks(path); err == nil { // the lock and the WAL are beside what the link leads to
		path = at
	}
	if _, err := os.Stat(path + ".lock"); err == nil && filepath.Base(path) == sqlite.FileName {
		return place{placeSQLite, filepath.Dir(path)}
	}
	return place{placeCopy, path}
}

// String names the place without a password.
func (p place) String() string {
	switch p.kind {
	case placePostgres:
	case placeKine:
		return kine.Redact(p.at)
	default:
		return p.at
	}
	u, err := url.Parse(p.at)
	if err != nil {
		return "PostgreSQL"
	}
	q := u.Query()
	q.Del("password")
	q.Del("sslpassword")
	u.RawQuery = q.Encode()
	if u.User != nil {
		u.User = url.User(u.User.Username())
	}
	return u.String()
}

// openLog opens keelson's data at p, which no server has open if it is a data
// directory, to be read. What is not there is not made; in PostgreSQL nothing is
// changed.
func (p place) openLog(ctx context.Context, logger *logrus.Entry) (eventlog.Log, error) {
	switch p.kind {
	case placeSQLite:
		if _, err := os.Stat(filepath.Join(p.at, sqlite.FileName)); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("%s is not a data directory of keelson: it has no %s", p.at, sqlite.FileName)
			}
			return nil, err
		}
		opt := sqlite.Options{Dir: p.at, Logger: logger}
		_, node, err := raftlog.Identify(p.at)
		if err != nil {
			return nil, err
		}
		if node {
			opt.Synchronous = sqlite.UnsafeLosesAcknowledgedWritesOnPowerCut
		}
		return sqlite.Open(ctx, opt)
	case placeCopy:
		return openCopy(ctx, p.at, logger)
	case placePostgres:
		log, err := postgres.OpenReadOnly(ctx, p.at)
		if errors.Is(err, postgres.ErrNoSchema) {
			return nil, fmt.Errorf("%s has no data of keelson's: look whether the names of the database and of the schema are right", p)
		}
		if err != nil { // log is a nil of its type
			return nil, err
		}
		return log, nil
	}
	return nil, config.Usagef("%s is not data of keelson: name a data directory or postgres://…", p)
}

// logSource is the data of a log as of when it was opened.
type logSource struct {
	snapshot.Source
	log eventlog.Log
}

// Close implements snapshot.Source.
func (s *logSource) Close() error { return errors.Join(s.Source.Close(), s.log.Close()) }

// logSource returns keelson's data at p, which no server has open if it is a
// data directory.
func (p place) logSource(ctx context.Context, logger *logrus.Entry) (snapshot.Source, error) {
	log, err := p.openLog(ctx, logger)
	if err != nil {
		return nil, err
	}
	st, err := store.Open(ctx, log, store.Options{Logger: logger, CacheBytes: -1})
	if err == nil {
		err = p.complete(ctx, log)
	}
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	src, err := st.Export(ctx)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	return &logSource{Source: src, log: log}, nil
}

// logSink returns what makes keelson's data at p.
func (p place) logSink(opt datalog.Options) (*datalog.Sink, error) {
	switch p.kind {
	case placeSQLite:
		return datalog.SQLite(p.at, opt), nil
	case placePostgres:
		return datalog.Postgres(p.at, opt), nil
	}
	return nil, config.Usagef("%s is not a place for keelson's data: name a data directory or postgres://…", p)
}

// dataFlags are the server's flags that say where its data is. They are read as
// the server reads them, from its variables and its file too.
type dataFlags struct {
	config *config.Config
	all    *pflag.FlagSet
}

// dataFlagNames are the flags of dataFlags.
var dataFlagNames = []string{"config-file", "name", "data-dir", "datastore"}

// addDataFlags adds them to cmd.
func addDataFlags(cmd *cobra.Command) *dataFlags {
	d := &dataFlags{config: config.New(), all: pflag.NewFlagSet("", pflag.ContinueOnError)}
	d.config.AddFlags(d.all)
	for _, name := range dataFlagNames {
		cmd.Flags().AddFlag(d.all.Lookup(name))
	}
	return d
}

// typed reports whether the command line says where the data is.
func (d *dataFlags) typed() bool {
	for _, name := range dataFlagNames {
		if name != "name" && d.all.Changed(name) {
			return true
		}
	}
	return false
}

// place returns where the data is. A directory that is typed is meant: the
// variables and the file must not say that the data is elsewhere, as they may to
// a server, which keeps its socket in the directory.
func (d *dataFlags) place(cmd *cobra.Command, environ []string) (place, error) {
	typed, directory := d.all.Changed("datastore"), d.all.Changed("data-dir")
	if err := d.config.Read(d.all, environ); err != nil {
		return place{}, err
	}
	dir, database, err := d.config.Server.Data()
	if err != nil {
		return place{}, config.Usagef("%s", strings.TrimPrefix(err.Error(), embed.ErrConfig.Error()+": "))
	}
	if directory && !typed && (database != "" || !isDirectory(d.config.Server.DataDir, dir)) {
		return place{}, config.Usagef("--data-dir names a directory, and KEELSON_DATASTORE or the configuration file another place of the data: add --datastore=sqlite if the directory is meant, or leave --data-dir out")
	}
	if database == "" {
		return place{placeSQLite, dir}, nil
	}
	if u, err := url.Parse(database); typed && err == nil && hasPassword(u) {
		warn(cmd, "every user of this machine can see the database's password among the processes (ps): leave it out of --datastore, and use KEELSON_DATASTORE, PGPASSFILE or the configuration file")
	}
	return place{placePostgres, database}, nil
}

// isDirectory reports whether path is the absolute one.
func isDirectory(path, absolute string) bool {
	p, err := filepath.Abs(path)
	return err == nil && p == absolute
}

// quietLogger is for the parts that log what happens to a server; the commands
// say themselves what matters.
func quietLogger(cmd *cobra.Command) *logrus.Entry {
	logger := logrus.New()
	logger.SetOutput(cmd.ErrOrStderr())
	logger.SetLevel(logrus.WarnLevel)
	logger.SetFormatter(warnings{})
	return logrus.NewEntry(logger)
}

// warnings are what is logged, as warn prints it.
type warnings struct{}

// Format implements logrus.Formatter.
func (warnings) Format(e *logrus.Entry) ([]byte, error) {
	text := e.Message
	for _, name := range slices.Sorted(maps.Keys(e.Data)) {
		text += fmt.Sprintf("; %s: %v", name, e.Data[name])
	}
	return fmt.Appendf(nil, warningLine, text), nil
}

// wouldRefuse is the error of a dry run, or nil, that has found that data cannot
// be written as things are; it has read everything nevertheless.
func wouldRefuse(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("as things are, it would be refused: %w", err)
}

// explain says of an error of a Copy to p, or nil, what it means to people. A sink that
// has not finished has changed nothing.
func (p place) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, datalog.ErrExists):
		return fmt.Errorf("%s has data already: nothing was changed; --force replaces it", p)
	case errors.Is(err, datalog.ErrInUse):
		return fmt.Errorf("%s: nothing was changed: %w", p, err)
	case errors.Is(err, snapshot.ErrInvalid), errors.Is(err, eventlog.ErrUnknown):
		return err
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("interrupted: nothing was changed at %s", p)
	}
	return fmt.Errorf("%s: %w", p, err)
}
