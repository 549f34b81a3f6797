package remote

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

var (
	// ErrNotEmpty: the server has keys already.
	ErrNotEmpty = errors.New("the server has keys already")

	// ErrDifferent: what the server has in the end is not what was written.
	ErrDifferent = errors.New("the server has other data")
)

// putsAtOnce is how many puts are under way: one fsync carries many of them.
const putsAtOnce = 32

// SinkOptions are those of a Sink.
type SinkOptions struct {
	// Existing allows keys that are there: those that are equal are skipped, so
	// that a copy that was cut off goes on, and others are overwritten. Keys
	// that only the server has are left, and reported as ErrDifferent.
	Existing bool

	// Report, if not nil, is told what Finish has written, and of how much.
	Report func(done, total snapshot.Progress)
}

// Sink writes the keys that there are at the end of a source, and its leases,
// into a server. The server gives them revisions of its own, in about the same
// order; there is no way to choose them. So clients such as kube-apiserver must
// be stopped before, and list anew.
//
// It is not all or nothing: after an error it can be done again with Existing.
type Sink struct {
	client *clientv3.Client
	opt    SinkOptions
	state  snapshot.State
	spool  *spool
	live   map[string]pair // the newest version of each key that there is
}

var _ snapshot.Sink = (*Sink)(nil)

// NewSink returns the sink that writes through client, which stays the caller's.
func NewSink(client *clientv3.Client, opt SinkOptions) *Sink {
	return &Sink{client: client, opt: opt, live: make(map[string]pair)}
}

// Check refuses a server that Begin would refuse: one that has keys, unless they
// are allowed. It is for those who have much to do before.
func (s *Sink) Check(ctx context.Context) error {
	resp, err := s.client.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithCountOnly())
	switch {
	case err != nil:
		return err
	case resp.Header.ClusterId == 0:
		return errors.New("the server is kine: it has no way to write leases and keys as they are")
	case resp.Count > 0 && !s.opt.Existing:
		return fmt.Errorf("%w: %d", ErrNotEmpty, resp.Count)
	}
	return nil
}

// Begin begins, unless the server is refused.
func (s *Sink) Begin(ctx context.Context, state snapshot.State) (err error) {
	if err := s.Check(ctx); err != nil {
		return err
	}
	s.state = state
	s.spool, err = newSpool()
	return err
}

// Add puts a record aside.
func (s *Sink) Add(_ context.Context, r *eventlog.Record) error {
	if r.Kind == eventlog.KindDelete {
		delete(s.live, string(r.Key))
		return nil
	}
	p, err := s.spool.add(r.Key, r.Value, pair{mod: r.Revision.Main, lease: r.Lease})
	s.live[string(r.Key)] = p
	return err
}

// Abort removes what was put aside: the server has nothing of it yet.
func (s *Sink) Abort() error { return s.spool.close() }

// Finish writes everything and reads it back.
func (s *Sink) Finish(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, s.spool.close()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the keeping alive
	if err := s.spool.seal(); err != nil {
		return err
	}
	todo, err := s.missing(ctx)
	if err != nil {
		return err
	}
	if err := s.grant(ctx); err != nil {
		return fmt.Errorf("leases: %w", err)
	}
	if err := s.put(ctx, todo); err != nil {
		return err
	}
	return s.verify(ctx)
}

// missing returns what the server does not have yet, in order of revision.
func (s *Sink) missing(ctx context.Context) ([]pair, error) {
	equal := make(map[string]bool)
	if s.opt.Existing {
		err := s.compare(ctx, func(kv *mvccpb.KeyValue, same bool) {
			if same {
				equal[string(kv.Key)] = true
			}
		})
		if err != nil {
			return nil, err
		}
	}
	todo := make([]pair, 0, len(s.live))
	for key, p := range s.live {
		if !equal[key] {
			todo = append(todo, p)
		}
	}
	slices.SortFunc(todo, func(a, b pair) int { return cmp.Or(cmp.Compare(a.mod, b.mod), cmp.Compare(a.at, b.at)) })
	return todo, nil
}

// compare tells fn of every key of the server, and whether it is the same.
func (s *Sink) compare(ctx context.Context, fn func(kv *mvccpb.KeyValue, same bool)) error {
	r, err := newReader(ctx, s.client)
	if err != nil {
		return err
	}
	return r.each(ctx, func(kv *mvccpb.KeyValue) error {
		p, ok := s.live[string(kv.Key)]
		if !ok || p.lease != kv.Lease || int(p.valueN) != len(kv.Value) {
			fn(kv, false)
			return nil
		}
		_, value, err := s.spool.read(p)
		if err == nil {
			fn(kv, bytes.Equal(value, kv.Value))
		}
		return err
	})
}

// grant grants the leases, with their ids, and keeps them until ctx ends: none
// may expire before its keys are there.
func (s *Sink) grant(ctx context.Context) error {
	leases := clientv3.RetryLeaseClient(s.client) // Client.Grant chooses the id itself
	for _, l := range s.state.Leases {
		_, err := leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: l.ID, TTL: l.TTL})
		err = clientv3.ContextError(ctx, err)
		if errors.Is(err, rpctypes.ErrLeaseExist) {
			err = s.compareLease(ctx, l)
		}
		if err != nil {
			return fmt.Errorf("%x: %w", l.ID, err)
		}
		if _, err := s.client.KeepAlive(ctx, clientv3.LeaseID(l.ID)); err != nil {
			return fmt.Errorf("%x: %w", l.ID, err)
		}
	}
	return nil
}

// raisedTTL is the longest TTL that an etcd can raise a shorter one to: one and a
// half of its election timeout, of which 50 s is the most.
const raisedTTL = 75

// compareLease reports, as ErrDifferent, a lease that the server does not have,
// or for another time: the keys would live as long as that.
func (s *Sink) compareLease(ctx context.Context, l snapshot.Lease) error {
	has, err := s.client.TimeToLive(ctx, clientv3.LeaseID(l.ID))
	switch {
	case err != nil:
		return err
	case has.TTL < 0:
		return fmt.Errorf("%w: there is no lease %x any more", ErrDifferent, l.ID)
	case has.GrantedTTL != l.TTL && (has.GrantedTTL < l.TTL || has.GrantedTTL > raisedTTL):
		return fmt.Errorf("%w: it has the lease %x for %d seconds, and not for %d: revoke it, or wait for its end", ErrDifferent, l.ID, has.GrantedTTL, l.TTL)
	}
	return nil
}

// put writes pairs. Keys with a lease are written strictly in order, since the
// order of their creation decides who holds a lock.
func (s *Sink) put(ctx context.Context, pairs []pair) error {
	total := snapshot.Progress{Records: int64(len(pairs)), Bytes: sumBytes(pairs)}
	var done snapshot.Progress
	for len(pairs) > 0 {
		n := 1
		for n < min(len(pairs), putsAtOnce) && pairs[n-1].lease == 0 && pairs[n].lease == 0 {
			n++
		}
		var group errgroup.Group
		for _, p := range pairs[:n] {
			group.Go(func() error { return s.putOne(ctx, p) })
		}
		if err := group.Wait(); err != nil {
			return fmt.Errorf("after %d of %d keys: %w", done.Records, total.Records, err)
		}
		done.Records += int64(n)
		done.Bytes += sumBytes(pairs[:n])
		if s.opt.Report != nil {
			s.opt.Report(done, total)
		}
		pairs = pairs[n:]
	}
	return nil
}

func (s *Sink) putOne(ctx context.Context, p pair) error {
	key, value, err := s.spool.read(p)
	if err != nil {
		return err
	}
	if _, err := s.client.Put(ctx, string(key), string(value), clientv3.WithLease(clientv3.LeaseID(p.lease))); err != nil {
		return fmt.Errorf("key %q, %d bytes, lease %x: %w", key, len(value), p.lease, err)
	}
	return nil
}

// verify compares everything.
func (s *Sink) verify(ctx context.Context) error {
	var same, other int
	var first []byte
	err := s.compare(ctx, func(kv *mvccpb.KeyValue, equal bool) {
		switch {
		case equal:
			same++
		case other == 0:
			first = kv.Key
			fallthrough
		default:
			other++
		}
	})
	switch {
	case err != nil:
		return fmt.Errorf("read back what was written: %w", err)
	case other > 0:
		return fmt.Errorf("%w: %d keys differ from the source or are not in it, such as %q", ErrDifferent, other, first)
	case same != len(s.live):
		return fmt.Errorf("%w: %d of %d keys are there", ErrDifferent, same, len(s.live))
	}
	for _, l := range s.state.Leases {
		if err := s.compareLease(ctx, l); err != nil {
			return err
		}
	}
	return nil
}
