package server

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sys/unix"
)

// A hostile transaction must not take quadratic time: comparing every delete
// with every put would be three billion comparisons, and cost more than this
// even under the race detector. Only the time of this thread counts, however
// busy the machine is.
func TestCollectWritesIsNotQuadratic(t *testing.T) {
	var children []*pb.RequestOp
	for c := range 64 {
		var ops []*pb.RequestOp
		for i := range 63 {
			var grand []*pb.RequestOp
			for j := range 10 {
				key := fmt.Sprintf("%02d%02d%02d", c, i, j)
				grand = append(grand, opDelete(key+"d", ""), opPut(key+"p"))
			}
			ops = append(ops, opTxn(grand, nil))
		}
		children = append(children, opTxn(ops, nil))
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	start := threadTime(t)
	if err := checkTxn(&pb.TxnRequest{Success: children}, 1000); err != nil {
		t.Fatal(err)
	}
	if took := threadTime(t) - start; took > 5*time.Second {
		t.Errorf("checking 80640 operations took %v of CPU time", took)
	}
}

func threadTime(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}
