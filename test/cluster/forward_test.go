package cluster

import (
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/status"

	"github.com/keelson-io/keelson/test/internal/faults"
)

// TestPausedLeader: requests that were passed on to a leader of which nothing is
// heard any more are answered soon after another node leads, and done once at
// most.
func TestPausedLeader(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	old := c.leader()
	through := c.others(old)[0]
	c.serve("the start", c.nodes...) // so that the ways are there
	raw := pb.NewKVClient(through.client.ActiveConnection())
	faults.Signal(t, old.Server, syscall.SIGSTOP)
	began := time.Now()
	unknown := status.Convert(rpctypes.ErrGRPCTimeoutDueToLeaderFail)
	var requests sync.WaitGroup
	const n = 20
	for i := range n {
		requests.Go(func() {
			_, err := raw.Put(t.Context(), &pb.PutRequest{Key: fmt.Append(nil, "paused", i)})
			if got := status.Convert(err); err == nil || got.Code() != unknown.Code() || got.Message() != unknown.Message() {
				t.Errorf("a put through a node that follows a paused leader: %v, want %v", err, unknown.Message())
			}
		})
	}
	requests.Wait()
	took := time.Since(began)
	t.Logf("they were answered after %v", took.Round(time.Millisecond))
	if took > 6*time.Second {
		t.Errorf("they were answered after %v: not before they had timed out", took)
	}
	c.serve("a pause of the leader", c.others(old)...)
	faults.Signal(t, old.Server, syscall.SIGCONT)
	c.serve("the leader goes on", c.nodes...)
	for i := range n {
		resp, err := through.client.Get(t.Context(), fmt.Sprint("paused", i))
		if err != nil || len(resp.Kvs) > 0 && resp.Kvs[0].Version != 1 {
			t.Errorf("key %d: %v, %v", i, resp, err)
		}
	}
}
