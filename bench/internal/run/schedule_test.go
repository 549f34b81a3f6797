package run

import (
	"testing"
	"time"

	"github.com/keelson-io/keelson/bench/internal/systems"
	"github.com/keelson-io/keelson/bench/internal/workload"
)

func TestScheduleFitsTheBudget(t *testing.T) {
	for name, c := range map[string]struct {
		budget, gone, left time.Duration
		want               int
	}{
		"no budget":           {0, time.Hour, time.Hour, 5},
		"enough":              {40 * time.Minute, 10 * time.Minute, 25 * time.Minute, 5},
		"not for all":         {40 * time.Minute, 10 * time.Minute, 48 * time.Minute, 3},
		"for next to nothing": {40 * time.Minute, 39 * time.Minute, 50 * time.Minute, 1},
		"used up":             {40 * time.Minute, 41 * time.Minute, 50 * time.Minute, 0},
	} {
		s := &schedule{began: time.Now().Add(-c.gone), budget: c.budget, done: c.gone, left: c.left}
		if got := s.fit(5); got != c.want {
			t.Errorf("%s: %d rounds, want %d", name, got, c.want)
		}
	}
}

// A machine on which all takes twice as long takes so for the rest, too.
func TestScheduleLearns(t *testing.T) {
	s := &schedule{began: time.Now().Add(-21 * time.Minute), left: 20 * time.Minute}
	s.finished(10 * time.Minute)
	if got := s.remaining().Round(time.Minute); got != 20*time.Minute {
		t.Errorf("%s remaining", got)
	}
}

func TestTimes(t *testing.T) {
	r := &Runner{Options: Options{Rounds: 3, Window: 2 * time.Second, Edge: time.Minute}}
	for _, c := range []struct {
		spec   workload.Spec
		rounds int
		window time.Duration
	}{
		{workload.Spec{}, 3, 2 * time.Second},
		{workload.Spec{Rounds: 1}, 1, 2 * time.Second},
		{workload.Spec{Rounds: 9, Scale: 0.5}, 3, time.Second},
		{workload.Spec{Parallel: true}, 3, time.Minute},
	} {
		if rounds, window := r.times(c.spec); rounds != c.rounds || window != c.window {
			t.Errorf("%+v: %d rounds of %s", c.spec, rounds, window)
		}
	}
}

func TestTooLarge(t *testing.T) {
	kine := systems.System{Most: 100}
	large := workload.Data{Keys: 60, Revisions: 50}
	if r := new(Runner); !r.tooLarge(kine, large) || r.tooLarge(systems.System{}, large) {
		t.Error("what a system is measured with at most is not looked at")
	}
	if r := (&Runner{Options: Options{Patient: true}}); r.tooLarge(kine, large) {
		t.Error("patience does not help")
	}
}
