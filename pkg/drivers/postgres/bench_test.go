package postgres_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// BenchmarkAppend appends batches of records with values of 1 KiB.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			log := opened(b, b.Name()+fmt.Sprint(b.N))
			head := eventlog.Head{}
			for b.Loop() {
				batch := puts(head, size)
				if err := log.Append(context.Background(), &batch); err != nil {
					b.Fatal(err)
				}
				head = eventlog.Head{Position: head.Position + 1, Seq: head.Seq + int64(size), Revision: head.Revision + 1}
			}
			b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// BenchmarkNotify appends batches of one record with and without the
// notification, in turn: its price is the difference of the medians.
func BenchmarkNotify(b *testing.B) {
	log := opened(b, b.Name())
	head := eventlog.Head{}
	var took [2][]time.Duration
	for n := 0; b.Loop(); n++ {
		log.Mute(n%2 == 0)
		batch := puts(head, 1)
		start := time.Now()
		if err := log.Append(context.Background(), &batch); err != nil {
			b.Fatal(err)
		}
		took[n%2] = append(took[n%2], time.Since(start))
		head = eventlog.Head{Position: head.Position + 1, Seq: head.Seq + 1, Revision: head.Revision + 1}
	}
	for n, unit := range []string{"µs-without", "µs-with"} {
		if len(took[n]) > 0 {
			slices.Sort(took[n])
			b.ReportMetric(float64(took[n][len(took[n])/2].Microseconds()), unit)
		}
	}
}

// puts makes a batch of n puts of 1 KiB that follows head.
func puts(head eventlog.Head, n int) eventlog.Batch {
	batch := eventlog.Batch{ID: eventlog.NewBatchID(), Base: head.Position, Records: make([]eventlog.Record, n)}
	for i := range batch.Records {
		batch.Records[i] = eventlog.Record{
			Seq: head.Seq + 1 + int64(i), Position: head.Position + 1, Kind: eventlog.KindPut,
			Revision: eventlog.Revision{Main: head.Revision + 1, Sub: int64(i)}, Key: fmt.Appendf(nil, "/registry/pods/%08d", i),
			Value: make([]byte, 1024), CreateRevision: 1, Version: 1,
		}
	}
	return batch
}

// BenchmarkRead measures the reads, on 100,000 records of 1 KiB.
func BenchmarkRead(b *testing.B) {
	const records, size = 100_000, 1000
	log := opened(b, b.Name())
	head := eventlog.Head{}
	for head.Seq < records {
		batch := puts(head, size)
		if err := log.Append(context.Background(), &batch); err != nil {
			b.Fatal(err)
		}
		head = eventlog.Head{Position: head.Position + 1, Seq: head.Seq + size, Revision: head.Revision + 1}
	}
	b.Run("Head", func(b *testing.B) {
		for b.Loop() {
			if _, err := log.Head(context.Background()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Load", func(b *testing.B) {
		for b.Loop() {
			other := openLog(b, "BenchmarkRead")
			load(b, other)
			if err := other.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprintf("Values/%d", n), func(b *testing.B) {
			seqs := make([]int64, n)
			for i := range seqs {
				seqs[i] = int64(1 + i*97)
			}
			for b.Loop() {
				if _, err := log.Values(context.Background(), seqs); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("Tail/%d", n), func(b *testing.B) {
			for b.Loop() {
				if _, err := log.Tail(context.Background(), head.Position-1, n); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
