package run

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/keelson-io/keelson/bench/internal/report"
	"github.com/keelson-io/keelson/bench/internal/systems"
	"github.com/keelson-io/keelson/bench/internal/workload"
)

// turn is one system's in a round. Only the end of the run is an error.
func (r *Runner) turn(ctx context.Context, spec workload.Spec, s *session, round int, d time.Duration) error {
	if s.over() || ctx.Err() != nil {
		return ctx.Err()
	}
	limit := d + max(patience, spec.Limit)
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := r.window(limited, spec, s, round, d)
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	if limited.Err() != nil {
		err = fmt.Errorf("%w after %s", workload.ErrGaveUp, limit)
	}
	s.end(err)
	s.close()
	if srv := r.servers[s.system.Name]; srv != nil && s.series.GaveUp != "" {
		// What it is still at must not disturb the others.
		srv.Kill()
		delete(r.servers, s.system.Name)
	}
	return nil
}

func (s *session) close() {
	if s.env != nil {
		s.env.Close()
	}
	s.env, s.runner = nil, nil
}

// open connects to the system's server.
func (s *session) open(ctx context.Context, spec workload.Spec, srv *systems.Server) (err error) {
	s.env = &workload.Env{Dial: srv.Client, Bulk: srv.Bulk, Forgets: srv.Forgets, Nodes: srv}
	s.runner, err = spec.Open(ctx, s.env)
	return err
}

// window prepares the server and measures once.
func (r *Runner) window(ctx context.Context, spec workload.Spec, s *session, round int, d time.Duration) error {
	if spec.Fresh && round > 0 {
		s.close()
		if err := r.restart(ctx, s.system, true); err != nil {
			return err
		}
	}
	if spec.Restart {
		s.close()
		if err := r.restart(ctx, s.system, false); err != nil {
			return err
		}
	}
	srv := r.servers[s.system.Name]
	ctx, cancel := whileAlive(ctx, srv)
	defer cancel()
	err := r.measure(ctx, spec, s, srv, d)
	if cause := context.Cause(ctx); errors.Is(cause, errDied) {
		return fmt.Errorf("%w: %s", cause, srv.LogTail())
	}
	return err
}

var errDied = errors.New("the server has died")

// whileAlive makes a context that ends with the server: clients would wait for
// it to come back.
func whileAlive(ctx context.Context, srv *systems.Server) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-srv.Done():
			cancel(errDied)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// measure measures once, after a short unmeasured start if it is the first.
func (r *Runner) measure(ctx context.Context, spec workload.Spec, s *session, srv *systems.Server, d time.Duration) error {
	if s.runner == nil {
		if err := s.open(ctx, spec, srv); err != nil {
			return err
		}
		if !spec.Fresh && !spec.Restart {
			if err := s.warmUp(ctx, d); err != nil {
				return err
			}
		}
	}
	if err := s.runner.Prepare(ctx); err != nil {
		return err
	}
	before, err := srv.Usage()
	if err != nil {
		return err
	}
	readyRSS := before.RSS
	if spec.Restart {
		before = systems.Usage{} // the start is part of it
	} else if err := srv.ResetPeak(); err != nil {
		return err
	}
	wal := watchWAL(srv.Dir)
	profiled := r.profile(ctx, spec, srv, d)
	ours := ownCPU()
	measured, err := s.runner.Run(ctx, d)
	ours = ownCPU() - ours
	profiled()
	if err != nil {
		wal()
		return err
	}
	time.Sleep(settle)
	after, err := srv.Usage()
	if err != nil {
		wal()
		return err
	}
	result := report.Window{
		Ops: measured.Ops, Seconds: measured.Elapsed.Seconds(),
		CPU: (after.CPU - before.CPU).Seconds(), Written: after.Written - before.Written,
		RSS: after.RSS, PeakRSS: after.PeakRSS, WAL: wal(), Extra: measured.Extra,
	}
	if !spec.Parallel {
		result.ClientCPU = ours.Seconds()
	}
	if result.Extra == nil {
		result.Extra = map[string]float64{}
	}
	if srv.Nodes > 0 {
		result.Extra["largest_rss_mib"] = float64(after.Largest) / (1 << 20)
	}
	result.SetLatencies(measured.Latencies)
	if spec.Restart {
		result.Extra["ready_s"], result.Extra["ready_rss_mib"] = srv.Ready.Seconds(), float64(readyRSS)/(1<<20)
	}
	s.series.Windows = append(s.series.Windows, result)
	return nil
}

// ownCPU is the time that this process, the client, has used.
func ownCPU() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func (s *session) warmUp(ctx context.Context, d time.Duration) error {
	if err := s.runner.Prepare(ctx); err != nil {
		return err
	}
	_, err := s.runner.Run(ctx, min(d, time.Second))
	return err
}

// watchWAL looks for the largest SQLite WAL file below dir until the function
// that it returns is called, which returns its size.
func watchWAL(dir string) func() int64 {
	stop, result := make(chan struct{}), make(chan int64, 1)
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		var largest int64
		for {
			for _, pattern := range []string{"data/*-wal", "data/*/*-wal"} {
				files, _ := filepath.Glob(filepath.Join(dir, pattern)) // the pattern is well formed
				for _, file := range files {
					if info, err := os.Stat(file); err == nil {
						largest = max(largest, info.Size())
					}
				}
			}
			select {
			case <-tick.C:
			case <-stop:
				result <- largest
				return
			}
		}
	}()
	return func() int64 {
		close(stop)
		return <-result
	}
}
