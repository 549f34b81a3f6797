package server

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestBound(t *testing.T) {
	s := &Server{cfg: Config{RequestTimeout: 7 * time.Second}}
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		parent, cancelParent := context.WithCancel(context.WithValue(t.Context(), key{}, "v"))
		defer cancelParent()

		ctx, cancel := s.bound(parent)
		time.Sleep(time.Hour)
		if _, ok := ctx.Deadline(); ok || ctx.Err() != nil || ctx.Value(key{}) != "v" {
			t.Error("the timeout began before anybody waited")
		}
		start := time.Now()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { <-ctx.Done() })
		}
		child, cancelChild := context.WithCancel(ctx)
		defer cancelChild()
		<-child.Done()
		wg.Wait()
		if took := time.Since(start); took != 7*time.Second || !errors.Is(ctx.Err(), context.DeadlineExceeded) || parent.Err() != nil {
			t.Errorf("it ended after %v with %v", took, ctx.Err())
		}
		if deadline, ok := ctx.Deadline(); !ok || !deadline.Equal(start.Add(7*time.Second)) || ctx.Value(key{}) != "v" {
			t.Errorf("deadline %v", deadline)
		}
		cancel()

		ctx, cancel = s.bound(parent)
		done := ctx.Done()
		cancel()
		<-done
		if !errors.Is(ctx.Err(), context.Canceled) {
			t.Errorf("after cancel: %v", ctx.Err())
		}

		ctx, cancel = s.bound(parent)
		defer cancel()
		cancelParent()
		<-ctx.Done()
		if !errors.Is(ctx.Err(), context.Canceled) {
			t.Errorf("after the parent's end: %v", ctx.Err())
		}

		sooner, cancelSooner := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancelSooner()
		if ctx, cancel := s.bound(sooner); ctx != sooner {
			t.Error("a context that ends in time must stay as it is")
		} else {
			cancel()
		}
		later, cancelLater := context.WithTimeout(t.Context(), time.Hour)
		defer cancelLater()
		ctx, cancel = s.bound(later)
		defer cancel()
		<-ctx.Done()
		if later.Err() != nil {
			t.Error("a later deadline was waited for")
		}
	})
}
