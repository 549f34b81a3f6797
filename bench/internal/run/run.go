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
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keelson-io/keelson/bench/internal/report"
	"github.com/keelson-io/keelson/bench/internal/systems"
	"github.com/keelson-io/keelson/bench/internal/workload"
)

// settle is how long a server may still work on a window after it.
const settle = 500 * time.Millisecond

// patience is how long beyond its window a system may hold up the run, unless
// the workload says otherwise.
const patience = 90 * time.Second

// Options are those of the command line.
type Options struct {
	Systems   []systems.System
	Workloads []workload.Spec
	Rounds    int
	Window    time.Duration
	Edge      time.Duration // window of those that run in parallel
	Budget    time.Duration // with fewer rounds, then fewer workloads, not longer; 0: as long as it takes
	Patient   bool          // systems are measured with more data than they are made for
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
	formats  map[string]string // of the data, by the system that loads it; empty: not to be kept
	scratch  string            // ends with the run
	servers  map[string]*systems.Server
	data     workload.Data    // of the servers
	clean    bool             // the servers have only what data says
	down     map[string]error // of systems that have not started on data
}

// Run measures and writes the results file after each workload.
func Run(ctx context.Context, opt Options, results *report.Results) error {
	return withRunner(ctx, opt, results, func(r *Runner) (err error) {
		if results.Machine, err = report.ThisMachine(r.scratch); err != nil {
			return err
		}
		return r.all(ctx)
	})
}

// Prepare loads the data that Run needs and keeps it, so that Run finds it.
func Prepare(ctx context.Context, opt Options) error {
	return withRunner(ctx, opt, &report.Results{}, func(r *Runner) error { return r.prepare(ctx) })
}

// withRunner calls f with a Runner that has built the systems, and cleans up.
func withRunner(ctx context.Context, opt Options, results *report.Results, f func(*Runner) error) (err error) {
	if err := os.MkdirAll(opt.Dir, 0o755); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(opt.Dir, "r")
	if err != nil {
		return err
	}
	r := &Runner{
		Options: opt, results: results, scratch: scratch,
		programs: map[string]string{}, formats: map[string]string{}, servers: map[string]*systems.Server{},
	}
	defer func() {
		r.stopAll()
		err = errors.Join(err, os.RemoveAll(scratch))
	}()
	// PostgreSQL runs as another user, if this one is root.
	if err := os.Chmod(scratch, 0o711); err != nil {
		return err
	}
	if err := r.build(ctx); err != nil {
		return err
	}
	return f(r)
}

// all runs the workloads, one after the other.
func (r *Runner) all(ctx context.Context) error {
	plan := &schedule{began: time.Now(), budget: r.Budget}
	r.Workloads = slices.DeleteFunc(r.Workloads, func(spec workload.Spec) bool {
		return !slices.ContainsFunc(r.Systems, func(s systems.System) bool { return takesPart(s, spec) })
	})
	if len(r.Workloads) == 0 {
		return errors.New("none of the systems takes part in any of the workloads")
	}
	for _, spec := range r.Workloads {
		plan.left += r.estimate(spec)
	}
	r.Log("%d workloads, about %.0f minutes", len(r.Workloads), plan.left.Minutes()+1)
	failed := 0
	var skipped []string
	for i, spec := range r.Workloads {
		cost := r.estimate(spec)
		rounds, _ := r.times(spec)
		fit := plan.fit(rounds)
		if fit == 0 {
			skipped = append(skipped, spec.Name)
			plan.left -= cost
			continue
		}
		began := time.Now()
		w, err := r.workload(ctx, spec, fit)
		if err != nil {
			return fmt.Errorf("%s: %w", spec.Name, err)
		}
		plan.finished(cost)
		failed += r.tell(spec, w)
		r.Log("%d/%d %-16s %s (%.0f s; %.0f min gone, about %.0f to go)", i+1, len(r.Workloads), spec.Name, report.Summary(w, r.results.Systems),
			time.Since(began).Seconds(), time.Since(plan.began).Minutes(), plan.remaining().Minutes())
		r.results.Merge(&report.Results{Workloads: []*report.Workload{w}})
		r.results.Ended = time.Now().UTC()
		if err := r.results.Write(r.Out); err != nil {
			return err
		}
	}
	var errs []error
	if failed > 0 {
		errs = append(errs, fmt.Errorf("%d series failed; the results have the errors", failed))
	}
	if len(skipped) > 0 {
		errs = append(errs, fmt.Errorf("the budget of %s is used up; not measured: %s", r.Budget, strings.Join(skipped, ", ")))
	}
	return errors.Join(errs...)
}

// tell logs which systems have no figures, and returns how many failed.
func (r *Runner) tell(spec workload.Spec, w *report.Workload) (failed int) {
	for name, series := range w.Systems {
		switch {
		case series.Failed != "":
			failed++
			r.Log("%s on %s FAILED: %s", spec.Name, name, series.Failed)
		case series.GaveUp != "":
			r.Log("%s on %s: %s", spec.Name, name, series.GaveUp)
		}
	}
	return failed
}

// build builds the systems and finds out the formats of their files.
func (r *Runner) build(ctx context.Context) error {
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
		r.programs[s.Name], r.programs[s.Loader().Name] = program, program
		if r.formats[s.Loader().Name] == "" {
			if r.formats[s.Loader().Name], err = s.Loader().Format(ctx, program, filepath.Join(r.scratch, "format")); err != nil {
				return err
			}
		}
		r.results.Systems = append(r.results.Systems, report.System{Name: s.Name, Base: s.Base, Doc: s.Doc, Program: hex.EncodeToString(sum[:6])})
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

func (s *session) over() bool { return !s.series.Measured() }

// end notes the error that ends the session.
func (s *session) end(err error) {
	switch {
	case errors.Is(err, workload.ErrGaveUp):
		s.series.GaveUp = err.Error()
	case workload.Unsupported(err) && len(s.series.Windows) == 0:
		s.series.Unsupported = err.Error()
	default:
		s.series.Failed = err.Error()
	}
}

func (r *Runner) workload(ctx context.Context, spec workload.Spec, rounds int) (*report.Workload, error) {
	w := &report.Workload{
		Name: spec.Name, Doc: spec.Doc, Unit: spec.Unit, Clients: spec.Clients, Watchers: spec.Watchers,
		Rate: spec.Rate, Keys: spec.Data.Keys, Rounds: rounds, Systems: map[string]*report.Series{},
	}
	var sessions []*session
	for _, system := range r.Systems {
		if !takesPart(system, spec) {
			continue
		}
		s := &session{system: system, series: &report.Series{}}
		w.Systems[system.Name] = s.series
		if r.tooLarge(system, spec.Data) {
			s.series.NotMeasured = fmt.Sprintf("with more than %s keys or revisions", report.Number(float64(system.Most)))
		}
		sessions = append(sessions, s)
	}
	defer func() {
		for _, s := range sessions {
			s.close()
			r.clean = r.clean && s.series.Failed == "" && s.series.GaveUp == ""
		}
		r.clean = r.clean && spec.Shared
	}()
	if err := r.provide(ctx, spec, sessions); err != nil {
		return nil, err
	}
	if err := r.rounds(ctx, spec, sessions, rounds); err != nil {
		return nil, err
	}
	for _, s := range sessions {
		if s.runner == nil || s.over() || s.system.Forgets {
			continue
		}
		if err := s.runner.Check(ctx); err != nil {
			s.end(err)
		}
	}
	return w, nil
}

// provide sees to it that the systems of the sessions, and no others, run on
// the workload's data.
func (r *Runner) provide(ctx context.Context, spec workload.Spec, sessions []*session) error {
	if !r.clean || r.data != spec.Data {
		r.stopAll()
		r.data, r.clean, r.down = spec.Data, true, map[string]error{}
	}
	var missing []systems.System
	for _, s := range sessions {
		if r.servers[s.system.Name] == nil && r.down[s.system.Name] == nil && !s.over() {
			missing = append(missing, s.system)
		}
	}
	if err := r.startAll(ctx, missing); err != nil {
		return err
	}
	for _, s := range sessions {
		if err := r.down[s.system.Name]; err != nil {
			s.end(err)
		}
	}
	return nil
}

func (r *Runner) rounds(ctx context.Context, spec workload.Spec, sessions []*session, rounds int) error {
	_, window := r.times(spec)
	for round := range rounds {
		var group errgroup.Group
		if !spec.Parallel {
			group.SetLimit(1)
		}
		for _, s := range sessions {
			group.Go(func() error { return r.turn(ctx, spec, s, round, window) })
		}
		if err := group.Wait(); err != nil {
			return err
		}
	}
	return nil
}
