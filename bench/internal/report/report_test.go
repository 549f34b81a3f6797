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
	expectTable(t, example(),
		"#### Targets",
		"| put200 | keelson | throughput /s to etcd | ≥ 1.80× | 1.90× (1.90×–1.90×) |  | reached |",
		"| create1 | keelson | throughput /s to etcd | ≥ 1.30× | 1.20× (1.20×–1.20×) |  | **missed** |",
		"| kine | failed: a / b |",
		"| kine | not supported |",
		"- create1: keelson has of kine's throughput /s 0.80×, CPU/op 1.25×",
		"1,900<br>**1.90×** (1.90–1.90)",
		"!- put200", "!1.00×, ", // a system that failed is not ahead
		"!What the client leaves", "!contention", "!client CPU, ",
	)
}

// expectTable looks for texts in the table; one that begins with ! must not be there.
func expectTable(t *testing.T, r *Results, wants ...string) {
	t.Helper()
	var b strings.Builder
	if err := r.Table(&b, 4); err != nil {
		t.Fatal(err)
	}
	for _, want := range wants {
		unwanted, not := strings.CutPrefix(want, "!")
		if not && strings.Contains(b.String(), unwanted) {
			t.Errorf("the table has %q", unwanted)
		}
		if !not && !strings.Contains(b.String(), want) {
			t.Errorf("the table has no %q", want)
		}
	}
	if t.Failed() {
		t.Log(b.String())
	}
}

// Clusters are compared with each other, and what has no throughput shows none.
func TestTableOfClusters(t *testing.T) {
	gap := func(us float64) *Series { return &Series{Windows: []Window{{Ops: 5, P50: us, P99: us}}} }
	r := &Results{
		Systems:   []System{{Name: "etcd-cluster"}, {Name: "keelson-cluster", Base: "etcd-cluster"}},
		Workloads: []*Workload{{Name: "failover", Systems: map[string]*Series{"etcd-cluster": gap(1e6), "keelson-cluster": gap(5e5)}}},
	}
	if r.Title() != "Three nodes" {
		t.Errorf("the title is %q", r.Title())
	}
	expectTable(t, r,
		"ratios to etcd-cluster",
		"| failover | keelson-cluster | p50 to etcd-cluster | ≤ 1.00× | 0.50× (0.50×–0.50×) |  | reached |",
		"| keelson-cluster |  | 500 ms<br>**0.50×** (0.50–0.50) |",
	)
	if got := Summary(r.Workloads[0], r.Systems); !strings.Contains(got, "keelson-cluster 500 ms") {
		t.Errorf("summary: %s", got)
	}
}

// What a server that keeps nothing reaches stands beside the targets, and is
// nothing that keelson is behind of.
func TestTableWithFloor(t *testing.T) {
	r := example()
	r.Machine.Cores = 2
	r.Systems = append(r.Systems, System{Name: "floor", Base: "etcd"})
	w := r.Workloads[0]
	w.Clients, w.Rounds = 200, 1
	w.Systems["floor"] = &Series{Windows: windows(2500)}
	for _, s := range w.Systems {
		s.Windows[0].ClientCPU = 1
	}
	expectTable(t, r,
		"| put200 | keelson | throughput /s to etcd | ≥ 1.80× | 1.90× (1.90×–1.90×) | 2.50× | reached |",
		// A client with 400 µs and a server with 200 µs of each operation.
		"| put200 | floor | 400 µs | 200 µs | 3,333 | 2,500 | 2.50× |",
		// etcd and its client take 1,500 µs, keelson's client 526 µs.
		"- put200: 1.80× of etcd's throughput takes a server that needs at most 307 µs an operation. keelson needs 263 µs, one without a store 200 µs.",
		"**put200** put (rounds: 1)",
		"!than floor", "!of floor's",
	)
}

func TestTableSaysWhatWasNotMeasured(t *testing.T) {
	r := example()
	r.Workloads[4].Systems["kine"] = &Series{NotMeasured: "with more than 10 keys", Windows: windows(5)}
	r.Workloads[3].Systems["kine"] = &Series{GaveUp: "gave up after 1m30s", Windows: windows(5)}
	expectTable(t, r, "| kine | not measured with more than 10 keys |", "| kine | **gave up after 1m30s** |", "!- count")
}

// On PostgreSQL keelson is compared with kine in the same place, and several
// instances with one.
func TestTableOnPostgres(t *testing.T) {
	r := postgresExample()
	expectTable(t, r,
		"ratios to kine in the same place",
		"| create200 | keelson-pg | throughput /s to kine-pg | ≥ 5.00× | 9.00× (9.00×–9.00×) | 11.0× | reached |",
		"| create200 | keelson-pg3 | throughput /s to kine-pg3 | ≥ 5.00× | 4.00× (4.00×–4.00×) | 22.0× | **missed** |",
		"| create200 | keelson-pg3 | 2,000<br>**0.22×** (0.22–0.22) |",
		"| list | keelson-pg | throughput /s to kine-pg | | | | kine-pg: **gave up after 1s** |",
		"!1.80×", "!What the client leaves",
	)
}

func postgresExample() *Results {
	return &Results{
		Systems: []System{{Name: "kine-pg"}, {Name: "keelson-pg", Base: "kine-pg"}, {Name: "kine-pg3"}, {Name: "keelson-pg3", Base: "kine-pg3"}, {Name: "floor", Base: "etcd"}},
		Workloads: []*Workload{
			{Name: "create200", Doc: "create", Systems: map[string]*Series{
				"kine-pg": {Windows: windows(1000)}, "keelson-pg": {Windows: windows(9000)},
				"kine-pg3": {Windows: windows(500)}, "keelson-pg3": {Windows: windows(2000)}, "floor": {Windows: windows(11000)},
			}},
			{Name: "list", Doc: "list", Systems: map[string]*Series{
				"kine-pg": {GaveUp: "gave up after 1s"}, "keelson-pg": {Windows: windows(9000)},
			}},
		},
	}
}

// Workloads of the same name on PostgreSQL and beside etcd are different ones.
func TestGroup(t *testing.T) {
	edge := example()
	edge.Command = "edge"
	edge.Workloads = []*Workload{{Name: "edge"}}
	edge.Systems = append(edge.Systems, System{Name: "more"})
	main := example()
	main.Command = "main"
	groups := Group([]*Results{main, postgresExample(), edge})
	if len(groups) != 2 {
		t.Fatalf("%d groups", len(groups))
	}
	if g := groups[0]; len(g.Workloads) != 6 || len(g.Systems) != 4 || g.Command != "main\nedge" || g.Title() != "Beside etcd" {
		t.Errorf("%+v", g)
	}
	if g := groups[1]; len(g.Workloads) != 2 || len(g.Systems) != 5 || g.Title() != "On PostgreSQL" {
		t.Errorf("%+v", g)
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

func TestBusy(t *testing.T) {
	for _, c := range []struct {
		m    Machine
		want bool
	}{
		{Machine{Cores: 2, Load: "1.77 1.5 1"}, true},
		{Machine{Cores: 2, Load: "0.77 1.5 1"}, false},
		{Machine{Cores: 2, Load: "1.77 1.5 1", Idle: 0.99}, false}, // it was busy a minute ago
		{Machine{Cores: 2, Load: "0.10 0.1 0", Idle: 0.5}, true},
	} {
		if got := c.m.busy(); got != c.want {
			t.Errorf("%+v: %v", c.m, got)
		}
	}
	if idle, all := cpuTimes("cpu  10 20 30 400 5 1 1 0 0 0"); idle != 405 || all != 467 {
		t.Errorf("%d of %d", idle, all)
	}
}

func TestBrief(t *testing.T) {
	for s, want := range map[string]string{"1.00 ms": "1 ms", "0.05": "0.05", "0.50": "0.5", "10.0 MiB": "10 MiB", "1,000": "1,000", "200 µs": "200 µs"} {
		if got := brief(s); got != want {
			t.Errorf("%q is %q, want %q", s, got, want)
		}
	}
}

func TestUnits(t *testing.T) {
	for got, want := range map[string]string{
		Time(12.34): "12.3 µs", Time(2500): "2.50 ms", Time(3e6): "3.00 s",
		Bytes(100): "100 B", Bytes(1536): "1.50 KiB", Number(1234567): "1,234,567", Number(0.456): "0.46", Number(0.0042): "0.0042",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
