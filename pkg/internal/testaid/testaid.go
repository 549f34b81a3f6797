// Package testaid is what tests of several packages have in common: random
// numbers that can be repeated, and logs that hide no failure.
package testaid

import (
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
)

// NewRandom returns a source whose seed, KEELSON_SEED or else one of now, is
// said if the test fails.
func NewRandom(t testing.TB) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if env := os.Getenv("KEELSON_SEED"); env != "" {
		var err error
		if seed, err = strconv.ParseUint(env, 10, 64); err != nil {
			t.Fatalf("KEELSON_SEED=%q: it is a number", env)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("KEELSON_SEED=%d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

// Quiet is for TestMain: it lets what has no logger of its own say something
// only with -v, so that the failure of a test is not lost in it.
func Quiet() {
	flag.Parse()
	if !testing.Verbose() {
		logrus.SetOutput(io.Discard)
	}
}
