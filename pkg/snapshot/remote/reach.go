package remote

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// retryEvery is how often a server is asked that may answer soon; no slower with
// every time, as gRPC would.
const retryEvery = 100 * time.Millisecond

var steadily = grpc.WithConnectParams(grpc.ConnectParams{
	Backoff: backoff.Config{BaseDelay: retryEvery, Multiplier: 1, MaxDelay: retryEvery}, MinConnectTimeout: defaultDialTimeout,
})

// reach waits until a server has answered, whatever it says. One that may just be
// starting is asked until ctx ends. The client's own calls are not used, nor a
// user, for whom a client asks as soon as it is made: they wait in silence, and
// only gRPC says what keeps it from connecting.
func (c Config) reach(ctx context.Context, config clientv3.Config) (err error) {
	config.DialOptions = []grpc.DialOption{steadily}
	client, err := clientv3.New(config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	kv := pb.NewKVClient(client.ActiveConnection())
	var last error
	for {
		_, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte{0}, Serializable: true})
		switch {
		case status.Code(err) == codes.Unavailable:
			var passes bool
			if passes, last = c.explain(status.Convert(err).Message()); !passes {
				return last
			}
		case ctx.Err() == nil:
			return nil
		}
		select {
		case <-ctx.Done():
			switch {
			case !errors.Is(ctx.Err(), context.DeadlineExceeded):
				return ctx.Err()
			case last == nil:
				return fmt.Errorf("cannot be reached: there is no answer within %v", c.DialTimeout)
			}
			return last
		case <-time.After(retryEvery):
		}
	}
}

// obstacles are what keeps a client from a server. They are told by texts, of the
// system and of crypto/tls: nothing else comes through gRPC. The first one with a
// sign in the text is meant.
var obstacles = []struct {
	sign, advice string
	passes       bool // by itself, perhaps
}{
	{"connection refused", "does a server run there, and is this its address?", true},
	{"no such file or directory", "does a server run there, and is this its socket?", true},
	{"no such host", "is the name right?", true},
	{"permission denied", "run this as a user who may use the socket", false},
	{"missing port", "add the port, as in :2379", false},
	{"does not look like a TLS handshake", "there is no TLS at this address: use http://, or unix:// for a socket", false},
	{"signed by unknown authority", "name the file of the CA that the server's certificate is of, with --cacert", false},
	{"has expired or is not yet valid", "renew the server's certificate, or look whether this machine's clock is right", false},
	{"is valid for", "use an address that the server's certificate is for", false},
	{"cannot validate certificate", "use an address that the server's certificate is for", false},
	{"certificate required", "the server asks for a client's certificate, --cert and --key", false},
	{"remote error: tls", "the server refuses the client's certificate: --cert and --key must be of a CA that it trusts", false},
	{"HTTP/1.1 header", "there is no gRPC at this address, or it wants TLS: https:// or unixs://", false},
	{"broken pipe", ended, true}, // before its reason was read
	{"connection reset", ended, true},
	{"server preface", ended, false},
	{"ALPN", "there is no gRPC at this address", false},
}

const ended = "the server ends the connection: it may want TLS, https:// or unixs://, or a client's certificate, --cert and --key"

// explain says what gRPC's message means, and whether that may pass.
func (c Config) explain(message string) (passes bool, err error) {
	cause := message
	_, quoted, connecting := strings.Cut(message, "connection error: desc = ")
	if text, err := strconv.Unquote(quoted); err == nil {
		cause = strings.TrimPrefix(strings.TrimPrefix(text, "transport: Error while dialing: "), "transport: authentication handshake failed: ")
	}
	for _, o := range obstacles {
		if strings.Contains(cause, o.sign) {
			return o.passes, fmt.Errorf("cannot be reached: %s: %s", cause, strings.ReplaceAll(o.advice, "--", "--"+c.FlagPrefix))
		}
	}
	if !connecting { // a server has said it
		return true, errors.New(message)
	}
	return true, fmt.Errorf("cannot be reached: %s", cause)
}
