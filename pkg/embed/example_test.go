package embed_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/sirupsen/logrus"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/pkg/embed"
)

// A program that brings its own etcd: it starts keelson in process and hands
// the endpoint to whatever needs one, such as a kube-apiserver's
// --etcd-servers.
func Example() {
	dir, err := os.MkdirTemp("", "keelson")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()

	logger := logrus.New()
	logger.SetLevel(logrus.ErrorLevel)

	// The server runs until ctx ends or Close is called.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	server, err := embed.Start(ctx, embed.Config{
		DataDir:          dir,
		ListenClientURLs: []string{"unix://" + dir + "/keelson.sock"},
		Logger:           logrus.NewEntry(logger),
	})
	if err != nil {
		log.Fatal(err)
	}

	client, err := clientv3.New(clientv3.Config{Endpoints: server.Endpoints()})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := client.Put(ctx, "greeting", "hello"); err != nil {
		log.Fatal(err)
	}
	resp, err := client.Get(ctx, "greeting")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s at revision %d\n", resp.Kvs[0].Value, resp.Kvs[0].ModRevision)

	if err := client.Close(); err != nil {
		log.Fatal(err)
	}
	if err := server.Close(); err != nil {
		log.Fatal(err)
	}
	// Output: hello at revision 2
}
