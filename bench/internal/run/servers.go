package run

import (
	"context"
	"os"
	"path/filepath"
	"syscall"

	"github.com/keelson-io/keelson/bench/internal/systems"
)

func (r *Runner) stopAll() {
	for name, srv := range r.servers {
		srv.Kill()
		_ = os.RemoveAll(srv.Dir)
		delete(r.servers, name)
	}
}

// startAll starts systems on the data and lets the disk come to rest. One that
// does not start is not there; down says why.
func (r *Runner) startAll(ctx context.Context, missing []systems.System) error {
	for _, system := range missing {
		if err := r.copyTemplate(ctx, system, r.data); err != nil {
			r.down[system.Name] = err
		}
	}
	if len(missing) > 0 {
		syscall.Sync()
	}
	for _, system := range missing {
		if r.down[system.Name] != nil {
			continue
		}
		srv, err := r.start(ctx, system)
		if err != nil {
			r.down[system.Name] = err
			continue
		}
		r.servers[system.Name] = srv
	}
	return ctx.Err()
}

// restart ends the system's server and starts it again, on the data as it is
// or as it was loaded.
func (r *Runner) restart(ctx context.Context, system systems.System, fresh bool) error {
	if srv := r.servers[system.Name]; srv != nil {
		delete(r.servers, system.Name)
		if fresh {
			srv.Kill()
		} else {
			srv.Stop()
		}
	}
	if fresh {
		if err := r.copyTemplate(ctx, system, r.data); err != nil {
			return err
		}
		syscall.Sync()
	}
	srv, err := r.start(ctx, system)
	if err == nil {
		r.servers[system.Name] = srv
	}
	return err
}

func (r *Runner) start(ctx context.Context, system systems.System) (*systems.Server, error) {
	return system.Start(ctx, r.programs[system.Name], r.dir(system), r.Profiles != "")
}

func (r *Runner) dir(system systems.System) string { return filepath.Join(r.scratch, system.Name) }
