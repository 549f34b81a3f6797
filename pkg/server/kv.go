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

func (s *kvServer) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if err := checkRange(r); err != nil {
		return nil, err
	}
	// Only the fence is bounded: a large result on a slow disk takes its time.
	if !r.Serializable {
		if err := s.fence(ctx); err != nil {
			return nil, err
		}
		r.Serializable = true
	}
	resp, err := s.store.Range(ctx, r)
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	s.fill(resp.Header)
	return resp, nil
}

func (s *kvServer) RangeStream(r *pb.RangeRequest, stream pb.KV_RangeStreamServer) error {
	ctx := stream.Context()
	if err := checkRangeStream(r); err != nil {
		return err
	}
	// Only the fence is bounded: a slow client may take its time to receive.
	if !r.Serializable {
		if err := s.fence(ctx); err != nil {
			return err
		}
		r.Serializable = true
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
	if err := s.checkSize(r); err != nil && !readOnly(r) {
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
