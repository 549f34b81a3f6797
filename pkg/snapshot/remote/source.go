package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

// Source is what the keys of a server were at one revision. Everything before
// is compacted, since deletions before cannot be seen.
type Source struct {
	state snapshot.State
	spool *spool
	pairs []pair // in order of revision
}

var _ snapshot.Source = (*Source)(nil)

// Open reads all keys and leases of the server. They are in a temporary file
// until Close.
func Open(ctx context.Context, client *clientv3.Client, report func(snapshot.Progress)) (src *Source, err error) {
	s := &Source{}
	if s.spool, err = newSpool(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			src, err = nil, errors.Join(err, s.Close())
		}
	}()
	r, err := newReader(ctx, client)
	if err != nil {
		return nil, err
	}
	var done snapshot.Progress
	leases := make(map[int64]bool)
	err = r.each(ctx, func(kv *mvccpb.KeyValue) error {
		p, err := s.spool.add(kv.Key, kv.Value, pairOf(kv, r.kine))
		s.pairs = append(s.pairs, p)
		if p.lease != 0 {
			leases[p.lease] = true
		}
		done.Records++
		done.Bytes += int64(len(kv.Key) + len(kv.Value))
		if report != nil && done.Records%1000 == 0 {
			report(done)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := s.spool.seal(); err != nil {
		return nil, err
	}
	// They came in order of keys, which stays within a revision.
	slices.SortStableFunc(s.pairs, func(a, b pair) int { return cmp.Compare(a.mod, b.mod) })
	s.state = snapshot.State{Revision: max(r.revision, 1), Records: done.Records, Bytes: done.Bytes}
	if r.revision > 1 {
		s.state.Compacted = r.revision
	}
	if r.kine {
		s.state.Leases = kineLeases(leases)
	} else if s.state.Leases, err = readLeases(ctx, client, leases); err != nil {
		return nil, fmt.Errorf("leases: %w", err)
	}
	return s, nil
}

// pairOf takes kine's answers for what they mean: it counts no versions, and a
// lease is a number of seconds.
func pairOf(kv *mvccpb.KeyValue, kine bool) pair {
	p := pair{mod: kv.ModRevision, create: kv.CreateRevision, version: kv.Version, lease: kv.Lease}
	if kine {
		p.lease = max(p.lease, 0)
	}
	if p.create < 1 || p.create > p.mod {
		p.create = p.mod
	}
	if p.version < 1 {
		p.version = 2
		if p.create == p.mod {
			p.version = 1
		}
	}
	return p
}

// kineLeases are those of kine: the id is the TTL.
func kineLeases(ids map[int64]bool) (leases []snapshot.Lease) {
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		leases = append(leases, snapshot.Lease{ID: id, TTL: min(id, snapshot.MaxTTL)})
	}
	return leases
}

// readLeases returns all leases of the server. One that was needed by a key and
// has ended since is there with a second left, so that its keys end too.
func readLeases(ctx context.Context, client *clientv3.Client, needed map[int64]bool) (leases []snapshot.Lease, err error) {
	all, err := client.Leases(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range all.Leases {
		needed[int64(l.ID)] = true
	}
	for _, id := range slices.Sorted(maps.Keys(needed)) {
		l, err := client.TimeToLive(ctx, clientv3.LeaseID(id))
		if err != nil {
			return nil, err
		}
		if l.TTL < 0 {
			l.TTL, l.GrantedTTL = 1, max(l.GrantedTTL, 1)
		}
		leases = append(leases, snapshot.Lease{ID: id, TTL: l.GrantedTTL, Remaining: l.TTL})
	}
	return leases, nil
}

// State returns what there is beside the keys.
func (s *Source) State() snapshot.State { return s.state }

// Records calls fn with every key, as [snapshot.Source] says.
func (s *Source) Records(_ context.Context, fn func(*eventlog.Record) error) error {
	var at eventlog.Revision
	for _, p := range s.pairs {
		if p.mod == at.Main {
			at.Sub++
		} else {
			at = eventlog.Revision{Main: p.mod}
		}
		key, value, err := s.spool.read(p)
		if err != nil {
			return err
		}
		if err := fn(&eventlog.Record{
			Kind: eventlog.KindPut, Revision: at, Key: key, Value: value, CreateRevision: p.create, Version: p.version, Lease: p.lease,
		}); err != nil {
			return err
		}
	}
	return nil
}

// Close removes the temporary file.
func (s *Source) Close() error { return s.spool.close() }
