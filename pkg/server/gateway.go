package server

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"go.etcd.io/etcd/api/v3/etcdserverpb/gw"
	electiongw "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb/gw"
	lockgw "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb/gw"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
)

// gatewayBytes is the largest JSON value the gateway reads, as a multiple of
// the largest message: base64 needs a third more than the bytes it stands
// for, names and punctuation the rest.
const gatewayBytes = 4

// Gateway is etcd's JSON API: POST /v3/kv/range and the like, each of which
// becomes a call to the gRPC server, through a pipe in memory:
//
//	JSON ─ Gateway ─ pipe ─ gRPC server
//
// Nothing of it is made before the first request.
//
// Web pages of other origins are refused: whoever visits one would lend it
// their access to a server on their machine. (etcd's default lets them in.)
type Gateway struct {
	pipe  *pipe
	limit int64               // of one JSON value
	room  *semaphore.Weighted // see maxBodyBytes

	replies      *semaphore.Weighted // see maxReplyBytes
	replyTimeout time.Duration

	mu     sync.Mutex // guards what follows
	conn   *grpc.ClientConn
	mux    *runtime.ServeMux
	closed bool
}

// NewGateway returns a gateway. The gRPC server must serve its Listener too.
func (s *Server) NewGateway() *Gateway {
	return &Gateway{
		pipe:  &pipe{conns: make(chan net.Conn), done: make(chan struct{})},
		limit: gatewayBytes * int64(s.cfg.MaxRequestBytes+requestOverheadBytes),
		room:  semaphore.NewWeighted(maxBodyBytes),

		replies:      semaphore.NewWeighted(maxReplyBytes),
		replyTimeout: replyTimeout,
	}
}

// Listener is where the gRPC server gets the gateway's connection from.
func (g *Gateway) Listener() net.Listener { return g.pipe }

// Close ends the connection. Requests that come later are answered 503.
func (g *Gateway) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	_ = g.pipe.Close()
	if g.conn == nil {
		return nil
	}
	err := g.conn.Close()
	g.conn, g.mux = nil, nil
	return err
}

// ServeHTTP implements http.Handler for everything below /v3/ and, as in
// etcd, /v3beta/.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	mux, err := g.open()
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	refuse := func(err error) {
		_, out := runtime.MarshalerForRequest(mux, r)
		runtime.HTTPError(r.Context(), mux, out, w, r, err)
	}
	if err := new(http.CrossOriginProtection).Check(r); err != nil {
		refuse(status.Error(codes.PermissionDenied, "keelson: "+err.Error()))
		return
	}
	if rest, ok := strings.CutPrefix(r.URL.Path, "/v3beta/"); ok {
		r.URL.Path = "/v3/" + rest
	}
	if !streamPaths[r.URL.Path] {
		release, err := readBody(w, r, g.limit, g.room)
		defer release()
		if err != nil {
			w.Header().Set("Connection", "close")
			refuse(err)
			return
		}
		answer := &reply{w: w, room: g.replies}
		defer answer.end()
		r = r.WithContext(context.WithValue(r.Context(), replyKey{}, answer))
	}
	mux.ServeHTTP(w, r)
}

var errGatewayClosed = errors.New("the server is stopping")

// open returns what translates requests; the first call makes it.
func (g *Gateway) open() (*runtime.ServeMux, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, errGatewayClosed
	}
	if g.mux != nil {
		return g.mux, nil
	}
	conn, err := grpc.NewClient("passthrough:///keelson",
		grpc.WithContextDialer(g.pipe.dial),
		grpc.WithUnaryInterceptor(g.holdReply),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)))
	if err != nil {
		return nil, err
	}
	mux := runtime.NewServeMux(runtime.WithMarshalerOption(runtime.MIMEWildcard, &gatewayJSON{
		JSONPb: runtime.JSONPb{
			MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true},
			UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: true},
		},
		limit: g.limit,
	}))
	for _, register := range []func(context.Context, *runtime.ServeMux, *grpc.ClientConn) error{
		gw.RegisterKVHandler, gw.RegisterWatchHandler, gw.RegisterLeaseHandler,
		gw.RegisterClusterHandler, gw.RegisterMaintenanceHandler, gw.RegisterAuthHandler,
		lockgw.RegisterLockHandler, electiongw.RegisterElectionHandler,
	} {
		if err := register(context.Background(), mux, conn); err != nil {
			_ = conn.Close()
			return nil, err
		}
	}
	g.conn, g.mux = conn, mux
	return mux, nil
}

// gatewayJSON is the encoding of messages. It reads values up to a limit: a
// body is one, or a stream of them without an end.
type gatewayJSON struct {
	runtime.JSONPb
	limit int64
}

// NewDecoder implements runtime.Marshaler.
func (j *gatewayJSON) NewDecoder(r io.Reader) runtime.Decoder {
	body := &limitedReader{r: r}
	d := j.JSONPb.NewDecoder(body)
	return runtime.DecoderFunc(func(v any) error {
		body.left = j.limit
		return d.Decode(v)
	})
}

var errValueTooLarge = errors.New("keelson: the JSON value is too large")

// limitedReader fails instead of reading more than is left.
type limitedReader struct {
	r    io.Reader
	left int64
}

func (l *limitedReader) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errValueTooLarge
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	return n, err
}

// pipe is a listener on which only this process can connect.
type pipe struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{} // closed by Close
}

func (p *pipe) dial(ctx context.Context, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-p.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept implements net.Listener.
func (p *pipe) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. It may be called more than once.
func (p *pipe) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

// Addr implements net.Listener.
func (p *pipe) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "gateway" }
