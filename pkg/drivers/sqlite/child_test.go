package sqlite_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/internal/testaid"
)

// The tests of this file run the test binary as a second process.
const childEnv = "KEELSON_SQLITE_TEST_CHILD" // task and directory

// runChild does the task of a child process, if this is one.
func runChild() bool {
	task, dir, ok := strings.Cut(os.Getenv(childEnv), ":")
	if !ok {
		return false
	}
	err := map[string]func(string) error{
		"append":      childAppend,
		"hold":        childHold,
		"locked":      childLocked,
		"full-insert": func(dir string) error { return childFull(dir, 2<<20) },
		"full-commit": func(dir string) error { return childFull(dir, 200<<10) },
	}[task](dir)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	return true
}

// startChild starts a child and returns what it prints.
func startChild(t *testing.T, task, dir string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+task+":"+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd, bufio.NewScanner(out)
}

// madeBatch is the batch of this position, told by it alone; every tenth is a
// compaction mark, every fortieth is too large for SQLite's cache.
func madeBatch(position eventlog.Position, seq int64) eventlog.Batch {
	b := eventlog.Batch{Base: position - 1}
	binary.BigEndian.PutUint64(b.ID[:], uint64(position))
	n, size := 1+int(position)*7%20, 3000
	switch {
	case position%40 == 7:
		n, size = 10, 1_000_000
	case position%10 == 0:
		b.Records = []eventlog.Record{{Seq: seq, Position: position, Kind: eventlog.KindCompact, Revision: eventlog.Revision{Main: seq}}}
		return b
	}
	for i := range n {
		b.Records = append(b.Records, eventlog.Record{
			Seq: seq + int64(i), Position: position, Kind: eventlog.KindPut, Revision: eventlog.Revision{Main: seq, Sub: int64(i)},
			Key: fmt.Appendf(nil, "key-%d", i), Value: slices.Repeat([]byte{byte(position), byte(i)}, size/2), CreateRevision: 1, Version: 1,
		})
	}
	return b
}

// childAppend goes on with the log and prints the positions acknowledged,
// until it is killed. Behind each mark it compacts the records of odd seq.
func childAppend(dir string) error {
	ctx := context.Background()
	log, err := sqlite.Open(ctx, sqlite.Options{Dir: dir})
	if err != nil {
		return err
	}
	var seqs []int64
	head, err := log.Load(ctx, func(r *eventlog.Record) error {
		if r.Seq%2 == 1 {
			seqs = append(seqs, r.Seq)
		}
		return nil
	})
	if err != nil {
		return err
	}
	compactions := make(chan []int64, 1000)
	go func() {
		for seqs := range compactions {
			if err := log.Compact(ctx, seqs); err != nil {
				fmt.Println("error", err)
			}
		}
	}()
	for {
		b := madeBatch(head.Position+1, head.Seq+1)
		if err := log.Append(ctx, &b); err != nil {
			return err
		}
		fmt.Println("acknowledged", b.Position())
		head.Position++
		head.Seq += int64(len(b.Records))
		for _, r := range b.Records {
			if r.Kind == eventlog.KindCompact {
				compactions <- seqs
				seqs = nil
			}
			if r.Seq%2 == 1 {
				seqs = append(seqs, r.Seq)
			}
		}
	}
}

// TestKill kills a child that appends. KEELSON_CRASH_ROUNDS says how often.
func TestKill(t *testing.T) {
	t.Parallel()
	ctx, rnd := context.Background(), testaid.NewRandom(t)
	rounds, dir := 10, ""
	if env := os.Getenv("KEELSON_CRASH_ROUNDS"); env != "" {
		var err error
		if rounds, err = strconv.Atoi(env); err != nil || rounds < 1 {
			t.Fatalf("KEELSON_CRASH_ROUNDS=%q: it is a number of rounds", env)
		}
	}
	for round := range rounds {
		if round%20 == 0 {
			dir = t.TempDir() // each round reads all that the others have written
		}
		child, lines := startChild(t, "append", dir)
		acknowledged := eventlog.Position(0)
		for left := rnd.IntN(80); lines.Scan(); left-- {
			if _, err := fmt.Sscanf(lines.Text(), "acknowledged %d", &acknowledged); err != nil {
				t.Fatalf("round %d: the child says %q", round, lines.Text())
			}
			if left == 0 {
				// Not waited for here: what it still prints was acknowledged.
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := child.Wait(); err == nil || acknowledged == 0 {
			t.Fatalf("round %d: the child ended by itself after %d", round, acknowledged)
		}
		log := openLog(t, dir)
		var records []*eventlog.Record
		head, err := log.Load(ctx, func(r *eventlog.Record) error { records = append(records, r); return nil })
		if err != nil || head.Position < acknowledged || head.Position > acknowledged+1 {
			t.Fatalf("round %d: Load: head %+v, %v; %d was acknowledged", round, head, err, acknowledged)
		}
		checkMade(t, log, head, records)
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// checkMade compares the log with what childAppend writes.
func checkMade(t *testing.T, log *sqlite.Log, head eventlog.Head, records []*eventlog.Record) {
	t.Helper()
	left := make(map[int64]bool)
	for _, r := range records {
		left[r.Seq] = true
	}
	seq, mark := int64(1), eventlog.Position(0)
	for position := eventlog.Position(1); position <= head.Position; position++ {
		for _, r := range madeBatch(position, seq).Records {
			if r.Kind == eventlog.KindCompact {
				mark = position
			}
			if r.Seq%2 == 0 && !left[r.Seq] {
				t.Fatalf("record %d is gone", r.Seq)
			}
			seq = r.Seq + 1
		}
	}
	if seq != head.Seq+1 {
		t.Fatalf("the newest seq is %d, want %d", head.Seq, seq-1)
	}
	for position := mark; position < head.Position; {
		got, err := log.Tail(context.Background(), position, 1)
		if err != nil || len(got) != 1 {
			t.Fatalf("Tail(%d): %d batches, %v", position, len(got), err)
		}
		want := madeBatch(position+1, got[0].Records[0].Seq)
		if got[0].ID != want.ID || len(got[0].Records) != len(want.Records) {
			t.Fatalf("Tail(%d): not the batch that was written", position)
		}
		for i, r := range want.Records {
			if string(got[0].Records[i].Value) != string(r.Value) || got[0].Records[i].Seq != r.Seq {
				t.Fatalf("Tail(%d): record %d is not the one that was written", position, i)
			}
		}
		position++
	}
}

// childHold opens the log and keeps it until its input ends.
func childHold(dir string) error {
	log, err := sqlite.Open(context.Background(), sqlite.Options{Dir: dir})
	if err != nil {
		return err
	}
	fmt.Println("open", os.Getpid())
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	return log.Close()
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	child, lines := startChildHolding(t, dir)
	pid := fmt.Sprintf("pid %d", child.Process.Pid)
	if _, err := sqlite.Open(context.Background(), sqlite.Options{Dir: dir}); !errors.Is(err, sqlite.ErrLocked) || !strings.Contains(err.Error(), pid) {
		t.Fatalf("Open beside %s: %v, want ErrLocked that names it", pid, err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() { // until the process is gone
	}
	_ = child.Wait()
	log := openLog(t, dir) // the lock has ended with its holder
	if _, err := sqlite.Open(context.Background(), sqlite.Options{Dir: dir}); !errors.Is(err, sqlite.ErrLocked) {
		t.Fatalf("second Open in one process: %v, want ErrLocked", err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if err := openLog(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
}

func startChildHolding(t *testing.T, dir string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = write.Close(); _ = read.Close() })
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=hold:"+dir)
	cmd.Stdin = read
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), "open ") {
		t.Fatalf("the child says %q", lines.Text())
	}
	return cmd, lines
}

// childFull appends until the kernel refuses to let a file grow beyond size,
// as on a full disk, and says what it got.
func childFull(dir string, size uint64) error {
	ctx := context.Background()
	log, err := sqlite.Open(ctx, sqlite.Options{Dir: dir})
	if err != nil {
		return err
	}
	signal.Ignore(unix.SIGXFSZ)
	limit := unix.Rlimit{Cur: size, Max: size}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	head := eventlog.Head{}
	for {
		b := madeBatch(head.Position+1, head.Seq+1)
		err := log.Append(ctx, &b)
		if err != nil {
			fmt.Println("failed", errors.Is(err, eventlog.ErrFailed), "unknown", errors.Is(err, eventlog.ErrUnknown))
			break
		}
		fmt.Println("acknowledged", b.Position())
		head.Position++
		head.Seq += int64(len(b.Records))
	}
	b := madeBatch(head.Position+1, head.Seq+1)
	_, tailErr := log.Tail(ctx, 0, 1)
	_, valuesErr := log.Values(ctx, []int64{1})
	_, headErr := log.Head(ctx)
	for _, err := range []error{log.Append(ctx, &b), tailErr, valuesErr, headErr, log.Compact(ctx, nil), log.Defragment(ctx)} {
		if !errors.Is(err, eventlog.ErrFailed) {
			return fmt.Errorf("after the failure: %w, want ErrFailed", err)
		}
	}
	fmt.Println("stopped")
	_ = log.Close() // says that the disk is full, or not
	return nil
}

// childLocked says whether another process has SQLite's SHARED lock on the
// database.
func childLocked(dir string) error {
	f, err := os.Open(filepath.Join(dir, sqlite.FileName))
	if err != nil {
		return err
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 1<<30 + 2, Len: 510}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); err != nil {
		return err
	}
	fmt.Println("locked", lock.Type != unix.F_UNLCK)
	return f.Close()
}

// TestLocksStay: the locks of a process end when it closes any of its files of
// the database, as it might do to have a look at the disk after a damaged
// value. Without them an SQL shell could remove the WAL that batches go into.
func TestLocksStay(t *testing.T) {
	dir := t.TempDir()
	if err := fill(t, dir, 10, 2000).log.Close(); err != nil {
		t.Fatal(err)
	}
	corruptValue(t, dir, 1)
	log := openLog(t, dir)
	defer log.Close()
	if _, err := log.Values(context.Background(), []int64{1}); !errors.Is(err, eventlog.ErrCorrupt) {
		t.Fatalf("the damaged value: %v", err)
	}
	child, lines := startChild(t, "locked", dir)
	if !lines.Scan() || lines.Text() != "locked true" {
		t.Errorf("another process finds the database %q", lines.Text())
	}
	if err := child.Wait(); err != nil {
		t.Error(err)
	}
}

// TestDiskFull: the batch that is too large for SQLite's cache fails before
// its COMMIT, the other in it.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	for task, want := range map[string]string{
		"full-insert": "failed true unknown false",
		"full-commit": "failed true unknown true",
	} {
		t.Run(task, func(t *testing.T) {
			dir := t.TempDir()
			child, lines := startChild(t, task, dir)
			acknowledged := eventlog.Position(0)
			var said []string
			for lines.Scan() {
				if _, err := fmt.Sscanf(lines.Text(), "acknowledged %d", &acknowledged); err != nil {
					said = append(said, lines.Text())
				}
			}
			if err := child.Wait(); err != nil || !slices.Equal(said, []string{want, "stopped"}) || acknowledged == 0 {
				t.Fatalf("the child says %q after %d, %v; want %q", said, acknowledged, err, want)
			}
			log := openLog(t, dir)
			defer log.Close()
			var records []*eventlog.Record
			head, err := log.Load(context.Background(), func(r *eventlog.Record) error { records = append(records, r); return nil })
			if err != nil || head.Position != acknowledged && (task == "full-insert" || head.Position != acknowledged+1) {
				t.Fatalf("Load: head %+v, %v; %d was acknowledged", head, err, acknowledged)
			}
			checkMade(t, log, head, records)
		})
	}
}
