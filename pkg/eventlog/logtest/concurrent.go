package logtest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// testConcurrent reads in every way while batches are appended. Whatever was
// acknowledged before a read began must be in it.
func testConcurrent(t *testing.T, h Harness) {
	s := open(t, h)
	const batches, perBatch = 60, 5
	var acked atomic.Int64 // position
	s.append(puts(perBatch, 64)...)
	acked.Store(1)
	all := s.model.records()
	value := func(seq int64) string { return string(all[(seq-1)%perBatch].Value) }

	var readers sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	check := func(read func(floor int64) error) {
		readers.Add(1)
		go func() {
			defer readers.Done()
			for ctx.Err() == nil {
				if err := read(acked.Load()); err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	check(func(floor int64) error {
		head, err := s.log.Head(context.Background())
		if err != nil || int64(head) < floor {
			return fmt.Errorf("head: %d, %w; %d was acknowledged", head, err, floor)
		}
		return nil
	})
	check(func(floor int64) error {
		got, err := s.log.Tail(context.Background(), eventlog.Position(floor-1), 20)
		if err != nil || len(got) == 0 || int64(got[0].Position()) != floor {
			return fmt.Errorf("Tail(%d): %d batches, %w", floor-1, len(got), err)
		}
		for i, b := range got {
			if len(b.Records) != perBatch || int64(b.Position()) != floor+int64(i) || string(b.Records[1].Value) != value(b.Records[1].Seq) {
				return fmt.Errorf("Tail(%d): batch %d of position %d with %d records", floor-1, i, b.Position(), len(b.Records))
			}
		}
		return nil
	})
	for range 2 {
		check(func(floor int64) error {
			seqs := []int64{floor * perBatch, 1, floor*perBatch - 2}
			got, err := s.log.Values(context.Background(), seqs)
			if err != nil {
				return fmt.Errorf("Values(%v): %w", seqs, err)
			}
			for i, seq := range seqs {
				if string(got[i]) != value(seq) {
					return fmt.Errorf("Values(%v): the value of %d is another's", seqs, seq)
				}
			}
			_ = s.log.Size()
			return nil
		})
	}
	for range batches {
		b := s.append(puts(perBatch, 64)...)
		acked.Store(int64(b.Position()))
	}
	cancel()
	readers.Wait()
	s.reopen()
	s.tail(0, 1<<30)
}

// testCompactBesideAppend compacts while batches are appended: both get on,
// and neither disturbs the other.
func testCompactBesideAppend(t *testing.T, h Harness) {
	s := open(t, h)
	for range 10 {
		s.append(puts(200, 100)...)
	}
	s.append(mark(10))
	var seqs []int64
	for seq := int64(1); seq <= 2000; seq++ {
		if seq%10 != 0 {
			seqs = append(seqs, seq)
		}
	}
	done := make(chan error, 1)
	go func() { done <- s.log.Compact(context.Background(), seqs) }()
	appended := 0
	for compacting := true; compacting; appended++ {
		select {
		case err := <-done:
			if err != nil {
				t.Fatalf("Compact: %v", err)
			}
			compacting = false
		default:
		}
		s.append(put("a", "1"), put("b", "2"))
	}
	s.model.compact(seqs...)
	s.check()
	t.Logf("%d batches appended meanwhile", appended)
}

// testRandom plays random scripts.
func testRandom(t *testing.T, h Harness) {
	dir, run := t.TempDir(), 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		s := &subject{t: rt, outer: t, h: h, dir: filepath.Join(dir, fmt.Sprint(run)), model: newModel()}
		s.log = h.Open(t, s.dir)
		defer func() {
			if err := s.log.Close(); err != nil {
				rt.Errorf("Close: %v", err)
			}
		}()
		s.load()
		rt.Repeat(map[string]func(*rapid.T){
			"append":  func(rt *rapid.T) { s.append(drawRecords(rt, &s.model)...) },
			"append2": func(rt *rapid.T) { s.append(drawRecords(rt, &s.model)...) },
			"stale": func(rt *rapid.T) {
				b := s.model.next(drawRecords(rt, &s.model)...)
				b.Base += eventlog.Position(rapid.SampledFrom([]int64{-2, -1, 1, 5}).Draw(rt, "off"))
				if err := s.log.Append(context.Background(), &b); !errors.Is(err, eventlog.ErrStale) {
					rt.Fatalf("Append at %d with the head at %d: %v, want ErrStale", b.Base, s.model.head().Position, err)
				}
			},
			"compact": func(rt *rapid.T) {
				below := s.model.mark()
				if below < 2 {
					rt.Skip("nothing to compact")
				}
				s.compact(rapid.SliceOf(rapid.Int64Range(0, below-1)).Draw(rt, "seqs")...)
			},
			"tail": func(rt *rapid.T) {
				head := int64(s.model.head().Position)
				s.tail(eventlog.Position(rapid.Int64Range(0, head+1).Draw(rt, "after")), rapid.IntRange(0, 20).Draw(rt, "limit"))
			},
			"values": func(rt *rapid.T) {
				s.values(rapid.SliceOf(rapid.Int64Range(0, s.model.head().Seq+1)).Draw(rt, "seqs")...)
			},
			"fail": func(rt *rapid.T) {
				persisted := rapid.Bool().Draw(rt, "persisted")
				b := s.model.next(drawRecords(rt, &s.model)...)
				h.FailAppend(t, s.log, persisted)
				if err := s.log.Append(context.Background(), &b); err == nil || persisted && !errors.Is(err, eventlog.ErrUnknown) {
					rt.Fatalf("Append that fails: %v", err)
				}
				if persisted {
					s.model.append(b)
				}
				s.settle()
				s.tail(b.Base, 1)
			},
			"scan": func(*rapid.T) {
				scan := s.scan()
				s.scanned(scan, s.model.left())
				s.close(scan)
			},
			"reopen": func(*rapid.T) { s.reopen() },
		})
		s.check()
	})
}

// drawRecords draws the records of a batch.
func drawRecords(rt *rapid.T, m *model) []eventlog.Record {
	record := rapid.Custom(func(rt *rapid.T) eventlog.Record {
		key := rapid.SampledFrom([]string{"a", "b", "c/d", "\x00"}).Draw(rt, "key")
		switch rapid.IntRange(0, 9).Draw(rt, "kind") {
		case 0, 1:
			return del(key)
		case 2:
			return grant(rapid.Int64Range(1, 5).Draw(rt, "lease"))
		case 3:
			return mark(m.head().Revision)
		}
		return put(key, string(pattern(len(m.batches), rapid.SampledFrom([]int{0, 1, 30, 3000, 9000}).Draw(rt, "size"))))
	})
	return rapid.SliceOfN(record, 1, 6).Draw(rt, "records")
}
