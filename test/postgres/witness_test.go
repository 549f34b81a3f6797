package postgres

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/test/internal/faults"
)

// jump is what the revision is raised by when commits are lost, at least.
const jump = 1_000_000

// TestLateWitness: the one instance that has seen the lost commits is paused
// while the other, which has not, goes on after a failover and gives their
// revisions to other writes; nobody can know. When it comes back it notices:
// its clients read nothing but what is there, its watches do not go on with
// other events of revisions they are past, and the revision rises for all.
func TestLateWitness(t *testing.T) {
	t.Parallel()
	p := startPair(t)
	witness, other := p.instances[0], p.instances[1]
	w, o := witness.client(t), other.client(t)
	base := putMany(t, w, "both", 20)
	told := map[string]clientv3.WatchChan{}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for name, c := range map[string]*clientv3.Client{"the witness": w, "the other": o} {
		told[name] = c.Watch(ctx, "k", clientv3.WithRev(base+1), clientv3.WithCreatedNotify())
		if resp := <-told[name]; !resp.Created {
			t.Fatalf("a new watch: %+v", resp)
		}
	}
	other.proxy.Cut()
	p.caughtUp()
	p.disconnect()
	lost := putMany(t, w, "lost", 30)
	faults.Signal(t, witness.Server, syscall.SIGSTOP)
	p.failOver()
	// A little more than was lost: the same positions have other batches.
	reused := putMany(t, o, "kept", 50)
	if reused > lost+jump/2 {
		t.Fatalf("revision %d: the other instance has seen what was lost", reused)
	}
	faults.Signal(t, witness.Server, syscall.SIGCONT)

	faults.Retry(t, "a read through the witness", func(ctx context.Context) error {
		resp, err := w.Get(ctx, "k")
		if err == nil && string(resp.Kvs[0].Value) != "kept-49" {
			t.Errorf("the witness reads %s at revision %d", resp.Kvs[0].Value, resp.Header.Revision)
		}
		return err
	})
	for name, c := range map[string]*clientv3.Client{"the witness": w, "the other": o} {
		revision := int64(0)
		faults.Retry(t, "a put through "+name, func(ctx context.Context) error {
			resp, err := c.Put(ctx, "after", name)
			if err == nil {
				revision = resp.Header.Revision
			}
			return err
		})
		if revision < reused+jump/2 {
			t.Errorf("a put through %s gets revision %d after %d was lost", name, revision, lost)
		}
	}
	watchedOnce(t, "the witness", told["the witness"], "lost", base, lost)
	watchedOnce(t, "the other", told["the other"], "kept", base, reused)
}

// putMany puts values one after the other and returns the last one's revision.
func putMany(t *testing.T, c *clientv3.Client, what string, n int) (revision int64) {
	t.Helper()
	for i := range n {
		faults.Retry(t, "a put of "+what, func(ctx context.Context) error {
			resp, err := c.Put(ctx, "k", fmt.Sprintf("%s-%d", what, i))
			if err == nil {
				revision = resp.Header.Revision
			}
			return err
		})
	}
	return revision
}

// watchedOnce: a watch saw one of the two pasts, and was then ended.
func watchedOnce(t *testing.T, who string, told clientv3.WatchChan, past string, base, last int64) {
	t.Helper()
	at := base
	limit := time.After(faults.Patience)
	for {
		select {
		case resp, ok := <-told:
			if err := resp.Err(); !ok || err != nil {
				t.Logf("the watch of %s ended at revision %d: %v", who, at, err)
				return
			}
			for _, ev := range resp.Events {
				checkPast(t, who, ev.Kv, past, last)
				at = ev.Kv.ModRevision
			}
		case <-limit:
			t.Fatalf("the watch of %s goes on, it is at revision %d", who, at)
		}
	}
}

func checkPast(t *testing.T, who string, kv *mvccpb.KeyValue, past string, last int64) {
	t.Helper()
	var n int
	if _, err := fmt.Sscanf(string(kv.Value), past+"-%d", &n); err != nil || kv.ModRevision > last {
		t.Errorf("the watch of %s, in whose past there is %q up to %d, was told of %s at %d", who, past, last, kv.Value, kv.ModRevision)
	}
}
