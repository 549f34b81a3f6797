package report

import (
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// looks are how each system is drawn, the same in all plots and to be told
// apart without colors.
var looks = map[string]draw.GlyphStyle{
	"etcd":      {Color: color.RGBA{0x41, 0x7e, 0xb8, 0xff}, Shape: draw.SquareGlyph{}, Radius: 4},
	"kine":      {Color: color.RGBA{0xe0, 0x8a, 0x1e, 0xff}, Shape: draw.TriangleGlyph{}, Radius: 4},
	"kine-full": {Color: color.RGBA{0xb0, 0x3a, 0x2e, 0xff}, Shape: draw.PyramidGlyph{}, Radius: 4},
	"floor":     {Color: color.RGBA{0x80, 0x80, 0x80, 0xff}, Shape: draw.RingGlyph{}, Radius: 4},
	"keelson":   {Color: color.RGBA{0x1b, 0x7f, 0x4d, 0xff}, Shape: draw.CircleGlyph{}, Radius: 4},
}

func look(system string) draw.GlyphStyle {
	if style, ok := looks[system]; ok {
		return style
	}
	return draw.GlyphStyle{Color: color.Black, Shape: draw.CrossGlyph{}, Radius: 4}
}

// Plot is a plot that was drawn.
type Plot struct{ File, Title string }

// Plots draws files of the format, svg or png, into dir: those that the results
// have figures for.
func (r *Results) Plots(dir, format string) ([]Plot, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var drawn []Plot
	draw := func(file, title string, plot func(path, title string) (bool, error)) error {
		file += "." + format
		ok, err := plot(filepath.Join(dir, file), title)
		if ok {
			drawn = append(drawn, Plot{file, title})
		}
		return err
	}
	for _, c := range []struct {
		file, title string
		metric      Metric
	}{
		{"throughput", "Throughput, etcd = 1 (right is better)", Throughput},
		{"cpu", "Server CPU time per operation, etcd = 1 (left is better)", CPUPerOp},
		{"written", "Bytes written per operation, etcd = 1 (left is better)", Written},
	} {
		err := draw(c.file, c.title, func(path, title string) (bool, error) { return r.plotRatios(path, title, c.metric) })
		if err != nil {
			return drawn, err
		}
	}
	for _, g := range []struct {
		file, title, prefix, x string
		metric                 Metric
	}{
		{"keys-update-throughput", "Updates/s, 200 clients", "update200@", "keys", Throughput},
		{"keys-update-cpu", "CPU per update, 200 clients", "update200@", "keys", CPUPerOp},
		{"keys-get-cpu", "CPU per get, 200 clients", "get200@", "keys", CPUPerOp},
		{"keys-count-p50", "Count of all keys, p50", "count@", "keys", P50},
		{"keys-page-p50", "First page of 500, p50", "list-page@", "keys", P50},
		{"keys-start", "Start-up time (s)", "start@", "keys", Extra("ready_s")},
		{"keys-memory", "Memory after the start", "start@", "keys", RSS},
		{"clients-get", "Gets/s", "get@c", "clients", Throughput},
		{"clients-update", "Updates/s", "update@c", "clients", Throughput},
		{"watchers-cpu", "CPU per event, 50 creates/s", "watch@", "watchers", CPUPerOp},
		{"watchers-p99", "Create to event, p99, 50 creates/s", "watch@", "watchers", P99},
	} {
		err := draw(g.file, g.title, func(path, title string) (bool, error) {
			return r.plotGrowth(path, title, g.prefix, g.x, g.metric)
		})
		if err != nil {
			return drawn, err
		}
	}
	return drawn, nil
}

// plotRatios draws a row for each workload and a dot in it for each system.
// Paced workloads have no throughput of their own.
func (r *Results) plotRatios(path, title string, m Metric) (bool, error) {
	p := plot.New()
	p.Title.Text = title
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.ConstantTicks(decades([]float64{1, 2, 5}, func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }))
	p.Legend.Top = true
	var rows []plot.Tick
	points := map[string]plotter.XYs{}
	for _, w := range slices.Backward(r.Workloads) {
		if grows(w.Name) || m.Key == Throughput.Key && w.Rate > 0 {
			continue
		}
		y := float64(len(rows))
		compared := false
		for _, system := range r.Systems {
			ratio, ok := w.Systems[system.Name].Ratio(w.Systems[Baseline], m)
			if ok && ratio.Median > 0 {
				points[system.Name] = append(points[system.Name], plotter.XY{X: ratio.Median, Y: y})
				compared = compared || system.Name != Baseline
			}
		}
		if compared {
			rows = append(rows, plot.Tick{Value: y, Label: "  " + w.Name})
			continue
		}
		for name, xys := range points {
			points[name] = slices.DeleteFunc(xys, func(xy plotter.XY) bool { return xy.Y == y })
		}
	}
	if len(rows) == 0 {
		return false, nil
	}
	p.Y.Tick.Marker = plot.ConstantTicks(rows)
	p.Y.Min, p.Y.Max = -0.5, float64(len(rows))-0.5
	p.Add(plotter.NewGrid())
	for _, system := range r.Systems {
		if len(points[system.Name]) == 0 {
			continue
		}
		dots, err := plotter.NewScatter(points[system.Name])
		if err != nil {
			return false, err
		}
		dots.GlyphStyle = look(system.Name)
		p.Add(dots)
		p.Legend.Add(system.Name, dots)
	}
	// Room for the legend.
	p.X.Min, p.X.Max = p.X.Min/1.3, p.X.Max*5
	return true, p.Save(18*vg.Centimeter, vg.Length(3+float64(len(rows))*0.6)*vg.Centimeter, path)
}

// decades are the marks of a logarithmic axis: these digits of each power of ten.
func decades(digits []float64, format func(float64) string) []plot.Tick {
	var ticks []plot.Tick
	for exp := -5; exp <= 8; exp++ {
		for _, digit := range digits {
			v := digit * math.Pow10(exp)
			ticks = append(ticks, plot.Tick{Value: v, Label: brief(format(v))})
		}
	}
	return ticks
}

// brief writes 1.00 ms as 1 ms.
func brief(s string) string {
	number, unit, _ := strings.Cut(s, " ")
	if strings.Contains(number, ".") {
		number = strings.TrimRight(strings.TrimRight(number, "0"), ".")
	}
	return strings.TrimSpace(number + " " + unit)
}

// plotGrowth draws a line for each system through the workloads whose names
// begin with prefix and end with a number.
func (r *Results) plotGrowth(path, title, prefix, xLabel string, m Metric) (bool, error) {
	p := plot.New()
	p.Title.Text = title
	p.X.Label.Text = xLabel
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.Legend.Top, p.Legend.Left = true, true
	var marks []plot.Tick
	lines := 0
	p.Add(plotter.NewGrid())
	for _, system := range r.Systems {
		var line plotter.XYs
		for _, w := range r.Workloads {
			number, ok := strings.CutPrefix(w.Name, prefix)
			if !ok {
				continue
			}
			x, err := parseShort(number)
			if err != nil {
				return false, fmt.Errorf("%s: %w", w.Name, err)
			}
			if mark := (plot.Tick{Value: x, Label: number}); !slices.Contains(marks, mark) {
				marks = append(marks, mark)
			}
			if stat, ok := w.Systems[system.Name].Absolute(m); ok && stat.Median > 0 {
				line = append(line, plotter.XY{X: x, Y: stat.Median})
			}
		}
		if len(line) == 0 {
			continue
		}
		slices.SortFunc(line, func(a, b plotter.XY) int { return int(a.X - b.X) })
		l, dots, err := plotter.NewLinePoints(line)
		if err != nil {
			return false, err
		}
		dots.GlyphStyle = look(system.Name)
		l.Color, l.Width = dots.Color, 1.5
		p.Add(l, dots)
		p.Legend.Add(system.Name, l, dots)
		lines++
	}
	if lines == 0 {
		return false, nil
	}
	p.X.Tick.Marker = plot.ConstantTicks(marks)
	digits := []float64{1, 2, 5}
	if p.Y.Max > 2000*p.Y.Min {
		digits = digits[:1]
	}
	p.Y.Tick.Marker = plot.ConstantTicks(decades(digits, m.Format))
	// Room for the legend.
	p.Y.Min, p.Y.Max = p.Y.Min/1.2, p.Y.Max*3
	return true, p.Save(12*vg.Centimeter, 9*vg.Centimeter, path)
}

// parseShort reads 10k as 10000.
func parseShort(s string) (float64, error) {
	factor := 1.0
	switch {
	case strings.HasSuffix(s, "k"):
		s, factor = s[:len(s)-1], 1e3
	case strings.HasSuffix(s, "m"):
		s, factor = s[:len(s)-1], 1e6
	}
	v, err := strconv.ParseFloat(s, 64)
	return v * factor, err
}
