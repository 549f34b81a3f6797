// Keelson serves the etcd v3 API from a revision-numbered log in SQL.
package main

import (
	"os"

	"github.com/keelson-io/keelson/pkg/cmd"
)

func main() {
	os.Exit(cmd.Execute(os.Args[1:]))
}
