package cmd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/keelson-io/keelson/pkg/check"
	"github.com/keelson-io/keelson/pkg/config"
	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
)

const checkHelp = `Check reads all of keelson's data and says what is wrong with it: checksums of
headers, keys, values and batches, what is missing or out of order, counters,
versions of keys that do not follow each other, leases that are not there; in a
data directory also SQLite's file and its write-ahead log, and the Raft log of a
node of a cluster. Each finding is one line, with what to do about it. Nothing is
changed.

Where the data is, is said as to the server: --data-dir, --datastore,
--config-file, or the server's variables. A data directory must not be in use:
stop the server, or check a copy of all of its files. In PostgreSQL the data is
checked as of one moment, and instances go on.

The exit code is 0 if all is well, 1 if something was found or the data could not
be checked, 2 if the command line is wrong.`

const checkExamples = `  keelson check --data-dir=/var/lib/keelson
  keelson check --data-dir=/var/lib/keelson -w json
  KEELSON_DATASTORE=postgres://keelson@db/keelson keelson check`

// errFindings ends the command when the report was printed.
var errFindings = errors.New("something was found")

func newCheck(environ []string) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:     "check",
		Short:   "Read all of the data and say what is wrong with it",
		Long:    checkHelp,
		Example: checkExamples,
		Args:    noArgs,
	}
	data := addDataFlags(cmd)
	cmd.Flags().StringVarP(&format, "write-out", "w", "simple", "`format`: simple or json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		write, ok := checkFormats[format]
		if !ok {
			return config.Usagef("--write-out %s: use simple or json", format)
		}
		at, err := data.place(cmd, environ)
		if err != nil {
			return err
		}
		r, err := checkPlace(cmd, at)
		if err != nil {
			if r != nil && !r.Clean() { // what was found so far says more, as a rule
				warn(cmd, "the check was not finished; so far it has found:")
				err = errors.Join(err, printFindings(cmd.ErrOrStderr(), r))
			}
			return err
		}
		if err := write(cmd.OutOrStdout(), at, r); err != nil {
			return err
		}
		if !r.Clean() {
			return &loggedError{errFindings}
		}
		return nil
	}
	return cmd
}

func checkPlace(cmd *cobra.Command, at place) (*check.Report, error) {
	ctx, stop := interruptible(cmd)
	defer stop()
	var bar *progress
	report := func(records, of int64) {
		if bar == nil {
			bar = startProgress(cmd.ErrOrStderr(), "checking", of)
		}
		bar.set(records)
	}
	var r *check.Report
	var err error
	if at.kind == placePostgres {
		r, err = check.Postgres(ctx, at.at, report)
	} else {
		r, err = check.SQLite(ctx, at.at, report)
	}
	if bar != nil {
		bar.end()
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s is not a data directory of keelson: it has no %s", at.at, sqlite.FileName)
	case errors.Is(err, sqlite.ErrLocked):
		return nil, fmt.Errorf("%w: stop that process, or check a copy of all files of the directory", err)
	}
	return r, err
}

var checkFormats = map[string]func(io.Writer, place, *check.Report) error{
	"simple": printCheck,
	"json": func(w io.Writer, _ place, r *check.Report) error {
		encoder := json.NewEncoder(w)
		encoder.SetEscapeHTML(false)
		return encoder.Encode(r)
	},
}

func printCheck(w io.Writer, at place, r *check.Report) error {
	if err := printFindings(w, r); err != nil {
		return err
	}
	var out []byte
	for _, note := range r.Notes {
		out = fmt.Appendf(out, "note: %s\n", note)
	}
	verdict := "all is well"
	if n := r.Count(); n == 1 {
		verdict = "1 thing is wrong"
	} else if n > 1 {
		verdict = fmt.Sprintf("%d things are wrong", n)
	}
	out = fmt.Appendf(out, "%s (%s): %d records, %d keys, %d leases, revision %d, compacted %d: %s\n",
		at, r.Driver, r.Records, r.Keys, r.Leases, r.Revision, r.Compacted, verdict)
	_, err := w.Write(out)
	return err
}

func printFindings(w io.Writer, r *check.Report) error {
	var out []byte
	for _, f := range r.Findings {
		out = fmt.Appendf(out, "%s: %s: %s; %s\n", f.Kind, f.Where, f.Problem, f.Advice)
	}
	for kind, n := range r.More {
		out = fmt.Appendf(out, "%s: %d more like these\n", kind, n)
	}
	_, err := w.Write(out)
	return err
}
