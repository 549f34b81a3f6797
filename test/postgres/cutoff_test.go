package postgres

import (
	"context"
	"errors"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-io/keelson/test/internal/faults"
)

// TestCutOff: an instance that does not reach the database says so, within a
// bounded time, to requests and to watches that require a leader, so that
// clients go on with another one; serializable reads it answers. It serves when
// the database is back.
func TestCutOff(t *testing.T) {
	for _, how := range []struct {
		name  string
		begin func(*instance)
	}{
		{"connections are refused", func(i *instance) { i.proxy.Cut() }},
		{"answers do not come", func(i *instance) { i.proxy.Stall() }},
	} {
		t.Run(how.name, func(t *testing.T) {
			t.Parallel()
			testCutOff(t, how.begin)
		})
	}
}

// bound is how long a request may take on an instance without a database, and
// a busy machine: keelson itself waits for 5 s.
const bound = faults.Patience

func testCutOff(t *testing.T, begin func(*instance)) {
	c := startCluster(t, 2)
	cut, whole := c.instances[0].client(t), c.instances[1].client(t)
	if _, err := cut.Put(t.Context(), "k", "before"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	demanding := cut.Watch(clientv3.WithRequireLeader(ctx), "k", clientv3.WithCreatedNotify())
	patient := cut.Watch(ctx, "k", clientv3.WithCreatedNotify())
	for _, w := range []clientv3.WatchChan{demanding, patient} {
		if resp := <-w; !resp.Created {
			t.Fatalf("a new watch: %+v", resp)
		}
	}

	begin(c.instances[0])
	began, ended := time.Now(), make(chan time.Duration, 1)
	go func() {
		resp, ok := <-demanding
		if ok && !errors.Is(resp.Err(), rpctypes.ErrNoLeader) {
			t.Errorf("the watch that requires a leader gives %+v, %v", resp, resp.Err())
		}
		ended <- time.Since(began)
	}()
	requestsFail(t, cut)
	stale, err := cut.Get(t.Context(), "k", clientv3.WithSerializable())
	if err != nil || len(stale.Kvs) != 1 || string(stale.Kvs[0].Value) != "before" {
		t.Errorf("a serializable read without the database: %v, %v", stale, err)
	}
	select {
	case took := <-ended:
		t.Logf("the watch that requires a leader ended after %v", took.Round(time.Millisecond))
	case <-time.After(bound):
		t.Error("the watch that requires a leader goes on without the database")
	}
	if _, err := whole.Put(t.Context(), "k", "after"); err != nil {
		t.Errorf("a put through the other instance: %v", err)
	}

	c.instances[0].proxy.Resume()
	took := faults.Retry(t, "a put through the instance that was cut off", func(ctx context.Context) error {
		_, err := cut.Put(ctx, "k", "again")
		return err
	})
	t.Logf("it serves %v after the database is back", took.Round(time.Millisecond))
	var values []string
	for resp := range patient {
		for _, ev := range resp.Events {
			values = append(values, string(ev.Kv.Value))
		}
		if n := len(values); n > 0 && values[n-1] == "again" {
			break
		}
	}
	t.Logf("the watch that waited has seen %q", values)
}

// requestsFail: what needs the database gets Unavailable.
func requestsFail(t *testing.T, c *clientv3.Client) {
	t.Helper()
	// Not by c itself, which tries again.
	kv, leases := pb.NewKVClient(c.ActiveConnection()), pb.NewLeaseClient(c.ActiveConnection())
	key := []byte("k")
	for name, request := range map[string]func(context.Context) error{
		"get": func(ctx context.Context) error { _, err := kv.Range(ctx, &pb.RangeRequest{Key: key}); return err },
		"put": func(ctx context.Context) error { _, err := kv.Put(ctx, &pb.PutRequest{Key: key}); return err },
		"grant": func(ctx context.Context) error {
			_, err := leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60})
			return err
		},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), bound)
		asked := time.Now()
		err := request(ctx)
		cancel()
		took := time.Since(asked).Round(time.Millisecond)
		if status.Code(err) != codes.Unavailable {
			t.Errorf("a %s without the database gives %v after %v", name, err, took)
			continue
		}
		t.Logf("a %s without the database gives %q after %v", name, err, took)
	}
}
