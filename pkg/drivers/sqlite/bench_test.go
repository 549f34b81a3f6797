package sqlite_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/internal/testaid"
)

// filler appends batches of puts of different keys.
type filler struct {
	log      *sqlite.Log
	seq      int64
	position eventlog.Position
	value    []byte
	id       eventlog.BatchID // of every batch
}

func (f *filler) append(t testing.TB, n int) {
	b := eventlog.Batch{ID: f.id, Base: f.position, Records: make([]eventlog.Record, n)}
	for i := range b.Records {
		f.seq++
		b.Records[i] = eventlog.Record{
			Seq: f.seq, Position: b.Position(), Kind: eventlog.KindPut, Revision: eventlog.Revision{Main: f.seq},
			Key: fmt.Appendf(nil, "/registry/pods/namespace-%03d/pod-%08d", f.seq%100, f.seq), Value: f.value, CreateRevision: f.seq, Version: 1,
		}
	}
	if err := f.log.Append(context.Background(), &b); err != nil {
		t.Fatalf("Append: %v", err)
	}
	f.position++
}

// mark appends a compaction mark.
func (f *filler) mark(t testing.TB) {
	f.seq++
	f.position++
	err := f.log.Append(context.Background(), &eventlog.Batch{ID: eventlog.NewBatchID(), Base: f.position - 1, Records: []eventlog.Record{
		{Seq: f.seq, Position: f.position, Kind: eventlog.KindCompact, Revision: eventlog.Revision{Main: f.seq}},
	}})
	if err != nil {
		t.Fatalf("Append: %v", err)
	}
}

func fill(b testing.TB, dir string, rows, size int) *filler {
	f := &filler{log: openLog(b, dir), value: make([]byte, size), id: eventlog.NewBatchID()}
	for i := range f.value {
		f.value[i] = byte(i * 7)
	}
	for f.seq < int64(rows) {
		f.append(b, min(1000, rows-int(f.seq)))
	}
	return f
}

func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("batch=%d", n), func(b *testing.B) {
			f := fill(b, b.TempDir(), 0, 1024)
			defer f.log.Close()
			for b.Loop() {
				f.append(b, n)
			}
			b.ReportMetric(float64(f.seq)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// filled are the databases of the read benchmarks, kept until all have run.
var filled struct {
	sync.Mutex
	dirs map[int]string
}

func TestMain(m *testing.M) {
	testaid.Quiet()
	if runChild() {
		return
	}
	code := m.Run()
	for _, dir := range filled.dirs {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

func filledDir(b *testing.B, rows int) string {
	filled.Lock()
	defer filled.Unlock()
	if filled.dirs == nil {
		filled.dirs = make(map[int]string)
	}
	if filled.dirs[rows] == "" {
		dir, err := os.MkdirTemp("", "keelson-bench")
		if err != nil {
			b.Fatal(err)
		}
		filled.dirs[rows] = dir
		if err := fill(b, dir, rows, 1024).log.Close(); err != nil {
			b.Fatal(err)
		}
	}
	return filled.dirs[rows]
}

func BenchmarkLoad(b *testing.B) {
	for _, rows := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			dir := filledDir(b, rows)
			for b.Loop() {
				log := openLog(b, dir)
				n := 0
				if _, err := log.Load(context.Background(), func(*eventlog.Record) error { n++; return nil }); err != nil || n != rows {
					b.Fatalf("Load: %d records, %v", n, err)
				}
				_ = log.Close()
			}
		})
	}
}

func BenchmarkValues(b *testing.B) {
	const rows = 100_000
	log := openLog(b, filledDir(b, rows))
	defer log.Close()
	for _, n := range []int{1, 10, 500, 10_000} {
		b.Run(fmt.Sprintf("n=%d", n), func(b *testing.B) {
			seqs := make([]int64, n)
			for b.Loop() {
				for i := range seqs {
					seqs[i] = 1 + rand.Int64N(rows)
				}
				if _, err := log.Values(context.Background(), seqs); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/value")
		})
	}
}

func BenchmarkTail(b *testing.B) {
	const rows = 100_000
	log := openLog(b, filledDir(b, rows))
	defer log.Close()
	for b.Loop() {
		got, err := log.Tail(context.Background(), eventlog.Position(rand.IntN(100)), 1000)
		if err != nil || len(got) != 1 {
			b.Fatalf("Tail: %d, %v", len(got), err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*1000), "ns/record")
}

func BenchmarkCompact(b *testing.B) {
	const rows = 50_000
	for _, keep := range []int64{2, 10, 1000} {
		b.Run(fmt.Sprintf("keep=1in%d", keep), func(b *testing.B) {
			total := 0
			for b.Loop() {
				b.StopTimer()
				f := fill(b, b.TempDir(), rows, 1024)
				f.mark(b)
				if _, err := f.log.Load(context.Background(), func(*eventlog.Record) error { return nil }); err != nil {
					b.Fatal(err)
				}
				var seqs []int64
				for seq := int64(1); seq <= rows; seq++ {
					if seq%keep != 0 {
						seqs = append(seqs, seq)
					}
				}
				b.StartTimer()
				if err := f.log.Compact(context.Background(), seqs); err != nil {
					b.Fatal(err)
				}
				total += len(seqs)
				b.StopTimer()
				_ = f.log.Close()
				b.StartTimer()
			}
			b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// BenchmarkAppendBesideCompact reports how long an Append waits for a running
// compaction, and how long that takes.
func BenchmarkAppendBesideCompact(b *testing.B) {
	for _, keep := range []int64{3, 1000} {
		b.Run(fmt.Sprintf("keep=1in%d", keep), func(b *testing.B) { appendBesideCompact(b, keep) })
	}
}

func appendBesideCompact(b *testing.B, keep int64) {
	const rows = 200_000
	f := fill(b, b.TempDir(), rows, 1024)
	defer f.log.Close()
	f.mark(b)
	var seqs []int64
	for seq := int64(1); seq <= rows; seq++ {
		if seq%keep != 0 {
			seqs = append(seqs, seq)
		}
	}
	timed := func() time.Duration {
		before := time.Now()
		f.append(b, 1)
		return time.Since(before)
	}
	report := func(name string, waits []time.Duration) {
		slices.Sort(waits)
		b.ReportMetric(float64(waits[len(waits)/2].Microseconds()), "µs/"+name+"p50")
		b.ReportMetric(float64(waits[len(waits)*99/100].Microseconds()), "µs/"+name+"p99")
		b.ReportMetric(float64(waits[len(waits)-1].Microseconds()), "µs/"+name+"max")
	}
	alone := make([]time.Duration, 5000)
	for i := range alone {
		alone[i] = timed()
	}
	report("alone-", alone)
	done := make(chan error, 1)
	start := time.Now()
	go func() { done <- f.log.Compact(context.Background(), seqs) }()
	var waits []time.Duration
	for running := true; running; {
		select {
		case err := <-done:
			if err != nil {
				b.Fatal(err)
			}
			running = false
		default:
		}
		waits = append(waits, timed())
	}
	b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms/compaction")
	b.ReportMetric(float64(len(waits)), "appends")
	report("", waits)
}
