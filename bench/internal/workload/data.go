package workload

import (
	"context"
	"fmt"
	"math/rand/v2"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
)

// Data is what a server holds before a workload.
type Data struct {
	Keys      int
	Size      int // bytes of each value
	Revisions int // further revisions of the keys
}

// String names the data, also in paths.
func (d Data) String() string {
	return fmt.Sprintf("keys=%d,size=%d,revisions=%d", d.Keys, d.Size, d.Revisions)
}

// Where the keys are. The names are as long as those of Kubernetes.
const (
	prefix    = "/registry/pods/"
	newPrefix = "/registry/events/"
)

func key(i int) string {
	return fmt.Sprintf("%snamespace-%03d/workload-5d89f8b7c4-%07d", prefix, i/100000, i)
}

// noise is what values are cut from: no storage can make it smaller.
var noise = func() string {
	random := rand.New(rand.NewChaCha8([32]byte{1}))
	b := make([]byte, 4<<20)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	return string(b)
}()

func value(size int) string {
	at := rand.IntN(len(noise) - size)
	return noise[at : at+size]
}

const (
	loaders  = 16
	bulkPuts = 100 // in one transaction; etcd allows 128
	revisers = 200
)

// Load writes the data to an empty server.
func Load(ctx context.Context, env *Env, data Data) error {
	if data.Keys == 0 {
		return nil
	}
	if err := env.connect(revisers); err != nil {
		return err
	}
	if err := loadKeys(ctx, env, data); err != nil {
		return err
	}
	if data.Revisions > 0 {
		group, ctx := errgroup.WithContext(ctx)
		for w := range revisers {
			group.Go(func() error {
				for i := w; i < data.Revisions; i += revisers {
					if _, err := env.client(w).Put(ctx, key(i%data.Keys), value(data.Size)); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
	}
	return env.expectCount(ctx, prefix, data.Keys)
}

// loadKeys uses transactions of many puts where the server takes them. All
// keys are new, so that each is a create for those that do not.
func loadKeys(ctx context.Context, env *Env, data Data) error {
	group, ctx := errgroup.WithContext(ctx)
	for w := range loaders {
		group.Go(func() error {
			for from := w * bulkPuts; from < data.Keys; from += loaders * bulkPuts {
				to := min(from+bulkPuts, data.Keys)
				if env.Bulk {
					ops := make([]clientv3.Op, 0, bulkPuts)
					for i := from; i < to; i++ {
						ops = append(ops, clientv3.OpPut(key(i), value(data.Size)))
					}
					if _, err := env.client(w).Txn(ctx).Then(ops...).Commit(); err != nil {
						return err
					}
					continue
				}
				for i := from; i < to; i++ {
					if _, err := env.client(w).Put(ctx, key(i), value(data.Size)); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	return group.Wait()
}
