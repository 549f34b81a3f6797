// Package report keeps what a run measured, makes the statistics, and prints
// them as tables and plots.
//
// Rounds alternate between the systems (A B C A B C …), so that a disturbance
// of the machine hits all of them. A ratio is therefore taken within each
// round, and the median of the rounds is shown with the smallest and largest.
package report

import (
	"encoding/json"
	"os"
	"slices"
	"time"
)

// Results is a run, as it is kept in a file.
type Results struct {
	Started   time.Time   `json:"started"`
	Ended     time.Time   `json:"ended"`
	Command   string      `json:"command"`
	Rounds    int         `json:"rounds"`
	Window    string      `json:"window"`
	Machine   Machine     `json:"machine"`
	Systems   []System    `json:"systems"`
	Workloads []*Workload `json:"workloads"`
}

// System names one server and its version.
type System struct {
	Name    string `json:"name"`
	Base    string `json:"base,omitempty"` // the system that it is compared with; none: Baseline
	Doc     string `json:"doc"`
	Program string `json:"sha256"` // of the program, its first digits
}

// Workload is what one workload measured.
type Workload struct {
	Name     string             `json:"name"`
	Doc      string             `json:"doc"`
	Unit     string             `json:"unit"`
	Clients  int                `json:"clients,omitempty"`
	Watchers int                `json:"watchers,omitempty"`
	Rate     int                `json:"rate,omitempty"`
	Keys     int                `json:"keys"`
	Rounds   int                `json:"rounds,omitempty"`
	Systems  map[string]*Series `json:"systems"`
}

// Series is what one system did in the rounds of a workload.
type Series struct {
	Unsupported string   `json:"unsupported,omitempty"` // the server's error
	Failed      string   `json:"failed,omitempty"`      // an error or a wrong answer
	GaveUp      string   `json:"gave_up,omitempty"`     // after what time
	NotMeasured string   `json:"not_measured,omitempty"`
	Windows     []Window `json:"windows,omitempty"`
}

// Measured says whether the series is, or may become, whole.
func (s *Series) Measured() bool {
	return s.Unsupported == "" && s.Failed == "" && s.GaveUp == "" && s.NotMeasured == ""
}

// Window is one measurement. CPU and bytes are the server's, up to half a
// second after the last request, so that work it put off counts.
type Window struct {
	Ops     int     `json:"ops"`
	Seconds float64 `json:"seconds"`
	P50     float64 `json:"p50_us"`
	P90     float64 `json:"p90_us"`
	P99     float64 `json:"p99_us"`
	Max     float64 `json:"max_us"`
	CPU     float64 `json:"cpu_s"`
	// ClientCPU is the load generator's own, or 0.
	ClientCPU float64            `json:"client_cpu_s,omitempty"`
	Written   int64              `json:"written"`
	RSS       int64              `json:"rss"`
	PeakRSS   int64              `json:"peak_rss"`
	WAL       int64              `json:"wal_max,omitempty"` // largest SQLite WAL file seen
	Extra     map[string]float64 `json:"extra,omitempty"`
}

// SetLatencies fills in the percentiles: exact ones, of all samples.
func (w *Window) SetLatencies(samples []time.Duration) {
	if len(samples) == 0 {
		return
	}
	slices.Sort(samples)
	w.P50 = microseconds(Percentile(samples, 50))
	w.P90 = microseconds(Percentile(samples, 90))
	w.P99 = microseconds(Percentile(samples, 99))
	w.Max = microseconds(samples[len(samples)-1])
}

func microseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// Percentile returns the smallest sample that p percent of them do not exceed.
func Percentile(sorted []time.Duration, p int) time.Duration {
	rank := (len(sorted)*p + 99) / 100 // rounded up
	return sorted[max(rank, 1)-1]
}

// Median returns the middle value, or the mean of the two there are.
func Median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// Read reads a results file.
func Read(path string) (*Results, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := new(Results)
	return r, json.Unmarshal(b, r)
}

// Write writes the file as a whole, so that an interrupted run keeps what it had.
func (r *Results) Write(path string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".tmp", append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// Merge puts the workloads of another run in, instead of those of the same
// name, and the systems that are not there.
func (r *Results) Merge(other *Results) {
	for _, w := range other.Workloads {
		if i := slices.IndexFunc(r.Workloads, func(have *Workload) bool { return have.Name == w.Name }); i >= 0 {
			r.Workloads[i] = w
		} else {
			r.Workloads = append(r.Workloads, w)
		}
	}
	for _, s := range other.Systems {
		if !slices.ContainsFunc(r.Systems, func(have System) bool { return have.Name == s.Name }) {
			r.Systems = append(r.Systems, s)
		}
	}
}
