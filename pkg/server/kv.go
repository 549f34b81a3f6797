package server

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// kvServer is the gRPC KV service.
type kvServer struct {
	*Server
	pb.UnsafeKVServer // a method that is new in etcd fails to compile
}

// fenceReads fences reads, once, and makes them serializable, if they are not
// so already. Only the fence has a timeout: a large result on a slow disk, and a
// client that is slow to receive it, take their time.
func (s *kvServer) fenceReads(ctx context.Context, reads ...*pb.RangeRequest) error {
	fenced := true
	for _, r := range reads {
		fenced = fenced && r.Serializable
		r.Serializable = true
	}
	if fenced {
		return nil
	}
	return s.fence(ctx)
}

func (s *kvServer) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if err := checkRange(r); err != nil {
		return nil, err
	}
	if err := s.fenceReads(ctx, r); err != nil {
		return nil, err
	}
	resp, err := s.rangeOrPairs(ctx, r)
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	s.fill(resp.Header)
	return resp, nil
}

// rangeOrPairs answers r; where the pairs may be many they are left to the codec.
func (s *kvServer) rangeOrPairs(ctx context.Context, r *pb.RangeRequest) (resp *pb.RangeResponse, err error) {
	h, held := ctx.Value(holdKey{}).(*hold)
	if !held {
		return s.store.Range(ctx, r)
	}
	resp, h.pairs, err = s.store.RangePairs(ctx, r)
	return resp, err
}

func (s *kvServer) RangeStream(r *pb.RangeRequest, stream pb.KV_RangeStreamServer) error {
	ctx := stream.Context()
	if err := checkRangeStream(r); err != nil {
		return err
	}
	if err := s.fenceReads(ctx, r); err != nil {
		return err
	}
	h := &hold{} // of one chunk at a time
	defer h.release()
	err := s.store.RangeStream(context.WithValue(ctx, holdKey{}, h), r, func(resp *pb.RangeResponse) error {
		if resp.Header != nil {
			s.fill(resp.Header)
		}
		return stream.Send(&pb.RangeStreamResponse{RangeResponse: resp})
	})
	return toStatus(ctx, err)
}

func (s *kvServer) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := checkPut(r); err != nil {
		return nil, err
	}
	if err := s.checkSize(r); err != nil {
		return nil, err
	}
	resp, err := s.store.Put(ctx, r)
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	s.fill(resp.Header)
	return resp, nil
}

func (s *kvServer) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if err := checkDelete(r); err != nil {
		return nil, err
	}
	if err := s.checkSize(r); err != nil {
		return nil, err
	}
	resp, err := s.store.DeleteRange(ctx, r)
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	s.fill(resp.Header)
	return resp, nil
}

func (s *kvServer) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := checkTxn(r, s.cfg.MaxTxnOps); err != nil {
		return nil, err
	}
	if reads, only := onlyReads(r); only {
		if err := s.fenceReads(ctx, reads...); err != nil {
			return nil, err
		}
	} else if err := s.checkSize(r); err != nil {
		return nil, err
	}
	resp, err := s.store.Txn(ctx, r)
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	s.fill(resp.Header)
	return resp, nil
}

// Compact waits as long as the client does: a physical compaction of a large
// store takes its time.
func (s *kvServer) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	bounded, cancel := ctx, context.CancelFunc(func() {})
	if !r.Physical {
		bounded, cancel = s.bound(ctx)
	}
	defer cancel()
	resp, err := s.store.Compact(bounded, r)
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	s.fill(resp.Header)
	return resp, nil
}
