package server

import (
	"math"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

// requestOverheadBytes is what a message may have above MaxRequestBytes
// before gRPC refuses to receive it.
const requestOverheadBytes = 512 << 10

// streamWorkers is how many goroutines gRPC keeps for requests; further ones
// get one of their own. A kept one need not grow its stack again, which is an
// eighth of the CPU time of a put; idle it holds about 8 KiB.
const streamWorkers = 256

// connWindowBytes is what a client may send on a connection before gRPC has
// taken it in. Without a fixed one gRPC estimates the bandwidth with a ping for
// each request it gets while no other is under way, at a read, a write and two
// goroutines' wake-ups each. Streams keep HTTP/2's 64 KiB, and get more for a
// message that is larger.
const connWindowBytes = 1 << 20

// GRPCOptions returns the options the gRPC server must be made with: etcd's
// limits, and the interceptors that count. Credentials are the caller's.
func (s *Server) GRPCOptions() []grpc.ServerOption {
	codec := newCodec(&s.traffic)
	codec.maxTxnOps = s.cfg.MaxTxnOps
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(s.cfg.MaxRequestBytes + requestOverheadBytes),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.InitialConnWindowSize(connWindowBytes),
		grpc.MaxConcurrentStreams(s.cfg.MaxConcurrentStreams),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime:             s.cfg.KeepAliveMinTime,
			PermitWithoutStream: false,
		}),
		grpc.ForceServerCodecV2(codec),
		grpc.ChainUnaryInterceptor(s.interceptUnary),
		grpc.ChainStreamInterceptor(s.interceptStream),
	}
	if s.cfg.KeepAliveInterval > 0 && s.cfg.KeepAliveTimeout > 0 {
		opts = append(opts, grpc.KeepaliveParams(keepalive.ServerParameters{
			Time:    s.cfg.KeepAliveInterval,
			Timeout: s.cfg.KeepAliveTimeout,
		}))
	}
	return opts
}
