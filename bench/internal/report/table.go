package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// Baseline is the system that the others are compared with.
const Baseline = "etcd"

// Table prints the results as Markdown: the targets, a row for each workload
// and system with its figures and their ratios to the baseline, how they grow,
// and the figures that only some workloads have.
func (r *Results) Table(out io.Writer) error {
	var b strings.Builder
	r.head(&b)
	b.WriteString("### Targets\n\n")
	r.Targets(&b)
	var behind strings.Builder
	if r.Behind(&behind); behind.Len() > 0 {
		b.WriteString("\nWhere kine does better than keelson:\n\n" + behind.String())
	}
	b.WriteString("\n### Workloads\n\n")
	r.table(&b, func(w *Workload) bool { return !grows(w.Name) })
	b.WriteString("\n### Growth\n\nWith the number of keys, of clients (`@c`) and of watchers (`watch@`).\n\n")
	r.table(&b, func(w *Workload) bool { return grows(w.Name) })
	b.WriteString("\n### Further figures\n\n")
	r.extras(&b)
	_, err := io.WriteString(out, b.String())
	return err
}

// grows says whether a workload is one of a row with growing numbers.
func grows(name string) bool { return strings.Contains(name, "@") }

func (r *Results) table(b *strings.Builder, include func(*Workload) bool) {
	b.WriteString("| workload | system | throughput | p50 | p99 | CPU/op | peak RSS | written/op |\n")
	b.WriteString("|---|---|---:|---:|---:|---:|---:|---:|\n")
	for _, w := range r.Workloads {
		if include(w) {
			r.rows(b, w)
		}
	}
}

// extras prints what only some workloads measure, and SQLite's WAL files.
func (r *Results) extras(b *strings.Builder) {
	b.WriteString("| workload | figure |")
	for _, s := range r.Systems {
		b.WriteString(" " + s.Name + " |")
	}
	b.WriteString("\n|---|---|" + strings.Repeat("---:|", len(r.Systems)) + "\n")
	for _, w := range r.Workloads {
		var metrics []Metric
		for _, name := range w.extraNames() {
			metrics = append(metrics, Extra(name))
		}
		if strings.HasPrefix(w.Name, "start") {
			metrics = append(metrics, RSS)
		}
		if strings.HasPrefix(w.Name, "compact") || strings.HasPrefix(w.Name, "update200") {
			metrics = append(metrics, wal)
		}
		for _, m := range metrics {
			fmt.Fprintf(b, "| %s | %s |", w.Name, m.Name)
			for _, system := range r.Systems {
				cell := ""
				if stat, ok := w.Systems[system.Name].Absolute(m); ok && (m.Key != wal.Key || stat.Max > 0) {
					cell = m.Format(stat.Median)
				}
				b.WriteString(" " + cell + " |")
			}
			b.WriteString("\n")
		}
	}
}

func (r *Results) head(b *strings.Builder) {
	fmt.Fprintf(b, "%s, %d cores, %s memory, Linux %s, %s (4 KiB and fdatasync: p50 %s, p99 %s), %s.\n",
		r.Machine.CPU, r.Machine.Cores, Bytes(float64(r.Machine.MemoryMB)*(1<<20)), r.Machine.Kernel, r.Machine.FS,
		Time(r.Machine.SyncP50), Time(r.Machine.SyncP99), r.Machine.Go)
	fmt.Fprintf(b, "%s, %d alternating rounds of %s; load average at the start %s. Medians; ratios to %s with the smallest and largest round.\n\n",
		r.Started.Format("2006-01-02 15:04 UTC"), r.Rounds, r.Window, r.Machine.Load, Baseline)
	fmt.Fprintf(b, "    %s\n\n", r.Command)
	if r.Machine.busy() {
		b.WriteString("**The machine was busy with other work: absolute figures and latencies mean little here.** " +
			"CPU time and bytes per operation are less touched by that.\n\n")
	}
	for _, s := range r.Systems {
		fmt.Fprintf(b, "- `%s`: %s\n", s.Name, s.Doc)
	}
	b.WriteString("\n")
}

func (r *Results) rows(b *strings.Builder, w *Workload) {
	base := w.Systems[Baseline]
	title := fmt.Sprintf("**%s** %s", w.Name, w.Doc)
	for _, system := range r.Systems {
		s := w.Systems[system.Name]
		if s == nil {
			continue
		}
		fmt.Fprintf(b, "| %s | %s |", title, system.Name)
		title = ""
		if why := s.without(); why != "" {
			fmt.Fprintf(b, " %s | | | | | |\n", why)
			continue
		}
		for _, m := range Metrics {
			b.WriteString(" " + s.cell(base, m, system.Name == Baseline) + " |")
		}
		b.WriteString("\n")
	}
}

// without says why there are no figures.
func (s *Series) without() string {
	switch {
	case s.Unsupported != "":
		return "not supported"
	case s.Failed != "":
		return "failed: " + strings.ReplaceAll(firstWords(s.Failed, 100), "|", "/")
	case len(s.Windows) == 0:
		return "no figures"
	default:
		return ""
	}
}

func firstWords(s string, n int) string {
	runes := []rune(strings.Join(strings.Fields(s), " "))
	if len(runes) > n {
		return string(runes[:n]) + "…"
	}
	return string(runes)
}

func (s *Series) cell(base *Series, m Metric, isBase bool) string {
	stat, ok := s.Absolute(m)
	if !ok {
		return ""
	}
	text := m.Format(stat.Median)
	if isBase {
		return text
	}
	if ratio, ok := s.Ratio(base, m); ok {
		text += fmt.Sprintf("<br>**%s×** (%s–%s)", Number(ratio.Median), Number(ratio.Min), Number(ratio.Max))
	}
	return text
}

// Format prints a value of the metric with its unit.
func (m Metric) Format(v float64) string {
	switch m.Key {
	case P50.Key, P99.Key, CPUPerOp.Key:
		return Time(v)
	case PeakRSS.Key, RSS.Key, wal.Key:
		return Bytes(v * (1 << 20))
	case Written.Key:
		return Bytes(v)
	default:
		switch {
		case strings.HasSuffix(m.Key, "_us"):
			return Time(v)
		case strings.HasSuffix(m.Key, "_mib"):
			return Bytes(v * (1 << 20))
		}
		return Number(v)
	}
}

// extraNames returns the names of the workload's own figures.
func (w *Workload) extraNames() []string {
	var names []string
	for _, s := range w.Systems {
		for _, window := range s.Windows {
			for name := range window.Extra {
				if !slices.Contains(names, name) {
					names = append(names, name)
				}
			}
		}
	}
	slices.Sort(names)
	return names
}
