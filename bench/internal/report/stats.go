package report

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Metric is one figure of a window.
type Metric struct {
	Name   string
	Key    string
	Higher bool // more is better
	value  func(Window) float64
}

// The metrics of the tables, in their order.
var (
	Throughput = Metric{Name: "throughput /s", Key: "throughput", Higher: true, value: func(w Window) float64 { return float64(w.Ops) / w.Seconds }}
	P50        = Metric{Name: "p50", Key: "p50", value: func(w Window) float64 { return w.P50 }}
	P99        = Metric{Name: "p99", Key: "p99", value: func(w Window) float64 { return w.P99 }}
	CPUPerOp   = Metric{Name: "CPU/op", Key: "cpu", value: func(w Window) float64 { return w.CPU * 1e6 / float64(w.Ops) }}
	ClientCPU  = Metric{Name: "client CPU/op", Key: "client_cpu", value: clientCPU}
	PeakRSS    = Metric{Name: "peak RSS", Key: "rss", value: func(w Window) float64 { return float64(w.PeakRSS) / (1 << 20) }}
	Written    = Metric{Name: "written/op", Key: "written", value: func(w Window) float64 { return float64(w.Written) / float64(w.Ops) }}

	Metrics = []Metric{Throughput, P50, P99, CPUPerOp, ClientCPU, PeakRSS, Written}
)

// clientCPU is not there in results of before it was measured.
func clientCPU(w Window) float64 {
	if w.ClientCPU == 0 {
		return math.NaN()
	}
	return w.ClientCPU * 1e6 / float64(w.Ops)
}

// Extra is the metric of a workload's own figure.
func Extra(name string) Metric {
	return Metric{Name: name, Key: name, value: func(w Window) float64 {
		if v, ok := w.Extra[name]; ok {
			return v
		}
		return math.NaN()
	}}
}

// Values returns the metric in each window, none if the system failed.
func (s *Series) Values(m Metric) []float64 {
	if s == nil || !s.Measured() {
		return nil
	}
	values := make([]float64, len(s.Windows))
	for i, w := range s.Windows {
		values[i] = m.value(w)
	}
	return values
}

// Stat is a median with the smallest and the largest.
type Stat struct{ Median, Min, Max float64 }

func newStat(values []float64) (Stat, bool) {
	values = slices.DeleteFunc(slices.Clone(values), func(v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) })
	if len(values) == 0 {
		return Stat{}, false
	}
	return Stat{Median(values), slices.Min(values), slices.Max(values)}, true
}

// Absolute is the statistic of a metric over the rounds.
func (s *Series) Absolute(m Metric) (Stat, bool) { return newStat(s.Values(m)) }

// hardlyAny bytes in a window are not what one compares with.
const hardlyAny = 100 << 10

// Ratio is that of the ratios to another system, taken within each round.
func (s *Series) Ratio(base *Series, m Metric) (Stat, bool) {
	ours, theirs := s.Values(m), base.Values(m)
	var ratios []float64
	for i := range min(len(ours), len(theirs)) {
		if m.Key == Written.Key && base.Windows[i].Written < hardlyAny {
			continue
		}
		ratios = append(ratios, ours[i]/theirs[i])
	}
	return newStat(ratios)
}

// Summary is one line on a workload: throughput and CPU of each system.
func Summary(w *Workload, order []System) string {
	var parts []string
	for _, system := range order {
		s := w.Systems[system.Name]
		switch {
		case s == nil:
		case s.Unsupported != "":
			parts = append(parts, system.Name+" not supported")
		case s.NotMeasured != "":
			parts = append(parts, system.Name+" not measured")
		case s.GaveUp != "":
			parts = append(parts, system.Name+" gave up")
		case s.Failed != "":
			parts = append(parts, system.Name+" failed")
		default:
			rate, ok := s.Absolute(Throughput)
			cpu, _ := s.Absolute(CPUPerOp)
			figure := Number(rate.Median) + "/s"
			if !ok {
				took, _ := s.Absolute(P50)
				figure = Time(took.Median)
			}
			parts = append(parts, fmt.Sprintf("%s %s %s", system.Name, figure, Time(cpu.Median)))
		}
	}
	return strings.Join(parts, ", ")
}

// Number prints three digits.
func Number(v float64) string {
	switch {
	case v == 0:
		return "0"
	case math.Abs(v) >= 100:
		return thousands(int64(math.Round(v)))
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	case math.Abs(v) < 0.095:
		return strconv.FormatFloat(v, 'g', 2, 64)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func thousands(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Time prints microseconds in a fitting unit.
func Time(us float64) string {
	switch {
	case us >= 1e6:
		return Number(us/1e6) + " s"
	case us >= 1e3:
		return Number(us/1e3) + " ms"
	default:
		return Number(us) + " µs"
	}
}

// Bytes prints bytes in a fitting unit.
func Bytes(v float64) string {
	switch {
	case v >= 1<<30:
		return Number(v/(1<<30)) + " GiB"
	case v >= 1<<20:
		return Number(v/(1<<20)) + " MiB"
	case v >= 1<<10:
		return Number(v/(1<<10)) + " KiB"
	default:
		return Number(v) + " B"
	}
}
