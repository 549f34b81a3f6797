package postgres_test

import (
	"context"
	"testing"
	"time"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// TestScansAtOnce: Scans that begin together leave connections of the smallest
// pool to each other and to the rest.
func TestScansAtOnce(t *testing.T) {
	log := openLog(t, t.Name(), "pool_max_conns=3")
	defer log.Close()
	load(t, log)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	type result struct {
		scan eventlog.Scan
		err  error
	}
	const scans = 4
	results := make(chan result, scans)
	for range scans {
		go func() {
			scan, err := log.Scan(ctx, func(eventlog.Position) (int64, error) {
				time.Sleep(50 * time.Millisecond) // so that others come meanwhile
				_, err := log.Head(ctx)
				return 0, err
			})
			results <- result{scan, err}
		}()
	}
	for range scans { // none is closed before all have begun
		r := <-results
		if r.err != nil {
			t.Errorf("Scan: %v", r.err)
			continue
		}
		defer r.scan.Close()
	}
}
