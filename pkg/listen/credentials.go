package listen

import (
	"context"
	"net"

	"google.golang.org/grpc/credentials"
)

// Credentials are those of gRPC connections to others that have certificates of
// the same kind and want to see this one's. An error says which side refuses
// which certificate, why, and what to do.
func (c *Certs) Credentials() credentials.TransportCredentials {
	return &clientCredentials{TransportCredentials: credentials.NewTLS(c.Client()), certs: c}
}

// clientCredentials read the files of the certificates again when they change.
type clientCredentials struct {
	credentials.TransportCredentials
	certs *Certs
}

func (c *clientCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := credentials.NewTLS(c.certs.Client()).ClientHandshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, c.certs.explain(err, true)
	}
	// With TLS 1.3 the handshake is over for a client before the server has seen
	// its certificate. What comes first is its verdict, or the settings of HTTP/2,
	// which gRPC would wait for, too. Whoever writes before might see a broken
	// pipe instead of the verdict.
	first, err := awaitFirst(ctx, conn)
	if err != nil {
		_ = conn.Close()
		return nil, nil, c.certs.explain(err, true)
	}
	return withPeeked(conn, first), info, nil
}

func (c *clientCredentials) Clone() credentials.TransportCredentials {
	return &clientCredentials{TransportCredentials: c.TransportCredentials.Clone(), certs: c.certs}
}

// awaitFirst reads what conn says first.
func awaitFirst(ctx context.Context, conn net.Conn) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	buf := make([]byte, 64)
	n, err := conn.Read(buf)
	switch {
	case !stop():
		return nil, ctx.Err()
	case n > 0:
		return buf[:n], nil
	}
	return nil, err
}
