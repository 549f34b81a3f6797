package run

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/keelson-io/keelson/bench/internal/systems"
	"github.com/keelson-io/keelson/bench/internal/workload"
)

// Data is loaded once for a system and copied for each workload. It is kept
// from run to run under the name of the program that made it, but keelson's,
// which changes with each build.

func (r *Runner) templateDir(system systems.System, data workload.Data) string {
	base := filepath.Join(r.Dir, "templates")
	if strings.HasPrefix(system.Name, "keelson") {
		base = filepath.Join(r.scratch, "templates")
	}
	return filepath.Join(base, filepath.Base(r.programs[system.Name])+"-"+system.Loader().Name, data.String())
}

// copyTemplate replaces the system's directory by one with the data.
func (r *Runner) copyTemplate(ctx context.Context, system systems.System, data workload.Data) error {
	dir := r.dir(system)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if data.Keys == 0 {
		return os.MkdirAll(dir, 0o755)
	}
	template := r.templateDir(system, data)
	if _, err := os.Stat(template); err != nil {
		if err := r.makeTemplate(ctx, system, data, template); err != nil {
			return fmt.Errorf("loading %s into %s: %w", data, system.Name, err)
		}
	}
	if output, err := exec.CommandContext(ctx, "cp", "-a", "--reflink=auto", template, dir).CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w: %s", err, output)
	}
	return nil
}

func (r *Runner) makeTemplate(ctx context.Context, system systems.System, data workload.Data, template string) error {
	began := time.Now()
	// The path is short, since it holds unix sockets.
	tmp := filepath.Join(r.scratch, "load-"+system.Name)
	defer func() { _ = os.RemoveAll(tmp) }()
	srv, err := system.Loader().Start(ctx, r.programs[system.Name], tmp, false)
	if err != nil {
		return err
	}
	env := &workload.Env{Dial: srv.Client, Bulk: srv.Bulk}
	err = workload.Load(ctx, env, data)
	env.Close()
	srv.Stop()
	if err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(tmp, "log")); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(template), 0o755); err != nil {
		return err
	}
	r.Log("loaded %s into %s (%.0f s)", data, system.Name, time.Since(began).Seconds())
	return os.Rename(tmp, template)
}
