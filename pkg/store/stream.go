package store

import (
	"context"
	"math"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// The first chunk of a stream has firstChunk keys; later ones double or halve
// toward Options.ChunkBytes. Source: etcd's rangeStream.
const (
	firstChunk        = 10
	DefaultChunkBytes = 1536 << 10
)

// RangeStream answers r in chunks, each handed to send, whose error ends the
// stream and is returned. All chunks are of one revision, that of the first;
// only the last has a header, more and count. r must have neither an order of
// its own nor filters. Merged, the chunks are what Range would have answered; a
// sort target without an order, which etcd lets through and gives some keys
// twice and others not at all, is one chunk.
func (s *Store) RangeStream(ctx context.Context, r *pb.RangeRequest, send func(*pb.RangeResponse) error) error {
	if r.CountOnly || r.SortTarget != pb.RangeRequest_KEY {
		resp, err := s.Range(ctx, r)
		if err != nil {
			return err
		}
		return send(resp)
	}
	left := r.Limit
	if left <= 0 {
		left = math.MaxInt64
	}
	chunk := &pb.RangeRequest{
		Key: r.Key, RangeEnd: r.RangeEnd, Revision: r.Revision, KeysOnly: r.KeysOnly,
		SortTarget: r.SortTarget, SortOrder: r.SortOrder, Serializable: r.Serializable,
		Limit: min(firstChunk, left),
	}
	var header *pb.ResponseHeader
	total := int64(0)
	for {
		resp, err := s.Range(ctx, chunk)
		if err != nil {
			return err
		}
		if header == nil {
			header, total = resp.Header, resp.Count
			if chunk.Revision <= 0 {
				chunk.Revision = header.Revision
			}
			chunk.Serializable = true // the fence was the first chunk's
		}
		left -= int64(len(resp.Kvs))
		out := &pb.RangeResponse{Kvs: resp.Kvs}
		last := !resp.More || left == 0
		if last {
			out.Header, out.More, out.Count = header, resp.More, total
		}
		if err := send(out); err != nil || last {
			return err
		}
		chunk.Key = append(append([]byte{}, resp.Kvs[len(resp.Kvs)-1].Key...), 0)
		chunk.Limit = min(nextChunk(chunk.Limit, proto.Size(resp), s.opt.ChunkBytes), left)
	}
}

// nextChunk is how many keys the next chunk should have if one of limit keys
// had size bytes.
func nextChunk(limit int64, size, target int) int64 {
	switch {
	case size < target/2:
		limit *= 2
	case size > 2*target:
		limit /= 2
	}
	return max(limit, 1)
}
