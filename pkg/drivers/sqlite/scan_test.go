package sqlite

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// scanAll begins a scan of all that there is.
func scanAll(ctx context.Context, l *Log) (eventlog.Scan, error) {
	return l.Scan(ctx, func(eventlog.Position) (int64, error) { return 1 << 40, nil })
}

// toCompact returns a log of n records and a mark, and what may be deleted.
func toCompact(t *testing.T, n int) (l *Log, seqs []int64) {
	t.Helper()
	l = mustOpen(t, t.TempDir())
	t.Cleanup(func() { _ = l.Close() })
	appendPuts(t, l, n, 10)
	l.writerDo(t, func() { l.markSeq = int64(n) }) // as if it were one
	for seq := int64(1); seq < int64(n); seq++ {
		seqs = append(seqs, seq)
	}
	return l, seqs
}

func compact(l *Log, seqs []int64) <-chan error {
	done := make(chan error, 1)
	go func() { done <- l.Compact(context.Background(), seqs) }()
	return done
}

// TestScanAmidCompact: a Scan does not wait for the Compact under way, which goes
// no further until it is closed, not even with batches.
func TestScanAmidCompact(t *testing.T) {
	const records = 5000
	l, seqs := toCompact(t, records)
	l.writers.Add(1) // each step ends at its first check
	defer l.writers.Add(-1)
	begun := make(chan struct{})
	l.writerDo(t, func() {
		once := sync.OnceFunc(func() { close(begun) })
		l.onCommit = func(commit func() error) error {
			once()
			l.chunk = 1
			return commit()
		}
	})
	compacted := compact(l, seqs)
	<-begun
	scan, err := scanAll(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	left := l.left.Load()
	if left == 0 || left >= records-1 {
		t.Fatalf("when the Scan began %d records were left to be deleted, of %d", left, records-1)
	}
	appendPuts(t, l, 1, 10) // might take some along
	time.Sleep(3 * quietTime)
	n := int64(0)
	if err := scan.Records(t.Context(), func(page []eventlog.Record) error { n += int64(len(page)); return nil }); err != nil {
		t.Fatal(err)
	}
	if now := l.left.Load(); n != left+2 || now != left {
		t.Errorf("the Scan has shown %d records; %d were left to be deleted when it began, and %d now", n, left, now)
	}
	l.writerDo(t, func() { l.onCommit = nil })
	if err := scan.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-compacted; err != nil {
		t.Fatal(err)
	}
	if left := l.left.Load(); left != 0 {
		t.Errorf("%d records are left", left)
	}
}

// TestScansGiveWay: a Compact that Scans have held up for long gets its turn.
func TestScansGiveWay(t *testing.T) {
	l, seqs := toCompact(t, 100)
	first, err := scanAll(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	compacted := compact(l, seqs)
	for l.held.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	second, err := scanAll(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	l.held.Add(int64(maxHeld))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := scanAll(ctx, l); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a Scan beside a Compact that has waited for %v: %v, want that it waits", maxHeld, err)
	}
	third := make(chan error, 1)
	go func() {
		scan, err := scanAll(context.Background(), l)
		if err == nil {
			if left := l.left.Load(); left != 0 {
				err = errors.New("it came before the Compact")
			}
			_ = scan.Close()
		}
		third <- err
	}()
	_, _ = first.Close(), second.Close()
	if err := <-compacted; err != nil {
		t.Fatal(err)
	}
	if err := <-third; err != nil {
		t.Fatalf("the Scan that has waited: %v", err)
	}
}
