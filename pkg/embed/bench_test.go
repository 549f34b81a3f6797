package embed_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/keelson-io/keelson/pkg/embed"
)

// BenchmarkKeys gives the README's figures: the start with that many keys of
// 1 KiB, the heap after it, and the times of lists and counts through a client
// on a unix socket.
func BenchmarkKeys(b *testing.B) {
	for _, keys := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			cfg := embed.Config{
				DataDir:           b.TempDir(),
				QuotaBackendBytes: -1,
				Logger:            quiet(),
			}
			cfg.ListenClientURLs = []string{"unix://" + filepath.Join(b.TempDir(), "s")}
			fill(b, cfg, keys)
			runtime.GC()
			start := time.Now()
			server, client := serve(b, cfg)
			started := time.Since(start)
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			measure := func(name string, op func()) {
				op() // warm
				start := time.Now()
				op()
				b.ReportMetric(float64(time.Since(start).Microseconds())/1000, name)
			}
			for b.Loop() {
				measure("list-ms", func() { get(b, client, "/registry/", clientv3.WithPrefix(), clientv3.WithLimit(100_000)) })
				measure("pages-of-500-ms", func() { pages(b, client, 100_000, 500) })
				measure("count-ms", func() { get(b, client, "/registry/", clientv3.WithPrefix(), clientv3.WithCountOnly()) })
			}
			b.ReportMetric(float64(started.Milliseconds()), "start-ms") // the loop clears metrics
			b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "heap-MiB")
			_ = client.Close()
			if err := server.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func quiet() *logrus.Entry {
	logger := logrus.New()
	logger.SetLevel(logrus.ErrorLevel)
	return logrus.NewEntry(logger)
}

func serve(b *testing.B, cfg embed.Config) (*embed.Server, *clientv3.Client) {
	b.Helper()
	server, err := embed.Start(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: server.Endpoints(), Logger: zap.NewNop()})
	if err != nil {
		b.Fatal(err)
	}
	return server, client
}

// fill writes keys, a hundred in a transaction.
func fill(b *testing.B, cfg embed.Config, keys int) {
	b.Helper()
	server, client := serve(b, cfg)
	random := make([]byte, 1024)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	value := string(random)
	for i := 0; i < keys; i += 100 {
		var ops []clientv3.Op
		for j := range 100 {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("/registry/pods/default/%08d", i+j), value))
		}
		if _, err := client.Txn(b.Context()).Then(ops...).Commit(); err != nil {
			b.Fatal(err)
		}
	}
	_ = client.Close()
	if err := server.Close(); err != nil {
		b.Fatal(err)
	}
}

func get(b *testing.B, client *clientv3.Client, key string, opts ...clientv3.OpOption) *clientv3.GetResponse {
	b.Helper()
	resp, err := client.Get(b.Context(), key, opts...)
	if err != nil {
		b.Fatal(err)
	}
	return resp
}

// pages lists keys as kube-apiserver's paged lists do: at one revision.
func pages(b *testing.B, client *clientv3.Client, keys, size int) {
	b.Helper()
	from, revision := "/registry/", int64(0)
	for n := 0; n < keys; {
		resp := get(b, client, from, clientv3.WithRange("/registry0"), clientv3.WithLimit(int64(size)), clientv3.WithRev(revision))
		n += len(resp.Kvs)
		revision = resp.Header.Revision
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}
