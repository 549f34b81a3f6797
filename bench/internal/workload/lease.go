package workload

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const leaseTTL = 3600

var errNotALease = errors.New("not supported: a grant returns the TTL as the lease's id; there is no lease")

func openLeaseGrant(ctx context.Context, e *Env) (Runner, error) {
	if err := e.connect(e.Clients); err != nil {
		return nil, err
	}
	if err := e.tryGrant(ctx); err != nil {
		return nil, err
	}
	var granted atomic.Int64
	grant := func(ctx context.Context, client int) error {
		granted.Add(1)
		_, err := e.client(client).Grant(ctx, leaseTTL)
		return err
	}
	return &runner{
		run: func(ctx context.Context, d time.Duration) (Measured, error) {
			return closedLoop(ctx, e.Clients, d, always(grant))
		},
		check: func(ctx context.Context) error {
			resp, err := e.client(0).Leases(ctx)
			if want := int(granted.Load()) + 2; err == nil && len(resp.Leases) != want {
				err = fmt.Errorf("%d leases; there should be %d", len(resp.Leases), want)
			}
			return err
		},
	}, nil
}

// tryGrant finds out whether grants make leases.
func (e *Env) tryGrant(ctx context.Context) error {
	one, err := e.client(0).Grant(ctx, leaseTTL)
	if err != nil {
		return err
	}
	two, err := e.client(0).Grant(ctx, leaseTTL)
	if err == nil && one.ID == two.ID {
		err = errNotALease
	}
	return err
}

// grants gives each client a lease.
func (e *Env) grants(ctx context.Context) ([]clientv3.LeaseID, error) {
	if err := e.tryGrant(ctx); err != nil {
		return nil, err
	}
	ids := make([]clientv3.LeaseID, e.Clients)
	err := e.each(ctx, e.Clients, func(ctx context.Context, c *clientv3.Client, i int) error {
		resp, err := c.Grant(ctx, leaseTTL)
		if err == nil {
			ids[i] = resp.ID
		}
		return err
	})
	return ids, err
}

// openKeepAliveOnce makes a stream for each keepalive, as KeepAliveOnce does.
func openKeepAliveOnce(ctx context.Context, e *Env) (Runner, error) {
	if err := e.connect(e.Clients); err != nil {
		return nil, err
	}
	ids, err := e.grants(ctx)
	if err != nil {
		return nil, err
	}
	return &runner{run: func(ctx context.Context, d time.Duration) (Measured, error) {
		return closedLoop(ctx, e.Clients, d, always(func(ctx context.Context, client int) error {
			resp, err := e.client(client).KeepAliveOnce(ctx, ids[client])
			if err != nil {
				return err
			}
			return checkTTL(resp.TTL)
		}))
	}}, nil
}

// openKeepAlive sends keepalives on one stream for each client. clientv3's
// KeepAlive does so, but sends one in a third of the TTL only.
func openKeepAlive(ctx context.Context, e *Env) (Runner, error) {
	if err := e.connect(e.Clients); err != nil {
		return nil, err
	}
	ids, err := e.grants(ctx)
	if err != nil {
		return nil, err
	}
	streams := make([]pb.Lease_LeaseKeepAliveClient, e.Clients)
	for i := range streams {
		c := e.client(i)
		if streams[i], err = pb.NewLeaseClient(c.ActiveConnection()).LeaseKeepAlive(c.Ctx()); err != nil {
			return nil, err
		}
	}
	return &runner{run: func(ctx context.Context, d time.Duration) (Measured, error) {
		return closedLoop(ctx, e.Clients, d, always(func(_ context.Context, client int) error {
			if err := streams[client].Send(&pb.LeaseKeepAliveRequest{ID: int64(ids[client])}); err != nil {
				return err
			}
			resp, err := streams[client].Recv()
			if err != nil {
				return err
			}
			return checkTTL(resp.TTL)
		}))
	}}, nil
}

func checkTTL(ttl int64) error {
	if ttl != leaseTTL {
		return fmt.Errorf("keepalive: a TTL of %d; it is %d", ttl, leaseTTL)
	}
	return nil
}
