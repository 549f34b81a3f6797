package workload

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// runner makes a Runner of functions; only run is needed.
type runner struct {
	prepare func(ctx context.Context) error
	run     func(ctx context.Context, d time.Duration) (Measured, error)
	check   func(ctx context.Context) error
}

func (r *runner) Prepare(ctx context.Context) error {
	if r.prepare == nil {
		return nil
	}
	return r.prepare(ctx)
}

func (r *runner) Run(ctx context.Context, d time.Duration) (Measured, error) { return r.run(ctx, d) }

func (r *runner) Check(ctx context.Context) error {
	if r.check == nil {
		return nil
	}
	return r.check(ctx)
}

// own returns a random one of the keys that only this client writes.
func (e *Env) own(client int) int {
	return client + e.Clients*rand.IntN(e.Data.Keys/e.Clients)
}

// errPutLost is kine's, as of 0.16.4: its put compares the key's revision with
// the revision of the whole store, and answers success where they differ.
var errPutLost = errors.New("not supported: a put of an existing key is acknowledged and has no effect")

func (e *Env) tryPut(ctx context.Context) error {
	if e.Forgets {
		return nil
	}
	for _, v := range []string{value(e.Data.Size), value(e.Data.Size)} {
		for _, i := range []int{0, 1} {
			if _, err := e.client(0).Put(ctx, key(i), v); err != nil {
				return err
			}
		}
		resp, err := e.client(0).Get(ctx, key(0))
		if err != nil {
			return err
		}
		if len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != v {
			return errPutLost
		}
	}
	return nil
}

func openPut(ctx context.Context, e *Env) (Runner, error) {
	if err := e.connect(e.Clients); err != nil {
		return nil, err
	}
	if err := e.tryPut(ctx); err != nil {
		return nil, err
	}
	last := make([]string, e.Data.Keys) // each element belongs to the client of its key
	put := func(ctx context.Context, client int) error {
		i, v := e.own(client), value(e.Data.Size)
		last[i] = v
		_, err := e.client(client).Put(ctx, key(i), v)
		return err
	}
	return &runner{
		run: func(ctx context.Context, d time.Duration) (Measured, error) {
			return closedLoop(ctx, e.Clients, d, always(put))
		},
		check: func(ctx context.Context) error { return e.checkWritten(ctx, last) },
	}, nil
}

// checkWritten reads some of what was written last.
func (e *Env) checkWritten(ctx context.Context, last []string) error {
	left := 100
	for i, want := range last {
		if want == "" {
			continue
		}
		resp, err := e.client(0).Get(ctx, key(i))
		if err != nil {
			return err
		}
		if len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != want {
			return fmt.Errorf("%s does not have the value written last", key(i))
		}
		if left--; left == 0 {
			break
		}
	}
	return e.expectCount(ctx, prefix, e.Data.Keys)
}

// The transactions below are those of kube-apiserver's etcd3 storage.

func createTxn(ctx context.Context, c *clientv3.Client, key, value string, opts ...clientv3.OpOption) (*clientv3.TxnResponse, error) {
	return c.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, value, opts...)).
		Commit()
}

func updateTxn(ctx context.Context, c *clientv3.Client, key, value string, revision int64) (*clientv3.TxnResponse, error) {
	return c.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).
		Then(clientv3.OpPut(key, value)).
		Else(clientv3.OpGet(key)).
		Commit()
}

func deleteTxn(ctx context.Context, c *clientv3.Client, key string, revision int64) (*clientv3.TxnResponse, error) {
	return c.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).
		Then(clientv3.OpDelete(key)).
		Else(clientv3.OpGet(key)).
		Commit()
}

// succeeded returns the revision of a transaction whose comparison must hold.
func succeeded(resp *clientv3.TxnResponse, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	if !resp.Succeeded {
		return 0, fmt.Errorf("the comparison of a transaction failed at revision %d", resp.Header.Revision)
	}
	return resp.Header.Revision, nil
}

func openCreate(_ context.Context, e *Env) (Runner, error) {
	var made atomic.Int64
	create := func(ctx context.Context, client int) error {
		name := fmt.Sprintf("%snamespace-000/workload-%09d", newPrefix, made.Add(1))
		_, err := succeeded(createTxn(ctx, e.client(client), name, value(e.Data.Size)))
		return err
	}
	return &runner{
		run: func(ctx context.Context, d time.Duration) (Measured, error) {
			return closedLoop(ctx, e.Clients, d, always(create))
		},
		check: func(ctx context.Context) error { return e.expectCount(ctx, newPrefix, int(made.Load())) },
	}, e.connect(e.Clients)
}

// revisions asks for the revision of each loaded key.
func (e *Env) revisions(ctx context.Context) ([]int64, error) {
	resp, err := e.client(0).Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, err
	}
	if len(resp.Kvs) != e.Data.Keys {
		return nil, fmt.Errorf("%d keys are there; there should be %d", len(resp.Kvs), e.Data.Keys)
	}
	revisions := make([]int64, len(resp.Kvs))
	for i, kv := range resp.Kvs {
		revisions[i] = kv.ModRevision
	}
	return revisions, nil
}

func openUpdate(ctx context.Context, e *Env) (Runner, error) {
	if err := e.connect(e.Clients); err != nil {
		return nil, err
	}
	revisions, err := e.revisions(ctx)
	if err != nil {
		return nil, err
	}
	last := make([]string, e.Data.Keys)
	update := func(ctx context.Context, client int) error {
		i, v := e.own(client), value(e.Data.Size)
		revision, err := succeeded(updateTxn(ctx, e.client(client), key(i), v, revisions[i]))
		revisions[i], last[i] = revision, v
		return err
	}
	return &runner{
		run: func(ctx context.Context, d time.Duration) (Measured, error) {
			return closedLoop(ctx, e.Clients, d, always(update))
		},
		check: func(ctx context.Context) error { return e.checkWritten(ctx, last) },
	}, nil
}

// longestMaking is how long Prepare creates what is to be deleted: a slow
// system needs less of it.
const longestMaking = 3 * time.Second

// openDelete deletes what Prepare has created, until there is no more.
func openDelete(_ context.Context, e *Env) (Runner, error) {
	type victim struct {
		key      string
		revision int64
	}
	made := 0
	stock := make([][]victim, e.Clients) // each element belongs to its client
	perWindow := max(2000, 100*e.Clients)
	return &runner{
		prepare: func(ctx context.Context) error {
			makers := max(bulkLoaders, e.Clients)
			first := made
			made += perWindow
			victims := make([]victim, perWindow)
			_, err := closedLoop(ctx, makers, longestMaking, counted(perWindow, func(ctx context.Context, client, i int) error {
				name := fmt.Sprintf("%snamespace-000/workload-%09d", newPrefix, first+i)
				revision, err := succeeded(createTxn(ctx, e.client(client), name, value(e.Data.Size)))
				victims[i] = victim{name, revision}
				return err
			}))
			for i, v := range victims {
				if v.revision > 0 {
					stock[i%e.Clients] = append(stock[i%e.Clients], v)
				}
			}
			return err
		},
		run: func(ctx context.Context, d time.Duration) (Measured, error) {
			return closedLoop(ctx, e.Clients, d, func(ctx context.Context, client int) (bool, error) {
				mine := stock[client]
				if len(mine) == 0 {
					return false, nil
				}
				stock[client] = mine[1:]
				_, err := succeeded(deleteTxn(ctx, e.client(client), mine[0].key, mine[0].revision))
				return true, err
			})
		},
		check: func(ctx context.Context) error {
			left := 0
			for _, mine := range stock {
				left += len(mine)
			}
			return e.expectCount(ctx, newPrefix, left)
		},
	}, e.connect(max(bulkLoaders, e.Clients))
}

// counted makes an op of closedLoop that runs out after n calls, numbered from 0.
func counted(n int, op func(ctx context.Context, client, i int) error) func(context.Context, int) (bool, error) {
	var next atomic.Int64
	return func(ctx context.Context, client int) (bool, error) {
		i := int(next.Add(1) - 1)
		if i >= n {
			return false, nil
		}
		return true, op(ctx, client, i)
	}
}

// read makes a Runner of one request that changes nothing.
func read(op func(ctx context.Context, e *Env, client int) error) func(context.Context, *Env) (Runner, error) {
	return func(ctx context.Context, e *Env) (Runner, error) {
		if err := e.connect(e.Clients); err != nil {
			return nil, err
		}
		// What a server does not have is found out before the first window.
		if err := op(ctx, e, 0); err != nil {
			return nil, err
		}
		return &runner{run: func(ctx context.Context, d time.Duration) (Measured, error) {
			return closedLoop(ctx, e.Clients, d, always(func(ctx context.Context, client int) error {
				return op(ctx, e, client)
			}))
		}}, nil
	}
}

func get(opts ...clientv3.OpOption) func(ctx context.Context, e *Env, client int) error {
	return func(ctx context.Context, e *Env, client int) error {
		name := key(rand.IntN(e.Data.Keys))
		resp, err := e.client(client).Get(ctx, name, opts...)
		if err != nil {
			return err
		}
		if len(resp.Kvs) != 1 || string(resp.Kvs[0].Key) != name || len(resp.Kvs[0].Value) != e.Data.Size {
			return fmt.Errorf("get of %s: %d keys", name, len(resp.Kvs))
		}
		return nil
	}
}

func listWhole(ctx context.Context, e *Env, client int) error {
	resp, err := e.client(client).Get(ctx, prefix, clientv3.WithPrefix())
	if err == nil && len(resp.Kvs) != e.Data.Keys {
		err = fmt.Errorf("list: %d keys; there are %d", len(resp.Kvs), e.Data.Keys)
	}
	return err
}

func listStream(ctx context.Context, e *Env, client int) error {
	stream, err := e.client(client).GetStream(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	n := 0
	for part := range stream {
		if err := part.Err(); err != nil {
			return err
		}
		n += len(part.Kvs)
	}
	if n != e.Data.Keys {
		return fmt.Errorf("streamed list: %d keys; there are %d", n, e.Data.Keys)
	}
	return nil
}

const pageSize = 500

// listPages pages as kube-apiserver does: all pages at the revision of the first.
func listPages(ctx context.Context, e *Env, client int) error {
	from, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
	var revision int64
	for n := 0; ; {
		resp, err := e.client(client).Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(revision))
		if err != nil {
			return err
		}
		n += len(resp.Kvs)
		if !resp.More || len(resp.Kvs) == 0 {
			if n != e.Data.Keys {
				err = fmt.Errorf("pages: %d keys; there are %d", n, e.Data.Keys)
			}
			return err
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
		revision = resp.Header.Revision
	}
}

func listPage(ctx context.Context, e *Env, client int) error {
	resp, err := e.client(client).Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithLimit(pageSize))
	if want := min(pageSize, e.Data.Keys); err == nil && len(resp.Kvs) != want {
		err = fmt.Errorf("page: %d keys; there should be %d", len(resp.Kvs), want)
	}
	return err
}

func count(ctx context.Context, e *Env, client int) error {
	resp, err := e.client(client).Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err == nil && int(resp.Count) != e.Data.Keys {
		err = fmt.Errorf("count: %d keys; there are %d", resp.Count, e.Data.Keys)
	}
	return err
}
