// Command bench compares keelson with etcd and kine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/keelson-io/keelson/bench/internal/floor"
	"github.com/keelson-io/keelson/bench/internal/report"
	"github.com/keelson-io/keelson/bench/internal/run"
	"github.com/keelson-io/keelson/bench/internal/systems"
	"github.com/keelson-io/keelson/bench/internal/workload"
)

const usage = `bench compares keelson with etcd and kine.

  go run . run [flags]           measure and print the tables
  go run . prepare [flags]       load the data that run with these flags needs
  go run . table results.json…   print the tables of results (Markdown)
  go run . plot -dir plots results.json…
                               draw the plots of results (SVG)
  go run . report results.json…
                               put tables and plots into README.md
  go run . list                  say what the workloads and systems are

Each server is a process of its own on the same disk, serves on a unix socket
(three on the loopback network for those of three nodes) and is asked through
etcd's client. All are asked in turn, round after round.

Examples:
  # Is a put cheaper than etcd's? Half a minute.
  go run . run -workloads put1,put200 -systems etcd,keelson -rounds 3 -duration 2s

  # All that begins with "list", on all systems, kept in a file
  go run . run -workloads 'list*' -out list.json

  # Where does keelson spend its time?
  go run . run -workloads update200 -systems etcd,keelson -profiles /tmp/profiles
  go tool pprof -top /tmp/profiles/update200-keelson.pprof

  # A keelson that was built elsewhere
  KEELSON_BINARY=/tmp/keelson go run . run -workloads get200

Flags of run:
`

func main() {
	if err := command(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func command(args []string) error {
	name := ""
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	switch name {
	case "run":
		return measure(args)
	case "prepare":
		return prepare(args)
	case "floor": // run starts it
		return serveFloor(args)
	case "table":
		return table(args)
	case "plot":
		return plots(args)
	case "report":
		return writeReport(args)
	case "list":
		return list(os.Stdout)
	case "", "help", "-h", "-help", "--help":
		flags, _ := runFlags()
		flags.Usage()
		return nil
	default:
		return fmt.Errorf("no command is called %q; see go run . help", name)
	}
}

// settings are the flags of run.
type settings struct {
	workloads, systems, out, dir, profiles string
	rounds                                 int
	window, edge, budget                   time.Duration
	merge, patient                         bool
}

func runFlags() (*flag.FlagSet, *settings) {
	s := new(settings)
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	flags.StringVar(&s.workloads, "workloads", "*", "`names` with commas; in a name * stands for any letters, and -name leaves out")
	flags.StringVar(&s.systems, "systems", "etcd,kine,kine-full,keelson,floor", "`names` with commas; in a name * stands for any letters")
	flags.IntVar(&s.rounds, "rounds", 5, "how often each workload is measured on each system")
	flags.DurationVar(&s.window, "duration", 3*time.Second, "how long each measurement takes")
	flags.DurationVar(&s.edge, "edge", 10*time.Minute, "how long the edge profile takes; 24h is the real day")
	flags.DurationVar(&s.budget, "budget", 0, "how long all may take: then with fewer rounds, and in the end without some workloads")
	flags.BoolVar(&s.patient, "patient", false, "measure kine with a million keys, too: hours")
	flags.StringVar(&s.out, "out", "results.json", "`file` for the results")
	flags.BoolVar(&s.merge, "merge", false, "keep the workloads that the file has and this run does not")
	flags.StringVar(&s.dir, "dir", filepath.Join(cacheDir(), "bench"), "`directory` for the data, on the disk to measure; its path must be short")
	flags.StringVar(&s.profiles, "profiles", "", "`directory` for CPU profiles of etcd and keelson in each workload; they cost a little")
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	return flags, s
}

func cacheDir() string {
	if dir := os.Getenv("KEELSON_CACHE"); dir != "" {
		return dir
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return os.TempDir()
	}
	return filepath.Join(home, ".cache", "keelson")
}

func measure(args []string) error {
	opt, s, err := options("run", args)
	if err != nil {
		return err
	}
	results := &report.Results{}
	if s.merge {
		if results, err = report.Read(s.out); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	results.Started, results.Rounds, results.Window = time.Now().UTC(), s.rounds, s.window.String()
	results.Command = "go run . run " + strings.Join(args, " ")
	if s.profiles != "" {
		if err := os.MkdirAll(s.profiles, 0o755); err != nil {
			return err
		}
	}
	// The generator shares the machine with the servers: less garbage
	// collection here leaves them more of it.
	debug.SetGCPercent(400)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return errors.Join(run.Run(ctx, opt, results), results.Table(os.Stdout, 3))
}

// options reads the flags of run and prepare.
func options(name string, args []string) (run.Options, *settings, error) {
	flags, s := runFlags()
	if err := flags.Parse(args); err != nil {
		return run.Options{}, nil, err
	}
	chosen, err := systems.Find(strings.Split(s.systems, ","))
	if err != nil {
		return run.Options{}, nil, err
	}
	specs, err := workload.Find(strings.Split(s.workloads, ","))
	if err != nil {
		return run.Options{}, nil, err
	}
	if flags.NArg() > 0 || s.rounds < 1 || s.window < 100*time.Millisecond {
		return run.Options{}, nil, fmt.Errorf("%s takes flags only, at least one round, and durations of at least 100ms", name)
	}
	return run.Options{
		Systems: chosen, Workloads: specs, Rounds: s.rounds, Window: s.window, Edge: s.edge,
		Budget: s.budget, Patient: s.patient,
		Dir: s.dir, Out: s.out, Profiles: s.profiles, Cache: cacheDir(),
		Log: func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
		},
	}, s, nil
}

func prepare(args []string) error {
	opt, _, err := options("prepare", args)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return run.Prepare(ctx, opt)
}

func serveFloor(args []string) error {
	flags := flag.NewFlagSet("floor", flag.ContinueOnError)
	data := flags.String("data", "", "`file` that says what to answer with")
	socket := flags.String("socket", "", "unix `socket` to serve on")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return floor.Serve(ctx, *data, *socket)
}

func table(args []string) error {
	groups, err := readAll(args)
	for _, results := range groups {
		err = errors.Join(err, results.Table(os.Stdout, 3))
	}
	return err
}

func plots(args []string) error {
	flags := flag.NewFlagSet("plot", flag.ContinueOnError)
	dir := flags.String("dir", "plots", "`directory` for the SVG files")
	format := flags.String("format", "svg", "svg or png")
	if err := flags.Parse(args); err != nil {
		return err
	}
	groups, err := readAll(flags.Args())
	if err != nil {
		return err
	}
	_, err = groups[0].Plots(*dir, *format)
	return err
}

// The tables stand between these lines of the README.
const (
	tablesBegin = "<!-- tables: go run . report -->\n"
	tablesEnd   = "<!-- end of tables -->\n"
)

func writeReport(args []string) error {
	flags := flag.NewFlagSet("report", flag.ContinueOnError)
	readme := flags.String("readme", "README.md", "`file` to put the tables into; plots go into plots beside it")
	if err := flags.Parse(args); err != nil {
		return err
	}
	groups, err := readAll(flags.Args())
	if err != nil {
		return err
	}
	old, err := os.ReadFile(*readme)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(old), tablesBegin)
	_, after, ended := strings.Cut(rest, tablesEnd)
	if !ok || !ended {
		return fmt.Errorf("%s has no lines %q and %q", *readme, tablesBegin, tablesEnd)
	}
	var b strings.Builder
	b.WriteString(before + tablesBegin + "\n")
	for i, results := range groups {
		fmt.Fprintf(&b, "### %s\n\n", results.Title())
		if err := results.Table(&b, 4); err != nil {
			return err
		}
		if i == 0 {
			b.WriteString("\n#### Plots\n\n")
			drawn, err := results.Plots(filepath.Join(filepath.Dir(*readme), "plots"), "svg")
			if err != nil {
				return err
			}
			for _, plot := range drawn {
				fmt.Fprintf(&b, "![%s](plots/%s)\n", plot.Title, plot.File)
			}
		}
		b.WriteString("\n")
	}
	b.WriteString(tablesEnd + after)
	return os.WriteFile(*readme, []byte(b.String()), 0o644)
}

// readAll reads results files and puts together those that can be compared. A
// later one goes before an earlier.
func readAll(paths []string) ([]*report.Results, error) {
	if len(paths) == 0 {
		return nil, errors.New("name at least one results file")
	}
	var all []*report.Results
	for _, path := range paths {
		results, err := report.Read(path)
		if err != nil {
			return nil, err
		}
		all = append(all, results)
	}
	return report.Group(all), nil
}

func list(out io.Writer) error {
	for _, s := range systems.All() {
		if _, err := fmt.Fprintf(out, "%-16s %s\n", s.Name, s.Doc); err != nil {
			return err
		}
	}
	for _, w := range workload.All() {
		if _, err := fmt.Fprintf(out, "%-16s %s\n", w.Name, w.Doc); err != nil {
			return err
		}
	}
	return nil
}
