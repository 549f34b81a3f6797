package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// Baseline is the system that the others are compared with, where nothing else
// is said.
const Baseline = "etcd"

// floor is the server that keeps nothing.
const floor = "floor"

// Table prints the results as Markdown, below headings of the given level: the
// targets, a row for each workload and system with its figures and their ratios
// to the system it is compared with, how they grow, and the figures that only
// some workloads have.
func (r *Results) Table(out io.Writer, level int) error {
	var b strings.Builder
	section := func(title string, write func(*strings.Builder)) {
		var text strings.Builder
		if write(&text); text.Len() > 0 {
			fmt.Fprintf(&b, "%s %s\n\n%s\n", strings.Repeat("#", level), title, &text)
		}
	}
	r.head(&b)
	section("Targets", func(b *strings.Builder) {
		r.Targets(b)
		var behind strings.Builder
		if r.Behind(&behind); behind.Len() > 0 {
			b.WriteString("\nWhere kine does better than keelson:\n\n" + behind.String())
		}
	})
	section("What the client leaves", r.leaves)
	section("What contention costs", r.contention)
	section("Workloads", func(b *strings.Builder) {
		r.table(b, func(w *Workload) bool { return !grows(w.Name) })
	})
	section("Growth", func(b *strings.Builder) {
		r.table(b, func(w *Workload) bool { return grows(w.Name) })
		if b.Len() > 0 {
			b.WriteString("\nThe number after the @ is that of keys, of clients (`@c`), of watchers (`watch@`) or of revisions (`compact@`).\n")
		}
	})
	section("Further figures", r.extras)
	_, err := io.WriteString(out, strings.TrimRight(b.String(), "\n")+"\n")
	return err
}

// grows says whether a workload is one of a row with growing numbers.
func grows(name string) bool { return strings.Contains(name, "@") }

// base returns the name of the system that this one is compared with: itself,
// if it is with none.
func (r *Results) base(system System) string {
	has := func(name string) bool {
		return slices.ContainsFunc(r.Systems, func(s System) bool { return s.Name == name })
	}
	switch {
	case system.Base != "" && has(system.Base):
		return system.Base
	case system.Base == "" && has(Baseline):
		return Baseline
	default:
		return system.Name
	}
}

func (r *Results) table(b *strings.Builder, include func(*Workload) bool) {
	for _, w := range r.Workloads {
		if !include(w) {
			continue
		}
		if b.Len() == 0 {
			b.WriteString("| workload | system |")
			for _, m := range Metrics {
				b.WriteString(" " + m.Name + " |")
			}
			b.WriteString("\n|---|---|" + strings.Repeat("---:|", len(Metrics)) + "\n")
		}
		r.rows(b, w)
	}
}

// extras prints what only some workloads measure, and SQLite's WAL files.
func (r *Results) extras(b *strings.Builder) {
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
			r.extra(b, w, m)
		}
	}
}

// extra prints a row, unless no system has the figure.
func (r *Results) extra(b *strings.Builder, w *Workload, m Metric) {
	row, found := fmt.Sprintf("| %s | %s |", w.Name, m.Name), false
	for _, system := range r.Systems {
		cell := ""
		if stat, ok := w.Systems[system.Name].Absolute(m); ok && (m.Key != wal.Key || stat.Max > 0) {
			cell, found = m.Format(stat.Median), true
		}
		row += " " + cell + " |"
	}
	if !found {
		return
	}
	if b.Len() == 0 {
		b.WriteString("| workload | figure |")
		for _, s := range r.Systems {
			b.WriteString(" " + s.Name + " |")
		}
		b.WriteString("\n|---|---|" + strings.Repeat("---:|", len(r.Systems)) + "\n")
	}
	b.WriteString(row + "\n")
}

func (r *Results) head(b *strings.Builder) {
	fmt.Fprintf(b, "%s, %d cores, %s memory, Linux %s, %s (4 KiB and fdatasync: p50 %s, p99 %s), %s.\n",
		r.Machine.CPU, r.Machine.Cores, Bytes(float64(r.Machine.MemoryMB)*(1<<20)), r.Machine.Kernel, r.Machine.FS,
		Time(r.Machine.SyncP50), Time(r.Machine.SyncP99), r.Machine.Go)
	fmt.Fprintf(b, "%s, %d alternating rounds of %s where nothing else is said; %s. "+
		"Medians; ratios to %s with the smallest and largest round.\n\n",
		r.Started.Format("2006-01-02 15:04 UTC"), r.Rounds, r.Window, r.Machine.quiet(), r.bases())
	for command := range strings.Lines(r.Command) {
		fmt.Fprintf(b, "    %s\n", strings.TrimSpace(command))
	}
	b.WriteString("\n")
	if r.Machine.busy() {
		b.WriteString("**The machine was busy with other work: absolute figures and latencies mean little here.** " +
			"CPU time and bytes per operation are less touched by that.\n\n")
	}
	for _, s := range r.Systems {
		fmt.Fprintf(b, "- `%s`: %s\n", s.Name, s.Doc)
	}
	b.WriteString("\n")
}

// clusterBaseline is what clusters are compared with.
const clusterBaseline = "etcd-cluster"

// bases says what the ratios are to.
func (r *Results) bases() string {
	for _, base := range []string{Baseline, clusterBaseline} {
		if slices.ContainsFunc(r.Systems, func(s System) bool { return s.Name == base }) {
			return base
		}
	}
	return "kine in the same place"
}

func (r *Results) rows(b *strings.Builder, w *Workload) {
	title := fmt.Sprintf("**%s** %s", w.Name, w.Doc)
	if w.Rounds > 0 && w.Rounds != r.Rounds {
		title += fmt.Sprintf(" (rounds: %d)", w.Rounds)
	}
	for _, system := range r.Systems {
		s := w.Systems[system.Name]
		if s == nil {
			continue
		}
		fmt.Fprintf(b, "| %s | %s |", title, system.Name)
		title = ""
		if why := s.without(); why != "" {
			fmt.Fprintf(b, " %s |%s\n", why, strings.Repeat(" |", len(Metrics)-1))
			continue
		}
		base := r.base(system)
		for _, m := range Metrics {
			b.WriteString(" " + s.cell(w.Systems[base], m, base == system.Name) + " |")
		}
		b.WriteString("\n")
	}
}

// without says why there are no figures.
func (s *Series) without() string {
	switch {
	case s == nil || s.Measured() && len(s.Windows) == 0:
		return "no figures"
	case s.Unsupported != "":
		return "not supported"
	case s.NotMeasured != "":
		return "not measured " + s.NotMeasured
	case s.GaveUp != "":
		return "**" + s.GaveUp + "**"
	case s.Failed != "":
		return "failed: " + strings.ReplaceAll(firstWords(s.Failed, 100), "|", "/")
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
	case P50.Key, P99.Key, CPUPerOp.Key, ClientCPU.Key:
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
