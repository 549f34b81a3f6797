package server

import (
	"context"
	"net/http"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

const (
	// maxReplyBytes is what the large JSON responses under way hold together,
	// each until its client has read it. One larger than all of it is sent
	// alone. (The budget of responses ends where gRPC has handed them to the
	// gateway.)
	maxReplyBytes = 512 << 20

	// replyFactor is what a response takes as a message and as JSON, as a
	// multiple of its size: base64, and a buffer that grows.
	replyFactor = 4

	// A client has replyTimeout to read a large response, and a second more for
	// each replyRate bytes.
	replyTimeout = 30 * time.Second
	replyRate    = 1 << 20
)

// reply is the answer to a JSON request that is not a stream.
type reply struct {
	w    http.ResponseWriter
	room *semaphore.Weighted
	held int64
}

type replyKey struct{}

// holdReply is called between a response and its JSON: it finds room for a large
// one, or fails.
func (g *Gateway) holdReply(ctx context.Context, method string, req, resp any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if err := invoke(ctx, method, req, resp, conn, opts...); err != nil {
		return err
	}
	r, isReply := ctx.Value(replyKey{}).(*reply)
	m, isMessage := resp.(proto.Message)
	if !isReply || !isMessage {
		return nil
	}
	size := int64(proto.Size(m))
	if size < largeResponse {
		return nil
	}
	n := min(size*replyFactor, maxReplyBytes)
	if !r.room.TryAcquire(n) {
		return rpctypes.ErrGRPCRequestTooManyRequests
	}
	r.held = n
	// Where a deadline cannot be set there is no connection to wait for.
	_ = http.NewResponseController(r.w).SetWriteDeadline(time.Now().Add(g.replyTimeout + time.Duration(size/replyRate)*time.Second))
	return nil
}

// end is called when the response was written, or could not be.
func (r *reply) end() {
	if r.held > 0 {
		r.room.Release(r.held)
		_ = http.NewResponseController(r.w).SetWriteDeadline(time.Time{})
	}
}
