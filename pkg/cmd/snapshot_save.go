package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keelson-io/keelson/pkg/config"
	"github.com/keelson-io/keelson/pkg/durable"
	"github.com/keelson-io/keelson/pkg/snapshot"
	"github.com/keelson-io/keelson/pkg/snapshot/etcdfile"
	"github.com/keelson-io/keelson/pkg/snapshot/remote"
)

// saving is what keelson snapshot save was told.
type saving struct {
	data    *dataFlags
	server  serverFlags
	force   bool
	offline bool
}

func newSave(environ []string) *cobra.Command {
	var s saving
	cmd := &cobra.Command{
		Use:     "save FILE",
		Short:   "Save a snapshot of a server, or of keelson's data without one",
		Long:    saveHelp,
		Example: saveExamples,
		Args:    oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			if s.offline = s.offline || s.data.typed(); s.offline && s.server.typed(cmd) {
				return config.Usagef("--endpoints asks a server, and --data-dir, --datastore and --config-file go without: use one of them")
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			if !s.offline {
				return s.fromServer(ctx, cmd, environ, args[0])
			}
			from, err := s.data.place(cmd, environ)
			if err != nil {
				return err
			}
			return s.fromData(ctx, cmd, from, args[0])
		},
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().StringSliceVar(&s.server.Endpoints, "endpoints", []string{"127.0.0.1:2379"}, "the `server`: http://host:port, https://…, unix:///path")
	s.server.add(cmd.Flags())
	s.data = addDataFlags(cmd)
	cmd.Flags().BoolVar(&s.offline, "offline", false, "read the data without a server, where the server's variables say that it is")
	cmd.Flags().BoolVar(&s.force, "force", false, "replace the file if there is one")
	return cmd
}

// serverFlags say how a server is reached; they are etcdctl's.
type serverFlags struct {
	remote.Config
}

// add adds all of them but --endpoints.
func (s *serverFlags) add(f *pflag.FlagSet) {
	f.StringVar(&s.CACert, "cacert", "", "`file` of the CA that the server's certificate is of; ETCDCTL_CACERT and so on are read, too")
	f.StringVar(&s.Cert, "cert", "", "`file` of this client's certificate")
	f.StringVar(&s.Key, "key", "", "`file` of that certificate's key")
	f.BoolVar(&s.InsecureSkipTLSVerify, "insecure-skip-tls-verify", false, "do not check the server's certificate: for tests only")
	f.StringVar(&s.User, "user", "", "`name` and, after a colon, password, where etcd asks for them")
	f.StringVar(&s.Password, "password", "", "`password`; rather put it in ETCDCTL_PASSWORD, where ps does not show it")
	f.DurationVar(&s.DialTimeout, "dial-timeout", 5*time.Second, "`time` to reach the server")
}

// serverFlagNames are the flags of serverFlags.
var serverFlagNames = []string{"endpoints", "cacert", "cert", "key", "insecure-skip-tls-verify", "user", "password", "dial-timeout"}

func (s *serverFlags) typed(cmd *cobra.Command) bool {
	for _, name := range serverFlagNames {
		if cmd.Flags().Changed(name) {
			return true
		}
	}
	return false
}

// complete reads etcdctl's variables for what was not typed.
func (s *serverFlags) complete(f *pflag.FlagSet, environ []string) error {
	typed := f.Changed("password")
	for _, name := range serverFlagNames {
		variable := etcdctlPrefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		value := lookupEnviron(environ, variable)
		if value == "" || f.Lookup(name) == nil || f.Changed(name) {
			continue
		}
		if err := f.Set(name, value); err != nil {
			return config.Usagef("%s: %s", variable, err)
		}
	}
	if name, password, ok := strings.Cut(s.User, ":"); ok && !typed {
		s.User, s.Password = name, password
	}
	return nil
}

// fromServer saves what the server streams.
func (s *saving) fromServer(ctx context.Context, cmd *cobra.Command, environ []string, file string) error {
	if err := s.server.complete(cmd.Flags(), environ); err != nil {
		return err
	}
	if len(s.server.Endpoints) != 1 {
		return config.Usagef("--endpoints: name one server: a snapshot is that of one")
	}
	began := time.Now()
	version := ""
	size, err := s.write(file, func(part *os.File) error {
		client, err := remote.Dial(ctx, s.server.Config)
		if err != nil {
			return err
		}
		status, err := client.Status(ctx, s.server.Endpoints[0])
		if err == nil {
			version = status.Version
			p := startBytes(cmd.ErrOrStderr(), "saving")
			err = remote.Fetch(ctx, client, part, p.of)
			p.end()
		}
		return errors.Join(err, client.Close())
	})
	if err != nil {
		return interrupted(ctx, err, file)
	}
	say(cmd, "saved %s: %s from %s, version %s; %s", file, formatBytes(size), s.server.Endpoints[0], version, time.Since(began).Round(10*time.Millisecond))
	return nil
}

// fromData saves keelson's data without a server.
func (s *saving) fromData(ctx context.Context, cmd *cobra.Command, from place, file string) error {
	var count *tally
	size, err := s.write(file, func(part *os.File) (err error) {
		src, err := from.logSource(ctx, quietLogger(cmd))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, src.Close()) }()
		count = newTally(etcdfile.NewWriter(part, etcdfile.Options{}))
		p := startProgress(cmd.ErrOrStderr(), "saving", src.State().Records)
		_, err = snapshot.Copy(ctx, count, src, p.report)
		p.end()
		return err
	})
	if err != nil {
		return interrupted(ctx, err, file)
	}
	say(cmd, "saved %s: %s from %s: revision %d, compacted %d, %s", file, formatBytes(size), from, count.state.Revision, count.state.Compacted, count)
	return nil
}

// interrupted is err, or what is clearer if a signal has ended ctx.
func interrupted(ctx context.Context, err error, file string) error {
	if ctx.Err() != nil {
		return fmt.Errorf("interrupted: %s was not written", file)
	}
	return err
}

// write lets fill write a file that has a name of its own, and gives it its
// name when it is durable. It returns the file's size.
func (s *saving) write(file string, fill func(part *os.File) error) (int64, error) {
	if err := s.free(file); err != nil {
		return 0, err
	}
	part, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".part-*")
	if err != nil {
		return 0, err
	}
	size, err := s.fill(part, file, fill)
	if err != nil {
		return 0, errors.Join(err, os.Remove(part.Name()))
	}
	return size, durable.Sync(filepath.Dir(file))
}

// fill is write after the file was made.
func (s *saving) fill(part *os.File, file string, fill func(part *os.File) error) (size int64, err error) {
	if err = fill(part); err == nil {
		err = part.Sync()
	}
	info, statErr := part.Stat()
	if err := errors.Join(err, statErr, part.Close()); err != nil {
		return 0, err
	}
	if err := s.free(file); err != nil {
		return 0, err
	}
	return info.Size(), os.Rename(part.Name(), file)
}

// free refuses what must not be replaced, and what cannot be there.
func (s *saving) free(file string) error {
	if file == "-" {
		return errors.New("a snapshot is written to a file, not to stdout: it counts once it is durable and was compared; ./- is a file of that name")
	}
	info, err := os.Lstat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !os.IsPathSeparator(file[len(file)-1]):
		if _, err := os.Stat(filepath.Dir(file)); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the directory %s is not there: make it first", filepath.Dir(file))
		}
		return nil
	case errors.Is(err, fs.ErrNotExist), err == nil && info.IsDir():
		return fmt.Errorf("%s is a directory: name a file in it", file)
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is no regular file, and is not replaced: choose another name", file)
	case !s.force:
		return fmt.Errorf("%s is there already: choose another name, or replace it with --force", file)
	}
	return nil
}
