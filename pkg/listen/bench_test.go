package listen

import (
	"crypto/tls"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/keelson-io/keelson/pkg/listen/certtest"
)

// BenchmarkGRPC is a small unary call: straight into gRPC, through the mux,
// and through net/http, which is what the mux spares gRPC from.
func BenchmarkGRPC(b *testing.B) {
	ca, dir := certtest.New(b), b.TempDir()
	ca.Issue(b, dir, "server")
	certs, err := LoadCerts(TLSFiles{CertFile: filepath.Join(dir, "server.crt"), KeyFile: filepath.Join(dir, "server.key")}, logrus.NewEntry(logrus.New()))
	if err != nil {
		b.Fatal(err)
	}
	trust := &tls.Config{RootCAs: ca.Pool(), MinVersion: tls.VersionTLS12}
	both := trust.Clone()
	both.NextProtos = []string{"h2", "http/1.1"}
	for _, tt := range []struct {
		name  string
		mux   bool
		certs *Certs
		creds credentials.TransportCredentials
	}{
		{"plain/direct", false, nil, insecure.NewCredentials()},
		{"plain/mux", true, nil, insecure.NewCredentials()},
		{"TLS/mux", true, certs, credentials.NewTLS(trust)},
		{"TLS/nethttp", true, certs, credentials.NewTLS(both)},
	} {
		b.Run(tt.name, func(b *testing.B) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			gs := grpc.NewServer()
			healthpb.RegisterHealthServer(gs, health.NewServer())
			defer gs.Stop()
			if tt.mux {
				mux := NewMux(logrus.NewEntry(logrus.New()), 0, 0)
				hs := &http.Server{Handler: gs}
				go func() { _ = mux.Serve(l, tt.certs) }()
				go func() { _ = gs.Serve(mux.GRPC()) }()
				go func() { _ = hs.Serve(mux.HTTP()) }()
				defer func() { _, _, _ = l.Close(), hs.Close(), mux.Close() }()
			} else {
				go func() { _ = gs.Serve(l) }()
			}
			conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(tt.creds))
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			c := healthpb.NewHealthClient(conn)
			b.SetParallelism(16)
			b.ReportAllocs()
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					if _, err := c.Check(b.Context(), &healthpb.HealthCheckRequest{}); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
