package report

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	var samples []time.Duration
	for i := range 200 {
		samples = append(samples, time.Duration(i+1))
	}
	for p, want := range map[int]time.Duration{0: 1, 50: 100, 99: 198, 100: 200} {
		if got := Percentile(samples, p); got != want {
			t.Errorf("p%d is %d, want %d", p, got, want)
		}
	}
	if got := Percentile(samples[:1], 99); got != 1 {
		t.Errorf("p99 of one sample is %d", got)
	}
}

func TestMedian(t *testing.T) {
	if got := Median([]float64{9, 1, 5}); got != 5 {
		t.Errorf("median of three: %v", got)
	}
	if got := Median([]float64{9, 1, 5, 7}); got != 6 {
		t.Errorf("median of four: %v", got)
	}
}

func windows(ops ...int) []Window {
	var all []Window
	for _, n := range ops {
		all = append(all, Window{Ops: n, Seconds: 1, CPU: 0.5, P50: 100, P99: 200})
	}
	return all
}

// A slow second round hits both systems: the ratios do not show it.
func TestRatioIsTakenWithinRounds(t *testing.T) {
	etcd := &Series{Windows: windows(1000, 10, 1000)}
	ours := &Series{Windows: windows(2000, 20, 1800)}
	if _, ok := ours.Ratio(etcd, Written); ok {
		t.Error("a ratio of bytes written to hardly any")
	}
	got, ok := ours.Ratio(etcd, Throughput)
	if want := (Stat{2, 1.8, 2}); !ok || got != want {
		t.Errorf("ratio %v, want %v", got, want)
	}
	if _, ok := ours.Ratio(&Series{Windows: windows(0)}, Throughput); ok {
		t.Error("a ratio to nothing")
	}
}

func example() *Results {
	return &Results{
		Systems: []System{{Name: "etcd"}, {Name: "kine"}, {Name: "keelson"}},
		Workloads: []*Workload{
			{Name: "put200", Doc: "put", Systems: map[string]*Series{
				"etcd": {Windows: windows(1000)}, "kine": {Failed: "a | b", Windows: windows(9000)}, "keelson": {Windows: windows(1900)},
			}},
			{Name: "create1", Doc: "create", Systems: map[string]*Series{
				"etcd": {Windows: windows(1000)}, "kine": {Windows: windows(1500)}, "keelson": {Windows: windows(1200)},
			}},
			{Name: "sget1", Doc: "get", Systems: map[string]*Series{
				"etcd": {Windows: windows(1000)}, "kine": {Unsupported: "rpc error"}, "keelson": {Windows: windows(1200)},
			}},
			{Name: "count@10k", Doc: "count", Systems: map[string]*Series{
				"etcd": {Windows: windows(10)}, "kine": {Windows: windows(1)}, "keelson": {Windows: windows(1000)},
			}},
			{Name: "count@1m", Doc: "count", Systems: map[string]*Series{
				"etcd": {Windows: windows(1)}, "kine": {Windows: windows(1)}, "keelson": {Windows: windows(1000)},
			}},
		},
	}
}

func TestTable(t *testing.T) {
	var b strings.Builder
	if err := example().Table(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| put200 | throughput /s to etcd | ≥ 1.80× | 1.90× (1.90×–1.90×) | reached |",
		"| create1 | throughput /s to etcd | ≥ 1.30× | 1.20× (1.20×–1.20×) | **missed** |",
		"| kine | failed: a / b |",
		"| kine | not supported |",
		"- create1, throughput /s: keelson has 0.80× of kine's.",
		"1,900<br>**1.90×** (1.90–1.90)",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the table has no %q", want)
		}
	}
	if strings.Contains(b.String(), "- put200") {
		t.Error("a system that failed is ahead")
	}
	if t.Failed() {
		t.Log(b.String())
	}
}

func TestPlots(t *testing.T) {
	dir := t.TempDir()
	drawn, err := example().Plots(dir, "svg")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(drawn); n != 3 || drawn[2].File != "keys-count-p50.svg" {
		t.Errorf("drawn: %v", drawn)
	}
	b, err := os.ReadFile(filepath.Join(dir, "cpu.svg"))
	if err != nil || !strings.Contains(string(b), "put200") {
		t.Errorf("cpu.svg does not show put200: %v", err)
	}
	b, err = os.ReadFile(filepath.Join(dir, "keys-count-p50.svg"))
	if err != nil || !strings.Contains(string(b), ">10k<") {
		t.Errorf("keys-count-p50.svg does not show 10k: %v", err)
	}
}

func TestMergeKeepsWhatIsNotReplaced(t *testing.T) {
	r := example()
	r.Merge(&Results{Workloads: []*Workload{{Name: "sget1", Doc: "new"}, {Name: "more"}}})
	if n := len(r.Workloads); n != 6 || r.Workloads[2].Doc != "new" || r.Workloads[5].Name != "more" {
		t.Errorf("%d workloads; the third is %+v", n, r.Workloads[2])
	}
}

func TestResultsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results.json")
	if err := example().Write(path); err != nil {
		t.Fatal(err)
	}
	r, err := Read(path)
	if err != nil || len(r.Workloads) != 5 || r.Workloads[0].Systems["keelson"].Windows[0].Ops != 1900 {
		t.Errorf("read %+v, %v", r, err)
	}
}

func TestUnits(t *testing.T) {
	for got, want := range map[string]string{
		Time(12.34): "12.3 µs", Time(2500): "2.50 ms", Time(3e6): "3.00 s",
		Bytes(100): "100 B", Bytes(1536): "1.50 KiB", Number(1234567): "1,234,567", Number(0.456): "0.46",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
