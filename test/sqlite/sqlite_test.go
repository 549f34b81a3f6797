// Package sqlite harms the files that a keelson has its data in: flipped bits
// and torn pages, and a disk that is full or becomes read-only. There is
// nothing of it on PostgreSQL, whose files are its own.
package sqlite

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-io/keelson/test/harness"
)

const patience = 3 * time.Minute

// onSQLite is for StartServer, whatever KEELSON_TEST_DATASTORE says.
var onSQLite = []string{"--datastore", "sqlite"}

func newClient(t *testing.T, s *harness.Server) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{s.Endpoint}, DialTimeout: 10 * time.Second,
		Logger: zap.NewNop(), // it warns of every request that fails
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// get retries while the client finds its way back to the server.
func get(t *testing.T, c *clientv3.Client, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		resp, err := c.Get(ctx, key, opts...)
		if err == nil || ctx.Err() != nil || status.Code(err) != codes.Unavailable {
			return resp, err
		}
	}
}
