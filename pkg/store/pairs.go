package store

import (
	"context"
	"math"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Pairs are the key-value pairs of an answer as the index and the value cache
// have them. Messages are made of them one by one, so that a large answer takes
// little memory beside its keys and values. They do not change.
type Pairs struct {
	ranged
	values [][]byte // nil for keys alone
}

// Len returns the number of pairs.
func (p *Pairs) Len() int { return len(p.hits) }

// Get sets all of kv to pair i, whose key and value are shared and read-only.
func (p *Pairs) Get(i int, kv *mvccpb.KeyValue) {
	p.kv(i, kv)
	kv.Value = nil
	if p.values != nil {
		kv.Value = p.values[i]
	}
}

// Messages returns all pairs as messages.
func (p *Pairs) Messages() []*mvccpb.KeyValue {
	kvs := make([]mvccpb.KeyValue, p.Len())
	all := make([]*mvccpb.KeyValue, p.Len())
	for i := range kvs {
		p.Get(i, &kvs[i])
		all[i] = &kvs[i]
	}
	return all
}

// RangePairs is Range with the key-value pairs beside the response instead of
// in it.
func (s *Store) RangePairs(ctx context.Context, r *pb.RangeRequest) (resp *pb.RangeResponse, pairs Pairs, err error) {
	err = s.read(ctx, r.Serializable, func(st *state) error {
		if r.SortTarget == pb.RangeRequest_VALUE { // reads all values
			left := effort(math.MaxInt64)
			if err := s.opt.Admit(ctx, st.rangeNeed(r, &left)); err != nil {
				return err
			}
		}
		ranged, err := st.rangeRequest(r, s.reader(ctx))
		if err != nil {
			return err
		}
		if err := s.opt.Admit(ctx, ranged.need()); err != nil {
			return err
		}
		resp = ranged.resp
		pairs, err = s.pairs(ctx, ranged)
		return err
	})
	return resp, pairs, err
}

// pairs reads the values of r.
func (s *Store) pairs(ctx context.Context, r ranged) (Pairs, error) {
	p := Pairs{ranged: r}
	if r.request.KeysOnly || len(r.hits) == 0 {
		return p, nil
	}
	seqs := make([]int64, len(r.hits))
	for i, h := range r.hits {
		seqs[i] = h.version.seq
	}
	cold := len(seqs) == 1 && !s.values.cache.has(seqs[0])
	var err error
	if p.values, err = s.values.read(ctx, seqs); err == nil && cold {
		s.ahead(r.hits[0].entry)
	}
	return p, err
}
