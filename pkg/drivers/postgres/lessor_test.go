package postgres_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keelson-io/keelson/pkg/drivers/postgres"
)

// TestLead: one instance leads at a time; it follows one that has died, as
// soon as that one's time is over, and stops when another has the row.
func TestLead(t *testing.T) {
	a, b := opened(t, t.Name()), opened(t, t.Name())
	const dead = 1500 * time.Millisecond
	start := time.Now()
	execSQL(t, "UPDATE "+schema(t.Name())+".lessor SET holder = 'dead', until = now() + interval '1.5 seconds'")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
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
	execSQL(t, "UPDATE "+schema(t.Name())+".lessor SET holder = 'thief', until = now() + interval '1 hour'")
	<-ended
	execSQL(t, "UPDATE "+schema(t.Name())+".lessor SET until = now()")
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

// claim makes log the lessor.
func claim(t *testing.T, log *postgres.Log) {
	t.Helper()
	if held, err := log.Claim(); err != nil || !held {
		t.Fatalf("Claim: %v, %v", held, err)
	}
}

// TestOldLessor: an instance that was stopped for so long that another has
// taken over decides nothing any more when it wakes up; what it had decided
// before stands.
func TestOldLessor(t *testing.T) {
	old, log := opened(t, t.Name()), opened(t, t.Name())
	ctx := context.Background()
	claim(t, old)
	if left, err := old.ExpireLeases(ctx, []int64{1}); err != nil || len(left) != 0 {
		t.Fatalf("ExpireLeases: %v, %v", left, err)
	}
	if ok, err := log.RenewLease(ctx, 2, time.Minute); err != nil || !ok {
		t.Fatalf("RenewLease: %v, %v", ok, err)
	}
	execSQL(t, "UPDATE "+schema(t.Name())+".lessor SET until = now() - interval '1 second'")
	if _, err := old.ExpireLeases(ctx, []int64{2, 3}); !errors.Is(err, postgres.ErrNotLessor) {
		t.Fatalf("ExpireLeases when its time is over: %v, want ErrNotLessor", err)
	}
	claim(t, log)
	if left, err := old.ExpireLeases(ctx, []int64{2, 3}); !errors.Is(err, postgres.ErrNotLessor) {
		t.Fatalf("ExpireLeases behind another lessor: %v, %v, want ErrNotLessor", left, err)
	}
	if expired, err := log.ExpiredLeases(ctx); err != nil || !slices.Equal(expired, []int64{1}) {
		t.Fatalf("ExpiredLeases: %v, %v, want the one of before", expired, err)
	}
	for id, want := range map[int64]bool{1: false, 2: true, 3: true} {
		if ok, err := old.RenewLease(ctx, id, time.Minute); err != nil || ok != want {
			t.Errorf("RenewLease(%d): %v, %v, want %v", id, ok, err, want)
		}
	}
	if err := log.ForgetLeases(ctx, []int64{1}); err != nil {
		t.Fatal(err)
	}
	if expired, err := log.ExpiredLeases(ctx); err != nil || len(expired) != 0 {
		t.Errorf("ExpiredLeases after ForgetLeases: %v, %v", expired, err)
	}
}

// TestNotes: the lessor's notes are for the others to show.
func TestNotes(t *testing.T) {
	log := opened(t, t.Name())
	ctx := context.Background()
	note := map[int64]time.Duration{1: time.Minute, 2: math.MaxInt64}
	claim(t, log)
	if err := log.NoteLeases(ctx, note); err != nil {
		t.Fatal(err)
	}
	if left, noted, err := log.LeaseLeft(ctx, 1); err != nil || noted {
		t.Errorf("LeaseLeft: %v, %v, %v; want nothing noted where there is nobody else", left, noted, err)
	}
	other := opened(t, t.Name())
	claim(t, log)
	if err := log.NoteLeases(ctx, note); err != nil {
		t.Fatal(err)
	}
	check := func(id int64, least, most time.Duration) {
		t.Helper()
		if left, noted, err := other.LeaseLeft(ctx, id); err != nil || !noted || left < least || left > most {
			t.Errorf("LeaseLeft(%d): %v, %v, %v; want %v to %v", id, left, noted, err, least, most)
		}
	}
	check(1, 50*time.Second, time.Minute)
	check(2, 199*365*24*time.Hour, 201*365*24*time.Hour)
	if ok, err := other.RenewLease(ctx, 1, time.Hour); err != nil || !ok {
		t.Fatalf("RenewLease: %v, %v", ok, err)
	}
	check(1, 59*time.Minute, time.Hour)
}
