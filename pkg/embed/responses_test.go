package embed

import (
	"fmt"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestLargeResponses has no room for any response, so that each is served
// alone.
func TestLargeResponses(t *testing.T) {
	t.Parallel()
	s, _ := start(t, Config{ResponseBytes: 2})
	c := clientOf(t, s)
	for i := range 100 {
		if _, err := c.Put(t.Context(), fmt.Sprintf("k%02d", i), strings.Repeat("v", 1024)); err != nil {
			t.Fatal(err)
		}
	}
	answers := make(chan error)
	for range 4 {
		go func() {
			resp, err := c.Get(t.Context(), "k", clientv3.WithPrefix())
			if err == nil && len(resp.Kvs) != 100 {
				err = fmt.Errorf("%d keys", len(resp.Kvs))
			}
			answers <- err
		}()
	}
	for range 4 {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
}
