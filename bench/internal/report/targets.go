package report

import (
	"fmt"
	"strings"
)

// target is what keelson is to reach in a workload.
type target struct {
	workload string
	metric   Metric
	bound    float64
	// toEtcd: the bound is for the ratio to etcd, and not for the figure itself.
	toEtcd bool
}

// The system that the targets are for.
const measured = "keelson"

var (
	// RSS is the memory after the window.
	RSS = Metric{Name: "RSS", Key: "rss_after", value: func(w Window) float64 { return float64(w.RSS) / (1 << 20) }}
	wal = Metric{Name: "WAL file", Key: "wal", value: func(w Window) float64 { return float64(w.WAL) / (1 << 20) }}
)

func targets() []target {
	var all []target
	ratio := func(workload string, m Metric, bound float64) {
		all = append(all, target{workload, m, bound, true})
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
	all = append(all, target{"watch100", Throughput, 49_500, false})
	for _, m := range []Metric{P50, P99, CPUPerOp} {
		ratio("watch100", m, 0.5)
	}
	both(1.1, 0.9, "keepalive200")
	ratio("start@20k", RSS, 0.8)
	ratio("start@1m", RSS, 0.8)
	ratio("update1", Written, 1)
	ratio("update200", Written, 1)
	return append(all,
		target{"start@1m", Extra("ready_s"), 5, false},
		target{"compact", Extra("p99_ratio"), 2, false},
		target{"compact", wal, 65, false}, // 64 MiB and a batch
	)
}

// Targets prints which targets keelson reaches.
func (r *Results) Targets(b *strings.Builder) {
	b.WriteString("| workload | figure | target | keelson | |\n|---|---|---:|---:|---|\n")
	for _, t := range targets() {
		w := r.workload(t.workload)
		if w == nil || w.Systems[measured] == nil {
			continue
		}
		ours := w.Systems[measured]
		stat, ok := ours.Absolute(t.metric)
		format := t.metric.Format
		what := t.metric.Name
		if t.toEtcd {
			stat, ok = ours.Ratio(w.Systems[Baseline], t.metric)
			format = func(v float64) string { return Number(v) + "×" }
			what += " to " + Baseline
		}
		if !ok {
			continue
		}
		targetRow(b, t.workload, what, t.metric.Higher, t.bound, stat, format)
	}
	r.busyTarget(b)
}

// busyTarget compares two workloads: gets while others write, and gets alone.
func (r *Results) busyTarget(b *strings.Builder) {
	idle, busy := r.workload("get-idle"), r.workload("get-busy")
	if idle == nil || busy == nil {
		return
	}
	stat, ok := busy.Systems[measured].Ratio(idle.Systems[measured], P99)
	if ok {
		targetRow(b, "get-busy", "p99 to get-idle", false, 2, stat, func(v float64) string { return Number(v) + "×" })
	}
}

func targetRow(b *strings.Builder, workload, what string, higher bool, bound float64, stat Stat, format func(float64) string) {
	sign, reached := "≤", stat.Median <= bound
	if higher {
		sign, reached = "≥", stat.Median >= bound
	}
	verdict := "reached"
	if !reached {
		verdict = "**missed**"
	}
	fmt.Fprintf(b, "| %s | %s | %s %s | %s (%s–%s) | %s |\n",
		workload, what, sign, format(bound), format(stat.Median), format(stat.Min), format(stat.Max), verdict)
}

// Behind lists where another system than the baseline does better than keelson.
func (r *Results) Behind(b *strings.Builder) {
	for _, w := range r.Workloads {
		ours := w.Systems[measured]
		for _, system := range r.Systems {
			theirs := w.Systems[system.Name]
			if system.Name == measured || system.Name == Baseline || theirs == nil {
				continue
			}
			for _, m := range Metrics {
				ratio, ok := ours.Ratio(theirs, m)
				if !ok || m.Higher == (ratio.Median >= 1) || w.Rate > 0 && m.Key == Throughput.Key {
					continue
				}
				fmt.Fprintf(b, "- %s, %s: keelson has %s× of %s's.\n", w.Name, m.Name, Number(ratio.Median), system.Name)
			}
		}
	}
}

func (r *Results) workload(name string) *Workload {
	for _, w := range r.Workloads {
		if w.Name == name {
			return w
		}
	}
	return nil
}
