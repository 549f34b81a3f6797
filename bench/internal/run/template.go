package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/keelson-io/keelson/bench/internal/systems"
	"github.com/keelson-io/keelson/bench/internal/workload"
)

// Data is loaded once for a system and copied for each workload. It is kept
// from run to run under the name of the loader and the format of its files:
// for etcd and kine their version, for keelson, which is built anew each time,
// the schema version that it writes. What has neither is loaded in each run.

func (r *Runner) templateDir(system systems.System, data workload.Data) string {
	base := filepath.Join(r.Dir, "templates")
	format := r.formats[system.Loader().Name]
	if format == "" {
		base, format = filepath.Join(r.scratch, "templates"), system.Loader().Name
	}
	return filepath.Join(base, format, data.String())
}

// copyTemplate replaces the system's directory by one with the data.
func (r *Runner) copyTemplate(ctx context.Context, system systems.System, data workload.Data) error {
	dir := r.dir(system)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if system.Forgets {
		return describe(dir, data)
	}
	if data.Keys == 0 {
		return os.MkdirAll(dir, 0o755)
	}
	template, err := r.template(ctx, system, data)
	if err != nil {
		return err
	}
	if output, err := exec.CommandContext(ctx, "cp", "-a", "--reflink=auto", template, dir).CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w: %s", err, output)
	}
	return nil
}

// describe tells a server that keeps nothing what it is to answer with.
func describe(dir string, data workload.Data) error {
	if err := os.MkdirAll(filepath.Join(dir, "data"), 0o755); err != nil {
		return err
	}
	b, err := json.Marshal(data)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "data", systems.DataFile), b, 0o644)
}

// template returns the directory with the data, made if it is not there.
func (r *Runner) template(ctx context.Context, system systems.System, data workload.Data) (string, error) {
	dir := r.templateDir(system, data)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := r.makeTemplate(ctx, system.Loader(), data, dir); err != nil {
		return "", fmt.Errorf("loading %s into %s: %w", data, system.Loader().Name, err)
	}
	return dir, nil
}

func (r *Runner) makeTemplate(ctx context.Context, loader systems.System, data workload.Data, template string) error {
	began := time.Now()
	// The path is short, since it holds unix sockets.
	tmp := filepath.Join(r.scratch, "load-"+loader.Name)
	defer func() { _ = os.RemoveAll(tmp) }()
	srv, err := loader.Start(ctx, r.programs[loader.Name], tmp, false)
	if err != nil {
		return err
	}
	env := &workload.Env{Dial: srv.Client, Bulk: srv.Bulk, Loaders: srv.Loaders}
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
	r.Log("loaded %s into %s (%.0f s)", data, loader.Name, time.Since(began).Seconds())
	return os.Rename(tmp, template)
}

// prepare makes the templates of all workloads, so that a run need not.
func (r *Runner) prepare(ctx context.Context) error {
	var errs []error
	made := map[string]bool{}
	for _, spec := range r.Workloads {
		for _, system := range r.Systems {
			kept := r.formats[system.Loader().Name] != ""
			if spec.Data.Keys == 0 || !kept || !takesPart(system, spec) || r.tooLarge(system, spec.Data) {
				continue
			}
			made[r.templateDir(system, spec.Data)] = true
			if _, err := r.template(ctx, system, spec.Data); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				errs = append(errs, err)
			}
		}
	}
	r.Log("%d sets of data are there", len(made)-len(errs))
	return errors.Join(errs...)
}
