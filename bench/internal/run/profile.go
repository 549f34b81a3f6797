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

// profile takes CPU profiles of the server's processes during a window, if the run is to
// have some and the server can. The function that it returns waits for it.
func (r *Runner) profile(ctx context.Context, spec workload.Spec, srv *systems.Server, d time.Duration) func() {
	if r.Profiles == "" || !srv.Pprof {
		return func() {}
	}
	done := make(chan error, srv.Processes())
	for i := range srv.Processes() {
		name := fmt.Sprintf("%s-%s.pprof", spec.Name, srv.Name)
		if srv.Nodes > 0 {
			name = fmt.Sprintf("%s-%s-%d.pprof", spec.Name, srv.Name, i)
		}
		go func() {
			seconds := max(1, int(d.Seconds()))
			body, err := srv.HTTP(ctx, i, http.MethodGet, fmt.Sprintf("/debug/pprof/profile?seconds=%d", seconds))
			if err == nil {
				err = os.WriteFile(filepath.Join(r.Profiles, name), body, 0o644)
			}
			done <- err
		}()
	}
	return func() {
		for range srv.Processes() {
			if err := <-done; err != nil {
				r.Log("no profile of %s: %v", srv.Name, err)
			}
		}
	}
}
