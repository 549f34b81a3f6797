package workload

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestSpecs(t *testing.T) {
	names := map[string]bool{}
	for _, s := range All() {
		if names[s.Name] {
			t.Errorf("%s is there twice", s.Name)
		}
		names[s.Name] = true
		if s.open == nil || s.Doc == "" || s.Unit == "" || s.Clients == 0 || s.Data.Size == 0 {
			t.Errorf("%s lacks something: %+v", s.Name, s)
		}
		if s.Data.Keys > 0 && s.Data.Keys%s.Clients != 0 {
			t.Errorf("%s: %d clients cannot share %d keys evenly", s.Name, s.Clients, s.Data.Keys)
		}
	}
}

func TestFind(t *testing.T) {
	found, err := Find([]string{"put*", "list"})
	var names []string
	for _, s := range found {
		names = append(names, s.Name)
	}
	if err != nil || fmt.Sprint(names) != "[list put1 put200]" {
		t.Errorf("%v, %v", names, err)
	}
	if found, err := Find([]string{"put*", "-put1"}); err != nil || len(found) != 1 || found[0].Name != "put200" {
		t.Errorf("put* but put1: %v, %v", found, err)
	}
	if _, err := Find([]string{"put1", "nothing*"}); err == nil {
		t.Error("a pattern without a workload is no error")
	}
	if all, err := Find([]string{"*"}); err != nil || len(all) != len(All()) {
		t.Errorf("* finds %d of %d, %v", len(all), len(All()), err)
	}
}

func TestClosedLoop(t *testing.T) {
	var calls, under, most atomic.Int64
	m, err := closedLoop(t.Context(), 4, time.Hour, counted(100, func(context.Context, int, int) error {
		n := under.Add(1)
		defer under.Add(-1)
		for {
			seen := most.Load()
			if n <= seen || most.CompareAndSwap(seen, n) {
				break
			}
		}
		calls.Add(1)
		return nil
	}))
	if err != nil || m.Ops != 100 || calls.Load() != 100 || len(m.Latencies) != 100 {
		t.Errorf("%d operations, %d calls, %d samples, %v", m.Ops, calls.Load(), len(m.Latencies), err)
	}
	if most.Load() > 4 {
		t.Errorf("%d calls at a time", most.Load())
	}
	broken := errors.New("broken")
	if _, err := closedLoop(t.Context(), 4, time.Hour, always(func(context.Context, int) error { return broken })); !errors.Is(err, broken) {
		t.Errorf("an operation's error is %v", err)
	}
}

// What a stalled operation holds up counts from when it was due.
func TestPacedLoopShowsStalls(t *testing.T) {
	const stall = 100 * time.Millisecond
	m, err := pacedLoop(t.Context(), 1, 1000, stall, func(_ context.Context, i int) error {
		if i == 0 {
			<-time.After(stall)
		}
		return nil
	})
	if err != nil || m.Ops != 100 {
		t.Fatalf("%d operations, %v", m.Ops, err)
	}
	late := 0
	for _, latency := range m.Latencies {
		if latency > stall/2 {
			late++
		}
	}
	if late < 50 {
		t.Errorf("%d operations were late; half of them were due during the stall", late)
	}
}

// The longest time without a write is looked for after the leader was killed,
// but may have begun before.
func TestAcknowledgedSince(t *testing.T) {
	began := time.Now()
	a := acknowledged{}
	for _, second := range []int{0, 50, 55, 90, 95, 100} {
		a.times = append(a.times, began.Add(time.Duration(second)*time.Second))
	}
	for _, c := range []struct{ at, n, longest int }{{10, 5, 50}, {52, 4, 35}, {92, 2, 5}, {200, 0, 0}} {
		n, longest := a.since(began.Add(time.Duration(c.at) * time.Second))
		if n != c.n || longest != time.Duration(c.longest)*time.Second {
			t.Errorf("since %d s: %d writes, at most %s apart, want %+v", c.at, n, longest, c)
		}
	}
}

func TestUnsupported(t *testing.T) {
	for err, want := range map[error]bool{
		nil:                                     false,
		status.Error(codes.Unimplemented, "no"): true,
		fmt.Errorf("x: %w", status.Error(codes.Unimplemented, "")):   true,
		status.Error(codes.Unknown, "serializable is not supported"): true,
		errPutLost: true,
		status.Error(codes.Internal, "database is locked"): false,
	} {
		if got := Unsupported(err); got != want {
			t.Errorf("Unsupported(%v) = %v", err, got)
		}
	}
}

func TestShort(t *testing.T) {
	for n, want := range map[int]string{1: "1", 1000: "1k", 20_000: "20k", 1_000_000: "1m", 1234: "1234"} {
		if got := short(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}
