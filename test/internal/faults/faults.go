// Package faults is what the tests of several servers under faults have in
// common: random numbers that can be repeated, waits with a limit, and
// clients (with package linearizable) whose answers and watches are compared
// with the log.
package faults

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/keelson-io/keelson/test/harness"
)

// Patience bounds every wait; nothing takes it when all is well.
const Patience = 3 * time.Minute

// Number returns that of an environment variable, or otherwise.
func Number(t testing.TB, variable string, otherwise uint64) uint64 {
	t.Helper()
	env := os.Getenv(variable)
	if env == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(env, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q: it is a number", variable, env)
	}
	return n
}

// Rounds is how often each kind of harm is done: KEELSON_CRASH_ROUNDS, or 1.
func Rounds(t testing.TB) uint64 {
	t.Helper()
	return Number(t, "KEELSON_CRASH_ROUNDS", 1)
}

// NewRandom returns a source whose seed, KEELSON_SEED or else one of now, is
// said if the test fails.
func NewRandom(t testing.TB) *rand.Rand {
	t.Helper()
	return Seeded(t, Number(t, "KEELSON_SEED", uint64(time.Now().UnixNano())))
}

// Seeded returns a source of one seed, which is said if the test fails.
func Seeded(t testing.TB, seed uint64) *rand.Rand {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("KEELSON_SEED=%d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

// UpTo returns a time below d.
func UpTo(rnd *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(rnd.Int64N(int64(d)))
}

// Signal sends s to a server.
func Signal(t testing.TB, victim *harness.Server, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(victim.PID(), s); err != nil {
		t.Fatal(err)
	}
}

// NewClient returns a client of these endpoints, which gives up a connection
// on which nothing is answered for 2 seconds.
func NewClient(t testing.TB, endpoints ...string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: endpoints, DialTimeout: Patience,
		DialKeepAliveTime: time.Second, DialKeepAliveTimeout: time.Second,
		Logger: zap.NewNop(), // it warns of every request that fails
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Retry calls f until it succeeds, and returns how long that took.
func Retry(t testing.TB, what string, f func(context.Context) error) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		err := f(ctx)
		cancel()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > Patience {
			t.Fatalf("%s does not succeed within %v: %v", what, Patience, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Eventually polls what nothing announces.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(Patience)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", Patience, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Serves waits until a server that has to be up, after some harm, answers a
// write and a linearizable read, and returns how long that took.
func Serves(t testing.TB, s *harness.Server, c *clientv3.Client, name, after string) time.Duration {
	t.Helper()
	return Retry(t, "a write and a read through "+name+" after "+after, func(ctx context.Context) error {
		select {
		case <-s.Done():
			t.Fatalf("%s has ended %s:\n%s", after, name, s.LogTail(5))
		default:
		}
		_, err := c.Put(ctx, "alive", name)
		if err == nil {
			_, err = c.Get(ctx, "alive")
		}
		return err
	})
}
