package report

import (
	"fmt"
	"strings"
)

// target is what keelson is to reach in a workload.
type target struct {
	system   string
	workload string
	metric   Metric
	bound    float64
	// toBase: the bound is for the ratio to the system that this one is
	// compared with, and not for the figure itself.
	toBase bool
}

// The system that most targets are for.
const measured = "keelson"

var (
	// RSS is the memory after the window.
	RSS = Metric{Name: "RSS", Key: "rss_after", value: func(w Window) float64 { return float64(w.RSS) / (1 << 20) }}
	wal = Metric{Name: "WAL file", Key: "wal", value: func(w Window) float64 { return float64(w.WAL) / (1 << 20) }}
)

func targets() []target {
	var all []target
	ratio := func(workload string, m Metric, bound float64) {
		all = append(all, target{measured, workload, m, bound, true})
	}
	both := func(throughput, cpu float64, workloads ...string) {
		for _, w := range workloads {
			ratio(w, Throughput, throughput)
			ratio(w, CPUPerOp, cpu)
		}
	}
	both(1.8, 0.5, "put200", "create200", "update200")
	both(1.3, 0.7, "put1", "create1")
	both(1.4, 0.6, "get200")
	both(1.8, 0.2, "list")
	both(2, 0.25, "list-pages")
	both(8, 0.05, "count")
	all = append(all, target{measured, "watch100", Throughput, 49_500, false})
	for _, m := range []Metric{P50, P99, CPUPerOp} {
		ratio("watch100", m, 0.5)
	}
	both(1.1, 0.9, "keepalive200")
	ratio("start@20k", RSS, 0.8)
	ratio("start@1m", RSS, 0.8)
	ratio("update1", Written, 1)
	ratio("update200", Written, 1)
	all = append(all,
		target{measured, "start@1m", Extra("ready_s"), 5, false},
		target{measured, "compact", Extra("p99_ratio"), 2, false},
		target{measured, "compact", wal, 65, false}, // 64 MiB and a batch
	)
	for _, system := range []string{"keelson-pg", "keelson-pg3", "keelson-pg-1ms", "keelson-pg-5ms"} {
		all = append(all,
			target{system, "create200", Throughput, 5, true},
			target{system, "update200", Throughput, 5, true},
			target{system, "list", Throughput, 10, true},
			target{system, "list-pages", Throughput, 10, true},
		)
	}
	return append(all, clusterTargets()...)
}

// clusterTargets are for three nodes beside three of etcd: ahead in everything.
func clusterTargets() (all []target) {
	ratio := func(m Metric, bound float64, workloads ...string) {
		for _, w := range workloads {
			all = append(all, target{"keelson-cluster", w, m, bound, true})
		}
	}
	ratio(Throughput, 1.2, "put200", "create200", "update200")
	ratio(Throughput, 1, "put1", "list")
	ratio(Throughput, 1.5, "get1", "get200")
	ratio(P50, 1, "watch100")
	ratio(P99, 1, "watch100")
	ratio(P50, 1, "failover")
	ratio(P99, 1, "failover")
	ratio(P50, 1, "catch-up")
	ratio(Extra("writes_p99_us"), 1, "catch-up")
	ratio(PeakRSS, 1, "put200", "get200", "catch-up")
	ratio(Extra("ready_s"), 1, "start@20k")
	return all
}

// Targets prints which targets keelson reaches, and what a server that keeps
// nothing has beside it.
func (r *Results) Targets(b *strings.Builder) {
	for _, t := range targets() {
		w := r.workload(t.workload)
		if w == nil || w.Systems[t.system] == nil {
			continue
		}
		ours := w.Systems[t.system]
		if !t.toBase {
			if stat, ok := ours.Absolute(t.metric); ok {
				targetRow(b, t, t.metric.Name, stat, t.metric.Format, "")
			}
			continue
		}
		base := r.baseOf(t.system)
		what := t.metric.Name + " to " + base
		if stat, ok := ours.Ratio(w.Systems[base], t.metric); ok {
			targetRow(b, t, what, stat, times, floorCell(w, base, t.metric))
		} else if why := w.Systems[base].without(); why != "" && ours.Measured() {
			fmt.Fprintf(b, "| %s | %s | %s | | | | %s: %s |\n", t.workload, t.system, what, base, why)
		}
	}
	r.busyTarget(b)
}

func times(v float64) string { return Number(v) + "×" }

func (r *Results) baseOf(name string) string {
	for _, s := range r.Systems {
		if s.Name == name {
			return r.base(s)
		}
	}
	return name
}

// floorCell is what the server that keeps nothing has of the base's metric.
func floorCell(w *Workload, base string, m Metric) string {
	if m.Key != Throughput.Key && m.Key != CPUPerOp.Key {
		return ""
	}
	stat, ok := w.Systems[floor].Ratio(w.Systems[base], m)
	if !ok {
		return ""
	}
	return times(stat.Median)
}

// busyTarget compares two workloads: gets while others write, and gets alone.
func (r *Results) busyTarget(b *strings.Builder) {
	idle, busy := r.workload("get-idle"), r.workload("get-busy")
	if idle == nil || busy == nil {
		return
	}
	for _, system := range []string{measured, Baseline} {
		if stat, ok := busy.Systems[system].Ratio(idle.Systems[system], P99); ok {
			targetRow(b, target{system: system, workload: "get-busy", bound: 2}, "p99 to get-idle", stat, times, "")
		}
	}
}

func targetRow(b *strings.Builder, t target, what string, stat Stat, format func(float64) string, floor string) {
	if b.Len() == 0 {
		b.WriteString("| workload | system | figure | target | measured | no store | |\n|---|---|---|---:|---:|---:|---|\n")
	}
	sign, reached := "≤", stat.Median <= t.bound
	if t.metric.Higher {
		sign, reached = "≥", stat.Median >= t.bound
	}
	verdict := "reached"
	if !reached {
		verdict = "**missed**"
	}
	fmt.Fprintf(b, "| %s | %s | %s | %s %s | %s (%s–%s) | %s | %s |\n",
		t.workload, t.system, what, sign, format(t.bound), format(stat.Median), format(stat.Min), format(stat.Max), floor, verdict)
}

func (r *Results) workload(name string) *Workload {
	for _, w := range r.Workloads {
		if w.Name == name {
			return w
		}
	}
	return nil
}
