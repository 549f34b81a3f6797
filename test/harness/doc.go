// Package harness builds the programs that the tests run and starts them.
//
// Nothing here links etcd, Kubernetes or keelson: every program is built by
// `go build` in the module that requires it and runs as a process of its own,
// so that the tests see what a user sees and so that one module's dependency
// versions cannot leak into another's.
//
//	test/tools/etcd  ──go build──▶ etcd, etcdctl, …   ┐
//	test/apiserver   ──go build──▶ kube-apiserver, …  ├─▶ $KEELSON_CACHE/bin
//	the checkout     ──go build──▶ keelson            ┘
//
// Environment:
//
//	KEELSON_CACHE           where built programs are kept (default $HOME/.cache/keelson)
//	KEELSON_BINARY          a keelson to test instead of the checkout's
//	KEELSON_RACE            if not empty, keelson is built with the race detector
//	KEELSON_TEST_BACKEND    etcd or keelson: test only that one (default both)
//	KEELSON_TEST_DATASTORE  sqlite, postgres or cluster: where keelson's data is (default sqlite)
//	KEELSON_POSTGRES_BIN    the directory of initdb and postgres, if they are not found
package harness
