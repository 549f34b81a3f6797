package remote

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What a page should have: more pages would cost round trips, larger ones
// memory at both ends. mostKeys is of small keys, which large ones may follow: of
// 1.5 MiB, that is within the 2 GiB that gRPC can carry.
const (
	firstPage = 100
	mostKeys  = 1000
	pageBytes = 4 << 20
)

// Names that kine uses: a client's compact_rev_key has the other one there, and
// there is one of kine's own.
const (
	compactKey     = "compact_rev_key"
	kineCompactKey = "compact_rev_key_apiserver"
)

// lastKey is after every key that is UTF-8. Kine does not know the end that
// stands for no end, and PostgreSQL takes only UTF-8.
const lastKey = "\U0010ffff"

// reader reads all keys of a server as of one revision, in order.
type reader struct {
	client   *clientv3.Client
	kine     bool  // and not etcd or keelson
	revision int64 // 0: the newest, and then that of the first page
	limit    int64
}

// newReader fixes the revision: the newest one there is.
func newReader(ctx context.Context, client *clientv3.Client) (*reader, error) {
	resp, err := client.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithLimit(1), clientv3.WithKeysOnly())
	if err != nil {
		return nil, err
	}
	// Only kine's answers name no cluster.
	return &reader{client: client, kine: resp.Header.ClusterId == 0, revision: resp.Header.Revision, limit: firstPage}, nil
}

// each calls fn with every key, in order.
func (r *reader) each(ctx context.Context, fn func(*mvccpb.KeyValue) error) error {
	end := "\x00"
	if r.kine {
		end = lastKey
	}
	compactSeen := false
	for from := "\x00"; ; {
		resp, err := r.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(r.limit), clientv3.WithRev(r.revision))
		if status.Code(err) == codes.ResourceExhausted && r.limit > 1 {
			r.limit /= 2 // its keys are larger than those before
			continue
		}
		if errors.Is(err, rpctypes.ErrCompacted) {
			return fmt.Errorf("revision %d was compacted while it was read: try again, at a time with fewer writes: %w", r.revision, err)
		}
		if err != nil {
			return err
		}
		bytes := 0
		for _, kv := range resp.Kvs {
			bytes += len(kv.Key) + len(kv.Value)
			if r.kine && string(kv.Key) == compactKey {
				if kv.Version == 0 || compactSeen {
					continue
				}
				compactSeen = true
			}
			if err := fn(kv); err != nil {
				return err
			}
		}
		if !resp.More || len(resp.Kvs) == 0 {
			return nil
		}
		last := resp.Kvs[len(resp.Kvs)-1]
		from = string(last.Key) + "\x00"
		if r.kine && string(last.Key) == compactKey && last.Version > 0 {
			from = kineCompactKey + "\x00"
		}
		switch {
		case bytes > 2*pageBytes:
			r.limit = max(r.limit/2, 2)
		case bytes < pageBytes/2:
			r.limit = min(r.limit*2, mostKeys)
		}
	}
}
