package run

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-io/keelson/bench/internal/report"
	"github.com/keelson-io/keelson/bench/internal/workload"
)

// How a session ends is a result of its own kind; none but the first fails the
// run.
func TestSessionEnds(t *testing.T) {
	for want, err := range map[string]error{
		"failed":      errors.New("wrong answer"),
		"gave up":     fmt.Errorf("%w after 1m", workload.ErrGaveUp),
		"unsupported": status.Error(codes.Unimplemented, "no"),
	} {
		s := &session{series: &report.Series{}}
		if s.over() {
			t.Fatal("over before it began")
		}
		s.end(err)
		got := map[bool]string{s.series.Failed != "": "failed", s.series.GaveUp != "": "gave up", s.series.Unsupported != "": "unsupported"}[true]
		if got != want || !s.over() {
			t.Errorf("%v: %s, over: %v", err, got, s.over())
		}
	}
	// What worked before and does not any more has failed.
	s := &session{series: &report.Series{Windows: []report.Window{{}}}}
	if s.end(status.Error(codes.Unimplemented, "no")); s.series.Failed == "" {
		t.Error("unsupported after the first window")
	}
}
