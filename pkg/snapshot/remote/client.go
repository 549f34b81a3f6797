package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Config says how a server is reached.
type Config struct {
	Endpoints []string // http://, https://, unix:// or host:port

	// As etcdctl's flags of these names. Without any of them the certificate of
	// an https endpoint is checked against those of the system.
	CACert, Cert, Key     string
	InsecureSkipTLSVerify bool
	User, Password        string

	DialTimeout time.Duration

	FlagPrefix string // of the names above, in errors: such as "to-"
}

// defaultDialTimeout is etcdctl's, with time for a handshake on a slow machine.
const defaultDialTimeout = 5 * time.Second

// Dial returns a client of the server, which has answered: by itself, for it may
// be the last one of its cluster.
func Dial(ctx context.Context, c Config) (*clientv3.Client, error) {
	if c.DialTimeout == 0 {
		c.DialTimeout = defaultDialTimeout
	}
	client, err := c.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(c.Endpoints, ","), err)
	}
	return client, nil
}

func (c Config) dial(ctx context.Context) (*clientv3.Client, error) {
	config := clientv3.Config{
		Endpoints: c.Endpoints, Logger: zap.NewNop(),
		DialTimeout: c.DialTimeout, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 10 * time.Second,
	}
	var err error
	if config.TLS, err = c.TLS(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.DialTimeout)
	defer cancel()
	if err := c.reach(ctx, config); err != nil {
		return nil, err
	}
	config.Username, config.Password = c.User, c.Password
	client, err := clientv3.New(config)
	if err != nil {
		return nil, err
	}
	_, err = client.Get(ctx, "\x00", clientv3.WithSerializable())
	if status.Code(err) == codes.Unimplemented { // kine
		_, err = client.Get(ctx, "\x00")
	}
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	return client, nil
}

// Protected reports whether the server has users and roles that protect its data.
func Protected(ctx context.Context, client *clientv3.Client) (bool, error) {
	resp, err := client.AuthStatus(ctx)
	switch {
	case errors.Is(err, rpctypes.ErrPermissionDenied): // only root may ask
		return true, nil
	case status.Code(err) == codes.Unimplemented: // kine
		return false, nil
	case err != nil:
		return false, err
	}
	return resp.Enabled, nil
}

// TLS is what the files say; nil if nothing was said.
func (c Config) TLS() (*tls.Config, error) {
	if c.CACert == "" && c.Cert == "" && c.Key == "" && !c.InsecureSkipTLSVerify {
		return nil, nil
	}
	info := transport.TLSInfo{
		TrustedCAFile: c.CACert, CertFile: c.Cert, KeyFile: c.Key,
		InsecureSkipVerify: c.InsecureSkipTLSVerify, Logger: zap.NewNop(),
	}
	config, err := info.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return config, nil
}

// Fetch writes a snapshot of the server to an empty file, and compares it with
// its checksum. report, if not nil, is told how many bytes have come, and how many
// it will be: the server says so, and its database may be larger.
func Fetch(ctx context.Context, client *clientv3.Client, file io.Writer, report func(done, total int64)) error {
	if err := fetch(ctx, client, file, report); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}

func fetch(ctx context.Context, client *clientv3.Client, file io.Writer, report func(done, total int64)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // or the stream would stay open after an error
	// Not by the client's own call, which hides how much is to come.
	stream, err := pb.NewMaintenanceClient(client.ActiveConnection()).Snapshot(ctx, &pb.SnapshotRequest{}, grpc.MaxCallRecvMsgSize(math.MaxInt32))
	if err != nil {
		return rpctypes.Error(err)
	}
	w := &checked{Writer: file, sum: sha256.New()}
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return w.check()
		}
		if err != nil {
			return rpctypes.Error(err)
		}
		if _, err := w.Write(part.Blob); err != nil {
			return err
		}
		if report != nil {
			report(w.n, w.n+int64(part.RemainingBytes))
		}
	}
}

// checked computes the checksum of all that is written but its end, which is
// the checksum, and counts what was written.
type checked struct {
	io.Writer
	sum hash.Hash
	end []byte // the last bytes, not in sum yet
	n   int64
}

func (c *checked) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n += int64(n)
	c.end = append(c.end, p[:n]...)
	if more := len(c.end) - sha256.Size; more > 0 {
		c.sum.Write(c.end[:more])
		c.end = append(c.end[:0], c.end[more:]...)
	}
	return n, err
}

// check makes sure that a whole snapshot was written: pages, and the checksum.
func (c *checked) check() error {
	if c.n%512 != sha256.Size {
		return fmt.Errorf("the stream ended after %d bytes, which is no snapshot", c.n)
	}
	if !bytes.Equal(c.sum.Sum(nil), c.end) {
		return errors.New("the checksum at its end does not match: it was damaged on its way")
	}
	return nil
}
