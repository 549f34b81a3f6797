package cmd

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/pkg/drivers/postgres/pgtest"
)

func (p *process) logged(text string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Contains(p.log.String(), text)
}

// TestPasswordIsNotShown: a password that is not on the command line is
// neither among the processes nor in the log; of one that is the log warns.
func TestPasswordIsNotShown(t *testing.T) {
	db := pgtest.ForTest(t)
	socket := func(dir string) string { return "--listen-client-urls=unix://" + dir + "/k.sock" }
	dir := shortDir(t)
	p := startProcess(t, dir, []string{"KEELSON_DATASTORE=" + db.URL("postgres")}, "--data-dir="+dir, "--log-level=debug", socket(dir))
	p.says(ready)
	arguments, err := os.ReadFile("/proc/" + strconv.Itoa(p.Process.Pid) + "/cmdline")
	if err != nil {
		t.Skipf("/proc, which has the arguments of processes, is missing: %v", err)
	}
	if strings.Contains(string(arguments), pgtest.Password) {
		t.Errorf("the arguments are %q", arguments)
	}
	p.signal(syscall.SIGTERM)
	if code := p.ends(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if p.logged(pgtest.Password) {
		t.Error("the log shows the password")
	}

	dir = shortDir(t)
	p = startProcess(t, dir, nil, "--data-dir="+dir, "--datastore="+db.URL("postgres"), socket(dir))
	p.says("every user of this machine can see the database's password")
	p.says(ready)
	p.signal(syscall.SIGTERM)
	p.ends()
	if p.logged(pgtest.Password) {
		t.Error("the log shows the password")
	}
}

// slowEnv asks for the tests that wait for an instance that does not come
// back.
const slowEnv = "KEELSON_POSTGRES"

// What a lessor that is gone may cost: its term, the next look at the row, and
// some slack. After that every lease starts in full.
const takeOver = 15*time.Second + 2*time.Second + 2*time.Second

// twoInstances starts two on one database, of which the first expires leases,
// and returns it with a client of the second.
func twoInstances(t *testing.T) (lessor *process, c *clientv3.Client, second *process) {
	t.Helper()
	if os.Getenv(slowEnv) != "all" {
		t.Skipf("takes half a minute: set %s=all", slowEnv)
	}
	env := []string{"KEELSON_DATASTORE=" + pgtest.ForTest(t).URL("postgres")}
	start := func(name string) (*process, string) {
		dir := shortDir(t)
		url := "unix://" + dir + "/k.sock"
		return startProcess(t, dir, env, "--name="+name, "--data-dir="+dir, "--listen-client-urls="+url), url
	}
	lessor, _ = start("a")
	lessor.says("this instance expires leases")
	second, url := start("b")
	second.says(ready)
	return lessor, connect(t, url), second
}

// lease grants a lease of ttl seconds with a key of its name.
func lease(ctx context.Context, t *testing.T, c *clientv3.Client, key string, ttl int64) clientv3.LeaseID {
	t.Helper()
	granted, err := c.Grant(ctx, ttl)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(ctx, key, "", clientv3.WithLease(granted.ID)); err != nil {
		t.Fatal(err)
	}
	return granted.ID
}

// waitGone waits until key is deleted.
func waitGone(ctx context.Context, t *testing.T, c *clientv3.Client, key string) {
	t.Helper()
	for ctx.Err() == nil {
		got, err := c.Get(ctx, key)
		if err == nil && len(got.Kvs) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s is still there", key)
}

// TestLessorKilled kills the instance that expires leases. Another takes over
// in time; no lease ends early, and one that is kept alive does not end.
func TestLessorKilled(t *testing.T) {
	lessor, c, second := twoInstances(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const ttl = 5
	short, kept := lease(ctx, t, c, "short", ttl), lease(ctx, t, c, "kept", ttl)
	renewals, err := c.KeepAlive(ctx, kept)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for range renewals { // so that they go on
		}
	}()
	if _, err := c.KeepAliveOnce(ctx, short); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	lessor.signal(syscall.SIGKILL)
	second.says("this instance expires leases")
	took := time.Since(start)
	waitGone(ctx, t, c, "short")
	gone := time.Since(start)
	t.Logf("the other instance took over after %v, the lease of %d s ended after %v", took, ttl, gone)
	if took > takeOver {
		t.Errorf("the other instance took over after %v, want less than %v", took, takeOver)
	}
	if gone < took+ttl*time.Second-time.Second || gone > took+(ttl+3)*time.Second {
		t.Errorf("the lease of %d s ended %v after that", ttl, gone-took)
	}
	if got, err := c.Get(ctx, "kept"); err != nil || len(got.Kvs) != 1 {
		t.Errorf("the lease that is kept alive: %v, %v", got, err)
	}
	if _, err := c.KeepAliveOnce(ctx, short); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Errorf("the lease that has ended is kept alive: %v", err)
	}
}

// TestLessorPaused stops the instance that expires leases for longer than its
// term, with leases whose time is over when it wakes up, as it knows it. It
// must not revoke them: they were renewed, or another has started them anew.
func TestLessorPaused(t *testing.T) {
	lessor, c, second := twoInstances(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const ttl = 10
	for _, key := range []string{"x", "y", "z"} {
		lease(ctx, t, c, key, ttl)
	}
	time.Sleep(time.Second)
	lessor.signal(syscall.SIGSTOP)
	second.says("this instance expires leases")
	took := time.Now()
	lessor.signal(syscall.SIGCONT)
	lessor.says("this instance expires leases no more")
	for time.Since(took) < (ttl-1)*time.Second {
		if got, err := c.Get(ctx, "", clientv3.WithPrefix()); err != nil || len(got.Kvs) != 3 {
			t.Fatalf("%v after another had taken over: %v, %v, want 3 keys", time.Since(took), got, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	for _, key := range []string{"x", "y", "z"} {
		waitGone(ctx, t, c, key)
	}
	if late := time.Since(took); late > (ttl+3)*time.Second {
		t.Errorf("leases of %d s ended after %v", ttl, late)
	}
}
