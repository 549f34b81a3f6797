package cluster

import (
	"fmt"
	"sync"
	"sync/atomic"
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
	var passedOn atomic.Int32
	var took atomic.Int64
	const n = 20
	for i := range n {
		requests.Go(func() {
			_, err := raw.Put(t.Context(), &pb.PutRequest{Key: fmt.Append(nil, "paused", i)})
			switch got := status.Convert(err); {
			case err == nil: // it came when the leader was known to be gone
			case got.Code() == unknown.Code() && got.Message() == unknown.Message():
				passedOn.Add(1)
				took.Store(int64(time.Since(began)))
			default:
				t.Errorf("a put through a node that follows a paused leader: %v, want %v", err, unknown.Message())
			}
		})
	}
	c.serve("a pause of the leader", c.others(old)...)
	served := time.Since(began)
	requests.Wait()
	t.Logf("another node leads after %v; the last of %d requests that were passed on was answered after %v",
		served.Round(time.Millisecond), passedOn.Load(), time.Duration(took.Load()).Round(time.Millisecond))
	if passedOn.Load() == 0 {
		t.Error("no request was passed on")
	}
	// They time out after 7 seconds. On a machine so slow that an election takes
	// nearly as long there is nothing to tell by.
	if served < 3*time.Second && took.Load() > int64(6*time.Second) {
		t.Error("they were not answered before they had timed out")
	}
	faults.Signal(t, old.Server, syscall.SIGCONT)
	c.serve("the leader goes on", c.nodes...)
	for i := range n {
		resp, err := through.client.Get(t.Context(), fmt.Sprint("paused", i))
		if err != nil || len(resp.Kvs) > 0 && resp.Kvs[0].Version != 1 {
			t.Errorf("key %d: %v, %v", i, resp, err)
		}
	}
}
