package compactor

import (
	"errors"
	"testing"
	"time"
)

// FuzzParse: a policy is refused as it should be, or is off, by time or by
// number, and never negative.
func FuzzParse(f *testing.F) {
	for _, mode := range []string{ModePeriodic, ModeRevision, "", "Periodic"} {
		for _, retention := range []string{"", "0", "1", "-1", "1h30m", "1ns", "-5m", "1e3", "0x10", "9223372036854775807", "2562047h", "2562048h", "1.5h", "1µs", " 1"} {
			f.Add(mode, retention)
		}
	}
	f.Fuzz(func(t *testing.T, mode, retention string) {
		p, err := Parse(mode, retention)
		if err != nil {
			if !errors.Is(err, ErrMode) && !errors.Is(err, ErrRetention) || p != (Policy{}) {
				t.Fatalf("%+v, %v", p, err)
			}
			return
		}
		switch {
		case p.Period < 0 || p.Revisions < 0 || p.Period != 0 && p.Revisions != 0:
		case mode == ModePeriodic && p.Revisions == 0 && (p.Period == 0 || p.Period >= time.Second):
			return
		case mode == ModeRevision && p.Period == 0:
			return
		}
		t.Fatalf("%q, %q: %+v", mode, retention, p)
	})
}
