package raftlog

import (
	"context"
	"net"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

// dial returns a connection to the first of addresses, each host:port or
// unix:path, that answers. It does not block.
func dial(addresses []string, creds *handshakes, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	state := resolver.State{}
	for _, address := range addresses {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: address, ServerName: serverName(address)})
	}
	names := manual.NewBuilderWithScheme("node")
	names.InitialState(state)
	return grpc.NewClient(names.Scheme()+":///node", append(opts,
		grpc.WithResolvers(names), grpc.WithContextDialer(connect), grpc.WithTransportCredentials(creds))...)
}

// serverName is what a node's certificate is for.
func serverName(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil && !strings.HasPrefix(address, "unix:") {
		return host
	}
	return "localhost"
}

// connect makes a connection to an address. Names are resolved each time.
func connect(ctx context.Context, address string) (net.Conn, error) {
	network := "tcp"
	if path, local := strings.CutPrefix(address, "unix:"); local {
		network, address = "unix", path
	}
	return (&net.Dialer{}).DialContext(ctx, network, address)
}
