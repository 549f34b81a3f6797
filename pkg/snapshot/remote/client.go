package remote

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
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
}

// defaultDialTimeout is etcdctl's, with time for a handshake on a slow machine.
const defaultDialTimeout = 5 * time.Second

// Dial returns a client of the server, which has answered.
func Dial(ctx context.Context, c Config) (*clientv3.Client, error) {
	config := clientv3.Config{
		Endpoints: c.Endpoints, Username: c.User, Password: c.Password, Logger: zap.NewNop(),
		DialTimeout: c.DialTimeout, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 10 * time.Second,
	}
	if config.DialTimeout == 0 {
		config.DialTimeout = defaultDialTimeout
	}
	if c.CACert != "" || c.Cert != "" || c.Key != "" || c.InsecureSkipTLSVerify {
		info := transport.TLSInfo{
			TrustedCAFile: c.CACert, CertFile: c.Cert, KeyFile: c.Key,
			InsecureSkipVerify: c.InsecureSkipTLSVerify, EmptyCN: true, Logger: zap.NewNop(),
		}
		var err error
		if config.TLS, err = info.ClientConfig(); err != nil {
			return nil, fmt.Errorf("TLS: %w", err)
		}
	}
	client, err := clientv3.New(config)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", c.Endpoints, err)
	}
	try, cancel := context.WithTimeout(ctx, config.DialTimeout)
	defer cancel()
	if _, err := client.Get(try, "\x00"); err != nil {
		return nil, errors.Join(fmt.Errorf("%v: %w", c.Endpoints, err), client.Close())
	}
	return client, nil
}

// Fetch writes a snapshot of the server to the file at path, which must not
// be there. report, if not nil, is told how many bytes have come.
func Fetch(ctx context.Context, client *clientv3.Client, path string, report func(bytes int64)) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // or the stream would stay open after an error
	stream, err := client.Maintenance.SnapshotWithVersion(ctx)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	defer func() { _ = stream.Snapshot.Close() }()
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	size, err := io.Copy(&counted{Writer: file, report: report}, stream.Snapshot)
	if err == nil && size%512 != sha256.Size {
		err = fmt.Errorf("the stream ended after %d bytes, which is no snapshot", size)
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return errors.Join(fmt.Errorf("snapshot: %w", err), os.Remove(path))
	}
	return nil
}

// counted reports how much was written.
type counted struct {
	io.Writer
	n      int64
	report func(int64)
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n += int64(n)
	if c.report != nil {
		c.report(c.n)
	}
	return n, err
}
