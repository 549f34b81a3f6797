package run

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/keelson-io/keelson/bench/internal/systems"
	"github.com/keelson-io/keelson/bench/internal/workload"
)

// profile takes a CPU profile of the server during a window, if the run is to
// have some and the server can. The function that it returns waits for it.
func (r *Runner) profile(ctx context.Context, spec workload.Spec, srv *systems.Server, d time.Duration) func() {
	if r.Profiles == "" || !srv.Pprof {
		return func() {}
	}
	done := make(chan error, 1)
	path := filepath.Join(r.Profiles, fmt.Sprintf("%s-%s.pprof", spec.Name, srv.Name))
	go func() {
		seconds := max(1, int(d.Seconds()))
		body, err := srv.HTTP(ctx, http.MethodGet, fmt.Sprintf("/debug/pprof/profile?seconds=%d", seconds))
		if err == nil {
			err = os.WriteFile(path, body, 0o644)
		}
		done <- err
	}()
	return func() {
		if err := <-done; err != nil {
			r.Log("no profile of %s: %v", srv.Name, err)
		}
	}
}
