package embed

import (
	"context"
	"errors"
	stdlog "log"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"

	"github.com/keelson-io/keelson/pkg/listen"
	"github.com/keelson-io/keelson/pkg/server"
)

// Limits of connections. There is none on the time of an HTTP request: the
// JSON API has streams.
const (
	httpHeaderTimeout = 10 * time.Second
	httpIdleTimeout   = 2 * time.Minute

	// grpcHandshakeTimeout bounds the time to the first HTTP/2 settings;
	// gRPC's own limit is two minutes.
	grpcHandshakeTimeout = listen.DefaultSniffTimeout

	// maxHeaderBytes bounds the headers of one request, uncompressed. gRPC's
	// own limit is 16 MiB for each of any number of streams, of which a client
	// sends a few KiB.
	maxHeaderBytes = 64 << 10
)

// Each connection is an open file, and the data must not run out of them.
const (
	reservedFiles = 150 // as etcd has it; metricsConns are among them
	metricsConns  = 50
)

// clientConns is how many connections of clients there may be for a process
// that can have maxFiles open; 0 is no limit.
func clientConns(maxFiles int) int {
	if maxFiles <= 0 {
		return 0
	}
	return max(maxFiles-reservedFiles, maxFiles/4)
}

// build makes the servers; nothing is served yet.
func (s *Server) build() error {
	set := s.set
	registry := newRegistry(s.backend)
	var err error
	if s.backups, err = newBackups(s.backend, registry); err != nil {
		return err
	}
	cfg := server.Config{
		Store:                currentStore{s.backend},
		Hub:                  currentHub{s.backend},
		Lessor:               currentLessor{s.backend},
		Leader:               s.backend.leader,
		ClusterID:            identity("cluster"),
		MemberID:             s.backend.memberID,
		Name:                 set.Name,
		ClientURLs:           s.advertise,
		MaxRequestBytes:      int(set.MaxRequestBytes),
		MaxTxnOps:            int(set.MaxTxnOps),
		QuotaBytes:           set.QuotaBackendBytes,
		MaxConcurrentStreams: set.MaxConcurrentStreams,
		KeepAliveMinTime:     set.GRPCKeepAliveMinTime,
		KeepAliveInterval:    set.GRPCKeepAliveInterval,
		KeepAliveTimeout:     set.GRPCKeepAliveTimeout,
		Responses:            s.backend.responses,
		ProgressInterval:     set.WatchProgressNotifyInterval,
		SlowRequest:          set.WarningUnaryRequestDuration,
		ExtensiveMetrics:     set.ExtensiveMetrics,
		Registry:             registry,
		Logger:               s.log,
	}
	if c := s.backend.cluster; c != nil {
		cfg.ClusterID, cfg.Cluster, cfg.Term = c.id.Cluster, nodes{c}, nodes{c}.term
		cfg.MinLeaseTTL = c.set.minLeaseTTL()
	}
	api, err := server.New(cfg)
	if err != nil {
		return err
	}
	s.api = api
	s.grpc = grpc.NewServer(append(api.GRPCOptions(), grpc.WaitForHandlers(true),
		grpc.ConnectionTimeout(grpcHandshakeTimeout), grpc.MaxHeaderListSize(maxHeaderBytes))...)
	api.Register(s.grpc)
	handler := http.NewServeMux()
	handler.Handle("/", api.Handler())
	if set.EnablePprof {
		handler.HandleFunc("/debug/pprof/", pprof.Index)
		handler.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		handler.HandleFunc("/debug/pprof/profile", pprof.Profile)
		handler.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		handler.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	client := handler
	if !set.NoGRPCGateway {
		s.gateway = api.NewGateway()
		client = http.NewServeMux()
		client.Handle("/", handler)
		client.Handle("/v3/", s.gateway)
		client.Handle("/v3beta/", s.gateway)
	}
	s.http = newHTTPServer(s.log, grpcOr(s.grpc, client))
	s.metrics = newHTTPServer(s.log, handler)
	s.mux = listen.NewMux(s.log, 0, clientConns(listen.MaxFiles()))
	s.metricsMux = listen.NewMux(s.log, 0, metricsConns)
	return s.metricsMux.GRPC().Close() // turns gRPC away
}

// grpcOr passes gRPC on that came in through net/http: from clients that
// offered HTTP/1.1 too, so that the mux could not tell.
func grpcOr(g *grpc.Server, rest http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			g.ServeHTTP(w, r)
			return
		}
		rest.ServeHTTP(w, r)
	})
}

func newHTTPServer(log *logrus.Entry, handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: httpHeaderTimeout,
		IdleTimeout:       httpIdleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          stdlog.New(errorLog{log}, "", 0),
	}
}

// serve starts every goroutine.
func (s *Server) serve() {
	if c := s.backend.cluster; c != nil { // first: it registers the services once more
		c.serve(s.api, s.advertise, s.becomeReady, s.fail)
	}
	s.serving.Go(func() { s.fail(ignoreClosed(s.grpc.Serve(s.mux.GRPC()))) })
	if s.gateway != nil {
		s.serving.Go(func() { s.fail(ignoreClosed(s.grpc.Serve(s.gateway.Listener()))) })
	}
	s.serving.Go(func() { s.fail(ignoreClosed(s.http.Serve(s.mux.HTTP()))) })
	s.serving.Go(func() { s.fail(ignoreClosed(s.metrics.Serve(s.metricsMux.HTTP()))) })
	for _, l := range s.listeners {
		mux := s.mux
		if l.metrics {
			mux = s.metricsMux
		}
		s.serving.Go(func() { s.fail(mux.Serve(l, l.certs)) })
	}
	s.api.SetReady(true)
	s.backend.run(s.api.SetReady, s.fail)
	s.backups.start()
}

// ignoreClosed passes over what a server says that was stopped, maybe before
// its goroutine got to serve.
func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// shutdown stops everything from the clients to the disk.
func (s *Server) shutdown() error {
	start := time.Now()
	s.closeListeners()
	s.backups.cancel()
	s.backend.settle() // from here on nothing makes the server ready again
	s.backend.handOver()
	s.api.Stop()
	s.backend.endWatches()
	if !s.drain() {
		s.log.WithField("drain-timeout", s.set.DrainTimeout.String()).Warn("requests still under way were cut off")
	}
	if s.gateway != nil {
		_ = s.gateway.Close()
	}
	_ = s.mux.Close()
	_ = s.metricsMux.Close()
	s.serving.Wait()
	if !s.backups.wait() {
		s.log.WithField("after", backupPatience.String()).Warn("a backup under way does not end; the server ends without it")
	}
	err := s.backend.stop()
	s.log.WithField("took", time.Since(start).Round(time.Millisecond).String()).Info("all connections and the data are closed")
	return err
}

// drain lets requests under way end and reports whether they did in time.
func (s *Server) drain() bool {
	ctx, cancel := context.WithTimeout(context.Background(), s.set.DrainTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, h := range []*http.Server{s.http, s.metrics} {
		wg.Go(func() {
			if h.Shutdown(ctx) != nil {
				_ = h.Close()
			}
		})
	}
	graceful := make(chan struct{})
	go func() { s.grpc.GracefulStop(); close(graceful) }()
	select {
	case <-graceful:
	case <-ctx.Done():
		s.grpc.Stop()
		<-graceful
	}
	wg.Wait() // before cancel, which would cut HTTP requests off
	return ctx.Err() == nil
}

// errorLog takes what net/http logs, which is about single connections.
type errorLog struct{ log *logrus.Entry }

func (e errorLog) Write(p []byte) (int, error) {
	e.log.Debug("http: " + strings.TrimSpace(string(p)))
	return len(p), nil
}
