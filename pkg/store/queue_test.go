package store

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
)

// stall makes the committer of s wait until the function returned is called.
func stall(s *Store) (release func()) {
	entered, gate, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		_ = s.submit(context.Background(), 0, func(*evaluation) error { // it may time out
			close(entered)
			<-gate
			return nil
		})
	}()
	<-entered
	return func() {
		close(gate)
		<-done
	}
}

// unhurried repeats a call that timed out: a busy machine may keep even one
// that needs no waiting from its end in so short a time.
func unhurried(t *testing.T, call func() error) error {
	t.Helper()
	var err error
	await(t, "an answer in time", func() bool {
		err = call()
		return !errors.Is(err, ErrTimeout)
	})
	return err
}

func (f *fixture) putUnhurried(t *testing.T, key string) error {
	t.Helper()
	return unhurried(t, func() error {
		_, err := f.Put(t.Context(), &pb.PutRequest{Key: []byte(key)})
		return err
	})
}

// A write that has waited for too long is given up, but may still happen.
func TestRequestTimeout(t *testing.T) {
	f := open(t, &memlog.Disk{}, Options{RequestTimeout: 20 * time.Millisecond})
	release := stall(f.Store)
	_, err := f.Put(t.Context(), &pb.PutRequest{Key: []byte("k"), Value: []byte("v")})
	if !errors.Is(err, ErrTimeout) {
		t.Errorf("the put: %v, want ErrTimeout", err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Put(canceled, &pb.PutRequest{Key: []byte("l")}); !errors.Is(err, context.Canceled) {
		t.Errorf("the canceled put: %v", err)
	}
	release()
	if err := f.putUnhurried(t, "m"); err != nil {
		t.Errorf("a put once the log answers: %v", err)
	}
	var resp *pb.RangeResponse
	err = unhurried(t, func() (err error) {
		resp, err = f.Range(t.Context(), &pb.RangeRequest{Key: []byte("k")})
		return err
	})
	if err != nil || len(resp.Kvs) != 1 {
		t.Errorf("the put that was given up on: %v, %v", resp, err)
	}
}

// A request that finds the queue full waits outside, and not for ever.
func TestFullQueue(t *testing.T) {
	f := open(t, &memlog.Disk{}, Options{RequestTimeout: 20 * time.Millisecond})
	release := stall(f.Store)
	if !f.queue.bytes.TryAcquire(maxQueuedBytes - 2000) {
		t.Fatal("the queue is not empty")
	}
	for range 2 {
		_, err := f.Put(t.Context(), &pb.PutRequest{Key: []byte("k"), Value: make([]byte, 100)})
		if !errors.Is(err, ErrTimeout) {
			t.Errorf("the put: %v, want ErrTimeout", err)
		}
	}
	release()
	f.queue.bytes.Release(maxQueuedBytes - 2000)
	if err := f.putUnhurried(t, "k"); err != nil {
		t.Errorf("a put once there is room: %v", err)
	}
}

// Those that begin at about the same time share a timer; nobody's is short.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var forever patience
		if forever.over() != nil {
			t.Error("no limit ends")
		}
		p := patience{limit: time.Second}
		first := p.over()
		time.Sleep(p.limit / 8)
		if p.over() != first {
			t.Error("two requests at once have a timer each")
		}
		time.Sleep(time.Nanosecond) // past the time that is shared
		begun := time.Now()
		second := p.over()
		if second == first {
			t.Error("a late request shares an early timer")
		}
		<-first
		<-second
		if waited := time.Since(begun); waited < p.limit || waited > p.limit+p.limit/8 {
			t.Errorf("over after %v, not at the limit of %v", waited, p.limit)
		}
	})
}

// farLog is a log whose head is always ahead.
type farLog struct{ *memlog.Log }

func (farLog) Head(context.Context) (eventlog.Position, error) { return 1 << 40, nil }

// A fence has one limit for all of its waiting, however often the state moves.
func TestFenceTimeout(t *testing.T) {
	disk := new(memlog.Disk)
	f := openOn(t, disk, farLog{disk.Open(nil)}, Options{RequestTimeout: 100 * time.Millisecond})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	fenced := make(chan error, 1)
	go func() { fenced <- f.Fence(ctx) }() // would wait on while puts are faster than the limit
	for {
		select {
		case err := <-fenced:
			if !errors.Is(err, ErrTimeout) {
				t.Errorf("the fence: %v, want ErrTimeout", err)
			}
			return
		default:
			if _, err := f.Put(t.Context(), &pb.PutRequest{Key: []byte("k")}); err != nil && !errors.Is(err, ErrTimeout) {
				t.Fatal(err)
			}
		}
	}
}
