package postgres_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"
)

// TestLead: one instance leads at a time; it follows one that has died, as
// soon as that one's time is over, and stops when another has the row.
func TestLead(t *testing.T) {
	a, b := opened(t, t.Name()), opened(t, t.Name())
	const dead = 1500 * time.Millisecond
	execSQL(t, "UPDATE "+schema(t.Name())+".lessor SET holder = 'dead', until = now() + interval '1.5 seconds'")
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var leaders atomic.Int32
	began, ended := make(chan time.Duration, 10), make(chan struct{}, 10)
	lead := func(ctx context.Context) error {
		if n := leaders.Add(1); n != 1 {
			t.Errorf("%d instances lead", n)
		}
		began <- time.Since(start)
		<-ctx.Done()
		leaders.Add(-1)
		ended <- struct{}{}
		return nil
	}
	done := make(chan error, 2)
	go func() { done <- a.Lead(ctx, lead) }()
	go func() { done <- b.Lead(ctx, lead) }()

	if after := <-began; after < dead {
		t.Errorf("an instance leads after %v; another had %v", after, dead)
	}
	// Both have asked for the row again before this is over.
	execSQL(t, "UPDATE "+schema(t.Name())+".lessor SET holder = 'thief', until = now() + interval '3 seconds'")
	<-ended
	<-began
	cancel()
	for range 2 {
		if err := <-done; err != nil {
			t.Errorf("Lead: %v", err)
		}
	}
	if n := leaders.Load(); n != 0 {
		t.Errorf("%d instances lead after the end", n)
	}
}
