package cmd

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/keelson-io/keelson/pkg/config"
)

// errDifferent: verify found differences, which it has printed.
var errDifferent = errors.New("they differ")

const verifyHelp = `Verify compares two places key by key: values, create and mod revisions,
versions, leases, the revision and the compact revision, and all older versions.
Each place is one that import reads. Alarms are not compared, nor the order of the
changes within a revision. The exit code is 0 if all is the same, 1 if it is not,
and 2 if that cannot be found out.

While something is written to one of the places, they differ.`

const verifyExamples = `  # What was imported is what there was
  keelson verify /var/lib/rancher/k3s /var/lib/keelson

  # An etcd has the keys and leases of another, with revisions of its own
  keelson verify --values http://127.0.0.1:2379 http://127.0.0.1:12379`

func newVerify(environ []string) *cobra.Command {
	var (
		values bool
		show   int
	)
	cmd := &cobra.Command{
		Use:     "verify PLACE PLACE",
		Short:   "Compare the data of two places",
		Long:    verifyHelp,
		Example: verifyExamples,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return config.Usagef("name two places: keelson verify PLACE PLACE")
			}
			return nil
		},
	}
	access := addAccessFlags(cmd, true)
	cmd.Flags().BoolVar(&values, "values", false, "compare keys, values and leases only: a server that was written to key by key has other revisions")
	cmd.Flags().IntVar(&show, "show", 10, "how many differences to print")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, stop := interruptible(cmd)
		defer stop()
		both, err := readBoth(ctx, cmd, access, environ, args)
		if err != nil {
			return &troubleError{err}
		}
		n := 0
		compareContents(both[0], both[1], !values, func(text string) {
			if n++; n <= show {
				say(cmd, "%s", text)
			}
		})
		if n > show {
			say(cmd, "… and %d more", n-show)
		}
		if n > 0 {
			return fmt.Errorf("%w: %d differences: the first is %s; the second is %s", errDifferent, n, both[0], both[1])
		}
		say(cmd, "the same: %s", both[1])
		return nil
	}
	return cmd
}

// readBoth reads the two places.
func readBoth(ctx context.Context, cmd *cobra.Command, access *accessFlags, environ, args []string) ([]*contents, error) {
	if err := access.complete(cmd.Flags(), environ); err != nil {
		return nil, err
	}
	places, both := make([]place, len(args)), make([]*contents, len(args))
	for i, text := range args {
		warnOfPassword(cmd, text, "PGPASSWORD")
		p, err := parsePlace(text)
		if err != nil {
			return nil, err
		}
		places[i] = p
	}
	access.both = places[0].kind == placeServer && places[1].kind == placeServer
	for i, p := range places {
		var err error
		if both[i], err = access.read(ctx, cmd, p, i == 1); err != nil {
			return nil, err
		}
	}
	return both, nil
}

// troubleError is what keeps a command from finding out what it is asked.
type troubleError struct{ error }

func (e *troubleError) Unwrap() error { return e.error }
