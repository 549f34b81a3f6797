package run

import (
	"time"

	"github.com/keelson-io/keelson/bench/internal/systems"
	"github.com/keelson-io/keelson/bench/internal/workload"
)

// schedule says how far a run is, and fits what is left into its budget.
type schedule struct {
	began  time.Time
	budget time.Duration // 0: none
	done   time.Duration // estimated, of what was run
	left   time.Duration // estimated, of what was not
}

// pace is how much longer the run has taken than was estimated.
func (s *schedule) pace() float64 {
	// At the start there is little to go by.
	const few = time.Minute
	return float64(time.Since(s.began)+few) / float64(s.done+few)
}

// remaining is how long the rest will take.
func (s *schedule) remaining() time.Duration {
	return time.Duration(float64(s.left) * s.pace())
}

// fit says how many of a workload's rounds the budget allows; none when it is
// used up.
func (s *schedule) fit(rounds int) int {
	if s.budget == 0 {
		return rounds
	}
	have, need := s.budget-time.Since(s.began), s.remaining()
	switch {
	case have <= 0:
		return 0
	case have >= need:
		return rounds
	default:
		return max(1, int(float64(rounds)*float64(have)/float64(need)))
	}
}

// finished notes that a workload estimated to take d is over.
func (s *schedule) finished(d time.Duration) {
	s.done += d
	s.left -= d
}

// estimate says how long a workload takes, without loading its data.
func (r *Runner) estimate(spec workload.Spec) time.Duration {
	const perStart, perSession, perKey = 1.2, 1.4, 5e-6 // seconds
	rounds, window := r.times(spec)
	n := 0
	for _, system := range r.Systems {
		if takesPart(system, spec) && !r.tooLarge(system, spec.Data) {
			n++
		}
	}
	turns, starts := rounds*n, 0
	switch {
	case spec.Parallel:
		turns = 1
	case spec.Restart:
		starts = turns
	case !spec.Shared:
		starts = n
	}
	start := perStart + float64(spec.Data.Keys+spec.Data.Revisions)*perKey
	seconds := float64(turns)*(window+settle+spec.Beyond).Seconds() + float64(n)*perSession + float64(starts)*start
	return time.Duration(seconds * float64(time.Second))
}

// times says how many rounds and how long windows the workload has.
func (r *Runner) times(spec workload.Spec) (rounds int, window time.Duration) {
	rounds, window = r.Rounds, r.Window
	if spec.Rounds > 0 {
		rounds = min(rounds, spec.Rounds)
	}
	if spec.Scale > 0 {
		window = time.Duration(float64(window) * spec.Scale)
	}
	if spec.Parallel {
		window = r.Edge
	}
	return rounds, window
}

// takesPart says whether the workload is for the system.
func takesPart(system systems.System, spec workload.Spec) bool {
	return system.Measures(spec.Name) && (system.Nodes > 0 || !spec.Nodes)
}

// tooLarge says whether the system is not measured with that much data.
func (r *Runner) tooLarge(system systems.System, data workload.Data) bool {
	return !r.Patient && system.Most > 0 && data.Keys+data.Revisions > system.Most
}
