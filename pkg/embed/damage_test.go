package embed

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
)

// TestClusterFindsDamage: a node that finds its own data damaged gets the alarm,
// whether the leader asks it or it leads itself; then it leads no more.
func TestClusterFindsDamage(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	nodes := startNodes(t, dir)
	leader, _ := leaderAmong(t, nodes)
	if _, err := leader.client.Put(ctx, "k", "value"); err != nil {
		t.Fatalf("Put: %v", err)
	}
	sameHash(ctx, t, nodes)
	const damaged = 1
	if err := nodes[damaged].Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	damageValue(t, filepath.Join(dir, fmt.Sprint("n", damaged+1)), "k")
	nodes[damaged] = startNode(t, nodeConfig(dir, damaged+1, ClusterStateNew, 1, 2, 3))
	for _, leads := range []bool{false, true} {
		want := nodes[0]
		if leads {
			want = nodes[damaged]
		}
		leader, _ := leaderAmong(t, nodes)
		for leader.Server != want.Server { // on a busy machine it may move by itself
			_, _ = leader.client.MoveLeader(ctx, want.backend.memberID)
			leader, _ = leaderAmong(t, nodes)
		}
		for {
			err := leader.backend.cluster.compare(ctx)
			if err == nil {
				break
			}
			t.Logf("compare: %v", err)
			if ctx.Err() != nil {
				t.Fatal("the nodes cannot be compared")
			}
		}
		awaitCorrupt(ctx, t, leader, nodes[damaged])
		if _, err := leader.client.Put(ctx, "k", "other"); !errors.Is(err, rpctypes.ErrCorrupt) {
			t.Errorf("Put with damaged data: %v", err)
		}
		if after, _ := leaderAmong(t, nodes); after.Server == nodes[damaged].Server {
			t.Errorf("the damaged node leads (%t: it did before)", leads)
		}
		list, err := leader.client.AlarmList(ctx)
		if err != nil {
			t.Fatalf("AlarmList: %v", err)
		}
		for _, alarm := range list.Alarms {
			if _, err := leader.client.AlarmDisarm(ctx, (*clientv3.AlarmMember)(alarm)); err != nil {
				t.Fatalf("AlarmDisarm: %v", err)
			}
		}
	}
}

// damageValue changes the values of key in the database of a node that is not
// running, and no checksum.
func damageValue(t *testing.T, dir, key string) {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, sqlite.FileName))
	if err != nil {
		t.Fatal(err)
	}
	result, err := db.ExecContext(t.Context(), "UPDATE log SET value = x'7a7a' WHERE key = ?", []byte(key))
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if n, err := result.RowsAffected(); n == 0 || err != nil {
		t.Fatalf("%d rows of %q, %v", n, key, err)
	}
}
