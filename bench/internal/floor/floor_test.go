package floor

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/keelson-io/keelson/bench/internal/workload"
)

func serve(t *testing.T, data workload.Data) *clientv3.Client {
	t.Helper()
	dir := t.TempDir()
	b, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	file, socket := filepath.Join(dir, "data"), filepath.Join(dir, "s")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, file, socket) }()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + socket}, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	return c
}

// The workloads of the bench check what they read: it must be all there.
func TestFloorAnswersAsIfItHadTheKeys(t *testing.T) {
	c := serve(t, workload.Data{Keys: 1000, Size: 100})
	all, err := c.Get(t.Context(), "/registry/", clientv3.WithPrefix())
	if err != nil || len(all.Kvs) != 1000 || all.Count != 1000 || all.More || all.Header.GetRevision() != 1 {
		t.Fatalf("%d keys, %v", len(all.Kvs), err)
	}
	kv := all.Kvs[999]
	if string(kv.Key) != workload.Key(999) || len(kv.Value) != 100 || kv.ModRevision != 1 {
		t.Errorf("the last key: %v", kv)
	}
	page, err := c.Get(t.Context(), workload.Key(998), clientv3.WithFromKey(), clientv3.WithLimit(1))
	if err != nil || len(page.Kvs) != 1 || !page.More || page.Count != 2 || string(page.Kvs[0].Key) != workload.Key(998) {
		t.Errorf("a page: %v, %v", page, err)
	}
	one, err := c.Get(t.Context(), workload.Key(5))
	if err != nil || len(one.Kvs) != 1 || string(one.Kvs[0].Key) != workload.Key(5) || one.Count != 1 {
		t.Errorf("one key: %v, %v", one, err)
	}
	none, err := c.Get(t.Context(), "nothing")
	if err != nil || len(none.Kvs) != 0 || none.Count != 0 {
		t.Errorf("no key: %v, %v", none, err)
	}
	keys, err := c.Get(t.Context(), "/registry/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil || len(keys.Kvs) != 1000 || len(keys.Kvs[0].Value) != 0 {
		t.Errorf("%d keys alone, %v", len(keys.Kvs), err)
	}
	count, err := c.Get(t.Context(), "/registry/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || count.Count != 1000 || len(count.Kvs) != 0 {
		t.Errorf("a count: %v, %v", count, err)
	}
}

func TestFloorAcknowledgesWrites(t *testing.T) {
	c := serve(t, workload.Data{Keys: 1, Size: 1})
	if put, err := c.Put(t.Context(), "a", "b"); err != nil || put.Header.GetRevision() != 1 {
		t.Errorf("%v, %v", put, err)
	}
	txn, err := c.Txn(t.Context()).Then(clientv3.OpPut("a", "b")).Commit()
	if err != nil || !txn.Succeeded || len(txn.Responses) != 1 || txn.Responses[0].GetResponsePut() == nil {
		t.Errorf("%v, %v", txn, err)
	}
	if _, err := c.Delete(t.Context(), "a"); err == nil {
		t.Error("what it does not have is no error")
	}
}
