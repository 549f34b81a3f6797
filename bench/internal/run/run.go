// Package run takes the systems through the workloads in alternating rounds.
package run

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keelson-io/keelson/bench/internal/report"
	"github.com/keelson-io/keelson/bench/internal/systems"
	"github.com/keelson-io/keelson/bench/internal/workload"
)

// settle is how long a server may still work on a window after it.
const settle = 500 * time.Millisecond

// patience is how long beyond its window a system may hold up the run.
const patience = 12 * time.Minute

// Options are those of the command line.
type Options struct {
	Systems   []systems.System
	Workloads []workload.Spec
	Rounds    int
	Window    time.Duration
	Edge      time.Duration // window of those that run in parallel
	Dir       string        // on the disk to measure
	Out       string        // the results file
	Profiles  string        // directory for CPU profiles of the servers, if not empty
	Cache     string
	Log       func(format string, args ...any)
}

// Runner holds what a run has made so far.
type Runner struct {
	Options
	results  *report.Results
	programs map[string]string // by system
	scratch  string            // ends with the run
	servers  map[string]*systems.Server
	data     workload.Data    // of the servers
	clean    bool             // the servers have only what data says
	down     map[string]error // of systems that have not started on data
}

// Run measures and writes the results file after each workload.
func Run(ctx context.Context, opt Options, results *report.Results) (err error) {
	if err := os.MkdirAll(opt.Dir, 0o755); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(opt.Dir, "r")
	if err != nil {
		return err
	}
	// PostgreSQL runs as another user, if this one is root.
	if err := os.Chmod(scratch, 0o711); err != nil {
		return errors.Join(err, os.RemoveAll(scratch))
	}
	r := &Runner{
		Options: opt, results: results, scratch: scratch,
		programs: map[string]string{}, servers: map[string]*systems.Server{},
	}
	defer func() {
		r.stopAll()
		err = errors.Join(err, os.RemoveAll(scratch))
	}()
	if results.Machine, err = report.ThisMachine(scratch); err != nil {
		return err
	}
	if err := r.build(); err != nil {
		return err
	}
	opt.Log("%d workloads, about %d minutes", len(opt.Workloads), int(r.estimate().Minutes())+1)
	failed := 0
	for _, spec := range opt.Workloads {
		began := time.Now()
		w, err := r.workload(ctx, spec)
		if err != nil {
			return fmt.Errorf("%s: %w", spec.Name, err)
		}
		for name, series := range w.Systems {
			if series.Failed != "" {
				failed++
				opt.Log("%s on %s FAILED: %s", spec.Name, name, series.Failed)
			}
		}
		opt.Log("%-16s %s (%.0f s)", spec.Name, report.Summary(w, results.Systems), time.Since(began).Seconds())
		results.Merge(&report.Results{Workloads: []*report.Workload{w}})
		results.Ended = time.Now().UTC()
		if err := results.Write(opt.Out); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d series failed; the results have the errors", failed)
	}
	return nil
}

func (r *Runner) build() error {
	r.results.Systems = nil
	for _, s := range r.Systems {
		r.Log("building %s", s.Name)
		program, err := s.Build(r.Cache, filepath.Join(r.scratch, "bin"))
		if err != nil {
			return err
		}
		b, err := os.ReadFile(program)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(b)
		r.programs[s.Name] = program
		r.results.Systems = append(r.results.Systems, report.System{Name: s.Name, Doc: s.Doc, Program: hex.EncodeToString(sum[:6])})
	}
	return nil
}

// session is one workload on one system.
type session struct {
	system systems.System
	series *report.Series
	env    *workload.Env
	runner workload.Runner
}

func (s *session) over() bool { return s.series.Unsupported != "" || s.series.Failed != "" }

// end notes the error that ends the session.
func (s *session) end(err error) {
	if workload.Unsupported(err) && len(s.series.Windows) == 0 {
		s.series.Unsupported = err.Error()
	} else {
		s.series.Failed = err.Error()
	}
}

func (r *Runner) workload(ctx context.Context, spec workload.Spec) (*report.Workload, error) {
	w := &report.Workload{
		Name: spec.Name, Doc: spec.Doc, Unit: spec.Unit, Clients: spec.Clients, Watchers: spec.Watchers,
		Rate: spec.Rate, Keys: spec.Data.Keys, Systems: map[string]*report.Series{},
	}
	sessions := make([]*session, len(r.Systems))
	for i, system := range r.Systems {
		sessions[i] = &session{system: system, series: &report.Series{}}
		w.Systems[system.Name] = sessions[i].series
	}
	defer func() {
		for _, s := range sessions {
			s.close()
			r.clean = r.clean && s.series.Failed == ""
		}
		r.clean = r.clean && spec.Shared
	}()
	if !r.clean || r.data != spec.Data {
		r.stopAll()
		if err := r.startAll(ctx, spec.Data); err != nil {
			return nil, err
		}
	}
	for _, s := range sessions {
		if err := r.down[s.system.Name]; err != nil {
			s.series.Failed = err.Error()
		}
	}
	rounds, window := r.times(spec)
	for round := range rounds {
		var group errgroup.Group
		if !spec.Parallel {
			group.SetLimit(1)
		}
		for _, s := range sessions {
			group.Go(func() error { return r.turn(ctx, spec, s, round, window) })
		}
		if err := group.Wait(); err != nil {
			return nil, err
		}
	}
	for _, s := range sessions {
		if s.runner == nil || s.over() {
			continue
		}
		if err := s.runner.Check(ctx); err != nil {
			s.end(err)
		}
	}
	return w, nil
}

// estimate says how long the run takes, but for the time to load data that no
// run has loaded yet.
func (r *Runner) estimate() time.Duration {
	const perStart, perSpec, perKey = 1.5, 1.5, 10e-6 // seconds
	var seconds float64
	n := len(r.Systems)
	for _, spec := range r.Workloads {
		rounds, window := r.times(spec)
		turns := rounds * n
		if spec.Parallel {
			turns = 1
		}
		seconds += float64(turns)*(window+settle).Seconds() + float64(n)*perSpec
		starts := n
		switch {
		case spec.Shared:
			starts = 0
		case spec.Fresh || spec.Restart:
			starts = turns
		}
		seconds += float64(starts) * (perStart + float64(spec.Data.Keys+spec.Data.Revisions)*perKey)
	}
	return time.Duration(seconds * float64(time.Second))
}

// times says how many rounds and how long windows the workload has.
func (r *Runner) times(spec workload.Spec) (rounds int, window time.Duration) {
	rounds, window = r.Rounds, r.Window
	if spec.Rounds > 0 {
		rounds = min(rounds, spec.Rounds)
	}
	if spec.Window > 0 {
		window = spec.Window
	}
	if spec.Parallel {
		window = r.Edge
	}
	return rounds, window
}

// turn is one system's in a round. Only the end of the run is an error.
func (r *Runner) turn(ctx context.Context, spec workload.Spec, s *session, round int, d time.Duration) error {
	if s.over() || ctx.Err() != nil {
		return ctx.Err()
	}
	limited, cancel := context.WithTimeout(ctx, d+patience)
	defer cancel()
	if err := r.window(limited, spec, s, round, d); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.end(err)
		s.close()
	}
	return nil
}

func (s *session) close() {
	if s.env != nil {
		s.env.Close()
	}
	s.env, s.runner = nil, nil
}

// open connects to the system's server.
func (s *session) open(ctx context.Context, spec workload.Spec, srv *systems.Server) (err error) {
	s.env = &workload.Env{Dial: srv.Client, Bulk: srv.Bulk}
	s.runner, err = spec.Open(ctx, s.env)
	return err
}

// window prepares the server and measures once.
func (r *Runner) window(ctx context.Context, spec workload.Spec, s *session, round int, d time.Duration) error {
	if spec.Fresh && round > 0 {
		s.close()
		if err := r.restart(ctx, s.system, true); err != nil {
			return err
		}
	}
	if spec.Restart {
		s.close()
		if err := r.restart(ctx, s.system, false); err != nil {
			return err
		}
	}
	srv := r.servers[s.system.Name]
	ctx, cancel := whileAlive(ctx, srv)
	defer cancel()
	err := r.measure(ctx, spec, s, srv, d)
	if cause := context.Cause(ctx); errors.Is(cause, errDied) {
		return fmt.Errorf("%w: %s", cause, srv.LogTail())
	}
	return err
}

var errDied = errors.New("the server has died")

// whileAlive makes a context that ends with the server: clients would wait for
// it to come back.
func whileAlive(ctx context.Context, srv *systems.Server) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-srv.Done():
			cancel(errDied)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// measure measures once, after a short unmeasured start if it is the first.
func (r *Runner) measure(ctx context.Context, spec workload.Spec, s *session, srv *systems.Server, d time.Duration) error {
	if s.runner == nil {
		if err := s.open(ctx, spec, srv); err != nil {
			return err
		}
		if !spec.Fresh && !spec.Restart {
			if err := s.warmUp(ctx, d); err != nil {
				return err
			}
		}
	}
	if err := s.runner.Prepare(ctx); err != nil {
		return err
	}
	before, err := srv.Usage()
	if err != nil {
		return err
	}
	readyRSS := before.RSS
	if spec.Restart {
		before = systems.Usage{} // the start is part of it
	} else if err := srv.ResetPeak(); err != nil {
		return err
	}
	wal := watchWAL(srv.Dir)
	profiled := r.profile(ctx, spec, srv, d)
	measured, err := s.runner.Run(ctx, d)
	profiled()
	if err != nil {
		wal()
		return err
	}
	time.Sleep(settle)
	after, err := srv.Usage()
	if err != nil {
		wal()
		return err
	}
	result := report.Window{
		Ops: measured.Ops, Seconds: measured.Elapsed.Seconds(),
		CPU: (after.CPU - before.CPU).Seconds(), Written: after.Written - before.Written,
		RSS: after.RSS, PeakRSS: after.PeakRSS, WAL: wal(), Extra: measured.Extra,
	}
	result.SetLatencies(measured.Latencies)
	if spec.Restart {
		result.Extra = map[string]float64{"ready_s": srv.Ready.Seconds(), "ready_rss_mib": float64(readyRSS) / (1 << 20)}
	}
	s.series.Windows = append(s.series.Windows, result)
	return nil
}

func (s *session) warmUp(ctx context.Context, d time.Duration) error {
	if err := s.runner.Prepare(ctx); err != nil {
		return err
	}
	_, err := s.runner.Run(ctx, min(d, time.Second))
	return err
}

// watchWAL looks for the largest SQLite WAL file below dir until the function
// that it returns is called, which returns its size.
func watchWAL(dir string) func() int64 {
	stop, result := make(chan struct{}), make(chan int64, 1)
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		var largest int64
		for {
			for _, pattern := range []string{"data/*-wal", "data/*/*-wal"} {
				files, _ := filepath.Glob(filepath.Join(dir, pattern)) // the pattern is well formed
				for _, file := range files {
					if info, err := os.Stat(file); err == nil {
						largest = max(largest, info.Size())
					}
				}
			}
			select {
			case <-tick.C:
			case <-stop:
				result <- largest
				return
			}
		}
	}()
	return func() int64 {
		close(stop)
		return <-result
	}
}

func (r *Runner) stopAll() {
	for name, srv := range r.servers {
		srv.Kill()
		_ = os.RemoveAll(srv.Dir)
		delete(r.servers, name)
	}
}

// startAll starts every system on the data and lets the disk come to rest. One
// that does not start is not there; down says why.
func (r *Runner) startAll(ctx context.Context, data workload.Data) error {
	r.data, r.clean = data, true
	r.down = map[string]error{}
	for _, system := range r.Systems {
		if err := r.copyTemplate(ctx, system, data); err != nil {
			r.down[system.Name] = err
		}
	}
	syscall.Sync()
	for _, system := range r.Systems {
		if r.down[system.Name] != nil {
			continue
		}
		srv, err := r.start(ctx, system)
		if err != nil {
			r.down[system.Name] = err
			continue
		}
		r.servers[system.Name] = srv
	}
	return ctx.Err()
}

// restart ends the system's server and starts it again, on the data as it is
// or as it was loaded.
func (r *Runner) restart(ctx context.Context, system systems.System, fresh bool) error {
	if srv := r.servers[system.Name]; srv != nil {
		delete(r.servers, system.Name)
		if fresh {
			srv.Kill()
		} else {
			srv.Stop()
		}
	}
	if fresh {
		if err := r.copyTemplate(ctx, system, r.data); err != nil {
			return err
		}
		syscall.Sync()
	}
	srv, err := r.start(ctx, system)
	if err == nil {
		r.servers[system.Name] = srv
	}
	return err
}

func (r *Runner) start(ctx context.Context, system systems.System) (*systems.Server, error) {
	return system.Start(ctx, r.programs[system.Name], r.dir(system), r.Profiles != "")
}

func (r *Runner) dir(system systems.System) string { return filepath.Join(r.scratch, system.Name) }
