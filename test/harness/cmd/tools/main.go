// Command tools builds every program that the tests run into the cache, so
// that a test's own time does not hold it.
package main

import (
	"fmt"
	"os"
	"time"

	"github.com/keelson-io/keelson/test/harness"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	for _, name := range harness.ToolNames() {
		began := time.Now()
		path, err := harness.BuildTool(name)
		if err != nil {
			return fmt.Errorf("building %s: %w", name, err)
		}
		if _, err := fmt.Fprintf(os.Stdout, "%s (%v)\n", path, time.Since(began).Round(time.Second)); err != nil {
			return err
		}
	}
	return nil
}
