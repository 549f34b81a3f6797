package sqlite_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/drivers/sqlite/internal/faultvfs"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

// The tests of this file run a script on a disk that fails, or loses power, at
// each operation of SQLite in turn. KEELSON_FAULTS=all runs all of them;
// otherwise a sample, chosen by KEELSON_FAULT_SEED or the time.

// step is one call of the script.
type step struct {
	name string
	run  func(s *session) error
}

// script is everything that a log goes through in its life.
var script = []step{
	{"open", (*session).open},
	{"append", appendStep(1, 50)},
	{"append", appendStep(30, 100)},
	{"append", appendStep(2, 9000)},
	{"append", appendStep(1, 2500)},
	{"append several", severalStep(700, 60, 9000, 0, 100)},
	{"mark", appendStep(0, 0)},
	{"append", appendStep(1, 300)},
	{"compact", compactStep(func(seq int64) bool { return seq%3 == 0 })},
	{"append", appendStep(1, 10)},
	{"restart the WAL", func(s *session) error { return s.log.RestartWAL() }},
	{"append", appendStep(3, 1500)}, // stale frames stay behind it
	{"append", appendStep(1, 20)},
	{"shrink the cache", func(s *session) error { return s.log.ShrinkCache() }},
	{"append more than the cache", appendStep(12, 9000)},
	{"append", appendStep(1, 40)},
	{"close", (*session).close},
	{"open", (*session).open},
	{"mark", appendStep(0, 0)},
	{"compact", compactStep(func(seq int64) bool { return seq%5 == 0 })},
	{"compact nothing", compactStep(func(seq int64) bool { return seq%5 == 0 })},
	{"restart the WAL", func(s *session) error { return s.log.RestartWAL() }},
	{"append", appendStep(2, 100)},
	{"mark", appendStep(0, 0)},
	{"be slow", func(s *session) error { return s.log.Pace(true) }},
	{"doom", doomStep(func(seq int64) bool { return seq%4 == 0 })},
	{"append beside a compaction", appendStep(3, 200)},
	{"append beside a compaction", appendStep(1, 6000)},
	{"append several beside a compaction", severalStep(200, 5000)},
	{"compact what is left", func(s *session) error { return s.compact(s.model.doomed) }},
	{"defragment", func(s *session) error { return s.log.Defragment(context.Background()) }},
	{"append", appendStep(2, 5000)},
	{"mark", appendStep(0, 0)},
	{"compact", compactStep(func(seq int64) bool { return seq%2 == 0 })},
	{"close", (*session).close},
}

func appendStep(n, size int) func(*session) error {
	return func(s *session) error { return s.append(s.model.next(n, size)) }
}

// severalStep appends batches, each of one value of such a size, together.
func severalStep(sizes ...int) func(*session) error {
	return func(s *session) error {
		grown := s.model
		var batches []*eventlog.Batch
		for _, size := range sizes {
			b := grown.next(1, size)
			grown.take(b)
			batches = append(batches, b)
		}
		return s.append(batches...)
	}
}

func compactStep(keep func(int64) bool) func(*session) error {
	return func(s *session) error { return s.compact(s.doom(keep)) }
}

// doomStep begins a compaction that the batches behind it take along.
func doomStep(keep func(int64) bool) func(*session) error {
	return func(s *session) error { return s.log.Doom(s.doom(keep)) }
}

// session runs the script in dir.
type session struct {
	dir   string
	disk  *faultvfs.Disk
	log   *sqlite.Log // nil if it is not open
	model model
	// moments are what the log had to have from an operation of the disk on.
	moments []moment
}

type moment struct {
	op    int
	model model
}

func newSession(dir string) *session { return &session{dir: dir, disk: faultvfs.New(dir)} }

// note keeps what the log has to have from now on.
func (s *session) note() { s.moments = append(s.moments, moment{s.disk.Len(), s.model}) }

// at is what the log had to have after n operations.
func (s *session) at(n int) (m model) {
	for _, moment := range s.moments {
		if moment.op <= n {
			m = moment.model
		}
	}
	return m
}

func (s *session) open() error {
	log, err := quiet(s.dir)
	if err != nil {
		return err
	}
	s.log = log
	s.disk.SyncDir() // which Open has done, unseen by the shim
	return errors.Join(log.Pace(false), s.model.resolve(log))
}

func (s *session) close() error {
	err := s.log.Close()
	s.log = nil
	return err
}

// append appends the next batches and notes their fate.
func (s *session) append(batches ...*eventlog.Batch) error {
	m := &s.model
	m.doubt = batches
	s.note()
	err := s.log.AppendAll(context.Background(), batches...)
	switch {
	case err == nil:
		m.take(batches...)
		m.doubt = nil
	case !errors.Is(err, eventlog.ErrUnknown):
		m.doubt = nil
	}
	return err
}

// doom returns the records to delete next.
func (s *session) doom(keep func(int64) bool) []int64 {
	seqs := s.model.toCompact(keep)
	s.model.doomed = append(slices.Clip(s.model.doomed), seqs...)
	s.note()
	return seqs
}

func (s *session) compact(seqs []int64) error {
	err := s.log.Compact(context.Background(), seqs)
	if err == nil {
		s.model.deleted = len(s.model.doomed)
	}
	return err
}

// run runs the script until a step fails.
func (s *session) run() (step, error) {
	for _, step := range script {
		err := step.run(s)
		s.note()
		if err != nil {
			return step, err
		}
		if s.log == nil {
			continue
		}
		if err := s.model.readNewest(s.log); err != nil {
			return step, fmt.Errorf("%w: %w", errWrong, err)
		}
	}
	return step{}, nil
}

// errNotReached: the script had fewer operations than when they were counted.
// Rarely: Compact gives free pages back in the background.
var errNotReached = errors.New("the fault has not happened")

// errWrong is what must not be, whatever the disk does.
var errWrong = errors.New("wrong")

// forEach runs fn for 0 … n-1, or for a sample of them that takes a few
// seconds, on all cores.
func forEach(t *testing.T, n int, fn func(t *testing.T, i int, random *rand.Rand) error) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if env := os.Getenv("KEELSON_FAULT_SEED"); env != "" {
		var err error
		if seed, err = strconv.ParseUint(env, 10, 64); err != nil {
			t.Fatalf("KEELSON_FAULT_SEED=%q: it is a number", env)
		}
	}
	order := rand.New(rand.NewPCG(seed, 0)).Perm(n)
	end := time.Now().Add(4 * time.Second)
	if os.Getenv("KEELSON_FAULTS") == "all" {
		end = end.Add(time.Hour)
	}
	var workers sync.WaitGroup
	var mu sync.Mutex
	done, failures, missed := 0, 0, 0
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for {
				mu.Lock()
				i := done
				if i == n || time.Now().After(end) || failures == 10 {
					mu.Unlock()
					return
				}
				done++
				mu.Unlock()
				err := fn(t, order[i], rand.New(rand.NewPCG(seed, uint64(order[i]))))
				mu.Lock()
				switch {
				case errors.Is(err, errNotReached):
					missed++
				case err != nil:
					failures++
					t.Errorf("case %d (KEELSON_FAULT_SEED=%d): %v", order[i], seed, err)
				}
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	if missed > 1+done/20 {
		t.Errorf("in %d of %d cases the fault has not happened", missed, done)
	}
	t.Logf("%d of %d cases, %d missed", done, n, missed)
}

// temp makes a directory that fn's caller removes.
func temp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// trace runs the script on a good disk.
func trace(t *testing.T) *session {
	t.Helper()
	s := newSession(t.TempDir())
	defer s.disk.Remove()
	if step, err := s.run(); err != nil {
		t.Fatalf("%s: %v", step.name, err)
	}
	if err := s.disk.Check(); err != nil {
		t.Fatal(err)
	}
	return s
}

// verify opens what is left in dir, compares it with the model, goes on with
// it, and opens it once more.
func verify(dir string, m model) error {
	s := session{dir: dir, disk: faultvfs.New(dir), model: m}
	defer s.disk.Remove()
	return s.goOn()
}

func (s *session) goOn() (err error) {
	defer func() {
		if s.log != nil {
			err = errors.Join(err, s.log.Close())
		}
	}()
	for _, step := range []step{
		{"open", (*session).open},
		{"append", appendStep(2, 3000)},
		{"mark", appendStep(0, 0)},
		{"compact", compactStep(func(seq int64) bool { return seq%4 == 0 })},
		{"append", appendStep(1, 10)},
		{"close", (*session).close},
		{"open again", (*session).open},
	} {
		if err := step.run(s); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		s.note()
	}
	return nil
}

// TestPowerCut cuts the power after each operation, and opens what is left.
func TestPowerCut(t *testing.T) {
	defer faultvfs.Install()()
	s := trace(t)
	ops := s.disk.Ops()
	forEach(t, cuts*(len(ops)+1), func(t *testing.T, i int, random *rand.Rand) error {
		n := i / cuts
		dir := temp(t)
		defer os.RemoveAll(dir)
		if err := cut(ops[:n], s.at(n), dir, random); err != nil {
			return fmt.Errorf("power cut after %d operations, %v: %w", n, ops[max(0, n-1):n], err)
		}
		return nil
	})
}

// cuts is how many power cuts happen after each operation.
const cuts = 5

// TestDiskFault makes each operation fail in each of the ways that it can.
func TestDiskFault(t *testing.T) {
	defer faultvfs.Install()()
	type fault struct {
		op      int
		fault   faultvfs.Fault
		lasting bool
	}
	var faults []fault
	ops := trace(t).disk.Ops()
	for n, op := range ops {
		for _, f := range faultvfs.Faults(op.Kind) {
			faults = append(faults, fault{n, f, false}, fault{n, f, true})
		}
	}
	forEach(t, len(faults)*len(aftermaths), func(t *testing.T, i int, random *rand.Rand) error {
		f, after := faults[i/len(aftermaths)], aftermaths[i%len(aftermaths)]
		s := newSession(temp(t))
		defer s.disk.Remove()
		defer os.RemoveAll(s.dir)
		s.disk.Fail(f.op, f.fault, f.lasting)
		step, err := s.fail()
		if err == nil {
			dir := temp(t)
			defer os.RemoveAll(dir)
			err = after.check(s, dir, random)
		}
		if err != nil {
			return fmt.Errorf("%v of operation %d, %v, lasting %t: %s, %s: %w", f.fault, f.op, ops[f.op], f.lasting, step.name, after.name, err)
		}
		return nil
	})
}

// TestReadFault makes each read an error.
func TestReadFault(t *testing.T) {
	defer faultvfs.Install()()
	forEach(t, trace(t).disk.Reads(), func(t *testing.T, n int, random *rand.Rand) error {
		s := newSession(temp(t))
		defer s.disk.Remove()
		defer os.RemoveAll(s.dir)
		s.disk.FailRead(n)
		step, err := s.fail()
		s.abandon()
		if err == nil {
			err = s.goOn()
		}
		if err != nil {
			return fmt.Errorf("read %d: %s: %w", n, step.name, err)
		}
		return nil
	})
}

// fail runs the script into the fault of the disk.
func (s *session) fail() (step, error) {
	step, err := s.run()
	switch {
	case err == nil && !s.disk.Fired():
		return step, errNotReached
	case err == nil: // it was of no importance
		return step, nil
	case !s.disk.Fired():
		return step, err
	case errors.Is(err, errWrong) || errors.Is(err, eventlog.ErrCorrupt):
		return step, err
	case s.log != nil:
		return step, s.refuses(err)
	}
	return step, nil
}

// aftermaths are the ways in which a process ends after a fault, and what is
// checked then. dir is an empty directory.
var aftermaths = []struct {
	name  string
	check func(s *session, dir string, random *rand.Rand) error
}{
	{"power cut", func(s *session, dir string, random *rand.Rand) error {
		defer s.abandon()
		return s.cutSince(s.disk.Len(), dir, random)
	}},
	{"power cut in Close", func(s *session, dir string, random *rand.Rand) error {
		s.note()
		before := s.disk.Len()
		s.abandon()
		return s.cutSince(before, dir, random)
	}},
	// The same kernel goes on, with what it has in its cache.
	{"closed, opened, power cut", func(s *session, dir string, random *rand.Rand) error {
		s.abandon()
		if err := s.disk.Restart(); err != nil {
			return err
		}
		return s.goOnUntilCut(dir, random)
	}},
	{"killed, opened, power cut", func(s *session, dir string, random *rand.Rand) error {
		defer s.abandon()
		next := session{dir: filepath.Join(dir, "next"), model: s.model}
		if err := os.Mkdir(next.dir, 0o700); err != nil {
			return err
		}
		var err error
		if next.disk, err = s.disk.Fork(next.dir); err != nil {
			return err
		}
		defer next.disk.Remove()
		return next.goOnUntilCut(dir, random)
	}},
}

// goOnUntilCut goes on, and cuts the power at some moment of that.
func (s *session) goOnUntilCut(dir string, random *rand.Rand) error {
	s.note()
	start := s.disk.Len()
	if err := s.goOn(); err != nil {
		return s.disk.State(func(state *faultvfs.State) error { return likeDamage(err, s.dir, state) })
	}
	return s.cutSince(start, dir, random)
}

// abandon closes the log, if it is open, on a disk that may be broken.
func (s *session) abandon() {
	if s.log != nil {
		_ = s.close() // may say what the disk says
	}
}

// cutSince cuts the power at some moment after n operations, and verifies what
// is left then, in dir.
func (s *session) cutSince(n int, dir string, random *rand.Rand) error {
	ops := s.disk.Ops()
	n += random.IntN(len(ops) - n + 1)
	if err := cut(ops[:n], s.at(n), dir, random); err != nil {
		return fmt.Errorf("power cut after %d operations, %v: %w", n, ops[n-1:n], err)
	}
	return nil
}

// cut cuts the power after these operations, and verifies what is left, in dir.
func cut(ops []faultvfs.Op, m model, dir string, random *rand.Rand) error {
	replay := faultvfs.NewReplay(ops)
	for replay.Next() {
	}
	if err := replay.PowerCut(dir, random); err != nil {
		return err
	}
	return likeDamage(verify(dir, m), dir, &replay.State)
}

// likeDamage returns nil for the error of an Open that has refused the WAL in
// dir for a single byte of a frame that looks damaged, if that is the only one
// that a power cut or a failed write has left as it was. The script starts the
// WAL over so soon that an earlier page may have been so much like it.
func likeDamage(err error, dir string, state *faultvfs.State) error {
	at := strings.Index(fmt.Sprint(err), ", at offset ")
	if !errors.Is(err, eventlog.ErrCorrupt) || at < 0 {
		return err
	}
	offset := 0
	if _, scanErr := fmt.Sscanf(err.Error()[at:], ", at offset %d, is damaged", &offset); scanErr != nil {
		return err
	}
	wal, readErr := os.ReadFile(filepath.Join(dir, sqlite.FileName+"-wal"))
	if readErr != nil {
		return errors.Join(err, readErr)
	}
	const frameSize = 24 + 4096
	for _, meant := range state.Meant(sqlite.FileName + "-wal") {
		n := 0
		for i := offset; i < min(offset+frameSize, len(wal), len(meant)); i++ {
			if wal[i] != meant[i] {
				n++
			}
		}
		if n == 1 {
			return nil
		}
	}
	return err
}

// refuses makes sure that a log which gave err says that it has failed, and
// takes no more calls.
func (s *session) refuses(err error) error {
	if !errors.Is(err, eventlog.ErrFailed) {
		return fmt.Errorf("%w, which is not ErrFailed", err)
	}
	ctx := context.Background()
	m := s.model
	_, tail := s.log.Tail(ctx, 0, 1)
	_, values := s.log.Values(ctx, []int64{1})
	_, head := s.log.Head(ctx)
	for i, err := range []error{
		s.log.Append(ctx, m.next(1, 1)), tail, values, head, s.log.Compact(ctx, nil), s.log.Defragment(ctx), s.log.RestartWAL(),
	} {
		if !errors.Is(err, eventlog.ErrFailed) {
			return fmt.Errorf("call %d after the failure: %w", i, err)
		}
	}
	return nil
}
