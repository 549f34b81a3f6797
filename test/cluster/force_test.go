package cluster

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"testing"

	"github.com/keelson-io/keelson/test/harness"
	"github.com/keelson-io/keelson/test/internal/faults"
)

// ends is what keelson check says of the last entry of a Raft log, and of the
// database.
var ends = regexp.MustCompile(`entries \d+ to (\d+), the last of term (\d+), committed up to \d+(?s:.*), revision (\d+), compacted`)

// lastEntry returns the term and the index of the last entry that x, which does not
// run, has in its Raft log.
func (x *node) lastEntry(t *testing.T) (term, index int) {
	t.Helper()
	found := x.checked(t)
	_, _ = fmt.Sscan(found[1], &index)
	_, _ = fmt.Sscan(found[2], &term)
	return term, index
}

// databaseEnd returns the revision of the database of x, which does not run.
func (x *node) databaseEnd(t *testing.T) (revision int64) {
	t.Helper()
	_, _ = fmt.Sscan(x.checked(t)[3], &revision)
	return revision
}

func (x *node) checked(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command(harness.KeelsonBinary(t), "check", "--data-dir", x.dataFile()).CombinedOutput()
	found := ends.FindStringSubmatch(string(out))
	if err != nil || found == nil {
		t.Fatalf("keelson check of %s: %v\n%s", x.name, err, out)
	}
	return found
}

// TestForceNewCluster loses three of five nodes for good, and goes on with the one
// of the others that docs/cluster.md says, which has what was acknowledged last.
// Two nodes had been stopped before that.
func TestForceNewCluster(t *testing.T) {
	t.Parallel() // it waits, mostly
	c := startCluster(t, 5)
	leader := c.leader()
	stopped := c.others(leader)[:2]
	for _, x := range stopped {
		if err := x.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	running := c.others(stopped...)
	faults.Retry(t, "a write", func(ctx context.Context) error {
		_, err := leader.client.Put(ctx, "acked", "1")
		return err
	})
	for _, x := range running {
		x.Kill()
	}
	left := []*node{stopped[0], without(running, leader)[0]}
	best, bestTerm, bestIndex := (*node)(nil), 0, 0
	for _, x := range left {
		term, index := x.lastEntry(t)
		t.Logf("%s ends with entry %d of term %d", x.name, index, term)
		if term > bestTerm || term == bestTerm && index > bestIndex {
			best, bestTerm, bestIndex = x, term, index
		}
	}
	for _, args := range [][]string{{"--force-new-cluster"}, nil} {
		alone := c.server(best, append(args, "--data-dir", best.dataFile())...)
		alone.Restart()
		client := faults.NewClient(t, alone.Endpoint)
		if got, err := client.Get(t.Context(), "acked"); err != nil || len(got.Kvs) != 1 {
			t.Errorf("%v: what was acknowledged is not there: %v, %v", args, got, err)
		}
		if list, err := client.MemberList(t.Context()); err != nil || len(list.Members) != 1 {
			t.Errorf("%v: the members are %v, %v", args, list, err)
		}
		if err := alone.Stop(); err != nil {
			t.Fatal(err)
		}
	}
}
