package report

import (
	"fmt"
	"slices"
	"strings"
)

// leaves shows, where many clients keep the machine busy, whose the time is.
// The client's part is the same for every server, and so bounds what a server
// that needs no time at all could reach.
func (r *Results) leaves(b *strings.Builder) {
	r.shares(b)
	var needs strings.Builder
	if r.needs(&needs); needs.Len() > 0 {
		b.WriteString("\nWhile both cores are busy:\n\n" + needs.String())
	}
}

func (r *Results) shares(b *strings.Builder) {
	for _, w := range r.Workloads {
		if w.Systems[floor] == nil || w.Systems[Baseline] == nil || w.Clients < 200 || grows(w.Name) {
			continue
		}
		for _, system := range r.Systems {
			s := w.Systems[system.Name]
			client, ok := s.Absolute(ClientCPU)
			if !ok {
				continue
			}
			server, _ := s.Absolute(CPUPerOp)
			rate, _ := s.Absolute(Throughput)
			if b.Len() == 0 {
				fmt.Fprintf(b, "| workload | system | client CPU/op | server CPU/op | %d cores ÷ both | measured /s | to %s |\n|---|---|---:|---:|---:|---:|---:|\n",
					r.Machine.Cores, Baseline)
			}
			ratio := ""
			if stat, ok := s.Ratio(w.Systems[r.base(system)], Throughput); ok {
				ratio = Number(stat.Median) + "×"
			}
			fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s | %s |\n", w.Name, system.Name, Time(client.Median), Time(server.Median),
				Number(float64(r.Machine.Cores)*1e6/(client.Median+server.Median)), Number(rate.Median), ratio)
		}
	}
}

// needs says how little of the machine a server may use to reach a target for
// throughput: the cores shared by the client and the server do the baseline's
// operations that many times as often.
func (r *Results) needs(b *strings.Builder) {
	for _, t := range targets() {
		w := r.workload(t.workload)
		if w == nil || w.Clients < 200 || t.system != measured || t.metric.Key != Throughput.Key || !t.toBase {
			continue
		}
		theirs, ok := total(w.Systems[Baseline])
		client, measuredClient := w.Systems[measured].Absolute(ClientCPU)
		server, measuredServer := w.Systems[measured].Absolute(CPUPerOp)
		least, hasFloor := w.Systems[floor].Absolute(CPUPerOp)
		if !ok || !measuredClient || !measuredServer || !hasFloor {
			continue
		}
		fmt.Fprintf(b, "- %s: %s of %s's throughput takes a server that needs at most %s an operation. %s needs %s, one without a store %s.\n",
			w.Name, times(t.bound), Baseline, Time(theirs/t.bound-client.Median), measured, Time(server.Median), Time(least.Median))
	}
}

// total is the CPU time of client and server for an operation.
func total(s *Series) (float64, bool) {
	client, ok := s.Absolute(ClientCPU)
	server, both := s.Absolute(CPUPerOp)
	return client.Median + server.Median, ok && both
}

// several are systems whose instances contend, by the name of the same with one.
var several = map[string]string{"keelson-pg": "keelson-pg3", "kine-pg": "kine-pg3"}

// contention compares three instances on one database with one.
func (r *Results) contention(b *strings.Builder) {
	metrics := []Metric{Throughput, P50, P99, CPUPerOp}
	for _, w := range r.Workloads {
		for _, system := range r.Systems {
			three := w.Systems[several[system.Name]]
			if three == nil {
				continue
			}
			if b.Len() == 0 {
				b.WriteString("Three instances on one database, to one alone:\n\n| workload | system |")
				for _, m := range metrics {
					b.WriteString(" " + m.Name + " |")
				}
				b.WriteString("\n|---|---|" + strings.Repeat("---:|", len(metrics)) + "\n")
			}
			fmt.Fprintf(b, "| %s | %s |", w.Name, several[system.Name])
			if why := three.without(); why != "" {
				fmt.Fprintf(b, " %s |%s\n", why, strings.Repeat(" |", len(metrics)-1))
				continue
			}
			for _, m := range metrics {
				b.WriteString(" " + three.cell(w.Systems[system.Name], m, false) + " |")
			}
			b.WriteString("\n")
		}
	}
}

// Behind lists where kine does better than keelson in the same place.
func (r *Results) Behind(b *strings.Builder) {
	for _, w := range r.Workloads {
		for _, ours := range r.Systems {
			for _, theirs := range r.Systems {
				if !r.rivals(ours, theirs) {
					continue
				}
				if where := behind(w, ours.Name, theirs.Name); len(where) > 0 {
					fmt.Fprintf(b, "- %s: %s has of %s's %s\n", w.Name, ours.Name, theirs.Name, strings.Join(where, ", "))
				}
			}
		}
	}
}

// rivals says whether ours is a keelson and theirs a kine in the same place.
func (r *Results) rivals(ours, theirs System) bool {
	if !strings.HasPrefix(ours.Name, measured) || !strings.HasPrefix(theirs.Name, "kine") {
		return false
	}
	return r.base(ours) == theirs.Name || r.base(ours) == r.base(theirs)
}

func behind(w *Workload, ours, theirs string) (where []string) {
	for _, m := range Metrics {
		ratio, ok := w.Systems[ours].Ratio(w.Systems[theirs], m)
		paced := w.Rate > 0 && m.Key == Throughput.Key
		if !ok || paced || m.Key == ClientCPU.Key || m.Higher == (ratio.Median >= 1) || times(ratio.Median) == times(1) {
			continue
		}
		where = append(where, m.Name+" "+times(ratio.Median))
	}
	return where
}

// Group puts together the results whose systems are compared with the same one.
// Of the same workload the later results stay.
func Group(all []*Results) []*Results {
	var groups []*Results
	for _, r := range all {
		i := slices.IndexFunc(groups, func(g *Results) bool { return g.bases() == r.bases() })
		if i < 0 {
			groups = append(groups, r)
			continue
		}
		groups[i].Command += "\n" + r.Command
		groups[i].Merge(r)
	}
	return groups
}

// Title names the results beside others.
func (r *Results) Title() string {
	switch r.bases() {
	case Baseline:
		return "Beside " + Baseline
	case clusterBaseline:
		return "Three nodes"
	default:
		return "On PostgreSQL"
	}
}
