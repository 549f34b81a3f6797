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

// Key is the i-th key of the data.
func Key(i int) string { return key(i) }

// Value is a value of some bytes.
func Value(size int) string { return value(size) }

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
	bulkLoaders = 16
	bulkPuts    = 100 // in one transaction; etcd allows 128
	bulkWriters = 200
)

// Load writes the data to an empty server.
func Load(ctx context.Context, env *Env, data Data) error {
	if data.Keys == 0 {
		return nil
	}
	env.Data = data
	load, writers := loadSingly, env.Loaders
	if env.Bulk {
		load, writers = loadBulk, bulkWriters
	}
	if err := env.connect(writers); err != nil {
		return err
	}
	if err := load(ctx, env, data); err != nil {
		return err
	}
	if data.Revisions > 0 {
		if err := loadRevisions(ctx, env, data, writers); err != nil {
			return err
		}
	}
	return env.expectCount(ctx, prefix, data.Keys)
}

func loadBulk(ctx context.Context, env *Env, data Data) error {
	group, ctx := errgroup.WithContext(ctx)
	for w := range bulkLoaders {
		group.Go(func() error {
			for from := w * bulkPuts; from < data.Keys; from += bulkLoaders * bulkPuts {
				var puts []clientv3.Op
				for i := from; i < min(from+bulkPuts, data.Keys); i++ {
					puts = append(puts, clientv3.OpPut(key(i), value(data.Size)))
				}
				if _, err := env.client(w).Txn(ctx).Then(puts...).Commit(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

func loadSingly(ctx context.Context, env *Env, data Data) error {
	group, ctx := errgroup.WithContext(ctx)
	for w := range env.Loaders {
		group.Go(func() error {
			for i := w; i < data.Keys; i += env.Loaders {
				if _, err := succeeded(createTxn(ctx, env.client(w), key(i), value(data.Size))); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// loadRevisions updates the keys one after the other, each always by the same writer.
func loadRevisions(ctx context.Context, env *Env, data Data, writers int) error {
	revisions, err := env.revisions(ctx)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for w := range writers {
		group.Go(func() error {
			i := w
			for n := w; n < data.Revisions; n += writers {
				var err error
				if revisions[i], err = env.revise(ctx, w, i, revisions[i]); err != nil {
					return err
				}
				if i += writers; i >= data.Keys {
					i = w
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// revise makes a new revision of a key. kine may, once in a million updates,
// answer that the comparison failed though nobody else writes the key; while
// data is loaded that is no matter.
func (e *Env) revise(ctx context.Context, client, i int, revision int64) (int64, error) {
	for {
		resp, err := updateTxn(ctx, e.client(client), key(i), value(e.Data.Size), revision)
		if err != nil {
			return 0, err
		}
		if resp.Succeeded {
			return resp.Header.Revision, nil
		}
		found := resp.Responses[0].GetResponseRange().GetKvs()
		if e.Bulk || len(found) != 1 {
			return 0, fmt.Errorf("the comparison of a transaction failed at revision %d", resp.Header.Revision)
		}
		revision = found[0].ModRevision
	}
}
