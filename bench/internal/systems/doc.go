// Package systems builds the servers that are compared, starts each as a
// process of its own, and reads from /proc what it costs.
//
//	go.etcd.io/etcd/server/v3   test/tools/etcd      ┐
//	github.com/k3s-io/kine      bench/tools/kine     ├─ go build ─▶ process, unix socket
//	keelson                     the checkout, static │
//	floor                       this program itself  ┘
//
// Those on PostgreSQL get one each, and if told so, several processes and a proxy
// that makes the way there longer.
//
// kine has a module to itself since kine 0.16.4 does not compile with etcd
// 3.7's API, which the client here is of.
package systems
